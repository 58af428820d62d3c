//! What there is of a machine's VMM when a driver begins, or retries a transition.

use std::io;

use vmm_control::ExitReason;

use crate::machine_folder::image_generation;
use crate::model::record::MachineRecord;
use crate::model::recovery::LeftImage;
use crate::paths::MachineDir;
use crate::vmm_process::{CommandLines, VmmProcess, read_exit_report};

/// What was found of a machine's VMM.
#[derive(Debug)]
pub(crate) enum FoundVmm {
    /// It runs.
    Alive(VmmProcess),
    /// It has ended.
    Ended {
        /// The image that there is.
        image: LeftImage,
        /// Its guest has powered itself off.
        powered_off: bool,
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
        Self::from_process(record, dir, vmm)
    }

    /// `vmm`, or what one that has ended has left. After an error that is unknown.
    pub(crate) fn from_process(
        record: &MachineRecord,
        dir: &MachineDir,
        vmm: Option<VmmProcess>,
    ) -> io::Result<Self> {
        match vmm {
            Some(vmm) => Ok(Self::Alive(vmm)),
            None => {
                let report = read_exit_report(&dir.exit_report(), &record.id, record.generation);
                let reason = report.map(|report| report.reason);
                let image = left_image(record, dir, reason)?;
                let powered_off = reason == Some(ExitReason::GuestPowerOff);
                Ok(Self::Ended { image, powered_off })
            }
        }
    }
}

/// Which image a VMM that ended for that reason has left.
pub(super) fn left_image(
    record: &MachineRecord,
    dir: &MachineDir,
    reason: Option<ExitReason>,
) -> io::Result<LeftImage> {
    Ok(match image_generation(dir, &record.id)? {
        Some(generation) if generation < record.generation => LeftImage::Earlier { generation },
        Some(_) => LeftImage::Own,
        // Damaged, as a resume will find.
        None if reason == Some(ExitReason::Suspended) && dir.may_have_image() => LeftImage::Own,
        None => LeftImage::None,
    })
}
