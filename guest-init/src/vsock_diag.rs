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

fn state_name(socket: KernelSocket) -> Cow<'static, str> {
    match socket.state {
        // Its owner has closed it; the kernel waits for the peer to agree.
        _ if socket.inode == 0 => "closing".into(),
        1 => "established".into(),
        2 => "connecting".into(),
        7 => "closed".into(),
        11 => "closing".into(),
        other => format!("state {other}").into(),
    }
}

/// Counts open sockets by state and generation, without the one of inode `except`.
///
/// `kernel` is the kernel's list, if there is one. A socket of an older generation that only
/// guest-init still knows is counted as `detached`: the kernel took it out of its tables (its
/// pair is free), but its owner has not closed it.
pub(crate) fn count(
    kernel: Option<&[KernelSocket]>,
    own: &[OpenSocket],
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
            let generation = generations.get(&socket.inode).copied().flatten();
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

        let open = count(Some(&kernel), &registered, 5, 12);

        assert_eq!((open.total, open.older_generations), (3, 1));
        let counts: Vec<_> = open
            .counts
            .iter()
            .map(|count| (count.state.as_str(), count.generation, count.count))
            .collect();
        assert_eq!(
            counts,
            [
                ("closed", Some(4), 1),
                ("established", None, 1),
                ("established", Some(5), 1)
            ]
        );
    }

    #[test]
    fn a_socket_that_the_kernel_forgot_but_nobody_closed_is_detached() {
        let open = count(Some(&[]), &[own(10, 4), own(11, 5)], 5, 0);

        assert_eq!((open.total, open.older_generations), (1, 1));
        assert_eq!(open.counts[0].state, "detached");
    }

    #[test]
    fn a_socket_that_its_owner_has_closed_is_closing() {
        let orphan = KernelSocket { state: 1, inode: 0 };

        let open = count(Some(&[orphan]), &[], 5, 12);

        assert_eq!(open.counts[0].state, "closing");
    }

    #[test]
    fn without_a_list_from_the_kernel_our_own_serves() {
        let open = count(None, &[own(10, 4), own(11, 5), own(12, 5)], 5, 12);

        assert_eq!(open.source, "init");
        assert_eq!((open.total, open.older_generations), (2, 1));
    }
}
