//! The end of a VMM: reason, exit code, report.

use std::io;
use std::path::Path;

use vmm_control::{ExitReason, ExitReport, exit_code};

use super::configuration::Identity;
use crate::process::unfinished;

/// Why a VMM ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// For programs.
    pub reason: ExitReason,
    /// For people.
    pub message: String,
}

impl Ending {
    /// An ending.
    #[must_use]
    pub fn new(reason: ExitReason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }

    /// Guest memory that the host cannot provide.
    #[must_use]
    pub fn memory_error() -> Self {
        let message = "the host could not provide guest memory (SIGBUS), usually for an I/O error of the \
                       disk with the image";
        Self::new(ExitReason::HostFailed, message)
    }

    /// What the process exits with.
    #[must_use]
    pub fn exit_code(&self) -> i32 {
        match self.reason {
            ExitReason::GuestPowerOff | ExitReason::Suspended | ExitReason::Quit => {
                exit_code::SUCCESS
            }
            ExitReason::GuestReset => exit_code::GUEST_RESET,
            ExitReason::GuestCrashed => exit_code::FAILED,
            ExitReason::ImageRefused => exit_code::IMAGE_REFUSED,
            ExitReason::ImageUnfit => exit_code::IMAGE_UNFIT,
            ExitReason::ImageDamaged => exit_code::IMAGE_DAMAGED,
            ExitReason::HostFailed => exit_code::HOST_REFUSED,
        }
    }

    /// The report for the supervisor.
    #[must_use]
    pub fn report(&self, identity: &Identity) -> ExitReport {
        ExitReport {
            machine_id: identity.machine_id.clone(),
            generation: identity.generation,
            reason: self.reason,
            message: self.message.clone(),
        }
    }
}

/// Writes the report atomically: a reader sees all of it or nothing.
///
/// # Errors
/// Those of the file system.
pub fn write_report(path: &Path, report: &ExitReport) -> io::Result<()> {
    let unfinished = unfinished(path);
    let mut text = serde_json::to_vec(report)?;
    text.push(b'\n');
    std::fs::write(&unfinished, text)?;
    std::fs::rename(unfinished, path)
}
