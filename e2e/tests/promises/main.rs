//! What the whole system promises, shown on real Linux guests through its public API.
//!
//! One file per promise. Where this machine's KVM can't run Linux, this executable packs itself
//! into a virtual KVM host and runs there: the same tests, the same assertions.

mod boot;
mod bytes;
mod chained_cycles;
mod cli;
mod crash_recovery;
mod damaged_image;
mod exec;
mod failed_suspend;
mod files;
mod instruments;
mod last_words;
mod lifecycle;
mod logs;
mod peer;
mod published_ports;
mod stage;
mod suspend_resume;
mod terminal;
mod vsock;

use std::process::ExitCode;
use std::time::Duration;

use cycles::KvmKind;
use kvm_host::pack::HostFile;
use kvm_host::rerun::{EXPORT, Rerun};
use libtest_mimic::{Arguments, Trial};

use e2e::artifacts::GuestImage;
use e2e::host;
use peer::FIRECRACKER_ENV;
use stage::{IMAGES_ENV, Stage};

/// Longest that all tests together may take in a virtual host.
const DEADLINE: Duration = Duration::from_secs(1800);
/// Where guest images lie inside a virtual host.
const INSIDE_IMAGES: &str = "/images";
/// Where a Firecracker lies there, if one was supplied.
const INSIDE_FIRECRACKER: &str = "/usr/bin/firecracker";
/// Programs that the tests run.
const BINARIES: [&str; 3] = ["mctl", "mctl-supervisor", "mctl-vmm"];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Some promises are about what a machine does within seconds, so tests must not wait for each
    // other: a virtual host has one processor, others have two at least.
    let at_once = match host::kind_of_kvm() {
        (KvmKind::Virtual, _) => 1,
        _ => 2,
    };
    arguments.test_threads = arguments.test_threads.or(Some(at_once));
    if !arguments.list && !host::runs_linux_here() {
        return rerun_inside().unwrap_or_else(failed);
    }
    let mut trials = trials();
    trials.extend(trials_of_a_peer());
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn failed(error: anyhow::Error) -> ExitCode {
    e2e::output::error(&error);
    ExitCode::FAILURE
}

/// Runs this executable with its arguments in a virtual host.
fn rerun_inside() -> anyhow::Result<ExitCode> {
    let (_, sentence) = host::kind_of_kvm();
    e2e::output::say(&sentence);
    let folder = e2e::artifacts::binaries()?.join("promises");
    std::fs::create_dir_all(&folder)?;
    let images = [GuestImage::Default, GuestImage::Leaky];
    let mut files = host::image_files(&folder, &images, INSIDE_IMAGES)?;
    files.extend(host::binaries_for_inside(&BINARIES)?);
    let mut environment = vec![(IMAGES_ENV.to_owned(), INSIDE_IMAGES.to_owned())];
    if let Some(binary) = std::env::var_os(FIRECRACKER_ENV) {
        files.push(HostFile::program(binary, INSIDE_FIRECRACKER));
        environment.push((FIRECRACKER_ENV.to_owned(), INSIDE_FIRECRACKER.to_owned()));
    }
    let code = Rerun {
        parts: host::parts()?,
        arguments: std::env::args().skip(1).collect(),
        environment,
        files,
        export: Some((EXPORT, &folder.join("logs"))),
        log_folder: folder.clone(),
        deadline: DEADLINE,
    }
    .run()?;
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Makes a list of trials from test functions, named by their path.
macro_rules! promises {
    ($($file:ident: $($name:ident),+ $(,)?;)+) => {
        vec![$($(Trial::test(concat!(stringify!($file), "::", stringify!($name)), || {
            Stage::run(stringify!($name), |stage| Box::pin($file::$name(stage)))
        })),+),+]
    };
}

fn trials() -> Vec<Trial> {
    promises! {
        boot:
            a_machine_boots_and_its_output_is_kept,
            a_machine_has_the_processors_and_memory_it_was_given,
            a_main_process_that_ends_stops_its_machine_and_its_exit_code_is_told,
            stop_ends_the_main_process_with_its_signal,
            a_disk_keeps_what_the_guest_wrote;
        suspend_resume:
            a_guest_lives_on_through_suspend_and_resume,
            a_second_suspend_writes_only_what_changed,
            the_wall_clock_is_right_after_a_resume,
            phases_sum_to_the_total,
            eight_processors_and_memory_above_4_gib_come_back,
            output_is_neither_lost_nor_doubled_by_a_resume;
        chained_cycles:
            twenty_cycles_each_need_one_attempt_and_leave_no_socket;
        vsock:
            an_idle_connection_of_an_older_generation_is_closed_in_the_guest,
            the_leaky_init_leaks_one_socket_per_cycle_without_eviction,
            eviction_frees_the_pairs_of_a_leaky_init,
            fixed_ports_collide_with_leaked_pairs_and_the_attempts_say_so;
        exec:
            exit_codes_and_both_outputs_arrive,
            a_command_that_takes_too_long_is_killed,
            a_missing_program_is_named,
            mctl_exec_carries_streams_and_exit_codes_as_a_local_command_would;
        terminal:
            a_program_has_the_users_terminal_its_size_its_keys_and_its_exit_code;
        files:
            a_file_arrives_unchanged_with_its_mode_in_both_directions,
            a_copy_that_can_not_be_made_says_why_and_leaves_nothing;
        logs:
            lines_are_kept_through_a_resume_and_cut_by_number_time_and_follow;
        published_ports:
            a_published_port_carries_megabytes_both_ways_and_each_end_by_itself,
            an_idle_machine_is_suspended_and_the_next_connection_waits_until_it_is_back,
            checks_follow_the_guest_and_connections_wait_for_those_of_readiness;
        failed_suspend:
            a_full_disk_leaves_the_machine_running_and_says_so,
            a_start_breaks_a_suspend_off_and_the_same_process_goes_on;
        damaged_image:
            a_flipped_bit_in_the_state_boots_cold_with_the_reason,
            a_damaged_memory_file_fails_the_machine_and_names_the_range;
        crash_recovery:
            a_killed_supervisor_loses_no_machine,
            a_killed_vmm_is_noticed,
            a_machine_that_shall_always_run_is_booted_again_after_its_vmm_was_killed,
            a_main_process_that_keeps_failing_is_given_up_after_its_retries,
            a_suspended_machine_survives_a_killed_supervisor;
        cli:
            the_commands_of_the_readme_work,
            doctor_finds_a_usable_host;
        lifecycle:
            signals_metadata_versions_restarts_and_clones_work_on_a_real_guest,
            a_lease_and_a_cordon_keep_others_away_from_a_real_guest,
            a_main_process_that_takes_too_much_memory_is_told_so;
        instruments:
            a_leak_is_told_with_its_size_its_beginning_and_its_cost,
            a_healthy_machine_is_told_healthy_and_a_bench_of_it_makes_a_report;
    }
}

/// What needs a binary that this project does not ship: ignored without it, and says so.
fn trials_of_a_peer() -> Vec<Trial> {
    let trials = promises! {
        peer:
            a_firecracker_goes_through_the_same_cycles_with_either_init;
    };
    if std::env::var_os(FIRECRACKER_ENV).is_some() {
        return trials;
    }
    let needed = format!("needs {FIRECRACKER_ENV}=PATH of a static Firecracker binary");
    let ignored = |trial: Trial| trial.with_kind(&needed).with_ignored_flag(true);
    trials.into_iter().map(ignored).collect()
}
