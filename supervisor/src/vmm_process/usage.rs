//! What a VMM uses. After a resume, memory that the guest has written is told apart from the VMM's own.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;

use process_usage::ProcessUsage;

use crate::vmm_process::VmmProcess;

/// What a VMM uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct VmmUsage {
    /// The process. Its memory is without guest memory if that could be told apart: how much of that
    /// is resident says how long the guest has been running, and would hide what the VMM leaks.
    pub(crate) process: ProcessUsage,
    /// Guest memory that was written since the resume, in bytes. None after a boot: guest memory is
    /// anonymous then, like the VMM's own.
    pub(crate) guest_anonymous_bytes: Option<u64>,
}

impl VmmProcess {
    /// What it uses; none if it has ended. `image_memory` is the file that it maps as guest memory
    /// if the machine was resumed.
    ///
    /// The kernel walks all of its page tables for that, about a millisecond per GiB in use.
    pub(crate) fn usage(&self, image_memory: &Path) -> Option<VmmUsage> {
        let pid = u32::try_from(self.identity.pid).ok()?;
        let mut process = ProcessUsage::of(pid);
        let memory = resident_memory(pid, image_memory);
        if let Some(memory) = memory {
            process.anonymous_bytes = Some(memory.own_anonymous);
            process.resident_bytes = Some(memory.own);
        }
        // Only now is it known that the figures were not those of another process with its pid.
        self.identity.open().ok()??;
        Some(VmmUsage {
            process,
            guest_anonymous_bytes: memory.map(|memory| memory.guest_anonymous),
        })
    }
}

/// Resident memory in bytes: the VMM's own, and that of the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct ResidentMemory {
    own: u64,
    own_anonymous: u64,
    guest_anonymous: u64,
}

/// Adds up `/proc/PID/smaps`; none if it cannot be read or `image_memory` is not mapped.
fn resident_memory(pid: u32, image_memory: &Path) -> Option<ResidentMemory> {
    // The kernel shows a path without symbolic links.
    let guest_path = fs::canonicalize(image_memory).ok()?;
    let guest_path = guest_path.to_str()?;
    let smaps = File::open(format!("/proc/{pid}/smaps")).ok()?;
    add_up(BufReader::new(smaps), guest_path)
}

fn add_up(smaps: impl BufRead, guest_path: &str) -> Option<ResidentMemory> {
    let mut memory = ResidentMemory::default();
    let mut in_guest = false;
    let mut has_guest = false;
    for line in smaps.split(b'\n') {
        let line = line.ok()?;
        let line = String::from_utf8_lossy(&line);
        if let Some(path) = path_of_mapping(&line) {
            in_guest = path == guest_path;
            has_guest |= in_guest;
        } else if let Some((name @ ("Rss" | "Anonymous"), kib)) = line.split_once(':') {
            let kib = kib.trim().strip_suffix(" kB")?.trim();
            let bytes = kib.parse::<u64>().ok()?.checked_mul(1_024)?;
            let sum = match (name, in_guest) {
                ("Anonymous", true) => &mut memory.guest_anonymous,
                ("Anonymous", false) => &mut memory.own_anonymous,
                (_, false) => &mut memory.own,
                (_, true) => continue,
            };
            *sum = sum.checked_add(bytes)?;
        }
    }
    has_guest.then_some(memory)
}

/// The path in the first line of a mapping, empty if it has none. None for any other line.
///
/// The line is `START-END PERMISSIONS OFFSET DEVICE INODE PATH` (proc_pid_smaps(5)).
fn path_of_mapping(line: &str) -> Option<&str> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let is_hex = |text: &str| u64::from_str_radix(text, 16).is_ok();
    if !is_hex(start) || !is_hex(end) {
        return None;
    }
    let inode = rest.splitn(4, ' ').nth(3)?;
    Some(inode.split_once(' ').map_or("", |(_, path)| path.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
00400000-00452000 r-xp 00000000 08:02 173521      /usr/bin/mctl vmm
Rss:                 328 kB
Anonymous:             4 kB
7f0000000000-7f0010000000 rw-p 00001000 08:02 99                         /state/machines/m/image/memory
Rss:              100000 kB
Anonymous:          2048 kB
VmFlags: rd wr mr mw me nr
7f0020000000-7f0020021000 rw-p 00000000 00:00 0
Anonymous:            12 kB
7ffc0000-7ffd0000 rw-p 00000000 00:00 0          [stack]
Anonymous:            16 kB
";

    #[test]
    fn guest_memory_is_told_apart_by_the_file_that_it_maps() {
        let memory = add_up(SMAPS.as_bytes(), "/state/machines/m/image/memory");
        let expected = ResidentMemory {
            own: 328 << 10,
            own_anonymous: (4 + 12 + 16) << 10,
            guest_anonymous: 2048 << 10,
        };
        assert_eq!(memory, Some(expected));
    }

    #[test]
    fn a_process_that_does_not_map_the_image_has_nothing_to_tell_apart() {
        assert_eq!(add_up(SMAPS.as_bytes(), "/elsewhere/memory"), None);
    }

    #[test]
    fn the_first_line_of_a_mapping_may_have_a_path_with_spaces_or_none() {
        let paths: Vec<&str> = SMAPS.lines().filter_map(path_of_mapping).collect();
        let guest = "/state/machines/m/image/memory";
        assert_eq!(paths, ["/usr/bin/mctl vmm", guest, "", "[stack]"]);
    }

    #[test]
    fn this_process_can_be_read() {
        let own = std::env::current_exe().unwrap();
        let memory = resident_memory(std::process::id(), &own).unwrap();
        assert!(memory.own_anonymous > 0 && memory.own >= memory.own_anonymous);
    }
}
