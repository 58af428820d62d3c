//! That a supervisor loses no machine: resources that run out, many machines, a hostile guest, and a long
//! random run with crashes. Processes and limits are real; only the VMMs are fakes.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "parts of tests"
)]

mod exhaustion;
mod hostile;
mod scale;
mod site;
mod soak;
#[path = "../support/mod.rs"]
mod support;
mod usage;

use std::process::ExitCode;

use trials::{Arguments, ignore_if, trials};

fn main() -> ExitCode {
    let mut all = trials![
        scale::costs_of_lists_and_of_idle_machines_grow_no_faster_than_the_number_of_machines,
        hostile::a_guest_that_floods_its_supervisor_harms_no_other_machine_and_fills_nothing,
        scale::resumes_that_are_requested_together_wait_for_their_turn,
        exhaustion::descriptors::when_out_of_descriptors_each_transition_says_so_and_loses_nothing,
        exhaustion::descriptors::when_out_of_descriptors_nothing_spins_and_waiting_clients_are_served_later,
        exhaustion::descriptors::a_supervisor_that_has_too_few_descriptors_to_start_harms_no_machine,
        exhaustion::processes::when_out_of_processes_only_starts_fail_and_say_so,
        soak::no_machine_is_lost_or_runs_twice_whatever_dies_and_when,
    ];
    let on_a_small_disk = trials![
        exhaustion::space::on_a_full_disk_only_suspends_fail,
        exhaustion::space::if_the_database_cannot_be_written_every_transition_is_refused,
        exhaustion::space::a_stop_that_cannot_be_stored_does_not_interrupt_a_start,
        exhaustion::space::an_end_that_could_not_be_stored_is_stored_with_the_step_after_it,
        exhaustion::space::if_directories_are_read_only_each_transition_says_so_and_loses_nothing,
        exhaustion::space::output_of_a_guest_while_the_disk_is_full_is_in_the_log_afterwards,
    ];
    let obstacle = exhaustion::space::obstacle();
    all.extend(ignore_if(obstacle.as_deref(), on_a_small_disk));
    trials::run(&Arguments::from_args(), all).exit_code()
}
