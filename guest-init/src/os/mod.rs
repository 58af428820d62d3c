//! The guest's operating system as guest-init uses it: system calls, streams on descriptors,
//! clocks, the console, `/proc`, netlink, mounts, the power. Why something is asked of it is
//! decided above: nothing here knows of calls, connections or the main process.

pub(crate) mod clock;
pub(crate) mod console;
pub(crate) mod kernel;
pub(crate) mod mounts;
pub(crate) mod netlink;
pub(crate) mod power;
pub(crate) mod procfs;
pub(crate) mod stream;
#[expect(unsafe_code, reason = "the one place for calls without a safe form")]
pub(crate) mod sys;
pub(crate) mod vsock_diag;
pub(crate) mod vsock_listener;
