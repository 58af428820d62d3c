//! What a process uses while it should be idle, measured so that neither the speed of the host nor
//! its other load counts.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use rustix::process::Pid;
use rustix::time::{ClockId, clock_gettime};

/// In this unit Linux reports CPU times of processes.
const TICK: Duration = Duration::from_millis(10);

/// What a process used during a period, next to the time that a thread got that never slept.
#[derive(Debug)]
pub(crate) struct Usage {
    /// CPU time of the process.
    pub(crate) cpu: Duration,
    /// CPU time that the spinning thread got in the same period. A process of which one thread spins
    /// gets about as much.
    pub(crate) spinning: Duration,
    /// How often threads of the process were woken.
    pub(crate) wake_ups: u64,
}

impl Usage {
    /// Measures the process `pid` for `period`. This thread is the one that spins meanwhile.
    pub(crate) fn measure(pid: Pid, period: Duration) -> Self {
        let before = (cpu_time(pid), own_cpu_time(), sleeps(pid));
        let begun = Instant::now();
        while begun.elapsed() < period {
            std::hint::spin_loop();
        }
        // A thread is woken as often as it goes to sleep.
        let wake_ups = sleeps(pid).into_iter().map(|(thread, count)| {
            let earlier = before.2.get(&thread).copied().unwrap_or(0);
            count.saturating_sub(earlier)
        });
        let wake_ups = wake_ups.sum();
        Self {
            cpu: cpu_time(pid).saturating_sub(before.0),
            spinning: own_cpu_time().saturating_sub(before.1),
            wake_ups,
        }
    }
}

/// CPU time that a process has used, in user and kernel mode.
pub(crate) fn cpu_time(pid: Pid) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap();
    // The name, in brackets, may contain spaces. Behind it come the fields from the third on.
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace();
    let ticks = fields.skip(11).take(2).map(|ticks| ticks.parse::<u32>());
    ticks.map(|ticks| TICK * ticks.unwrap()).sum()
}

fn own_cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap()
}

/// How often each thread of a process has gone to sleep by itself.
fn sleeps(pid: Pid) -> BTreeMap<u64, u64> {
    let threads = fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero())).unwrap();
    threads
        .flatten()
        .filter_map(|thread| {
            let status = fs::read_to_string(thread.path().join("status")).ok()?;
            let count = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
            let number = thread.file_name().to_str()?.parse().ok()?;
            Some((number, count.trim().parse().ok()?))
        })
        .collect()
}
