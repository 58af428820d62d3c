//! A suspended machine continues in a new process exactly where it was, and a failed suspend leaves no
//! trace.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use crate::harness::{COUNT, COUNT_DOTS, DEADLINE, Host, Vmm, WATCH_TSC, dot_and_halt, failure};
use crate::small_disk::SmallDisk;
use vmm_control::{Event, ExitReason, Reply, RequestBody, SuspendFigures, exit_code};

fn suspended(vmm: Vmm<'_>, image: &Path) -> SuspendFigures {
    let mut control = vmm.control();
    let reply = control.suspend(image);
    let (status, report) = vmm.wait();
    assert_eq!(report.reason, ExitReason::Suspended, "{reply:?}");
    assert_eq!(status.code(), Some(exit_code::SUCCESS));
    match reply {
        Reply::Suspended(figures) => figures,
        other => panic!("expected figures, got {other:?}"),
    }
}

fn assert_counted_to_the_end(host: &Host, vmm: Vmm<'_>) {
    let (_, report) = vmm.wait();
    assert_eq!(report.reason, ExitReason::GuestPowerOff);
    assert_eq!(
        host.console(),
        ".".repeat(COUNT_DOTS) + "E",
        "each dot once, all pages right"
    );
}

pub(crate) fn chained_cycles_lose_and_repeat_nothing() {
    let host = Host::with_guest(COUNT);
    let mut vmm = host.boot();
    for cycle in 1..=6 {
        vmm.wait_for_console('.', cycle * 10);
        suspended(vmm, &host.image());
        vmm = host.restore(
            1 + cycle as u64,
            &["--expect-generation", &cycle.to_string()],
        );
    }
    assert_counted_to_the_end(&host, vmm);
}

pub(crate) fn a_second_suspend_writes_only_what_changed() {
    let host = Host::with_guest(COUNT);
    let vmm = host.boot();
    vmm.wait_for_console('.', 5);
    suspended(vmm, &host.image());
    let vmm = host.restore(2, &[]);
    vmm.wait_for_console('.', 10);
    let figures = suspended(vmm, &host.image());
    assert!(figures.pages_changed < 60, "{figures:?}");
    assert!(figures.image_bytes_allocated < 4 << 20, "{figures:?}");
}

pub(crate) fn phases_of_a_suspend_and_of_a_restore_are_adjacent() {
    let host = Host::with_guest(COUNT);
    let vmm = host.boot();
    vmm.wait_for_console('.', 1);
    let figures = suspended(vmm, &host.image());
    let names: Vec<&str> = figures
        .phases
        .iter()
        .map(|phase| phase.name.as_str())
        .collect();
    let expected = [
        "pause",
        "quiesce",
        "collect",
        "scan",
        "retire",
        "memory_write",
        "checksum",
        "sync",
        "commit",
    ];
    assert_eq!(names, expected);
    assert!(
        figures
            .phases
            .windows(2)
            .all(|pair| pair[0].end_ns == pair[1].start_ns)
    );
}

pub(crate) fn memory_and_processors_of_any_number_survive() {
    let host = Host::with_guest(COUNT);
    let vmm = host.boot_with("4", "4096");
    vmm.wait_for_console('.', 3);
    suspended(vmm, &host.image());
    assert_counted_to_the_end(&host, host.restore(2, &["--verify", "full"]));
}

pub(crate) fn a_paused_guest_stands_still_until_it_is_unpaused() {
    let host = Host::with_guest(COUNT);
    let vmm = host.boot();
    vmm.wait_for_console('.', 2);
    let mut control = vmm.control();
    assert_eq!(control.request(RequestBody::Pause), Reply::Done);
    assert_eq!(
        control.request(RequestBody::Pause),
        Reply::Done,
        "it is paused already"
    );
    let before = host.console();
    // Time for some ten dots if it ran. No event says that nothing happens, so there is nothing to poll for.
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(host.console(), before);
    assert_eq!(control.request(RequestBody::Unpause), Reply::Done);
    assert_counted_to_the_end(&host, vmm);
}

pub(crate) fn a_paused_machine_can_be_suspended() {
    let host = Host::with_guest(COUNT);
    let vmm = host.boot();
    vmm.wait_for_console('.', 2);
    assert_eq!(vmm.control().request(RequestBody::Pause), Reply::Done);
    suspended(vmm, &host.image());
    assert_counted_to_the_end(&host, host.restore(2, &[]));
}

pub(crate) fn a_suspend_without_a_directory_fails_and_the_machine_continues() {
    let host = Host::with_guest(COUNT);
    let vmm = host.boot();
    vmm.wait_for_console('.', 2);
    let (kind, message) = failure(vmm.control().suspend(&host.path("nowhere/image")));
    assert_eq!(kind, "io");
    assert!(message.contains("nowhere"), "{message}");
    vmm.wait_for_console('.', 10);
    suspended(vmm, &host.image());
    assert_counted_to_the_end(&host, host.restore(2, &[]));
}

pub(crate) fn a_cancelled_suspend_leaves_the_machine_running() {
    let host = Host::with_guest(COUNT);
    let vmm = host.boot();
    vmm.wait_for_console('.', 2);
    let mut control = vmm.control();
    // In one write, so that the cancellation arrives before anything is saved.
    let image = host.image();
    let lines = format!(
        "{{\"id\":1,\"request\":\"suspend\",\"image\":\"{}\"}}\n{{\"id\":2,\"request\":\"cancel_suspend\"}}\n",
        image.display()
    );
    control.stream.write_all(lines.as_bytes()).unwrap();
    let (kind, _) = failure(control.reply(1));
    assert_eq!(kind, "cancelled");
    let (status, report) = host.restore(2, &[]).wait();
    assert_eq!(report.reason, ExitReason::ImageRefused, "there is no image");
    assert_eq!(status.code(), Some(exit_code::IMAGE_REFUSED));
    assert_counted_to_the_end(&host, vmm);
}

pub(crate) fn images_that_are_not_right_are_refused_before_the_guest_runs() {
    let host = Host::with_guest(COUNT);
    let vmm = host.boot();
    vmm.wait_for_console('.', 2);
    suspended(vmm, &host.image());
    let console = host.console();
    let refused = |extra: &[&str]| {
        let (status, report) = host.restore(2, extra).wait();
        assert_eq!(
            report.reason,
            ExitReason::ImageRefused,
            "{}",
            report.message
        );
        assert_eq!(status.code(), Some(exit_code::IMAGE_REFUSED));
        assert_eq!(host.console(), console, "the guest did not run");
        report.message
    };
    assert!(refused(&["--expect-generation", "7"]).contains("generation"));

    let state = host.image().join("state.bin");
    let good = std::fs::read(&state).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    std::fs::write(&state, flipped).unwrap();
    assert!(refused(&[]).contains("state.bin"));
    std::fs::write(&state, &good[..good.len() - 1]).unwrap();
    assert!(refused(&[]).contains("state.bin"));
    std::fs::write(&state, good).unwrap();

    // The refusals left it intact. Once used, it is refused as well.
    assert_counted_to_the_end(&host, host.restore(2, &[]));
    let (_, report) = host.restore(3, &[]).wait();
    assert!(report.message.contains("consumed"), "{}", report.message);
}

pub(crate) fn a_full_file_system_fails_the_suspend_and_the_machine_continues() {
    let host = Host::with_guest(COUNT);
    std::fs::create_dir(host.path("small")).unwrap();
    let small = SmallDisk::tmpfs(&host.path("small"), "32k");
    let vmm = host.boot();
    vmm.wait_for_console('.', 2);
    let (kind, message) = failure(vmm.control().suspend(small.path()));
    assert_eq!(kind, "no_space", "{message}");
    vmm.wait_for_console('.', 10);
    suspended(vmm, &host.image());
    assert_counted_to_the_end(&host, host.restore(2, &[]));
}

pub(crate) fn the_time_stamp_counter_never_jumps_back_not_even_in_its_first_second() {
    let host = Host::with_guest(WATCH_TSC);
    let mut vmm = host.boot();
    for cycle in 1..=5 {
        vmm.wait_for_console('.', cycle * 2);
        suspended(vmm, &host.image());
        vmm = host.restore(1 + cycle as u64, &[]);
    }
    assert_counted_to_the_end(&host, vmm);
}

/// Changes one byte of guest memory in the image, in a place that the guest does not use.
pub(crate) fn only_who_asked_for_it_hears_that_the_consumption_is_durable() {
    let host = Host::with_guest(&dot_and_halt());
    let vmm = host.boot();
    vmm.wait_for_console('.', 1);
    suspended(vmm, &host.image());
    let mut generation = 1;
    // Whether the client saw that it was not durable, and whether it heard that it became so.
    let mut restored = |extra: &[&str]| {
        generation += 1;
        let vmm = host.restore(generation, extra);
        let mut control = vmm.control();
        let pending = !control.hello.consumption_durable;
        assert!(matches!(
            control.suspend(&host.image()),
            Reply::Suspended(_)
        ));
        vmm.wait();
        let heard = control.events.contains(&Event::ConsumptionDurable);
        (pending, heard)
    };
    let announce = ["--announce", vmm_control::ANNOUNCE_CONSUMPTION];
    // The sync may be over before the client is served, so one restore does not show it.
    let mut tries = 0;
    let end = Instant::now() + DEADLINE;
    loop {
        tries += 1;
        let (pending, heard) = restored(&announce);
        assert_eq!(
            pending, heard,
            "what was pending, and only that, is announced"
        );
        if heard {
            break;
        }
        assert!(Instant::now() < end, "no event in {tries} restores");
    }
    for _ in 0..3 * tries {
        assert_eq!(restored(&[]), (false, false));
    }
}

fn damage_memory(host: &Host) {
    let memory = File::options()
        .write(true)
        .open(host.image().join("memory"))
        .unwrap();
    memory
        .write_all_at(&[0x5a], 0x10_0000 + 0x1000 + 0x800)
        .unwrap();
}

pub(crate) fn damaged_memory_is_found_after_a_lazy_resume() {
    // It halts for ever, so it leaves the processor to the verifier and cannot end before that.
    let host = Host::with_guest(&dot_and_halt());
    let vmm = host.boot();
    vmm.wait_for_console('.', 1);
    suspended(vmm, &host.image());
    damage_memory(&host);
    let (status, report) = host.restore(2, &["--verify", "background"]).wait();
    assert_eq!(report.reason, ExitReason::ImageDamaged);
    assert_eq!(status.code(), Some(exit_code::IMAGE_DAMAGED));
    assert!(report.message.contains("0x100000"), "{}", report.message);
}

pub(crate) fn damaged_memory_is_refused_before_the_guest_runs_if_asked_for() {
    let host = Host::with_guest(COUNT);
    let vmm = host.boot();
    vmm.wait_for_console('.', 2);
    suspended(vmm, &host.image());
    let console = host.console();
    damage_memory(&host);
    let (_, report) = host.restore(2, &["--verify", "full"]).wait();
    assert_eq!(report.reason, ExitReason::ImageRefused);
    assert_eq!(host.console(), console);
}
