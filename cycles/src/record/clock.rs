//! Which clock measured the durations of a report.
//!
//! Every duration of a report is of one clock. Those of different clocks are not comparable.

use serde::{Deserialize, Serialize};

/// The clock of all durations in a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clock {
    /// That of an emulated computer: one nanosecond per emulated instruction, and the length of
    /// every wait (QEMU's `-icount`). It leaves out what only hardware has: caches, TLB misses.
    Virtual,
    /// The host's CLOCK_MONOTONIC. Reports of schema 1 name no clock and are of this one.
    #[default]
    Real,
}

impl Clock {
    /// A description for people.
    pub fn in_words(self) -> &'static str {
        match self {
            Self::Virtual => "virtual time (emulated instructions and waits)",
            Self::Real => "real time",
        }
    }

    /// The unit of durations, so written that virtual ones are not taken for those of hardware.
    pub fn unit(self) -> &'static str {
        match self {
            Self::Virtual => "virtual ms",
            Self::Real => "ms",
        }
    }

    /// The unit as a part of a name, such as that of a column.
    pub(crate) fn unit_in_names(self) -> &'static str {
        match self {
            Self::Virtual => "virtual_ms",
            Self::Real => "ms",
        }
    }
}
