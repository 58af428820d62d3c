//! Netlink: sends the kernel one request and reads its answer, in the format of
//! `linux/netlink.h`. The meaning of the payloads is the caller's.

use std::io;
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

const HEADER_BYTES: usize = 16;
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// The kernel answers within the system call that asks, or not at all.
const ANSWER_SECONDS: i64 = 2;

/// Most bytes of an answer that are read.
const ANSWER_LIMIT_BYTES: usize = 16 << 20;

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetlinkError {
    #[error("cannot use a netlink socket")]
    Socket(#[from] io::Error),
    #[error("the kernel refused the netlink request")]
    Refused(#[source] Errno),
    #[error("the kernel's netlink answer is malformed")]
    Malformed,
    #[error("the kernel's netlink answer exceeds {ANSWER_LIMIT_BYTES} bytes")]
    TooLong,
}

impl From<Errno> for NetlinkError {
    fn from(errno: Errno) -> Self {
        Self::Socket(errno.into())
    }
}

/// Kind of request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Question {
    /// To do one thing: answered by an acknowledgement.
    Act,
    /// For a list: answered by any number of messages.
    List,
}

/// Sends one message and returns the payloads of the answer.
pub(crate) fn ask(
    protocol: SockProtocol,
    question: Question,
    message_type: u16,
    payload: &[u8],
) -> Result<Vec<Vec<u8>>, NetlinkError> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        protocol,
    )?;
    setsockopt(
        &socket,
        sockopt::ReceiveTimeout,
        &TimeVal::seconds(ANSWER_SECONDS),
    )?;
    let flags = match question {
        Question::Act => NLM_F_REQUEST | NLM_F_ACK,
        Question::List => NLM_F_REQUEST | NLM_F_DUMP,
    };
    let request = message(message_type, flags, payload)?;
    let fd = socket.as_raw_fd();
    sendto(fd, &request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut payloads = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut answer_bytes = 0;
    loop {
        let length = recv(fd, &mut buffer, MsgFlags::empty())?;
        answer_bytes += length;
        if answer_bytes > ANSWER_LIMIT_BYTES {
            return Err(NetlinkError::TooLong);
        }
        let datagram = buffer.get(..length).unwrap_or_default();
        if read_messages(datagram, &mut payloads)? == Progress::Complete {
            return Ok(payloads);
        }
    }
}

fn message(message_type: u16, flags: u16, payload: &[u8]) -> Result<Vec<u8>, NetlinkError> {
    let total = u32::try_from(HEADER_BYTES + payload.len()).map_err(|_| NetlinkError::TooLong)?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend_from_slice(&total.to_ne_bytes());
    bytes.extend_from_slice(&message_type.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&[0; 8]); // sequence and port: one request per socket needs neither
    bytes.extend_from_slice(payload);
    Ok(bytes)
}

#[derive(Debug, PartialEq, Eq)]
enum Progress {
    More,
    Complete,
}

/// Parses one datagram and appends the payloads of its messages.
fn read_messages(mut bytes: &[u8], payloads: &mut Vec<Vec<u8>>) -> Result<Progress, NetlinkError> {
    while !bytes.is_empty() {
        let length = read_u32(bytes, 0).ok_or(NetlinkError::Malformed)? as usize;
        let message_type = read_u16(bytes, 4).ok_or(NetlinkError::Malformed)?;
        let payload = bytes
            .get(HEADER_BYTES..length)
            .ok_or(NetlinkError::Malformed)?;
        match message_type {
            NLMSG_DONE | NLMSG_ERROR => {
                // Both begin with a negative errno; zero is success.
                return match read_u32(payload, 0).map(u32::cast_signed) {
                    None if message_type == NLMSG_DONE => Ok(Progress::Complete),
                    None => Err(NetlinkError::Malformed),
                    Some(0) => Ok(Progress::Complete),
                    Some(errno) => Err(NetlinkError::Refused(Errno::from_raw(
                        errno.checked_neg().unwrap_or_default(),
                    ))),
                };
            }
            _ => payloads.push(payload.to_vec()),
        }
        let aligned = length.next_multiple_of(4);
        bytes = bytes.get(aligned..).unwrap_or_default();
    }
    Ok(Progress::More)
}

/// Reads a number in the machine's byte order.
pub(crate) fn read_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    let field = bytes.get(offset..)?.first_chunk::<4>()?;
    Some(u32::from_ne_bytes(*field))
}

fn read_u16(bytes: &[u8], offset: usize) -> Option<u16> {
    let field = bytes.get(offset..)?.first_chunk::<2>()?;
    Some(u16::from_ne_bytes(*field))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_list_ends_with_done_and_its_payloads_come_out_in_order() {
        let mut datagram = message(20, 2, b"first").unwrap();
        datagram.resize(datagram.len().next_multiple_of(4), 0);
        datagram.extend(message(20, 2, b"next").unwrap());
        let mut payloads = Vec::new();

        let progress = read_messages(&datagram, &mut payloads).unwrap();
        let done = message(NLMSG_DONE, 2, &0i32.to_ne_bytes()).unwrap();

        assert_eq!(progress, Progress::More);
        assert_eq!(payloads, [b"first".to_vec(), b"next".to_vec()]);
        assert_eq!(
            read_messages(&done, &mut payloads).unwrap(),
            Progress::Complete
        );
    }

    #[test]
    fn the_errno_of_a_refusal_is_kept() {
        let refusal = message(NLMSG_ERROR, 0, &(-libc::ENOENT).to_ne_bytes()).unwrap();

        let error = read_messages(&refusal, &mut Vec::new()).unwrap_err();

        assert!(matches!(error, NetlinkError::Refused(Errno::ENOENT)));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut payloads = Vec::new();
            let _any = read_messages(&bytes, &mut payloads);
        }
    }
}
