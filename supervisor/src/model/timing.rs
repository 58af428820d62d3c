//! The phases of a transition, which sum to its total.
//!
//! Supervisor and VMM both measure on CLOCK_MONOTONIC. The VMM's phases are not trusted: they are
//! clipped to the transition and made not to overlap.

use machine_api::{Operation, PhaseTime, Timing};

use crate::clock;

/// Name of the phase for the time that belongs to no other.
pub(crate) const UNATTRIBUTED: &str = "unattributed";

/// A named span on CLOCK_MONOTONIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Span {
    /// Lower case with underscores.
    pub(crate) name: String,
    /// Begin.
    pub(crate) start_ns: u64,
    /// End.
    pub(crate) end_ns: u64,
}

/// The spans of one transition, from its admission on.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    admitted_ns: u64,
    admitted_realtime_ns: u64,
    last_ns: u64,
    spans: Vec<Span>,
}

impl Trace {
    /// Begins now.
    pub(crate) fn begin() -> Self {
        let now = clock::monotonic_ns();
        Self {
            admitted_ns: now,
            admitted_realtime_ns: clock::realtime_ns(),
            last_ns: now,
            spans: Vec::new(),
        }
    }

    /// Ends the phase `name`, which began at the end of the one before, now.
    pub(crate) fn mark(&mut self, name: &str) {
        let now = clock::monotonic_ns();
        self.add(name, self.last_ns, now);
    }

    /// Adds a phase measured elsewhere.
    pub(crate) fn add(&mut self, name: &str, start_ns: u64, end_ns: u64) {
        self.spans.push(Span {
            name: name.to_owned(),
            start_ns,
            end_ns,
        });
        self.last_ns = self.last_ns.max(end_ns);
    }

    /// Adds the phases that a VMM measured.
    pub(crate) fn add_vmm(&mut self, phases: &[vmm_control::Phase]) {
        for phase in phases {
            self.add(&phase.name, phase.start_ns, phase.end_ns);
        }
    }

    /// End of the latest phase.
    pub(crate) fn last_ns(&self) -> u64 {
        self.last_ns
    }

    /// Ends the trace now: a [`Timing`] with its phases, the rest empty.
    pub(crate) fn finish(&self, operation: Operation, generation: u64) -> Timing {
        let end_ns = clock::monotonic_ns();
        Timing {
            operation,
            generation,
            started_at: clock::rfc3339(self.admitted_realtime_ns),
            total_ms: clock::ms_between(self.admitted_ns, end_ns),
            phases: attribute(self.admitted_ns, end_ns, &self.spans),
            readiness: Vec::new(),
            start: None,
            image_bytes_written: None,
            memory_bytes_written: None,
            image_bytes_allocated: None,
            guest: None,
            error: None,
        }
    }
}

/// Phases between `start_ns` and `end_ns` in order, without overlap; the unattributed rest is last.
pub(crate) fn attribute(start_ns: u64, end_ns: u64, spans: &[Span]) -> Vec<PhaseTime> {
    let mut ordered: Vec<&Span> = spans.iter().collect();
    ordered.sort_by_key(|span| span.start_ns);
    let mut phases: Vec<PhaseTime> = Vec::with_capacity(ordered.len() + 1);
    let mut cursor = start_ns;
    let mut attributed_ns = 0;
    for span in ordered {
        let from = span.start_ns.max(cursor);
        let to = span.end_ns.min(end_ns).max(from);
        let ms = clock::ms_between(from, to);
        match phases.iter_mut().find(|phase| phase.name == span.name) {
            Some(phase) => phase.ms += ms,
            None => phases.push(PhaseTime {
                name: span.name.clone(),
                ms,
            }),
        }
        attributed_ns += to - from;
        cursor = to.max(cursor);
    }
    let rest_ns = end_ns
        .saturating_sub(start_ns)
        .saturating_sub(attributed_ns);
    phases.push(PhaseTime {
        name: UNATTRIBUTED.to_owned(),
        ms: clock::ms_between(0, rest_ns),
    });
    phases
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(name: &str, start_ns: u64, end_ns: u64) -> Span {
        Span {
            name: name.to_owned(),
            start_ns,
            end_ns,
        }
    }

    fn sum(phases: &[PhaseTime]) -> f64 {
        phases.iter().map(|phase| phase.ms).sum()
    }

    #[test]
    fn phases_sum_to_the_total_with_the_rest_last() {
        let spans = [
            span("spawn", 1_000_000, 3_000_000),
            span("boot", 4_000_000, 9_000_000),
        ];
        let phases = attribute(0, 10_000_000, &spans);
        assert!((sum(&phases) - 10.0).abs() < 1e-9);
        let rest = phases.last().unwrap();
        assert_eq!((rest.name.as_str(), rest.ms), (UNATTRIBUTED, 3.0));
    }

    #[test]
    fn overlapping_spans_are_counted_once() {
        let spans = [span("a", 0, 6_000_000), span("b", 4_000_000, 8_000_000)];
        let phases = attribute(0, 10_000_000, &spans);
        assert_eq!(
            phases.iter().map(|p| p.ms).collect::<Vec<_>>(),
            [6.0, 2.0, 2.0]
        );
    }

    #[test]
    fn spans_outside_the_transition_or_backwards_do_not_break_the_sum() {
        let spans = [
            span("before", 0, 2_000_000),
            span("backwards", 8_000_000, 7_000_000),
            span("after", 9_000_000, u64::MAX),
        ];
        let phases = attribute(5_000_000, 10_000_000, &spans);
        assert!((sum(&phases) - 5.0).abs() < 1e-9);
    }
}
