//! A small KVM virtual machine monitor: one process, one machine.
//!
//! The binary `mctl-vmm` only parses its command line and calls into this library; the library
//! exists so that tests and benchmarks reach the parts.

pub mod boot;
pub mod bus;
pub mod clock;
pub mod command_line;
pub mod control;
pub mod devices;
pub mod image;
pub mod log;
pub mod machine;
pub mod memory;
pub mod process;
pub mod sandbox;
pub mod vcpu;
pub mod vm;

#[expect(unsafe_code, reason = "the one place for system calls and ioctls")]
mod sys;
