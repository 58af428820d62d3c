//! The packet header (virtio 1.2, 5.10.6) and the two ways across a descriptor chain.
//!
//! A packet is copied from guest memory once and checked in the copy. The caller interprets it.

use std::io::{Read, Write};

use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryMmap;

use super::state::Pair;
use crate::bytes::array_at;

/// Length of a header.
pub(super) const HEADER_BYTES: usize = 44;
/// Longest payload that we send or accept, the same as Linux's.
pub(super) const MAX_PAYLOAD_BYTES: usize = 64 * 1024;
/// The host's address.
pub(super) const HOST_CID: u64 = 2;
/// The only socket type offered.
pub(super) const TYPE_STREAM: u16 = 1;
/// SHUTDOWN flag: its sender will not receive any more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1;
/// SHUTDOWN flag: its sender will not send any more.
pub(super) const SHUTDOWN_SEND: u32 = 2;
/// Both of them.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
    /// An operation that the specification does not have.
    Unknown(u16),
}

impl From<u16> for Op {
    fn from(raw: u16) -> Self {
        match raw {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            other => Self::Unknown(other),
        }
    }
}

impl From<Op> for u16 {
    fn from(op: Op) -> Self {
        match op {
            Op::Request => 1,
            Op::Response => 2,
            Op::Reset => 3,
            Op::Shutdown => 4,
            Op::Data => 5,
            Op::CreditUpdate => 6,
            Op::CreditRequest => 7,
            Op::Unknown(other) => other,
        }
    }
}

/// A packet's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) source_cid: u64,
    pub(super) destination_cid: u64,
    pub(super) source_port: u32,
    pub(super) destination_port: u32,
    pub(super) payload_bytes: u32,
    pub(super) socket_type: u16,
    pub(super) op: Op,
    pub(super) flags: u32,
    pub(super) buffer_bytes: u32,
    pub(super) forwarded: u32,
}

impl Header {
    /// A header from the host's end of `pair`, without payload, flags and credit.
    pub(super) fn to_guest(pair: Pair, op: Op) -> Self {
        Self {
            source_cid: HOST_CID,
            destination_cid: 0,
            source_port: pair.local,
            destination_port: pair.peer,
            payload_bytes: 0,
            socket_type: TYPE_STREAM,
            op,
            flags: 0,
            buffer_bytes: 0,
            forwarded: 0,
        }
    }

    /// The pair that a packet from the guest belongs to.
    pub(super) fn pair_from_guest(&self) -> Pair {
        Pair {
            local: self.destination_port,
            peer: self.source_port,
        }
    }

    pub(super) fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Self {
        Self {
            source_cid: u64::from_le_bytes(array_at(bytes, 0)),
            destination_cid: u64::from_le_bytes(array_at(bytes, 8)),
            source_port: u32::from_le_bytes(array_at(bytes, 16)),
            destination_port: u32::from_le_bytes(array_at(bytes, 20)),
            payload_bytes: u32::from_le_bytes(array_at(bytes, 24)),
            socket_type: u16::from_le_bytes(array_at(bytes, 28)),
            op: u16::from_le_bytes(array_at(bytes, 30)).into(),
            flags: u32::from_le_bytes(array_at(bytes, 32)),
            buffer_bytes: u32::from_le_bytes(array_at(bytes, 36)),
            forwarded: u32::from_le_bytes(array_at(bytes, 40)),
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..8].copy_from_slice(&self.source_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.destination_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.source_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.destination_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.socket_type.to_le_bytes());
        bytes[30..32].copy_from_slice(&u16::from(self.op).to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buffer_bytes.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.forwarded.to_le_bytes());
        bytes
    }
}

/// Why a chain on the TX queue is not a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Malformed {
    /// No header can be read, so there is no pair to answer.
    Header,
    /// The header can be read, but the payload is too long or missing.
    Payload(Header),
}

/// Reads a packet of the guest. Only data packets have a payload; it is put at the front of `payload`.
pub(super) fn read_packet(
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
    payload: &mut [u8],
) -> Result<Header, Malformed> {
    let mut reader = chain.reader(memory).map_err(|_| Malformed::Header)?;
    let mut bytes = [0; HEADER_BYTES];
    reader
        .read_exact(&mut bytes)
        .map_err(|_| Malformed::Header)?;
    let header = Header::from_bytes(&bytes);
    if header.op == Op::Data {
        let wanted = usize::try_from(header.payload_bytes)
            .ok()
            .and_then(|bytes| payload.get_mut(..bytes))
            .ok_or(Malformed::Payload(header))?;
        reader
            .read_exact(wanted)
            .map_err(|_| Malformed::Payload(header))?;
    }
    Ok(header)
}

/// How many bytes of payload fit into a chain of the RX queue; `None` where not even a header fits.
pub(super) fn payload_capacity(
    memory: &GuestMemoryMmap,
    chain: &DescriptorChain<&GuestMemoryMmap>,
) -> Option<usize> {
    let writer = chain.clone().writer(memory).ok()?;
    writer.available_bytes().checked_sub(HEADER_BYTES)
}

/// Writes a packet into a chain of the RX queue; returns the number of bytes written, or `None` if the
/// guest has changed the chain meanwhile.
pub(super) fn write_packet(
    memory: &GuestMemoryMmap,
    chain: DescriptorChain<&GuestMemoryMmap>,
    header: Header,
    payload: &[u8],
) -> Option<u32> {
    let mut writer = chain.writer(memory).ok()?;
    writer.write_all(&header.to_bytes()).ok()?;
    writer.write_all(payload).ok()?;
    u32::try_from(writer.bytes_written()).ok()
}
