//! Counts the open vsock sockets of the guest by state and generation, for a status. The kernel
//! lists the sockets (`os/vsock_diag.rs`), the registry knows the generations of guest-init's own.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

use guest_protocol::{OpenVsocks, VsockCount};

use crate::connection::registry::OpenSocket;
use crate::os::vsock_diag::KernelSocket;

/// Sockets of other processes that outlived the generation in which they were opened: inode and
/// generation. Known from the kernel's list at the moment when the next generation begins.
#[derive(Debug, Default)]
pub(crate) struct LeftoverSockets(HashMap<u64, u64>);

impl LeftoverSockets {
    /// Records the sockets that the generation `ended` leaves over when a newer one begins.
    ///
    /// A resume resets all connections before the first call of the new generation can arrive
    /// (the VMM holds that call back for so long). A socket that is alive then was opened since,
    /// or has both ends within the guest and lives on; neither is left over.
    pub(crate) fn record(&mut self, ended: u64, kernel: &[KernelSocket]) {
        let found: HashSet<u64> = kernel
            .iter()
            .filter(|socket| socket.is_connection())
            .filter(|socket| !socket.is_orphan() && !socket.is_alive())
            .map(|socket| socket.inode)
            .collect();
        self.0.retain(|inode, _| found.contains(inode));
        for inode in found {
            self.0.entry(inode).or_insert(ended);
        }
    }

    /// The generation of another process's socket: the newest, unless it was left over when that
    /// began.
    fn generation_of(&self, socket: KernelSocket, newest: u64) -> Option<u64> {
        if socket.is_orphan() {
            return None;
        }
        Some(self.0.get(&socket.inode).copied().unwrap_or(newest))
    }
}

/// Counts open sockets by state and generation, without the one of inode `except`.
///
/// `kernel` is the kernel's list, if there is one, and `own` are guest-init's own sockets;
/// `leftovers` gives the generation of all others. A socket of an older generation that is not in
/// the kernel's list is counted as `detached`: the kernel took it out of its tables (its pair is
/// free), but guest-init has not closed it.
pub(crate) fn count(
    kernel: Option<&[KernelSocket]>,
    own: &[OpenSocket],
    leftovers: &LeftoverSockets,
    newest: u64,
    except: u64,
) -> OpenVsocks {
    let own_generations: HashMap<u64, Option<u64>> = own
        .iter()
        .map(|socket| (socket.inode, socket.generation))
        .collect();
    let mut counts: BTreeMap<(Cow<'static, str>, Option<u64>), u32> = BTreeMap::new();
    let mut listed = HashSet::new();
    let connections = kernel.unwrap_or_default().iter();
    for socket in connections.filter(|socket| socket.is_connection()) {
        listed.insert(socket.inode);
        if socket.inode != except {
            let generation = match own_generations.get(&socket.inode) {
                Some(own) => *own,
                None => leftovers.generation_of(*socket, newest),
            };
            let state = match socket.state_name() {
                Some(name) => name.into(),
                None => format!("state {}", socket.state).into(),
            };
            *counts.entry((state, generation)).or_default() += 1;
        }
    }
    for socket in own.iter().filter(|socket| socket.inode != except) {
        let is_older = socket.generation.is_some_and(|own| own < newest);
        let state = match kernel {
            None => "open",
            Some(_) if is_older && !listed.contains(&socket.inode) => "detached",
            Some(_) => continue,
        };
        *counts.entry((state.into(), socket.generation)).or_default() += 1;
    }
    summarise(counts, newest, kernel.is_some())
}

fn summarise(
    counts: BTreeMap<(Cow<'static, str>, Option<u64>), u32>,
    newest: u64,
    from_kernel: bool,
) -> OpenVsocks {
    let mut open = OpenVsocks {
        source: if from_kernel { "vsock_diag" } else { "init" }.to_owned(),
        ..OpenVsocks::default()
    };
    for ((state, generation), count) in counts {
        open.total += count;
        if generation.is_some_and(|own| own < newest) {
            open.older_generations += count;
        }
        open.counts.push(VsockCount {
            state: state.into_owned(),
            generation,
            count,
        });
    }
    open
}

#[cfg(test)]
mod tests {
    use super::*;

    const ESTABLISHED: u8 = 1;

    fn own(inode: u64, generation: u64) -> OpenSocket {
        OpenSocket {
            inode,
            generation: Some(generation),
        }
    }

    fn states(open: &OpenVsocks) -> Vec<(&str, Option<u64>, u32)> {
        let counts = open.counts.iter();
        counts
            .map(|count| (count.state.as_str(), count.generation, count.count))
            .collect()
    }

    #[test]
    fn a_leaked_socket_shows_its_generation_and_the_asking_one_is_left_out() {
        let kernel = [(7, 10), (1, 11), (1, 12), (1, 13)]
            .map(|(state, inode)| KernelSocket { state, inode });
        let registered = [own(10, 4), own(11, 5), own(12, 5)];

        let open = count(
            Some(&kernel),
            &registered,
            &LeftoverSockets::default(),
            5,
            12,
        );

        assert_eq!((open.total, open.older_generations), (3, 1));
        assert_eq!(
            states(&open),
            [("closed", Some(4), 1), ("established", Some(5), 2)]
        );
    }

    #[test]
    fn sockets_that_only_listen_are_not_counted() {
        let listening = KernelSocket {
            state: 10,
            inode: 9,
        };
        let mut leftovers = LeftoverSockets::default();
        leftovers.record(4, &[listening]);

        let open = count(Some(&[listening]), &[], &leftovers, 5, 0);

        assert_eq!((open.total, open.older_generations), (0, 0));
    }

    #[test]
    fn a_socket_that_the_kernel_forgot_but_nobody_closed_is_detached() {
        let open = count(
            Some(&[]),
            &[own(10, 4), own(11, 5)],
            &LeftoverSockets::default(),
            5,
            0,
        );

        assert_eq!((open.total, open.older_generations), (1, 1));
        assert_eq!(open.counts[0].state, "detached");
    }

    #[test]
    fn a_socket_that_its_owner_has_closed_is_closing() {
        let orphan = KernelSocket { state: 1, inode: 0 };

        let open = count(Some(&[orphan]), &[], &LeftoverSockets::default(), 5, 12);

        assert_eq!(open.counts[0].state, "closing");
    }

    #[test]
    fn what_other_processes_leave_over_belongs_to_the_generation_that_ended() {
        let closed = |inode| KernelSocket { state: 7, inode };
        let alive = |inode| KernelSocket {
            state: ESTABLISHED,
            inode,
        };
        let mut leftovers = LeftoverSockets::default();
        leftovers.record(4, &[closed(20), closed(21), alive(22), closed(0)]);
        // Meanwhile its owner has closed 21, and 23 was opened and left over.
        leftovers.record(5, &[closed(20), alive(22), closed(23)]);

        let kernel = [closed(20), alive(22), closed(23), alive(24)];
        let open = count(Some(&kernel), &[], &leftovers, 6, 0);

        assert_eq!((open.total, open.older_generations), (4, 2));
        assert_eq!(
            states(&open),
            [
                ("closed", Some(4), 1),
                ("closed", Some(5), 1),
                ("established", Some(6), 2)
            ]
        );
    }

    #[test]
    fn an_inode_that_is_used_again_is_not_taken_for_the_socket_that_had_it() {
        let mut leftovers = LeftoverSockets::default();
        let socket = |state| KernelSocket { state, inode: 20 };
        leftovers.record(4, &[socket(7)]);
        leftovers.record(5, &[]);
        let open = count(Some(&[socket(ESTABLISHED)]), &[], &leftovers, 6, 0);
        assert_eq!(open.older_generations, 0);
    }

    #[test]
    fn without_a_list_from_the_kernel_our_own_serves() {
        let open = count(
            None,
            &[own(10, 4), own(11, 5), own(12, 5)],
            &LeftoverSockets::default(),
            5,
            12,
        );

        assert_eq!(open.source, "init");
        assert_eq!((open.total, open.older_generations), (2, 1));
    }
}
