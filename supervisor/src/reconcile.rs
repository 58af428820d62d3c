//! At the start of a supervisor: makes database and living processes agree.
//!
//! For each machine the state in the database and whether its VMM lives decide what happens.
//! Transitions that a crash cut off are finished; a resume that had not consumed its image and
//! whose VMM is gone begins again from that image.

use std::io;
use std::sync::Arc;

use anyhow::Context;
use machine_api::MachineState;
use vmm_control::ExitReason;

use crate::exhausted;
use crate::machine::driver::{Driver, Opening};
use crate::machine::handle::Envelope;
use crate::machine::state::State;
use crate::machine::timing::Trace;
use crate::machine::{Host, Registry};
use crate::paths::MachineDir;
use crate::store::MachineRecord;
use crate::vmm_process::{CommandLines, VmmProcess, read_exit_report};

/// Events read per machine.
const EVENTS: u32 = 30;

/// What was found of a machine's VMM.
#[derive(Debug)]
pub(crate) enum Found {
    /// It runs.
    Alive(VmmProcess),
    /// It is gone. `suspended` where its image is whole.
    Gone {
        /// It left a whole image of its generation.
        suspended: bool,
    },
}

/// What has to be done about a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Nothing.
    Rest,
    /// Kill the process: it should not be there.
    Kill,
    /// Connect and check readiness; then it is started.
    Adopt,
    /// Start (again), from image or from the beginning.
    Start,
    /// Note that the VMM ended, as if it had been seen.
    NoteEnd,
    /// Go on suspending.
    Suspend,
    /// The image is whole: it is suspended.
    Suspended,
    /// Go on stopping.
    Stop,
    /// Go on restarting.
    Restart,
    /// Go on updating.
    Update,
    /// Go on destroying.
    Destroy,
}

/// Decides, from the stored state, whether the VMM lives and whether it left a whole image.
pub(crate) fn plan(state: State, alive: bool, suspended: bool) -> Plan {
    match (state, alive) {
        (State::Created | State::Suspended | State::Stopped | State::Failed, false)
        | (State::Destroyed, false) => Plan::Rest,
        (
            State::Created | State::Suspended | State::Stopped | State::Failed | State::Destroyed,
            true,
        ) => Plan::Kill,
        (State::Starting | State::Started, true) => Plan::Adopt,
        (State::Starting, false) => Plan::Start,
        (State::Started, false) => Plan::NoteEnd,
        (State::Suspending, true) => Plan::Suspend,
        (State::Suspending, false) if suspended => Plan::Suspended,
        (State::Suspending, false) => Plan::NoteEnd,
        (State::Stopping, _) => Plan::Stop,
        (State::Restarting, _) => Plan::Restart,
        (State::Updating, _) => Plan::Update,
        (State::Destroying, _) => Plan::Destroy,
    }
}

/// Gives each machine of the database its driver.
pub(crate) async fn reconcile(host: &Arc<Host>) -> anyhow::Result<Registry> {
    let registry = Registry::new(host.clone());
    let lines = CommandLines::read().context("cannot look for VMMs that run")?;
    for record in host.store.machines().await? {
        let events = host.store.events(&record.id, EVENTS).await?;
        if record.state == State::Destroyed {
            registry.add_destroyed(&record, events);
            continue;
        }
        // Not being able to look must not be taken for an end: the guest would run twice.
        let found = find(host, &record, &lines)
            .with_context(|| format!("cannot look for the VMM of machine {}", record.id))?;
        let dir = host.configuration.state_dir.machine(&record.id);
        let id = record.id.clone();
        let made = crate::machine::registry::make_directory(dir.root())
            .and_then(|()| Driver::new(host.clone(), record.clone(), events.clone()));
        let (driver, handle) = match made {
            // One file that can't be used is no reason to leave all machines alone.
            Err(error) if !exhausted::is_cause(&error) => {
                tracing::error!(machine_id = id, %error, "cannot open a log");
                Driver::without_log(host.clone(), record, events, &error)
            }
            made => made.with_context(|| format!("cannot open the log of machine {id}"))?,
        };
        registry.add(handle);
        tokio::spawn(driver.run(Opening::Found(found)));
    }
    remove_strangers(host, &registry);
    tokio::spawn(registry.clone().forget_destroyed());
    Ok(registry)
}

fn find(host: &Host, record: &MachineRecord, lines: &CommandLines) -> io::Result<Found> {
    let dir = host.configuration.state_dir.machine(&record.id);
    let adopt = |identity: &_| VmmProcess::adopt(identity, &record.id, record.generation, &dir);
    let mut vmm = record.vmm.as_ref().map_or(Ok(None), adopt)?;
    if vmm.is_none() {
        // A launch whose note was lost with the supervisor is found by its command line.
        for identity in lines.of(&dir)? {
            vmm = vmm.map_or_else(|| adopt(&identity), |vmm| Ok(Some(vmm)))?;
        }
    }
    Ok(vmm.map_or_else(|| gone(&dir, record), Found::Alive))
}

/// What there is of a machine whose transition got stuck in this supervisor.
pub(crate) fn find_again(
    record: &MachineRecord,
    dir: &MachineDir,
    vmm: Option<VmmProcess>,
) -> Found {
    vmm.map_or_else(|| gone(dir, record), Found::Alive)
}

/// What a VMM that is gone has left.
fn gone(dir: &MachineDir, record: &MachineRecord) -> Found {
    let report = read_exit_report(&dir.exit_report(), &record.id, record.generation);
    let said = report.is_some_and(|report| report.reason == ExitReason::Suspended);
    Found::Gone {
        suspended: said && dir.image_manifest().exists(),
    }
}

/// Directories of machines that the database does not know: a create that was cut off.
fn remove_strangers(host: &Host, registry: &Registry) {
    let Ok(entries) = std::fs::read_dir(host.configuration.state_dir.machines()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let known = registry.find(&name);
        if known.is_ok_and(|handle| handle.view().state != MachineState::Destroyed) {
            continue;
        }
        tracing::info!(name, "removing the directory of no known machine");
        if let Err(error) = std::fs::remove_dir_all(entry.path()) {
            tracing::warn!(name, %error, "cannot remove it");
        }
    }
}

impl Driver {
    /// Carries on from what an earlier supervisor left.
    pub(crate) async fn take_over(&mut self, found: Found) -> Option<Envelope> {
        let (vmm, suspended) = match found {
            Found::Alive(vmm) => (Some(vmm), false),
            Found::Gone { suspended } => {
                self.remove_sockets();
                (None, suspended)
            }
        };
        let plan = plan(self.state(), vmm.is_some(), suspended);
        self.set_vmm(vmm);
        match plan {
            Plan::Rest => {
                self.resume_restart();
                self.destroy_if_due("rest.destroy_due").await;
                None
            }
            Plan::Kill => {
                self.kill_stray_vmm().await;
                None
            }
            Plan::Adopt => self.adopt().await,
            Plan::Start => self.start_again().await,
            Plan::NoteEnd => self.note_unseen_end().await,
            Plan::Suspend => self.adopt_suspending().await,
            Plan::Suspended => {
                self.note_suspended();
                None
            }
            Plan::Stop => {
                self.carry_out_stop(self.default_stop(), Trace::begin())
                    .await
            }
            Plan::Restart => {
                self.carry_out_restart(self.default_stop(), &mut Trace::begin())
                    .await
            }
            Plan::Update => self.carry_out_update(&mut Trace::begin()).await,
            Plan::Destroy => {
                self.finish_destroy().await;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_state_with_and_without_a_vmm_has_its_plan() {
        let alive = State::ALL.map(|state| plan(state, true, false));
        let gone = State::ALL.map(|state| plan(state, false, false));
        use Plan::{
            Adopt, Destroy, Kill, NoteEnd, Rest, Restart, Start, Stop, Suspend, Suspended, Update,
        };
        assert_eq!(
            alive,
            [
                Kill, Adopt, Adopt, Suspend, Kill, Stop, Kill, Restart, Update, Destroy, Kill, Kill
            ]
        );
        assert_eq!(
            gone,
            [
                Rest, Start, NoteEnd, NoteEnd, Rest, Stop, Rest, Restart, Update, Destroy, Rest,
                Rest
            ]
        );
        assert_eq!(plan(State::Suspending, false, true), Suspended);
    }
}
