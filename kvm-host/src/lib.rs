//! The virtual KVM host: a complete KVM machine on any Linux, by emulation: of an AMD processor in
//! QEMU, or of an Intel or AMD processor in Bochs.
//!
//! `probe` tells whether it is needed. `host` starts one and talks to `kvm-host-init`, the first
//! process inside, which is a binary of this crate and shares `plan` and `protocol` with it.
//! `rerun` starts one for the calling program itself. Guests, their images and the supervisor are
//! given as files; nothing here knows them.

pub mod bochs;
pub mod clock;
pub mod config;
pub mod debian;
pub mod disk;
pub mod emulator;
pub mod host;
pub mod kernel_word;
pub mod last_lines;
pub mod pack;
pub mod plan;
pub mod probe;
pub mod protocol;
pub mod qemu;
pub mod rerun;
pub mod storage;

mod export;
mod follower;
mod installed;
mod keeper;
mod nbd;
mod pulse;
mod qemu_fix;
#[expect(unsafe_code, reason = "the raw system calls of this crate")]
mod sys;
