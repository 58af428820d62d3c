//! Every unsafe block of this crate: a child that dies with its parent, guest memory given to KVM,
//! the time-stamp counter.
//!
//! Mechanism only; the callers decide when to use it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use rustix::io::FdFlags;
use rustix::process::Signal;

/// Makes the child die with the *thread* that spawns it, and keep `inherited` open under their
/// numbers.
///
/// The kernel ties the child to the spawning thread, not to the process, so that thread must
/// live as long as the child.
pub(crate) fn tie_to_this_thread(command: &mut Command, inherited: Vec<OwnedFd>) {
    signal_at_end_of_this_thread(command, Signal::KILL, inherited);
}

/// As [`tie_to_this_thread`], for a child that cleans up when it is terminated.
pub(crate) fn terminate_with_this_thread(command: &mut Command) {
    signal_at_end_of_this_thread(command, Signal::TERM, Vec::new());
}

fn signal_at_end_of_this_thread(command: &mut Command, signal: Signal, inherited: Vec<OwnedFd>) {
    let parent = rustix::process::getpid();
    let between_fork_and_exec = move || -> io::Result<()> {
        rustix::process::set_parent_process_death_signal(Some(signal))?;
        // The parent may have died before the signal was asked for.
        if rustix::process::getppid() != Some(parent) {
            return Err(io::Error::from(rustix::io::Errno::SRCH));
        }
        for descriptor in &inherited {
            rustix::io::fcntl_setfd(descriptor, FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. The closure makes
    // system calls and allocates nothing: `io::Error` from an errno is a plain value.
    unsafe { command.pre_exec(between_fork_and_exec) };
}

/// Gives `memory` to a VM as its physical memory from address 0.
pub(crate) fn map_guest_memory(
    vm: &VmFd,
    memory: &vm_memory::MmapRegion,
) -> Result<(), kvm_ioctls::Error> {
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: memory.size() as u64,
        userspace_addr: memory.as_ptr() as u64,
    };
    // SAFETY: the range is one whole mapping. The only caller keeps it longer than the VM, and
    // reads and writes it only by volatile accesses.
    unsafe { vm.set_user_memory_region(region) }
}

/// The CPU's time-stamp counter.
pub(crate) fn time_stamp() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and Linux lets programs use it unless one
    // forbids it to itself (PR_SET_TSC), which nothing here does.
    unsafe { std::arch::x86_64::_rdtsc() }
}
