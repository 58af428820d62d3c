//! What a new supervisor does first: makes the database and the processes of the host agree.
//!
//! Each machine of the database gets its driver, with what is left of its VMM. The driver decides what
//! to do about that (`model::recovery`).

use anyhow::Context;
use machine_api::MachineState;

use crate::exhaustion;
use crate::machine::Registry;
use crate::machine::driver::Driver;
use crate::machine::found_vmm::FoundVmm;
use crate::machine_folder::{Contents, MachineFile, remove_folder};
use crate::model::event;
use crate::model::record::MachineRecord;
use crate::model::state::State;
use crate::paths::{MachineDir, create_private_dir};
use crate::store::Change;
use crate::vmm_process::CommandLines;

/// Events read for each machine.
const EVENTS: u32 = 30;
/// Folders of unlisted machines that the log names.
const SHOWN_FOLDERS: usize = 10;

/// Fills `registry` with the machines of the database.
pub(crate) async fn reconcile(registry: &Registry) -> anyhow::Result<()> {
    let context = registry.context();
    let lines = CommandLines::read().context("cannot look for running VMMs")?;
    for mut record in context.store.machines().await? {
        let mut events = context.store.events(&record.id, EVENTS).await?;
        if record.state == State::Destroyed {
            registry.add_destroyed(&record, events);
            continue;
        }
        let id = record.id.clone();
        let dir = context.configuration.state_dir.machine(&id);
        if let Some(message) = catch_up(&mut record, &dir, &lines)? {
            let warning = event::warning(record.state, message);
            let changes = vec![
                Change::Machine(Box::new(record.clone())),
                Change::Version(Box::new(record.clone())),
                Change::Event(id.clone(), Box::new(warning.clone())),
            ];
            context.store.commit("store the machine", changes).await?;
            events.insert(0, warning);
        }
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
    remove_destroyed_folders(registry);
    tell_unlisted(registry);
    tokio::spawn(registry.clone().forget_destroyed());
    Ok(())
}

/// Removes what is left of machines whose removal was interrupted after they were stored as destroyed.
fn remove_destroyed_folders(registry: &Registry) {
    for handle in registry.all() {
        if handle.view().state != MachineState::Destroyed {
            continue;
        }
        let dir = registry
            .context()
            .configuration
            .state_dir
            .machine(handle.id());
        if let Err(error) = remove_folder(&dir) {
            tracing::warn!(machine_id = handle.id(), %error, "cannot remove a folder");
        }
    }
}

/// A row that is older than the machine's folder: the database was restored from a backup. What VMMs have
/// left in the folder is the truth then.
fn catch_up(
    record: &mut MachineRecord,
    dir: &MachineDir,
    lines: &CommandLines,
) -> anyhow::Result<Option<String>> {
    let contents = Contents::look(dir, &record.id, lines)
        .with_context(|| format!("cannot look into the folder of machine {}", record.id))?;
    // The generation is stored before a VMM is launched, so none can be newer than its row.
    if contents.newest_generation <= record.generation {
        return Ok(None);
    }
    let message = format!(
        "the database is older than the machine's folder (generation {}, not {}); the folder is \
         believed",
        record.generation, contents.newest_generation
    );
    tracing::warn!(machine_id = record.id, message, "database");
    if let Ok(file) = MachineFile::read(dir)
        && file.id == record.id
    {
        record.config = file.config;
        record.image_ref = file.image_ref;
        record.instance_id = file.instance_id;
    }
    contents.bring_up_to_date(record);
    Ok(Some(message))
}

/// Tells about machines that the database does not know. They are left alone.
fn tell_unlisted(registry: &Registry) {
    match registry.unlisted() {
        Ok(unlisted) if unlisted.is_empty() => {}
        Ok(unlisted) => {
            let folders: Vec<&str> = unlisted.iter().map(|one| one.folder.as_str()).collect();
            let shown = folders[..folders.len().min(SHOWN_FOLDERS)].join(", ");
            let running = unlisted.iter().filter(|one| one.vmm_pid.is_some()).count();
            tracing::warn!(
                count = unlisted.len(),
                running,
                folders = shown,
                database_is_empty = registry.all().is_empty(),
                "the database does not know these machines; they are left as they are \
                 (`mctl adopt` shows them, and takes them back)"
            );
        }
        Err(error) => {
            tracing::error!(%error, "cannot look for machines that the database does not know");
        }
    }
}
