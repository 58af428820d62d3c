//! Named spans of time, each beginning where the last one ended.

use vmm_control::Phase;

use crate::clock::monotonic_ns;

/// Collects phases.
#[derive(Debug, Clone)]
pub struct Phases {
    phases: Vec<Phase>,
    end_ns: u64,
}

impl Phases {
    /// The first phase begins at that moment.
    #[must_use]
    pub fn starting_at(start_ns: u64) -> Self {
        Self {
            phases: Vec::with_capacity(10),
            end_ns: start_ns,
        }
    }

    /// Ends the phase that is under way, now, and names it.
    pub fn end(&mut self, name: &str) {
        self.end_at(name, monotonic_ns());
    }

    /// Ends the phase that is under way at a moment measured elsewhere.
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
