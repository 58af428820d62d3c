//! The argument MACHINE: an id, the start of one, or a name. Commands that allow it may be called
//! without it if there is only one machine.

use client::{ErrorKind, ListFilter};
use machine_api::Machine;

use crate::error::CommandError;
use crate::session::Session;
use crate::wording::label;

/// One machine.
#[derive(Debug, clap::Args)]
pub(crate) struct MachineArg {
    /// Id, start of an id, or name; optional if there is only one machine
    machine: Option<String>,
}

/// One machine that must be given.
#[derive(Debug, clap::Args)]
pub(crate) struct RequiredMachineArg {
    /// Id, start of an id, or name
    machine: String,
}

/// Any number of machines.
#[derive(Debug, clap::Args)]
pub(crate) struct MachinesArg {
    /// Ids, starts of ids, or names; optional if there is only one machine
    #[arg(value_name = "MACHINE")]
    machines: Vec<String>,
}

impl MachineArg {
    /// Finds the machine that is meant.
    pub(crate) async fn find(&self, session: &Session) -> Result<Machine, CommandError> {
        match &self.machine {
            Some(given) => find_machine(session, given).await,
            None => find_only(session).await,
        }
    }
}

impl RequiredMachineArg {
    /// Finds the machine that is meant.
    pub(crate) async fn find(&self, session: &Session) -> Result<Machine, CommandError> {
        find_machine(session, &self.machine).await
    }
}

impl MachinesArg {
    /// Finds all machines that are meant. Destroyed ones are not found.
    pub(crate) async fn find(&self, session: &Session) -> Result<Vec<Machine>, CommandError> {
        if self.machines.is_empty() {
            return Ok(vec![find_only(session).await?]);
        }
        let machines = list(session).await?;
        self.machines
            .iter()
            .map(|given| choose(machines.clone(), given))
            .collect()
    }
}

async fn list(session: &Session) -> Result<Vec<Machine>, CommandError> {
    Ok(session.client.list(&ListFilter::default()).await?)
}

/// Finds the machine that `given` means.
pub(crate) async fn find_machine(session: &Session, given: &str) -> Result<Machine, CommandError> {
    match choose(list(session).await?, given) {
        Err(CommandError::NoSuchMachine { given }) => find_destroyed(session, given).await,
        chosen => chosen,
    }
}

/// A destroyed machine stays known for a while. It is found only by its whole id, because another
/// machine may have its name now.
async fn find_destroyed(session: &Session, id: String) -> Result<Machine, CommandError> {
    match session.client.machine(&id).await {
        Ok(machine) if machine.id == id => Ok(machine),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        Ok(_) | Err(_) => Err(CommandError::NoSuchMachine { given: id }),
    }
}

/// Finds the only machine, and tells the user which one it is.
async fn find_only(session: &Session) -> Result<Machine, CommandError> {
    let mut machines = list(session).await?;
    match machines.len() {
        0 => Err(CommandError::NoMachines),
        1 => {
            let machine = machines.remove(0);
            session
                .output
                .note(&format!("using machine {}", label(&machine)));
            Ok(machine)
        }
        count => Err(CommandError::SeveralMachines { count }),
    }
}

/// Chooses by exact id, else by name, else by the start of an id.
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
    let mut candidates: Vec<Machine> = machines
        .into_iter()
        .filter(|machine| !given.is_empty() && machine.id.starts_with(given))
        .collect();
    match candidates.len() {
        0 => Err(CommandError::NoSuchMachine {
            given: given.to_owned(),
        }),
        1 => Ok(candidates.remove(0)),
        _ => Err(CommandError::Ambiguous {
            given: given.to_owned(),
            ids: candidates.into_iter().map(|machine| machine.id).collect(),
        }),
    }
}
