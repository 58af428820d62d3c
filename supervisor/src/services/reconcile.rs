//! What a new supervisor does first: makes the database and the processes of the host agree.
//!
//! Each machine of the database gets its driver, with what is left of its VMM. The driver decides what
//! to do about that (`model::recovery`).

use std::sync::Arc;

use anyhow::Context;
use machine_api::MachineState;

use crate::exhaustion;
use crate::machine::Registry;
use crate::machine::context::DriverContext;
use crate::machine::driver::Driver;
use crate::machine::found_vmm::FoundVmm;
use crate::model::state::State;
use crate::paths::create_private_dir;
use crate::vmm_process::CommandLines;

/// Events read for each machine.
const EVENTS: u32 = 30;

/// Fills `registry` with the machines of the database.
pub(crate) async fn reconcile(registry: &Registry) -> anyhow::Result<()> {
    let context = registry.context();
    let lines = CommandLines::read().context("cannot look for running VMMs")?;
    for record in context.store.machines().await? {
        let events = context.store.events(&record.id, EVENTS).await?;
        if record.state == State::Destroyed {
            registry.add_destroyed(&record, events);
            continue;
        }
        let id = record.id.clone();
        let dir = context.configuration.state_dir.machine(&id);
        // A VMM whose state is unknown must not be taken for ended: the guest would run twice.
        let found = FoundVmm::look(&record, &dir, &lines)
            .with_context(|| format!("cannot look for the VMM of machine {id}"))?;
        let made = create_private_dir(dir.root())
            .and_then(|()| Driver::new(context.clone(), record.clone(), events.clone()));
        let (driver, handle) = match made {
            // One unusable file is no reason to give up all machines.
            Err(error) if !exhaustion::is_exhaustion(&error) => {
                tracing::error!(machine_id = id, %error, "cannot open a log");
                Driver::without_log(context.clone(), record, events, &error)
            }
            made => made.with_context(|| format!("cannot open the log of machine {id}"))?,
        };
        registry.add(driver, &handle, Some(found));
    }
    remove_unknown_directories(context, registry);
    tokio::spawn(registry.clone().forget_destroyed());
    Ok(())
}

/// Removes directories of machines that the database does not know, which an interrupted create has
/// left.
fn remove_unknown_directories(context: &Arc<DriverContext>, registry: &Registry) {
    let Ok(entries) = std::fs::read_dir(context.configuration.state_dir.machines()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let known = registry.find(&name);
        if known.is_ok_and(|handle| handle.view().state != MachineState::Destroyed) {
            continue;
        }
        tracing::info!(name, "removing the directory of an unknown machine");
        if let Err(error) = std::fs::remove_dir_all(entry.path()) {
            tracing::warn!(name, %error, "cannot remove it");
        }
    }
}
