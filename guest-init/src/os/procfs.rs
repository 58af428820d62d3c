//! Figures of the whole guest from `/proc`: CPU and memory use, counters.

use std::fs;
use std::io;
use std::path::Path;

use guest_protocol::CpuSample;

use crate::os::clock::uptime_ms;

/// Length of the kernel's clock tick in its user interface (USER_HZ is 100 on x86-64).
pub(crate) const TICK_MS: u64 = 10;

/// Why a sample could not be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SampleError {
    #[error("cannot read {path}")]
    Read {
        path: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{0} has an unknown format")]
    Format(&'static str),
}

/// Reads the figures of one [`CpuSample`].
pub(crate) fn sample() -> Result<CpuSample, SampleError> {
    const STAT: &str = "/proc/stat";
    const LOAD: &str = "/proc/loadavg";
    const MEMORY: &str = "/proc/meminfo";
    let (busy_ms, idle_ms) = parse_cpu_times(&read(STAT)?).ok_or(SampleError::Format(STAT))?;
    let load = parse_load(&read(LOAD)?).ok_or(SampleError::Format(LOAD))?;
    let memory = read(MEMORY)?;
    let memory_kib = |name| parse_counter(&memory, name).ok_or(SampleError::Format(MEMORY));
    Ok(CpuSample {
        uptime_ms: uptime_ms(),
        busy_ms,
        idle_ms,
        load,
        memory_total_kib: memory_kib("MemTotal:")?,
        memory_available_kib: memory_kib("MemAvailable:")?,
    })
}

/// Number of processes and threads, those of the kernel included.
pub(crate) fn tasks() -> Option<u64> {
    parse_tasks(&fs::read_to_string("/proc/loadavg").ok()?)
}

/// The counter `name` in a file of lines "name value"; none if it is not there.
pub(crate) fn read_counter(path: &Path, name: &str) -> Option<u64> {
    parse_counter(&fs::read_to_string(path).ok()?, name)
}

fn read(path: &'static str) -> Result<String, SampleError> {
    fs::read_to_string(path).map_err(|source| SampleError::Read { path, source })
}

/// Busy and idle milliseconds of all CPUs, from the first line of `/proc/stat`.
fn parse_cpu_times(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().find(|line| line.starts_with("cpu "))?;
    // user nice system idle iowait irq softirq steal; guest times are part of user and nice.
    let times: Vec<u64> = line
        .split_ascii_whitespace()
        .skip(1)
        .take(8)
        .map(|field| field.parse().ok())
        .collect::<Option<_>>()?;
    let idle = times.get(3)?.saturating_add(*times.get(4)?);
    let all = times
        .iter()
        .fold(0, |sum: u64, time| sum.saturating_add(*time));
    let busy = all.saturating_sub(idle);
    Some((busy.saturating_mul(TICK_MS), idle.saturating_mul(TICK_MS)))
}

fn parse_load(loadavg: &str) -> Option<[f32; 3]> {
    let mut fields = loadavg.split_ascii_whitespace().map(str::parse);
    let mut load = [0.0; 3];
    for value in &mut load {
        *value = fields.next()?.ok()?;
    }
    Some(load)
}

/// The fourth field of `/proc/loadavg` is `RUNNABLE/ALL`.
fn parse_tasks(loadavg: &str) -> Option<u64> {
    let tasks = loadavg.split_ascii_whitespace().nth(3)?;
    tasks.split_once('/')?.1.parse().ok()
}

fn parse_counter(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        (fields.next()? == name).then(|| fields.next()?.parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_for_disks_is_idle_and_interrupts_are_busy() {
        let stat = "cpu  1 2 3 40 50 6 7 8 9 10\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(parse_cpu_times(stat), Some((270, 900)));
    }

    #[test]
    fn other_formats_are_no_figures() {
        for stat in ["", "cpu  1 2 3", "cpu  1 2 3 4 x 6 7 8", "intr 4"] {
            assert_eq!(parse_cpu_times(stat), None, "{stat}");
        }
        assert_eq!(parse_load("0.5 1.25"), None);
        assert_eq!(parse_load("0.5 1.25 2.00 1/99 3"), Some([0.5, 1.25, 2.0]));
    }

    #[test]
    fn tasks_are_those_that_exist_and_not_those_that_run() {
        assert_eq!(parse_tasks("0.5 1.25 2.00 1/99 3"), Some(99));
        for nonsense in ["", "0.5 1.25 2.00", "0.5 1.25 2.00 99 3", "0 0 0 1/x 3"] {
            assert_eq!(parse_tasks(nonsense), None, "{nonsense}");
        }
        assert!(tasks().is_some_and(|tasks| tasks > 1));
    }

    #[test]
    fn counters_are_found_by_their_whole_name() {
        let vmstat = "oom_killer 9\noom_kill 3\n";
        assert_eq!(parse_counter(vmstat, "oom_kill"), Some(3));
        assert_eq!(parse_counter("MemTotal:  12 kB", "MemTotal:"), Some(12));
        assert_eq!(parse_counter(vmstat, "oom"), None);
    }

    #[test]
    fn this_machine_can_be_sampled() {
        let sample = sample().unwrap();
        assert!(sample.memory_total_kib >= sample.memory_available_kib);
        assert!(sample.uptime_ms > 0);
    }
}
