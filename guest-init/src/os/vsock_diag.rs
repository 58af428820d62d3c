//! The kernel's list of vsock sockets, of all processes, in the format of
//! `linux/vm_sockets_diag.h`. It knows no generations.
//!
//! Needs the vsock_diag module; without it the kernel refuses and the caller falls back on
//! guest-init's own sockets.

use nix::libc::VMADDR_CID_ANY;
use nix::sys::socket::SockProtocol;

use crate::os::netlink::{self, NetlinkError, Question, read_u32};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const AF_VSOCK: u8 = 40;

// Socket states, numbered as for TCP.
const ESTABLISHED: u8 = 1;
const CONNECTING: u8 = 2;
const CLOSED: u8 = 7;
const LISTENING: u8 = 10;
const CLOSING: u8 = 11;

/// Our own number for a socket that never had a peer and does not listen; the kernel calls it closed.
const UNCONNECTED: u8 = 0;

/// One socket of the kernel's list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct KernelSocket {
    pub(crate) state: u8,
    /// Zero where its owner has closed it already.
    pub(crate) inode: u64,
}

impl KernelSocket {
    /// Whether it has or had a peer.
    pub(crate) fn is_connection(self) -> bool {
        !matches!(self.state, LISTENING | UNCONNECTED)
    }

    /// Whether it is connected or about to be.
    pub(crate) fn is_alive(self) -> bool {
        matches!(self.state, ESTABLISHED | CONNECTING)
    }

    /// Whether its owner has closed it; the kernel waits for the peer to agree.
    pub(crate) fn is_orphan(self) -> bool {
        self.inode == 0
    }

    /// The state's name in a report; none for a state that is not known.
    pub(crate) fn state_name(self) -> Option<&'static str> {
        Some(match self.state {
            _ if self.is_orphan() => "closing",
            ESTABLISHED => "established",
            CONNECTING => "connecting",
            CLOSED => "closed",
            CLOSING => "closing",
            LISTENING => "listening",
            UNCONNECTED => "unconnected",
            _ => return None,
        })
    }
}

/// Asks the kernel for all sockets, including dead ones that are not closed yet.
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
/// destination CID and port, inode, cookie.
fn parse(bytes: &[u8]) -> Option<KernelSocket> {
    let state = *bytes.get(2)?;
    let peer_cid = read_u32(bytes, 12)?;
    let inode = read_u32(bytes, 20)?;
    if bytes.first() != Some(&AF_VSOCK) {
        return None;
    }
    let had_peer = peer_cid != VMADDR_CID_ANY;
    Some(KernelSocket {
        state: if had_peer || state == LISTENING {
            state
        } else {
            UNCONNECTED
        },
        inode: inode.into(),
    })
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

    #[test]
    fn listeners_and_sockets_without_a_peer_are_no_connections() {
        let read = |state, peer_cid| parse(&diag_message(state, peer_cid, 77)).unwrap();
        let connected = read(1, 2);
        assert_eq!(
            connected,
            KernelSocket {
                state: 1,
                inode: 77
            }
        );
        assert!(connected.is_connection());
        for (state, name) in [(LISTENING, "listening"), (CLOSED, "unconnected")] {
            let socket = read(state, VMADDR_CID_ANY);
            assert!(!socket.is_connection());
            assert_eq!(socket.state_name(), Some(name));
        }
        assert_eq!(parse(&diag_message(1, 2, 77)[..23]), None);
    }
}
