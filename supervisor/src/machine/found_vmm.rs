//! What there is of a machine's VMM when a driver begins, or retries a transition.

use std::io;

use vmm_control::ExitReason;

use crate::model::record::MachineRecord;
use crate::paths::MachineDir;
use crate::vmm_process::{CommandLines, VmmProcess, read_exit_report};

/// What was found of a machine's VMM.
#[derive(Debug)]
pub(crate) enum FoundVmm {
    /// It runs.
    Alive(VmmProcess),
    /// It has ended.
    Ended {
        /// It has left a whole image of its generation.
        suspended: bool,
    },
}

impl FoundVmm {
    /// Looks for the VMM of `record` among the processes of the host, whose command lines are
    /// `lines`. After an error its state is unknown; it must not be taken for ended.
    pub(crate) fn look(
        record: &MachineRecord,
        dir: &MachineDir,
        lines: &CommandLines,
    ) -> io::Result<Self> {
        let adopt = |identity: &_| VmmProcess::adopt(identity, &record.id, record.generation, dir);
        let mut vmm = record.vmm.as_ref().map_or(Ok(None), adopt)?;
        if vmm.is_none() {
            // A launch that an earlier supervisor died before storing is found by its command line.
            for (identity, _) in lines.of(dir)? {
                vmm = vmm.map_or_else(|| adopt(&identity), |vmm| Ok(Some(vmm)))?;
            }
        }
        Ok(Self::from_process(record, dir, vmm))
    }

    /// `vmm`, or what one that has ended has left.
    pub(crate) fn from_process(
        record: &MachineRecord,
        dir: &MachineDir,
        vmm: Option<VmmProcess>,
    ) -> Self {
        vmm.map_or_else(|| Self::ended(record, dir), Self::Alive)
    }

    fn ended(record: &MachineRecord, dir: &MachineDir) -> Self {
        let report = read_exit_report(&dir.exit_report(), &record.id, record.generation);
        let said = report.is_some_and(|report| report.reason == ExitReason::Suspended);
        Self::Ended {
            suspended: said && dir.may_have_image(),
        }
    }
}
