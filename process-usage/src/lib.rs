//! What a process uses, read from its directory in `/proc` (proc(5)): descriptors, threads, memory,
//! epoll entries, timers. guest-init reads its own, the supervisor its own and those of its VMMs.
//!
//! Reading costs a system call or two for each descriptor of the process. It stops nothing and
//! allocates little, but it is work: do it between measurements, not within one.

#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

/// Target of the link that `/proc/PID/fd` has for an epoll descriptor (fs/eventpoll.c).
const EPOLL: &str = "anon_inode:[eventpoll]";
/// The same for a timer descriptor (fs/timerfd.c).
const TIMER: &str = "anon_inode:[timerfd]";

/// What one process uses. A figure that the kernel does not give is absent: the process has ended or
/// belongs to somebody else, or the kernel was built without it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProcessUsage {
    /// Number of open descriptors.
    pub descriptors: Option<u64>,
    /// Number of threads.
    pub threads: Option<u64>,
    /// Resident memory in bytes, whatever backs it.
    pub resident_bytes: Option<u64>,
    /// Resident memory in bytes that no file backs.
    pub anonymous_bytes: Option<u64>,
    /// Number of descriptors that its epoll descriptors watch.
    pub epoll_entries: Option<u64>,
    /// Number of its timers: timer descriptors and POSIX timers. Timers that a runtime keeps to
    /// itself, as tokio does, are unknown to the kernel and not counted.
    pub timers: Option<u64>,
}

impl ProcessUsage {
    /// The usage of the calling process, without the descriptor that reads it.
    #[must_use]
    pub fn own() -> Self {
        Self::in_directory(Path::new("/proc/self"))
    }

    /// The usage of the process that has this pid now. Whether it is the wanted one, the caller
    /// finds out.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        Self::in_directory(&PathBuf::from(format!("/proc/{pid}")))
    }

    fn in_directory(directory: &Path) -> Self {
        let status = fs::read_to_string(directory.join("status")).unwrap_or_default();
        let open = OpenDescriptors::in_directory(directory);
        let timers = fs::read_to_string(directory.join("timers")).ok();
        let posix_timers = timers.as_deref().map(|text| count_lines(text, "ID:"));
        Self {
            descriptors: open.map(|open| open.descriptors),
            threads: field(&status, "Threads:"),
            resident_bytes: kib_field(&status, "VmRSS:"),
            anonymous_bytes: kib_field(&status, "RssAnon:"),
            epoll_entries: open.map(|open| open.epoll_entries),
            timers: open
                .zip(posix_timers)
                .map(|(open, posix)| open.timers + posix),
        }
    }
}

/// What a thread has used of a processor so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ThreadTime {
    /// The thread's name, at most 15 bytes.
    pub name: String,
    /// Time on a processor in ns, that of a guest in a vCPU's thread included.
    pub cpu_ns: u64,
}

/// The times of all threads of the process that has this pid now; those that have ended are not among
/// them. Empty if the process has ended, or the kernel was built without `CONFIG_SCHED_INFO`.
#[must_use]
pub fn thread_times(pid: u32) -> Vec<ThreadTime> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Vec::new();
    };
    tasks
        .flatten()
        .filter_map(|task| {
            let name = fs::read_to_string(task.path().join("comm")).ok()?;
            // Documentation/scheduler/sched-stats.rst: time on a processor, waiting time, slices.
            let times = fs::read_to_string(task.path().join("schedstat")).ok()?;
            Some(ThreadTime {
                name: name.trim_end().to_owned(),
                cpu_ns: times.split(' ').next()?.parse().ok()?,
            })
        })
        .collect()
}

#[derive(Debug, Clone, Copy, Default)]
struct OpenDescriptors {
    descriptors: u64,
    timers: u64,
    epoll_entries: u64,
}

impl OpenDescriptors {
    /// None if the process does not show its descriptors.
    fn in_directory(directory: &Path) -> Option<Self> {
        // All names first: the descriptor that reads them may be among them, and is closed then.
        let names: Vec<_> = fs::read_dir(directory.join("fd"))
            .ok()?
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        let mut open = Self::default();
        for name in names {
            // It may have been closed meanwhile.
            let Ok(target) = fs::read_link(directory.join("fd").join(&name)) else {
                continue;
            };
            open.descriptors += 1;
            if target == Path::new(TIMER) {
                open.timers += 1;
            } else if target == Path::new(EPOLL) {
                let info = fs::read_to_string(directory.join("fdinfo").join(&name));
                open.epoll_entries += count_lines(&info.unwrap_or_default(), "tfd:");
            }
        }
        Some(open)
    }
}

fn count_lines(text: &str, beginning: &str) -> u64 {
    text.lines()
        .filter(|line| line.starts_with(beginning))
        .count() as u64
}

/// The number behind `name`, which begins a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

fn kib_field(text: &str, name: &str) -> Option<u64> {
    field(text, name)?.checked_mul(1_024)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn another_process_is_read_and_one_that_has_ended_has_no_figures() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let of_child = ProcessUsage::of(child.id());
        assert_eq!(of_child.threads, Some(1));
        assert!(of_child.descriptors.is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(ProcessUsage::of(child.id()), ProcessUsage::default());
    }

    #[test]
    fn fields_are_found_by_their_whole_name_and_nonsense_has_none() {
        let status = "VmHWM:\t  900 kB\nVmRSS:\t  12 kB\nRssAnon:\t 8 kB\nThreads:\t3\n";
        assert_eq!(kib_field(status, "VmRSS:"), Some(12 << 10));
        assert_eq!(field(status, "Threads:"), Some(3));
        assert_eq!(field(status, "Thread"), None);
        let huge = format!("VmRSS: {} kB", u64::MAX);
        assert_eq!(kib_field(&huge, "VmRSS:"), None);
        for nonsense in ["", "VmRSS:", "VmRSS: x kB", "VmRSS: -1 kB"] {
            assert_eq!(kib_field(nonsense, "VmRSS:"), None, "{nonsense}");
        }
    }
}
