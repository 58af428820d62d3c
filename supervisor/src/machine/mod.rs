//! Machines: one driver task each, the only owner of its machine's state.
//!
//! Those above (`services`, `api`) send messages through a [`Handle`]. The driver admits a command,
//! stores the new state, and only then acts on VMM and guest; what others may see it publishes as
//! a whole. Nothing here knows what uses machines.

pub(crate) mod activity;
mod bring_up;
pub(crate) mod connection_permits;
pub(crate) mod context;
mod disk_claims;
pub(crate) mod driver;
mod error;
mod event_loop;
pub(crate) mod found_vmm;
pub(crate) mod handle;
mod launch;
#[cfg(feature = "leaks")]
mod leaks;
mod main_process;
mod publish;
mod readiness;
mod registry;
pub(crate) mod request;
pub(crate) mod session;
mod transitions;
mod unlisted;
mod unsaved;

pub(crate) use error::MachineError;
pub(crate) use handle::Handle;
pub(crate) use registry::Registry;
