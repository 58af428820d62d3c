//! What a machine is and what may happen to it: states, records, policies and their rules.
//!
//! Data and pure functions only. They read the clock and draw ids where a record is made, do no
//! I/O and wait for nothing. Everything above uses them; they use nothing above.

pub(crate) mod admission;
pub(crate) mod config_check;
pub(crate) mod event;
pub(crate) mod graceful_stop;
pub(crate) mod guest_share;
pub(crate) mod machine_checks;
pub(crate) mod process_identity;
pub(crate) mod record;
pub(crate) mod recovery;
pub(crate) mod restart_policy;
pub(crate) mod settings;
pub(crate) mod state;
pub(crate) mod timing;
pub(crate) mod view;
pub(crate) mod vsock_diagnosis;
