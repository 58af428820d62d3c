//! A machine boots from a kernel file, and the VMM distinguishes the ways in which a guest ends.

use crate::harness::{HELLO, Host, TRIPLE_FAULT, kernel, out_and_halt};
use vmm_control::{ExitReason, exit_code};

pub(crate) fn a_guest_prints_reaches_its_devices_and_powers_off() {
    let host = Host::with_guest(HELLO);
    let (status, report) = host.boot().wait();
    assert_eq!(host.console(), "helloV");
    assert_eq!(report.reason, ExitReason::GuestPowerOff);
    assert_eq!(status.code(), Some(exit_code::SUCCESS));
    assert_eq!((report.machine_id.as_str(), report.generation), ("m1", 1));
}

pub(crate) fn eight_processors_and_eight_gibibytes_boot() {
    let host = Host::with_guest(HELLO);
    let (_, report) = host.boot_with("8", "8192").wait();
    assert_eq!(host.console(), "helloV");
    assert_eq!(report.reason, ExitReason::GuestPowerOff);
}

pub(crate) fn both_ways_to_reset_are_a_reset() {
    for guest in [out_and_halt(0x602, 1), out_and_halt(0x64, 0xfe)] {
        let host = Host::with_guest(&guest);
        let (status, report) = host.boot().wait();
        assert_eq!(report.reason, ExitReason::GuestReset);
        assert_eq!(status.code(), Some(exit_code::GUEST_RESET));
    }
}

pub(crate) fn a_triple_fault_is_a_crash() {
    let host = Host::with_guest(TRIPLE_FAULT);
    let (status, report) = host.boot().wait();
    assert_eq!(
        report.reason,
        ExitReason::GuestCrashed,
        "{}",
        report.message
    );
    assert_eq!(status.code(), Some(exit_code::FAILED));
}

pub(crate) fn files_that_are_no_kernel_are_refused_with_the_reason() {
    let mut bzimage = vec![0; 0x300];
    bzimage[0x202..0x206].copy_from_slice(b"HdrS");
    let mut arm = kernel(HELLO);
    arm[18] = 183;
    let mut low = kernel(HELLO);
    low[64 + 24..64 + 32].copy_from_slice(&0x7000_u64.to_le_bytes());
    let mut huge = kernel(HELLO);
    huge[64 + 40..64 + 48].copy_from_slice(&(1_u64 << 30).to_le_bytes());
    let mut wrapping = kernel(HELLO);
    wrapping[64 + 40..64 + 48].copy_from_slice(&u64::MAX.to_le_bytes());
    let mut truncated = kernel(HELLO);
    truncated.truncate(100);
    let cases = [
        (bzimage, "bzImage"),
        (b"#!/bin/sh\n".repeat(10), "no ELF magic"),
        (b"\x7fELF".to_vec(), "shorter than an ELF header"),
        (arm, "another processor"),
        (low, "below 1 MiB"),
        (huge, "1025 MiB of memory"),
        (wrapping, "wraps"),
        (truncated, "truncated"),
    ];
    for (file, reason) in cases {
        let host = Host::with_kernel_file(&file);
        let (status, report) = host.boot().wait();
        assert!(
            report.message.contains(reason),
            "{reason:?} in {:?}",
            report.message
        );
        assert_eq!(status.code(), Some(exit_code::HOST_REFUSED));
    }
}
