//! Phases: named spans of time, each of which begins where the one before it ended.

use vmm_control::Phase;

use crate::clock::monotonic_ns;

/// A sequence of phases.
#[derive(Debug, Clone)]
pub struct Phases {
    phases: Vec<Phase>,
    end_ns: u64,
}

impl Phases {
    /// The first phase begins at `start_ns`.
    #[must_use]
    pub fn starting_at(start_ns: u64) -> Self {
        Self {
            phases: Vec::with_capacity(10),
            end_ns: start_ns,
        }
    }

    /// Ends the current phase now, and names it; the next one begins.
    pub fn end(&mut self, name: &str) {
        self.end_at(name, monotonic_ns());
    }

    /// As [`Self::end`], at a moment that was measured elsewhere.
    pub fn end_at(&mut self, name: &str, end_ns: u64) {
        let end_ns = end_ns.max(self.end_ns);
        self.phases.push(Phase {
            name: name.to_owned(),
            start_ns: self.end_ns,
            end_ns,
        });
        self.end_ns = end_ns;
    }

    /// All phases that have ended.
    #[must_use]
    pub fn list(&self) -> &[Phase] {
        &self.phases
    }
}
