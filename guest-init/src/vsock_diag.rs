//! The kernel's list of vsock sockets, of all processes, as `linux/vm_sockets_diag.h` has it.
//!
//! Needs the vsock_diag module; without it the kernel says no and the caller makes do with
//! guest-init's own list.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

use guest_protocol::{OpenVsocks, VsockCount};
use nix::libc::VMADDR_CID_ANY;
use nix::sys::socket::SockProtocol;

use crate::netlink::{self, NetlinkError, Question, read_u32};
use crate::registry::OpenSocket;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const AF_VSOCK: u8 = 40;
const ESTABLISHED: u8 = 1;
const CONNECTING: u8 = 2;
const TCP_LISTEN: u8 = 10;

/// One socket of the kernel's list that has or had a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KernelSocket {
    pub(crate) state: u8,
    pub(crate) inode: u64,
}

/// Asks the kernel for all connected sockets, dead but unclosed ones included.
pub(crate) fn list() -> Result<Vec<KernelSocket>, NetlinkError> {
    let answer = netlink::ask(
        SockProtocol::NetlinkSockDiag,
        Question::List,
        SOCK_DIAG_BY_FAMILY,
        &request(),
    )?;
    Ok(answer.iter().filter_map(|bytes| parse(bytes)).collect())
}

/// `struct vsock_diag_req`: family, protocol, padding, states, inode, show, cookie.
fn request() -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[0] = AF_VSOCK;
    bytes[4..8].copy_from_slice(&u32::MAX.to_ne_bytes()); // sockets of every state
    bytes
}

/// Reads a `struct vsock_diag_msg`: family, type, state, shutdown, source CID and port,
/// destination CID and port, inode, cookie. None for listeners and sockets without a peer.
fn parse(bytes: &[u8]) -> Option<KernelSocket> {
    let state = *bytes.get(2)?;
    let peer_cid = read_u32(bytes, 12)?;
    let inode = read_u32(bytes, 20)?;
    if bytes.first() != Some(&AF_VSOCK) || state == TCP_LISTEN || peer_cid == VMADDR_CID_ANY {
        return None;
    }
    Some(KernelSocket {
        state,
        inode: inode.into(),
    })
}

impl KernelSocket {
    /// A resume resets whatever was connected before the first call of the new generation can
    /// arrive (the VMM holds it back for that long), so what is alive then was opened since, or
    /// has both ends within the guest and lives on.
    fn is_alive(self) -> bool {
        matches!(self.state, ESTABLISHED | CONNECTING)
    }
}

/// In which generation sockets of other processes than guest-init were opened, as far as they
/// outlived it: learnt from what is there when the next one begins.
#[derive(Debug, Default)]
pub(crate) struct Opened(HashMap<u64, u64>);

impl Opened {
    /// Notes what is left of the generation `ended` when a newer one begins.
    pub(crate) fn note_end_of(&mut self, ended: u64, kernel: &[KernelSocket]) {
        // Inode 0 stands for all sockets whose owner has closed them already.
        let left: HashSet<u64> = kernel
            .iter()
            .filter(|socket| socket.inode != 0 && !socket.is_alive())
            .map(|socket| socket.inode)
            .collect();
        self.0.retain(|inode, _| left.contains(inode));
        for inode in left {
            self.0.entry(inode).or_insert(ended);
        }
    }

    /// The generation of a socket that guest-init does not serve: the newest, unless it was
    /// left over when that began.
    fn generation(&self, inode: u64, newest: u64) -> Option<u64> {
        if inode == 0 {
            return None;
        }
        Some(self.0.get(&inode).copied().unwrap_or(newest))
    }
}

fn state_name(socket: KernelSocket) -> Cow<'static, str> {
    match socket.state {
        // Its owner has closed it; the kernel waits for the peer to agree.
        _ if socket.inode == 0 => "closing".into(),
        ESTABLISHED => "established".into(),
        CONNECTING => "connecting".into(),
        7 => "closed".into(),
        11 => "closing".into(),
        other => format!("state {other}").into(),
    }
}

/// Counts open sockets by state and generation, without the one of inode `except`.
///
/// `kernel` is the kernel's list, if there is one; `opened` tells the generation of those in it
/// that are not guest-init's `own`. A socket of an older generation that only
/// guest-init still knows is counted as `detached`: the kernel took it out of its tables (its
/// pair is free), but its owner has not closed it.
pub(crate) fn count(
    kernel: Option<&[KernelSocket]>,
    own: &[OpenSocket],
    opened: &Opened,
    newest: u64,
    except: u64,
) -> OpenVsocks {
    let generations: HashMap<u64, Option<u64>> = own
        .iter()
        .map(|socket| (socket.inode, socket.generation))
        .collect();
    let mut counts: BTreeMap<(Cow<'static, str>, Option<u64>), u32> = BTreeMap::new();
    let mut listed = HashSet::new();
    for socket in kernel.unwrap_or_default() {
        listed.insert(socket.inode);
        if socket.inode != except {
            let generation = match generations.get(&socket.inode) {
                Some(own) => *own,
                None => opened.generation(socket.inode, newest),
            };
            *counts.entry((state_name(*socket), generation)).or_default() += 1;
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

    fn diag_message(state: u8, peer_cid: u32, inode: u32) -> Vec<u8> {
        let mut bytes = vec![AF_VSOCK, 1, state, 0];
        for field in [3, 1024, peer_cid, 1 << 30, inode, 0, 0] {
            bytes.extend(u32::to_ne_bytes(field));
        }
        bytes
    }

    fn own(inode: u64, generation: u64) -> OpenSocket {
        OpenSocket {
            inode,
            generation: Some(generation),
        }
    }

    #[test]
    fn listeners_and_sockets_without_a_peer_are_not_counted() {
        let connected = diag_message(1, 2, 77);
        assert_eq!(
            parse(&connected),
            Some(KernelSocket {
                state: 1,
                inode: 77
            })
        );
        assert_eq!(parse(&diag_message(TCP_LISTEN, VMADDR_CID_ANY, 77)), None);
        assert_eq!(parse(&diag_message(7, VMADDR_CID_ANY, 77)), None);
        assert_eq!(parse(&connected[..23]), None);
    }

    #[test]
    fn a_leaked_socket_shows_its_generation_and_the_asking_one_is_left_out() {
        let kernel = [(7, 10), (1, 11), (1, 12), (1, 13)]
            .map(|(state, inode)| KernelSocket { state, inode });
        let registered = [own(10, 4), own(11, 5), own(12, 5)];

        let open = count(Some(&kernel), &registered, &Opened::default(), 5, 12);

        assert_eq!((open.total, open.older_generations), (3, 1));
        let counts: Vec<_> = open
            .counts
            .iter()
            .map(|count| (count.state.as_str(), count.generation, count.count))
            .collect();
        assert_eq!(
            counts,
            [("closed", Some(4), 1), ("established", Some(5), 2)]
        );
    }

    #[test]
    fn a_socket_that_the_kernel_forgot_but_nobody_closed_is_detached() {
        let open = count(
            Some(&[]),
            &[own(10, 4), own(11, 5)],
            &Opened::default(),
            5,
            0,
        );

        assert_eq!((open.total, open.older_generations), (1, 1));
        assert_eq!(open.counts[0].state, "detached");
    }

    #[test]
    fn a_socket_that_its_owner_has_closed_is_closing() {
        let orphan = KernelSocket { state: 1, inode: 0 };

        let open = count(Some(&[orphan]), &[], &Opened::default(), 5, 12);

        assert_eq!(open.counts[0].state, "closing");
    }

    #[test]
    fn what_other_processes_leave_over_belongs_to_the_generation_that_ended() {
        let closed = |inode| KernelSocket { state: 7, inode };
        let alive = |inode| KernelSocket {
            state: ESTABLISHED,
            inode,
        };
        let mut opened = Opened::default();
        opened.note_end_of(4, &[closed(20), closed(21), alive(22), closed(0)]);
        // 21 was closed by its owner meanwhile, 23 opened and left over.
        opened.note_end_of(5, &[closed(20), alive(22), closed(23)]);

        let kernel = [closed(20), alive(22), closed(23), alive(24)];
        let open = count(Some(&kernel), &[], &opened, 6, 0);

        assert_eq!((open.total, open.older_generations), (4, 2));
        let counts: Vec<_> = open
            .counts
            .iter()
            .map(|count| (count.state.as_str(), count.generation, count.count))
            .collect();
        assert_eq!(
            counts,
            [
                ("closed", Some(4), 1),
                ("closed", Some(5), 1),
                ("established", Some(6), 2)
            ]
        );
    }

    #[test]
    fn an_inode_that_is_used_again_is_not_taken_for_the_socket_that_had_it() {
        let mut opened = Opened::default();
        let socket = |state| KernelSocket { state, inode: 20 };
        opened.note_end_of(4, &[socket(7)]);
        opened.note_end_of(5, &[]);
        let open = count(Some(&[socket(ESTABLISHED)]), &[], &opened, 6, 0);
        assert_eq!(open.older_generations, 0);
    }

    #[test]
    fn without_a_list_from_the_kernel_our_own_serves() {
        let open = count(
            None,
            &[own(10, 4), own(11, 5), own(12, 5)],
            &Opened::default(),
            5,
            12,
        );

        assert_eq!(open.source, "init");
        assert_eq!((open.total, open.older_generations), (2, 1));
    }
}
