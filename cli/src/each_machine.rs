//! Does the same for several machines.

use std::future::Future;

use machine_api::Machine;

use crate::error::CommandError;
use crate::session::Session;

/// Calls `step` for each machine. If it fails for one, the others are still tried. With one machine
/// its error is returned; with several each error is printed, and a summary is returned.
pub(crate) async fn for_each<F: Future<Output = Result<(), CommandError>>>(
    session: &Session,
    machines: Vec<Machine>,
    step: impl Fn(Machine) -> F,
) -> Result<(), CommandError> {
    let total = machines.len();
    let mut failures = Vec::new();
    for machine in machines {
        if let Err(error) = step(machine).await {
            if total > 1 {
                session.output.error(&error, error.hint().as_deref());
            }
            failures.push(error);
        }
    }
    match failures.len() {
        0 => Ok(()),
        1 if total == 1 => Err(failures.remove(0)),
        failed => Err(CommandError::Several {
            failed,
            total,
            kind: failures[0].kind(),
        }),
    }
}
