//! How a command ended, as exit codes say it.

use cycles::Report;

/// What a command showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// What it claims: exit code 0.
    Shown,
    /// That it is not so, or a check failed: exit code 1.
    NotShown,
    /// Neither, in as many cycles as were allowed: exit code 3. More of them may decide.
    Undecided,
}

impl Ending {
    /// Of a judged run.
    pub fn of(report: &Report) -> Self {
        match (&report.failed_check, report.flatness.outcome) {
            (Some(_), _) | (None, cycles::Outcome::Rising) => Self::NotShown,
            (None, cycles::Outcome::Flat) => Self::Shown,
            (None, cycles::Outcome::Undecided) => Self::Undecided,
        }
    }

    /// The exit code of the process.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Shown => 0,
            Self::NotShown => 1,
            // 2 is for an invalid command line.
            Self::Undecided => 3,
        }
    }
}

impl From<bool> for Ending {
    fn from(shown: bool) -> Self {
        if shown { Self::Shown } else { Self::NotShown }
    }
}
