//! Reports what is in use in the guest: whatever could grow with each resume.

use std::collections::BTreeMap;

use guest_protocol::{GuestResources, InitUsage};
use process_usage::ProcessUsage;

use crate::os::procfs;
use crate::os::vsock_diag::KernelSocket;

/// What is in use now. `sockets` is the kernel's list of vsock sockets, if it has one; the one of
/// inode `except` is not counted.
pub(crate) fn report(sockets: Option<&[KernelSocket]>, except: u64) -> GuestResources {
    let ProcessUsage {
        descriptors,
        threads,
        resident_bytes,
        anonymous_bytes,
        epoll_entries,
        timers,
    } = ProcessUsage::own();
    GuestResources {
        init: InitUsage {
            descriptors,
            threads,
            resident_bytes,
            anonymous_bytes,
            epoll_entries,
            timers,
        },
        tasks: procfs::tasks(),
        vsocks: sockets.map(|sockets| count_by_state(sockets, except)),
    }
}

fn count_by_state(sockets: &[KernelSocket], except: u64) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for socket in sockets.iter().filter(|socket| socket.inode != except) {
        let name = socket.state_name().unwrap_or("other");
        *counts.entry(name.to_owned()).or_default() += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_counted_by_state_without_the_one_that_asks() {
        let sockets = [(1, 10), (1, 11), (7, 12), (1, 0), (10, 13), (99, 14)]
            .map(|(state, inode)| KernelSocket { state, inode });
        let counts = count_by_state(&sockets, 11);
        let expected = [
            ("closed", 1),
            ("closing", 1),
            ("established", 1),
            ("listening", 1),
            ("other", 1),
        ];
        let expected = expected.map(|(name, count)| (name.to_owned(), count));
        assert_eq!(counts, BTreeMap::from(expected));
    }
}
