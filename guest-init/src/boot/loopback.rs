//! Brings up the loopback interface, to which published ports are forwarded. It is the guest's only
//! network.

use nix::sys::socket::SockProtocol;

use crate::os::netlink::{self, NetlinkError, Question};

const RTM_NEWLINK: u16 = 16;
const IFF_UP: u32 = 1;

/// The first interface of every network namespace is `lo`.
const LOOPBACK_INDEX: u32 = 1;

/// Brings the loopback interface up; the kernel gives it its addresses.
pub(crate) fn bring_up() -> Result<(), NetlinkError> {
    let request = link_request(LOOPBACK_INDEX, IFF_UP);
    netlink::ask(
        SockProtocol::NetlinkRoute,
        Question::Act,
        RTM_NEWLINK,
        &request,
    )?;
    Ok(())
}

/// `struct ifinfomsg`: family, padding, type, index, flags, mask of the flags to change.
fn link_request(index: u32, flags: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&flags.to_ne_bytes());
    bytes
}
