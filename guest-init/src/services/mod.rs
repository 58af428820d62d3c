//! The services for the requests, one file each. A service gets the connection of one call and
//! returns when it is done. Which calls are admitted, and sending refusals, is the server's part.

#[cfg(not(feature = "leaky"))]
pub(crate) mod cpu_usage;
pub(crate) mod exec;
pub(crate) mod files;
pub(crate) mod forward;
pub(crate) mod launch;
#[cfg(feature = "leaks")]
pub(crate) mod leaks;
#[cfg(feature = "leaky")]
pub(crate) mod leaky;
pub(crate) mod main_output;
pub(crate) mod process_list;
pub(crate) mod refusal;
pub(crate) mod resources;

#[cfg(feature = "leaky")]
pub(crate) use leaky as cpu_usage;
