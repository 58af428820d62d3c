//! How far a machine came, by what its VMMs have left in its folder: an image, an exit report, and the
//! command line of one that runs. Each of them names the generation of its launch.

use std::io;

use super::image::image_generation;
use super::origin::origin_generation;
use crate::model::process_identity::ProcessIdentity;
use crate::model::record::MachineRecord;
use crate::model::state::State;
use crate::paths::MachineDir;
use crate::vmm_process::CommandLines;

/// What there is in a machine's folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Generation of its whole image, if it has one.
    pub(crate) image_generation: Option<u64>,
    /// VMMs that run, each with the generation of its launch.
    pub(crate) vmms: Vec<(ProcessIdentity, u64)>,
    /// The newest generation that has left anything.
    pub(crate) newest_generation: u64,
}

impl Contents {
    /// Looks into the folder `dir` of the machine `id`. `lines` are the command lines of all VMMs. An
    /// error means that its state is unknown.
    pub(crate) fn look(dir: &MachineDir, id: &str, lines: &CommandLines) -> io::Result<Self> {
        let vmms = lines.of(dir)?;
        let image_generation = image_generation(dir, id)?;
        let ended = origin_generation(&dir.exit_report(), id)?;
        let running = vmms.iter().map(|(_, generation)| *generation);
        let newest = running.chain(image_generation).chain(ended).max();
        Ok(Self {
            image_generation,
            newest_generation: newest.unwrap_or(0),
            vmms,
        })
    }

    /// The state of a machine of which nothing else is known.
    pub(crate) fn state(&self) -> State {
        if !self.vmms.is_empty() {
            State::Started
        } else if self.image_generation.is_some() {
            State::Suspended
        } else {
            State::Stopped
        }
    }

    /// Makes `record` say what the folder does.
    pub(crate) fn bring_up_to_date(&self, record: &mut MachineRecord) {
        record.state = self.state();
        record.generation = self.newest_generation;
        record.image_generation = match record.state {
            State::Suspended => self.image_generation,
            _ => None,
        };
        record.vmm = self.vmms.first().map(|(identity, _)| identity.clone());
        record.facts.image_unusable = None;
        // Whether somebody wanted a stopped machine to be stopped is not known, and it stays so.
        record.facts.stop_requested = record.state == State::Stopped;
        record.facts.restart_due = false;
        record.facts.destroy_due = false;
        record.facts.skip_launch = false;
    }
}
