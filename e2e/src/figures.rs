//! The figures of a benchmark: what each operation cost, phase by phase, in repeated measurements.

use std::collections::BTreeMap;

use cycles::{Host, median, median_at_least};
use machine_api::Timing;
use serde::{Deserialize, Serialize};

/// The name of the sum of an operation's phases.
pub const TOTAL: &str = "total";

/// Time of the vCPUs' threads on a processor: the guest, and what KVM does for its exits.
pub const CPU_OF_VCPUS: &str = "cpu: vCPU threads";
/// Time of the VMM's other threads on a processor.
pub const CPU_OF_VMM: &str = "cpu: rest of the VMM";

/// What a VMM has used of a processor since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct VmmCpu {
    /// In the threads of its vCPUs.
    pub vcpus_ms: f64,
    /// In its other threads.
    pub others_ms: f64,
}

/// What one process has measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figures {
    /// Where.
    pub host: Host,
    /// What was measured, in words.
    pub work: String,
    /// In this order.
    pub operations: Vec<OperationFigures>,
    /// Release of the guests' kernel.
    pub guest_kernel: String,
    /// Suspends of a machine whose memory is filled, if they were measured.
    pub filled: Option<FilledFigures>,
}

/// One operation, measured several times.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OperationFigures {
    /// `boot`, `suspend` or `resume`.
    pub name: String,
    /// The total and its phases in order, each with a duration in ms for each measurement.
    pub phases: Vec<(String, Vec<f64>)>,
}

/// What a suspend of filled memory costs, beside repeated ones.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FilledFigures {
    /// Memory of the guest, in MiB.
    pub memory_mib: u32,
    /// The suspend after the memory was filled.
    pub first: Timing,
    /// Those after it.
    pub repeated: Vec<Timing>,
    /// The resume after each.
    pub resumes: Vec<Timing>,
}

impl OperationFigures {
    /// From the timings of one operation.
    pub fn of_timings(name: &str, timings: &[Timing]) -> Self {
        let mut figures = Self {
            name: name.to_owned(),
            phases: Vec::new(),
        };
        for (measured_before, timing) in timings.iter().enumerate() {
            figures.add(TOTAL, timing.total_ms, measured_before);
            let mut by_name: Vec<(&str, f64)> = Vec::new();
            for phase in &timing.phases {
                match by_name.iter_mut().find(|(known, _)| *known == phase.name) {
                    Some((_, sum)) => *sum += phase.ms,
                    None => by_name.push((&phase.name, phase.ms)),
                }
            }
            for (name, ms) in by_name {
                figures.add(name, ms, measured_before);
            }
        }
        // A phase that is missing at the end took no time.
        for (_, durations) in &mut figures.phases {
            durations.resize(timings.len(), 0.0);
        }
        figures
    }

    /// Adds what the VMM's threads used in each measurement. It is no part of the total, which these
    /// and other processes share with each other and with waits.
    #[must_use]
    pub fn with_cpu(mut self, used: &[VmmCpu]) -> Self {
        for (measured_before, cpu) in used.iter().enumerate() {
            self.add(CPU_OF_VCPUS, cpu.vcpus_ms, measured_before);
            self.add(CPU_OF_VMM, cpu.others_ms, measured_before);
        }
        self
    }

    fn add(&mut self, name: &str, ms: f64, measured_before: usize) {
        let position = self.phases.iter().position(|(known, _)| known == name);
        let durations = match position {
            Some(position) => &mut self.phases[position].1,
            None => {
                self.phases.push((name.to_owned(), Vec::new()));
                let last = self.phases.len() - 1;
                &mut self.phases[last].1
            }
        };
        durations.resize(measured_before, 0.0);
        durations.push(ms);
    }

    /// The measurements of two runs of one build together.
    #[must_use]
    pub fn with_those_of(mut self, other: &Self) -> Self {
        let count = |figures: &Self| figures.phases.iter().map(|(_, ms)| ms.len()).max();
        let mut measured_before = count(&self).unwrap_or(0);
        for number in 0..count(other).unwrap_or(0) {
            for (name, durations) in &other.phases {
                let ms = durations.get(number).copied().unwrap_or(0.0);
                self.add(name, ms, measured_before);
            }
            measured_before += 1;
        }
        for (_, durations) in &mut self.phases {
            durations.resize(measured_before, 0.0);
        }
        self
    }

    /// Median and mean of the total and of each phase.
    pub fn costs(&self) -> BTreeMap<String, Cost> {
        self.phases
            .iter()
            .filter_map(|(name, durations)| Some((name.clone(), Cost::of(durations)?)))
            .collect()
    }

    /// What the median of each is at least, though chance is in the measurements.
    pub fn at_least_ms(&self) -> BTreeMap<String, f64> {
        self.phases
            .iter()
            .filter_map(|(name, durations)| Some((name.clone(), median_at_least(durations)?)))
            .collect()
    }
}

/// What a phase or a whole operation costs, in ms.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Mean of all measurements.
    pub mean_ms: f64,
    /// Their median.
    pub p50_ms: f64,
}

impl Cost {
    /// `None` if nothing was measured. To the microsecond, as far as reports go.
    pub fn of(durations: &[f64]) -> Option<Self> {
        let p50 = median(durations)?;
        // Counts of measurements are far below 2^53.
        #[expect(clippy::cast_precision_loss, reason = "a count of measurements")]
        let mean = durations.iter().sum::<f64>() / durations.len() as f64;
        let to_the_microsecond = |ms: f64| (ms * 1e3).round() / 1e3;
        Some(Self {
            mean_ms: to_the_microsecond(mean),
            p50_ms: to_the_microsecond(p50),
        })
    }
}

#[cfg(test)]
mod tests {
    use machine_api::{Operation, PhaseTime};

    use super::*;

    fn timing(phases: &[(&str, f64)]) -> Timing {
        Timing {
            operation: Operation::Resume,
            generation: 1,
            started_at: String::new(),
            total_ms: phases.iter().map(|(_, ms)| ms).sum(),
            phases: phases
                .iter()
                .map(|(name, ms)| PhaseTime {
                    name: (*name).to_owned(),
                    ms: *ms,
                })
                .collect(),
            readiness: Vec::new(),
            start: None,
            image_bytes_written: None,
            memory_bytes_written: None,
            image_bytes_allocated: None,
            guest: None,
            error: None,
        }
    }

    #[test]
    fn what_threads_used_stands_beside_the_phases_and_is_in_no_total() {
        let cpu = VmmCpu {
            vcpus_ms: 2.0,
            others_ms: 1.0,
        };
        let figures = OperationFigures::of_timings("resume", &[timing(&[("spawn", 5.0)])]);
        let costs = figures.with_cpu(&[cpu]).costs();
        assert_eq!(costs[TOTAL].p50_ms, 5.0);
        assert_eq!(costs[CPU_OF_VCPUS].p50_ms, 2.0);
        assert_eq!(costs[CPU_OF_VMM].p50_ms, 1.0);
    }

    #[test]
    fn two_runs_are_taken_together() {
        let one = OperationFigures::of_timings("resume", &[timing(&[("spawn", 1.0)])]);
        let timings = [timing(&[("spawn", 3.0), ("wait", 5.0)]), timing(&[])];
        let both = one.with_those_of(&OperationFigures::of_timings("resume", &timings));
        assert_eq!(
            both.phases,
            [
                ("total".to_owned(), vec![1.0, 8.0, 0.0]),
                ("spawn".to_owned(), vec![1.0, 3.0, 0.0]),
                ("wait".to_owned(), vec![0.0, 5.0, 0.0]),
            ]
        );
    }

    #[test]
    fn a_phase_that_is_missing_in_a_measurement_took_no_time_in_it() {
        let timings = [
            timing(&[("spawn", 1.0)]),
            timing(&[("spawn", 2.0), ("wait", 5.0), ("wait", 1.0)]),
            timing(&[("spawn", 3.0)]),
        ];
        let figures = OperationFigures::of_timings("resume", &timings);
        assert_eq!(
            figures.phases,
            [
                ("total".to_owned(), vec![1.0, 8.0, 3.0]),
                ("spawn".to_owned(), vec![1.0, 2.0, 3.0]),
                ("wait".to_owned(), vec![0.0, 6.0, 0.0]),
            ]
        );
        let costs = figures.costs();
        assert_eq!(costs["wait"].p50_ms, 0.0);
        assert_eq!(costs["wait"].mean_ms, 2.0);
    }
}
