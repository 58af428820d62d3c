//! Runs a list of boot steps. A step whose failure makes the guest useless powers
//! it off; every other failure is logged.

use std::error::Error;

use crate::os::console::say;
use crate::os::power;

pub(crate) mod loopback;
pub(crate) mod modules;
pub(crate) mod settings;

/// Consequence of a failed step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The guest is of no use without the step.
    PowersOff,
    /// The guest continues without the step.
    IsLogged,
}

/// One thing to do at boot.
pub(crate) struct Step {
    /// Completes the message "cannot …".
    pub(crate) name: &'static str,
    pub(crate) failure: Failure,
    pub(crate) run: fn() -> Result<(), Box<dyn Error>>,
}

/// Runs all steps in order.
pub(crate) fn run(steps: &[Step]) {
    for step in steps {
        if let Err(error) = (step.run)() {
            say(format_args!(
                "cannot {}: {}",
                step.name,
                error_text::with_causes(&*error)
            ));
            if step.failure == Failure::PowersOff {
                power::power_off();
            }
        }
    }
}
