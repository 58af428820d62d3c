//! Machines: one driver task each, the only owner of its machine's state.
//!
//! `http` sends requests through a [`Handle`]; the driver admits them, stores the new state and
//! only then acts on VMM and guest. What others may see is published as a whole.

pub(crate) mod admission;
pub(crate) mod adopt;
mod bring_up;
pub(crate) mod config;
pub(crate) mod driver;
pub(crate) mod error;
pub(crate) mod handle;
pub(crate) mod host;
pub(crate) mod launch;
pub(crate) mod publish;
pub(crate) mod readiness;
pub(crate) mod record;
pub(crate) mod registry;
pub(crate) mod session;
pub(crate) mod start;
pub(crate) mod state;
pub(crate) mod stop;
pub(crate) mod suspend;
pub(crate) mod timing;
mod unsaved;
pub(crate) mod view;
mod vmm_end;

pub(crate) use error::MachineError;
pub(crate) use handle::{Handle, Until};
pub(crate) use host::Host;
pub(crate) use registry::Registry;
