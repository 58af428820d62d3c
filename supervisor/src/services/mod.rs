//! What uses machines through their handles, without a client's request: published ports, checks,
//! stops of idle machines; and what a new supervisor does about all machines at its start.
//!
//! Each machine has one task per service, from its registration until it is gone. They decide nothing
//! about a machine: they ask its driver.

mod checks;
mod idle_stop;
mod published_ports;
pub(crate) mod reconcile;

use crate::machine::Handle;

/// Starts the services of a machine.
pub(crate) fn attach(handle: &Handle) {
    tokio::spawn(published_ports::serve(handle.clone()));
    tokio::spawn(checks::serve(handle.clone()));
    tokio::spawn(idle_stop::serve(handle.clone()));
}
