//! Tests that need KVM: whole VMM processes with tiny guests, and KVM's own state.
//!
//! They run here where `/dev/kvm` is usable. Where it is not, this executable runs itself inside a
//! virtual KVM host: the same tests, the same assertions. Where that is not possible either, they
//! are ignored, with the reason. The environment variable `MCTL_KVM_TESTS` changes this:
//!
//! | value | meaning |
//! |---|---|
//! | `require` | tests that could run nowhere are a failure |
//! | `inside` | run inside a virtual KVM host even if `/dev/kvm` is usable here |
//! | `ignore` | ignore the tests |

#![allow(
    clippy::unwrap_used,
    reason = "this is test code, which clippy can't tell here"
)]

mod boot;
mod control;
mod harness;
mod msrs;
#[path = "../support/small_disk.rs"]
mod small_disk;
mod suspend;

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use kvm_host::clock::Clock;
use kvm_host::emulator::Emulator;
use kvm_host::pack::{self, HostFile, PackError, Parts};
use kvm_host::probe::{self, KvmKind};
use kvm_host::qemu;
use kvm_host::rerun::{self, Rerun, RerunError};

use harness::VMM_ENV;
use trials::{Arguments, Trial, ignore_if, trials};

/// Changes where the tests run; see above.
const WISH_ENV: &str = "MCTL_KVM_TESTS";
/// Longest that all tests together may take in a virtual host, its boot included.
const INSIDE_DEADLINE: Duration = Duration::from_secs(3600);

/// What the environment asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// Run where it is possible.
    Anywhere,
    Require,
    Inside,
    Ignore,
}

/// Where the tests run.
enum Place {
    Here,
    Inside(Parts),
    Nowhere { reason: String },
}

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    if arguments.list {
        return report(&arguments, None);
    }
    let wish = match wish() {
        Ok(wish) => wish,
        Err(error) => return fail(&error),
    };
    match place(wish) {
        Place::Here => {
            if Emulator::of_this_host().is_some() {
                // A virtual host has one processor, and the tests have deadlines.
                arguments.test_threads = arguments.test_threads.or(Some(1));
            }
            report(&arguments, None)
        }
        Place::Inside(parts) => {
            run_inside(parts).unwrap_or_else(|error| fail(&error_text::with_causes(&error)))
        }
        Place::Nowhere { reason } if wish == Wish::Require => fail(&format!(
            "the tests that need KVM can run nowhere, and {WISH_ENV}=require: {reason}"
        )),
        Place::Nowhere { reason } => {
            say(&format!("tests that need KVM are ignored: {reason}"));
            report(&arguments, Some("no KVM, see above"))
        }
    }
}

fn wish() -> Result<Wish, String> {
    match std::env::var(WISH_ENV).as_deref() {
        Err(_) | Ok("") => Ok(Wish::Anywhere),
        Ok("require") => Ok(Wish::Require),
        Ok("inside") => Ok(Wish::Inside),
        Ok("ignore") => Ok(Wish::Ignore),
        Ok(other) => Err(format!(
            "{WISH_ENV} is {other:?}, not require, inside or ignore"
        )),
    }
}

fn place(wish: Wish) -> Place {
    if Emulator::of_this_host().is_some() {
        return Place::Here;
    }
    let against_here = match wish {
        Wish::Ignore => {
            let reason = format!("{WISH_ENV}=ignore");
            return Place::Nowhere { reason };
        }
        Wish::Inside => format!("{WISH_ENV}=inside"),
        Wish::Anywhere | Wish::Require => match probe::detect() {
            // The guests are so small that it does not matter how fast KVM runs them.
            KvmKind::Hardware { .. } | KvmKind::Virtual { .. } | KvmKind::Software { .. } => {
                return Place::Here;
            }
            missing @ KvmKind::Missing { .. } => missing.to_string(),
        },
    };
    match gather_parts() {
        Ok(parts) => Place::Inside(parts),
        Err(against_inside) => Place::Nowhere {
            reason: format!("{against_here}; no virtual KVM host: {against_inside}"),
        },
    }
}

/// The parts of a virtual host, or the reason why there can be none.
fn gather_parts() -> Result<Parts, String> {
    qemu::check_installed().map_err(|error| error_text::with_causes(&error))?;
    let gather =
        || -> Result<Parts, PackError> { Parts::from_user_cache(&pack::find_init()?, &say) };
    gather().map_err(|error| error_text::with_causes(&error))
}

/// Runs this executable with its arguments in a virtual host.
fn run_inside(parts: Parts) -> Result<ExitCode, RerunError> {
    say("the tests run inside a virtual KVM host (QEMU emulates an AMD processor with SVM)");
    let vmm = format!("{}/mctl-vmm", rerun::PROGRAMS);
    let code = Rerun {
        parts,
        emulator: Emulator::QemuAmd,
        memory_mib: rerun::MEMORY_MIB,
        cpus: 1,
        clock: Clock::Real,
        arguments: std::env::args().skip(1).collect(),
        environment: vec![(VMM_ENV.to_owned(), vmm.clone())],
        files: vec![HostFile::program(env!("CARGO_BIN_EXE_mctl-vmm"), vmm)],
        stdout: None,
        export: None,
        log_folder: Path::new(env!("CARGO_TARGET_TMPDIR")).join("kvm-host"),
    }
    .run(INSIDE_DEADLINE)?;
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Runs the trials and reports them; those that need KVM are ignored if there is a reason.
fn report(arguments: &Arguments, against_kvm: Option<&str>) -> ExitCode {
    let against_mount = small_disk::reason_against_tmpfs();
    let against_both = against_kvm.or(against_mount.as_deref());
    let mut all = trials_without_kvm();
    all.extend(ignore_if(against_kvm, trials_with_kvm()));
    all.extend(ignore_if(against_both, trials_with_kvm_and_mount()));
    trials::run(arguments, all).exit_code()
}

fn trials_without_kvm() -> Vec<Trial> {
    trials![
        boot::files_that_are_no_kernel_are_refused_with_the_reason,
        control::standard_input_that_is_no_listener_is_refused,
    ]
}

fn trials_with_kvm() -> Vec<Trial> {
    trials![
        boot::a_guest_prints_reaches_its_devices_and_powers_off,
        boot::eight_processors_and_eight_gibibytes_boot,
        boot::both_ways_to_reset_are_a_reset,
        boot::a_triple_fault_is_a_crash,
        control::every_client_gets_a_report_of_the_end,
        control::a_greeting_has_state_and_phases,
        control::clients_that_misbehave_lose_their_connection_and_nothing_else,
        control::a_supervisor_may_pass_the_listener_as_standard_input,
        control::all_threads_are_confined_and_a_signal_ends_the_machine_in_order,
        msrs::memory_types_survive_though_kvm_does_not_list_them,
        suspend::chained_cycles_lose_and_repeat_nothing,
        suspend::a_second_suspend_writes_only_what_changed,
        suspend::phases_of_a_suspend_and_of_a_restore_are_adjacent,
        suspend::memory_and_processors_of_any_number_survive,
        suspend::a_paused_guest_stands_still_until_it_is_unpaused,
        suspend::a_paused_machine_can_be_suspended,
        suspend::a_suspend_without_a_directory_fails_and_the_machine_continues,
        suspend::a_cancelled_suspend_leaves_the_machine_running,
        suspend::images_that_are_not_right_are_refused_before_the_guest_runs,
        suspend::the_time_stamp_counter_never_jumps_back_not_even_in_its_first_second,
        suspend::only_who_asked_for_it_hears_that_the_consumption_is_durable,
        suspend::damaged_memory_is_found_after_a_lazy_resume,
        suspend::damaged_memory_is_refused_before_the_guest_runs_if_asked_for,
    ]
}

fn trials_with_kvm_and_mount() -> Vec<Trial> {
    trials![suspend::a_full_file_system_fails_the_suspend_and_the_machine_continues,]
}

#[expect(clippy::print_stderr, reason = "messages of a test executable")]
fn say(text: &str) {
    eprintln!("{text}");
}

fn fail(error: &str) -> ExitCode {
    say(&format!("error: {error}"));
    ExitCode::FAILURE
}
