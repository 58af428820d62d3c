//! The promises of the whole system, shown on real Linux guests through its public API.
//!
//! One file per promise. If this machine's KVM cannot run Linux, or the variable `MCTL_E2E_KVM` asks
//! for another (`intel`, say), this executable runs itself in virtual KVM hosts: the same tests, the
//! same assertions. Deadlines inside then count virtual time, so that no test fails because this
//! machine is busy.

mod boot;
mod bytes;
mod chained_cycles;
mod cli;
mod crash_recovery;
mod damaged_image;
mod exec;
mod failed_suspend;
mod failure_details;
mod files;
mod instruments;
mod lifecycle;
mod logs;
mod peer;
mod processor;
mod published_ports;
mod stage;
mod suspend_resume;
mod suspended_disk;
mod terminal;
mod vsock;

use std::process::ExitCode;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use cycles::KvmKind;
use kvm_host::clock::Clock;
use kvm_host::emulator::Emulator;
use kvm_host::pack::HostFile;
use kvm_host::rerun::{EXPORT, MEMORY_MIB, Rerun, Running};
use libtest_mimic::{Arguments, Trial};

use e2e::artifacts::GuestImage;
use e2e::host;
use e2e::kvm_place::{KvmArguments, KvmPlace};
use e2e::kvm_process::lines;
use peer::{Binary, CLOUD_HYPERVISOR, FIRECRACKER};
use stage::{IMAGES_ENV, Stage};

/// Longest that all tests together may take in a virtual host, by this machine's clock: minutes, but
/// beside four other programs on two processors half an hour.
const DEADLINE: Duration = Duration::from_secs(7200);
/// Folder of the guest images in a virtual host.
const INSIDE_IMAGES: &str = "/images";
/// The trials that a virtual host is to run, separated by commas; all of them if it is not set.
const SELECTED_ENV: &str = "MCTL_TEST_SELECTED";
/// Trials of guests with several vCPUs.
const SEVERAL_VCPUS: [&str; 2] = [
    "boot::a_machine_has_the_processors_and_memory_it_was_given",
    "suspend_resume::eight_processors_and_memory_above_4_gib_are_restored",
];

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Some promises are about seconds, so tests must not compete for processors: a virtual host has
    // one, others have at least two.
    let place = match KvmArguments::from_environment().and_then(KvmArguments::place) {
        Ok(place) => place,
        Err(error) => return print_error(error),
    };
    let threads = match place.kind() {
        KvmKind::Virtual => 1,
        _ => 2,
    };
    arguments.test_threads = arguments.test_threads.or(Some(threads));
    if !arguments.list && place != KvmPlace::Here {
        return rerun_inside(place, &arguments).unwrap_or_else(print_error);
    }
    let mut trials = all_trials();
    if let Ok(selected) = std::env::var(SELECTED_ENV) {
        trials.retain(|trial| selected.split(',').any(|name| name == trial.name()));
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Prints whole lines only: several hosts write at the same time.
#[expect(clippy::print_stdout, reason = "the output of the tests")]
fn print_lines(pieces: Receiver<Vec<u8>>) {
    for line in lines(pieces) {
        println!("{}", String::from_utf8_lossy(&line));
    }
}

fn print_error(error: anyhow::Error) -> ExitCode {
    e2e::output::error(&error);
    ExitCode::FAILURE
}

/// Runs this executable with its arguments in virtual hosts: most promises in virtual time, in as
/// many hosts at once as there are processors, then those that need real time.
fn rerun_inside(place: KvmPlace, arguments: &Arguments) -> anyhow::Result<ExitCode> {
    e2e::output::say(&place.sentence());
    let shards = place.runs_at_once();
    let virtual_time: Vec<Share> = (0..shards)
        .map(|number| Share::VirtualTime { number, shards })
        .collect();
    let mut code = 0;
    for shares in [virtual_time, vec![Share::RealTime]] {
        let mut running = Vec::new();
        for share in shares {
            if !share.names(place, arguments).is_empty() {
                running.push(Inside::start(place, share)?);
            }
        }
        for inside in running {
            code = code.max(inside.wait()?);
        }
    }
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// A part of the promises that runs in one virtual host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Share {
    /// Those with one vCPU, dealt out in turns.
    VirtualTime { number: usize, shards: usize },
    /// Those with several, which spin while they wait for each other: see [`Clock::Virtual`].
    RealTime,
}

impl Share {
    /// The name of its folder.
    fn name(self) -> String {
        match self {
            Self::VirtualTime { number, .. } => format!("virtual-time-{number}"),
            Self::RealTime => "real-time".to_owned(),
        }
    }

    fn clock(self, place: KvmPlace) -> Clock {
        match self {
            Self::VirtualTime { .. } => place.clock(),
            Self::RealTime => Clock::Real,
        }
    }

    /// The promises of this share that the arguments select.
    fn names(self, place: KvmPlace, arguments: &Arguments) -> Vec<String> {
        let needs_real_time = |name: &str| {
            // Bochs leaves no loop at PAUSE.
            let spins_slowly =
                matches!(place, KvmPlace::Virtual { emulator, .. } if !emulator.is_bochs());
            spins_slowly && SEVERAL_VCPUS.contains(&name)
        };
        let mut names: Vec<String> = all_trials()
            .iter()
            .map(|trial| trial.name().to_owned())
            .filter(|name| is_selected(arguments, name))
            .filter(|name| needs_real_time(name) == (self == Self::RealTime))
            .collect();
        if let Self::VirtualTime { number, shards } = self {
            names = names.into_iter().skip(number).step_by(shards).collect();
        }
        names
    }
}

/// As libtest-mimic selects.
fn is_selected(arguments: &Arguments, name: &str) -> bool {
    let matches = |filter: &String| {
        if arguments.exact {
            name == filter
        } else {
            name.contains(filter.as_str())
        }
    };
    arguments.filter.as_ref().is_none_or(matches) && !arguments.skip.iter().any(matches)
}
/// One share while it runs in its virtual host.
struct Inside {
    running: Running,
    /// Shows what it writes.
    printer: JoinHandle<()>,
}

impl Inside {
    fn start(place: KvmPlace, share: Share) -> anyhow::Result<Self> {
        let KvmPlace::Virtual { emulator, cpus } = place else {
            anyhow::bail!("the promises run here");
        };
        let folder = e2e::artifacts::binaries()?.join(match emulator {
            Emulator::QemuAmd => "promises".to_owned(),
            other => format!("promises-{}", other.name()),
        });
        std::fs::create_dir_all(&folder)?;
        let images = [GuestImage::Default, GuestImage::Leaky];
        let mut files = host::files_for_guests(&folder, &images, &[], INSIDE_IMAGES)?;
        let selected = share.names(place, &Arguments::from_args());
        let mut environment = vec![
            (IMAGES_ENV.to_owned(), INSIDE_IMAGES.to_owned()),
            (SELECTED_ENV.to_owned(), selected.join(",")),
        ];
        for Binary { variable, inside } in [FIRECRACKER, CLOUD_HYPERVISOR] {
            if let Some(binary) = std::env::var_os(variable) {
                files.push(HostFile::program(binary, inside));
                environment.push((variable.to_owned(), inside.to_owned()));
            }
        }
        let name = share.name();
        let (sender, output) = channel();
        let running = Rerun {
            parts: host::parts()?,
            emulator,
            memory_mib: MEMORY_MIB,
            cpus,
            clock: share.clock(place),
            arguments: std::env::args().skip(1).collect(),
            environment,
            files,
            stdout: Some(sender),
            export: Some((EXPORT, &folder.join(&name).join("logs"))),
            log_folder: folder.join(&name),
        }
        .start()?;
        let printer = std::thread::Builder::new()
            .name("output".to_owned())
            .spawn(move || print_lines(output))?;
        Ok(Self { running, printer })
    }

    fn wait(self) -> anyhow::Result<i32> {
        let code = self.running.wait(DEADLINE);
        // It ends with the host; a panic of it has been shown.
        let _ = self.printer.join();
        Ok(code?)
    }
}

/// A list of trials from test functions, named by their path.
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
            a_machine_boots_and_its_output_is_logged,
            a_machine_has_the_processors_and_memory_it_was_given,
            a_machine_stops_when_its_main_process_ends_and_reports_the_exit_code,
            stop_sends_the_requested_signal_to_the_main_process,
            a_disk_keeps_what_the_guest_wrote;
        suspend_resume:
            a_guest_survives_suspend_and_resume,
            a_second_suspend_writes_only_what_changed,
            the_wall_clock_is_right_after_a_resume,
            phases_sum_to_the_total,
            eight_processors_and_memory_above_4_gib_are_restored,
            a_resume_neither_loses_nor_repeats_output;
        chained_cycles:
            twenty_cycles_each_need_one_attempt_and_leave_no_socket;
        vsock:
            the_guest_closes_idle_connections_of_older_generations,
            the_leaky_init_leaks_one_socket_per_cycle_without_eviction,
            eviction_frees_the_pairs_of_a_leaky_init,
            fixed_ports_collide_with_leaked_pairs_and_the_attempts_show_it;
        exec:
            exec_returns_the_exit_code_and_both_output_streams,
            a_command_that_takes_too_long_is_killed,
            the_error_for_a_missing_program_names_it,
            mctl_exec_passes_streams_and_exit_codes_like_a_local_command;
        terminal:
            mctl_exec_passes_the_terminals_size_and_keys_and_the_exit_code;
        files:
            mctl_cp_preserves_content_and_mode_in_both_directions,
            a_failed_copy_says_why_and_leaves_nothing_behind;
        logs:
            logs_survive_a_resume_and_are_selected_by_number_time_and_follow;
        published_ports:
            a_published_port_carries_megabytes_both_ways_and_half_closed_connections,
            an_idle_machine_is_suspended_and_the_next_connection_starts_it_again,
            checks_reflect_the_guest_and_connections_wait_for_readiness_checks;
        failed_suspend:
            a_suspend_on_a_full_disk_says_why_and_leaves_the_machine_running,
            a_start_cancels_a_suspend_and_the_same_vmm_continues;
        damaged_image:
            a_flipped_bit_in_the_saved_state_causes_a_cold_boot_with_the_reason,
            a_damaged_memory_file_fails_the_machine_and_names_the_range;
        suspended_disk:
            a_disk_that_was_written_meanwhile_keeps_its_machine_suspended_until_its_user_decides;
        processor:
            a_guest_has_the_features_of_its_template_and_no_others_before_and_after_a_resume;
        crash_recovery:
            a_killed_supervisor_loses_no_machine,
            a_killed_vmm_is_detected,
            a_machine_with_restart_always_boots_again_after_its_vmm_is_killed,
            a_main_process_that_keeps_failing_is_restarted_only_as_often_as_configured,
            a_suspended_machine_survives_a_killed_supervisor;
        cli:
            the_commands_in_the_readme_work,
            doctor_finds_a_usable_host;
        lifecycle:
            signals_metadata_versions_restarts_and_clones_work_on_a_real_guest,
            a_lease_refuses_requests_of_others_and_a_machine_can_be_cordoned,
            an_exit_event_reports_that_the_main_process_ran_out_of_memory;
        instruments:
            a_leak_is_reported_with_its_size_start_and_cost,
            a_healthy_machine_is_reported_healthy_and_its_bench_writes_a_report;
    }
}

fn all_trials() -> Vec<Trial> {
    let mut trials = trials();
    let firecracker = promises! {
        peer:
            firecracker_runs_the_same_cycles_with_either_init;
    };
    let cloud_hypervisor = promises! {
        peer:
            cloud_hypervisor_runs_the_same_cycles_with_either_init;
    };
    trials.extend(trials_of_a_peer(firecracker, &FIRECRACKER));
    trials.extend(trials_of_a_peer(cloud_hypervisor, &CLOUD_HYPERVISOR));
    trials
}

/// Trials that need a binary that this project does not ship. Without it they are ignored, with the
/// reason.
fn trials_of_a_peer(trials: Vec<Trial>, binary: &Binary) -> Vec<Trial> {
    if std::env::var_os(binary.variable).is_some() {
        return trials;
    }
    let needed = format!("needs {}=PATH of a static binary", binary.variable);
    let ignored = |trial: Trial| trial.with_kind(&needed).with_ignored_flag(true);
    trials.into_iter().map(ignored).collect()
}
