//! A small KVM virtual machine monitor: one process, one machine.
//!
//! The binary `mctl-vmm` parses its command line and calls this library, which is one so that tests and
//! benchmarks reach the parts.

pub mod boot;
pub mod bus;
mod bytes;
pub mod clock;
pub mod command_line;
pub mod control;
pub mod devices;
mod epoll;
pub mod image;
#[cfg(feature = "leaks")]
pub mod leaks;
pub mod log;
pub mod machine;
pub mod memory;
pub mod page;
pub mod phases;
pub mod process;
pub mod sandbox;
pub mod vcpu;
pub mod vm;

#[expect(unsafe_code, reason = "the one place for raw system calls and ioctls")]
mod sys;
