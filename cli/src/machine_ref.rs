//! Which machine is meant by MACHINE: its id, a unique beginning of it, or its name; or, where it
//! may be left out, the only machine there is.

use client::{ErrorKind, ListFilter};
use machine_api::Machine;

use crate::error::CommandError;
use crate::session::Session;

/// Finds the machine that `given` means, or the only one if nothing is given.
pub(crate) async fn find(session: &Session, given: Option<&str>) -> Result<Machine, CommandError> {
    let machines = session.client.list(&ListFilter::default()).await?;
    match given {
        Some(given) => match choose(machines, given) {
            Err(CommandError::NoSuchMachine { given }) => find_destroyed(session, given).await,
            chosen => chosen,
        },
        None => {
            let machine = only(machines)?;
            session
                .output
                .note(&format!("using machine {} ({})", machine.name, machine.id));
            Ok(machine)
        }
    }
}

/// A destroyed machine is known for a while, by its whole id only: its name may be another's.
async fn find_destroyed(session: &Session, id: String) -> Result<Machine, CommandError> {
    match session.client.machine(&id).await {
        Ok(machine) if machine.id == id => Ok(machine),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        Ok(_) | Err(_) => Err(CommandError::NoSuchMachine { given: id }),
    }
}

/// Finds all that `given` means, or the only one if nothing is given.
pub(crate) async fn find_all(
    session: &Session,
    given: &[String],
) -> Result<Vec<Machine>, CommandError> {
    if given.is_empty() {
        return Ok(vec![find(session, None).await?]);
    }
    let machines = session.client.list(&ListFilter::default()).await?;
    given
        .iter()
        .map(|given| choose(machines.clone(), given))
        .collect()
}

fn only(mut machines: Vec<Machine>) -> Result<Machine, CommandError> {
    match machines.len() {
        0 => Err(CommandError::NoMachines),
        1 => Ok(machines.remove(0)),
        count => Err(CommandError::SeveralMachines { count }),
    }
}

/// Exact ids win over names, names over beginnings of ids.
fn choose(machines: Vec<Machine>, given: &str) -> Result<Machine, CommandError> {
    let exact = machines
        .iter()
        .position(|machine| machine.id == given)
        .or_else(|| machines.iter().position(|machine| machine.name == given));
    if let Some(index) = exact {
        return machines
            .into_iter()
            .nth(index)
            .ok_or(CommandError::NoMachines);
    }
    let mut begun: Vec<Machine> = machines
        .into_iter()
        .filter(|machine| !given.is_empty() && machine.id.starts_with(given))
        .collect();
    match begun.len() {
        0 => Err(CommandError::NoSuchMachine {
            given: given.to_owned(),
        }),
        1 => Ok(begun.remove(0)),
        _ => Err(CommandError::Ambiguous {
            given: given.to_owned(),
            ids: begun.into_iter().map(|machine| machine.id).collect(),
        }),
    }
}
