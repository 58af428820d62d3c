//! The checks after each cycle: are its figures usable, and did the guest survive it?

use super::subject::GuestObservation;
use crate::record::{Phases, is_usable_duration};

/// Cycles within which the guest's counter must have advanced at least once. In each, the guest runs
/// for a few milliseconds at least, and a counter may count a few times per second.
const COUNTER_PATIENCE_CYCLES: u32 = 50;

/// What a vsock socket left over in the guest means for the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftoverVsocks {
    /// It ends the run.
    Fail,
    /// It is only recorded: the guest leaks on purpose.
    Record,
}

/// Why a cycle failed. The text names expected and found values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CycleError {
    /// The guest could not be observed.
    #[error("the guest could not be observed before the first cycle: {chain}")]
    Observe {
        /// Error and sources.
        chain: String,
    },
    /// The subject could not suspend.
    #[error("suspend failed: {chain}")]
    Suspend {
        /// Error and sources.
        chain: String,
    },
    /// The subject could not resume.
    #[error("resume failed: {chain}")]
    Resume {
        /// Error and sources.
        chain: String,
    },
    /// The subject could not report what is in use.
    #[error("what is in use could not be measured: {chain}")]
    Resources {
        /// Error and sources.
        chain: String,
    },
    /// A duration is negative, not a number, or beyond eleven days.
    #[error("{what} is not a usable duration: {value} ms")]
    Duration {
        /// Which figure.
        what: String,
        /// As reported.
        value: String,
    },
    /// The guest rebooted.
    #[error("the guest's boot id changed from {before} to {after}: it was booted, not resumed")]
    BootId {
        /// Before the first cycle.
        before: String,
        /// Now.
        after: String,
    },
    /// A process in the guest lost its state.
    #[error("the guest's counter went back from {before} to {after}: its process lost its state")]
    CounterWentBack {
        /// After the previous cycle.
        before: u64,
        /// Now.
        after: u64,
    },
    /// The guest runs, but its processes do not.
    #[error("the guest's counter did not advance from {value} in {cycles} cycles")]
    CounterStoodStill {
        /// Its value.
        value: u64,
        /// Cycles without an advance.
        cycles: u32,
    },
    /// The guest did not close a connection from before the suspend.
    #[error(
        "{after} vsock sockets are open in the guest, {first} were after the first cycle: \
         {} left over", after - first
    )]
    VsockLeftOver {
        /// After the first cycle.
        first: u32,
        /// Now.
        after: u32,
    },
    /// The guest stopped reporting a value.
    #[error("the guest no longer reports its {what}")]
    NoLongerReported {
        /// Which value.
        what: &'static str,
    },
}

impl CycleError {
    /// Stable name for reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Observe { .. } => "observe",
            Self::Suspend { .. } => "suspend",
            Self::Resume { .. } => "resume",
            Self::Resources { .. } => "resources",
            Self::Duration { .. } => "duration",
            Self::BootId { .. } => "boot_id",
            Self::CounterWentBack { .. } => "counter_went_back",
            Self::CounterStoodStill { .. } => "counter_stood_still",
            Self::VsockLeftOver { .. } => "vsock_left_over",
            Self::NoLongerReported { .. } => "no_longer_reported",
        }
    }
}

/// What must hold for the guest from cycle to cycle, and the earlier values it is compared with.
pub(super) struct Continuity {
    before: GuestObservation,
    leftover: LeftoverVsocks,
    counter: Option<u64>,
    counter_advanced_in: u32,
    vsocks_after_first: Option<u32>,
}

impl Continuity {
    pub(super) fn since(before: GuestObservation, leftover: LeftoverVsocks) -> Self {
        let counter = before.counter;
        Self {
            before,
            leftover,
            counter,
            counter_advanced_in: 0,
            vsocks_after_first: None,
        }
    }

    pub(super) fn check(&mut self, cycle: u32, after: GuestObservation) -> Result<(), CycleError> {
        self.check_boot_id(after.boot_id)?;
        self.check_counter(cycle, after.counter)?;
        self.check_vsocks(after.open_vsocks)
    }

    fn check_boot_id(&self, after: Option<String>) -> Result<(), CycleError> {
        let Some(before) = &self.before.boot_id else {
            return Ok(());
        };
        let after = after.ok_or(CycleError::NoLongerReported { what: "boot id" })?;
        if after == *before {
            return Ok(());
        }
        Err(CycleError::BootId {
            before: before.clone(),
            after,
        })
    }

    fn check_counter(&mut self, cycle: u32, after: Option<u64>) -> Result<(), CycleError> {
        let Some(before) = self.counter else {
            return Ok(());
        };
        let after = after.ok_or(CycleError::NoLongerReported { what: "counter" })?;
        if after < before {
            return Err(CycleError::CounterWentBack { before, after });
        }
        if after > before {
            self.counter_advanced_in = cycle;
        }
        self.counter = Some(after);
        let cycles = cycle - self.counter_advanced_in;
        if cycles >= COUNTER_PATIENCE_CYCLES {
            return Err(CycleError::CounterStoodStill {
                value: after,
                cycles,
            });
        }
        Ok(())
    }

    /// The count after the first cycle is the reference: before it, connections of the boot may be
    /// open that a resume does not open again.
    fn check_vsocks(&mut self, after: Option<u32>) -> Result<(), CycleError> {
        if self.before.open_vsocks.is_none() || self.leftover == LeftoverVsocks::Record {
            return Ok(());
        }
        let after = after.ok_or(CycleError::NoLongerReported {
            what: "open vsock sockets",
        })?;
        let first = *self.vsocks_after_first.get_or_insert(after);
        if after > first {
            Err(CycleError::VsockLeftOver { first, after })
        } else {
            Ok(())
        }
    }
}

pub(super) fn check_phases(what: &str, phases: &Phases) -> Result<(), CycleError> {
    phases
        .iter()
        .try_for_each(|(name, ms)| check_duration(&format!("{what} phase {name}"), ms))
}

pub(super) fn check_duration(what: &str, ms: f64) -> Result<(), CycleError> {
    if is_usable_duration(ms) {
        return Ok(());
    }
    Err(CycleError::Duration {
        what: what.to_owned(),
        value: ms.to_string(),
    })
}
