//! One request (virtio 1.2, 5.2.6): header, data, status byte.
//!
//! Everything comes from the guest: an invalid request gets a status that says so, and one without room
//! for a status is given back unanswered.

use std::io::{Read, Write};

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
};
use virtio_queue::{DescriptorChain, Reader, Writer};
use vm_memory::GuestMemoryMmap;

use super::backend::{Backend, SECTOR_BYTES};
use crate::bytes::array_at;

/// Most bytes that one request may move: twice the most that Linux asks for.
const MAX_DATA_BYTES: u64 = 16 << 20;
/// Most bytes that are moved at a time.
const CHUNK_BYTES: usize = 64 * 1024;
/// Most sectors of a discard or write-zeroes request, as the configuration says.
pub(super) const MAX_ZERO_SECTORS: u32 = 1 << 16;
/// `unmap` of a write-zeroes request; all other flags are reserved.
const UNMAP: u32 = 1;

/// Why a request fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// It is out of range or malformed, or the host failed.
    Io,
    /// The device has no such operation.
    Unsupported,
}

impl From<std::io::Error> for Failure {
    fn from(_: std::io::Error) -> Self {
        Self::Io
    }
}

/// A request whose header has been read.
pub(super) struct Request<'m> {
    /// None if there is no whole header.
    header: Option<Header>,
    reader: Reader<'m>,
    writer: Writer<'m>,
    status: Writer<'m>,
}

#[derive(Debug, Clone, Copy)]
struct Header {
    kind: u32,
    sector: u64,
}

impl<'m> Request<'m> {
    /// Reads the header of a request; none if the chain has no room for a status.
    pub(super) fn new(
        memory: &'m GuestMemoryMmap,
        chain: DescriptorChain<&'m GuestMemoryMmap>,
    ) -> Option<Self> {
        let mut reader = chain.clone().reader(memory).ok()?;
        let mut writer = chain.writer(memory).ok()?;
        // The status is the last byte that the device may write.
        let data_bytes = writer.available_bytes().checked_sub(1)?;
        let status = writer.split_at(data_bytes).ok()?;
        let mut bytes = [0; 16];
        let header = reader.read_exact(&mut bytes).is_ok().then(|| Header {
            kind: u32::from_le_bytes(array_at(&bytes, 0)),
            sector: u64::from_le_bytes(array_at(&bytes, 8)),
        });
        Some(Self {
            header,
            reader,
            writer,
            status,
        })
    }

    /// Whether its service changes what is on the disk.
    pub(super) fn changes_disk(&self) -> bool {
        self.header.is_some_and(|header| changes_disk(header.kind))
    }

    /// Serves it; returns the number of bytes written into the chain.
    pub(super) fn serve(mut self, backend: &Backend, buffer: &mut Vec<u8>) -> u32 {
        buffer.resize(CHUNK_BYTES, 0);
        let status = match self.execute(backend, buffer) {
            Ok(()) => VIRTIO_BLK_S_OK,
            Err(Failure::Io) => VIRTIO_BLK_S_IOERR,
            Err(Failure::Unsupported) => VIRTIO_BLK_S_UNSUPP,
        };
        let status = u8::try_from(status).unwrap_or(u8::MAX);
        if self.status.write_all(&[status]).is_err() {
            return 0;
        }
        // Linux reads the status and ignores this number. Bytes that a failed read left out stay as they
        // were.
        u32::try_from(self.writer.bytes_written() + 1).unwrap_or(0)
    }

    fn execute(&mut self, backend: &Backend, buffer: &mut [u8]) -> Result<(), Failure> {
        let Header { kind, sector } = self.header.ok_or(Failure::Io)?;
        let Self { reader, writer, .. } = self;
        match kind {
            VIRTIO_BLK_T_IN => read(backend, sector, writer, buffer),
            VIRTIO_BLK_T_GET_ID => read_id(backend, writer),
            VIRTIO_BLK_T_FLUSH => Ok(backend.flush()?),
            _ if changes_disk(kind) && backend.read_only() => Err(Failure::Io),
            VIRTIO_BLK_T_OUT => write(backend, sector, reader, buffer),
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => zero(backend, kind, reader),
            _ => Err(Failure::Unsupported),
        }
    }
}

fn changes_disk(kind: u32) -> bool {
    matches!(
        kind,
        VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES
    )
}

fn read(
    backend: &Backend,
    sector: u64,
    writer: &mut Writer<'_>,
    buffer: &mut [u8],
) -> Result<(), Failure> {
    let bytes = writer.available_bytes() as u64;
    let mut offset = data_offset(backend, sector, bytes)?;
    while writer.available_bytes() > 0 {
        let chunk = writer.available_bytes().min(buffer.len());
        backend.read(&mut buffer[..chunk], offset)?;
        writer.write_all(&buffer[..chunk])?;
        offset += chunk as u64;
    }
    Ok(())
}

fn write(
    backend: &Backend,
    sector: u64,
    reader: &mut Reader<'_>,
    buffer: &mut [u8],
) -> Result<(), Failure> {
    let bytes = reader.available_bytes() as u64;
    let mut offset = data_offset(backend, sector, bytes)?;
    while reader.available_bytes() > 0 {
        let chunk = reader.available_bytes().min(buffer.len());
        reader.read_exact(&mut buffer[..chunk])?;
        backend.write(&buffer[..chunk], offset)?;
        offset += chunk as u64;
    }
    Ok(())
}

fn read_id(backend: &Backend, writer: &mut Writer<'_>) -> Result<(), Failure> {
    let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
    let known = backend.id().as_bytes();
    let bytes = known.len().min(id.len());
    id[..bytes].copy_from_slice(&known[..bytes]);
    Ok(writer.write_all(&id)?)
}

/// Serves the one segment that the configuration allows in a request.
fn zero(backend: &Backend, kind: u32, reader: &mut Reader<'_>) -> Result<(), Failure> {
    let mut segment = [0; 16];
    reader.read_exact(&mut segment)?;
    let sector = u64::from_le_bytes(array_at(&segment, 0));
    let sectors = u32::from_le_bytes(array_at(&segment, 8));
    let flags = u32::from_le_bytes(array_at(&segment, 12));
    let discards = kind == VIRTIO_BLK_T_DISCARD;
    // virtio 1.2, 5.2.6.2: unknown flags, and unmap in a discard, are not supported.
    if flags & !UNMAP != 0 || (discards && flags != 0) {
        return Err(Failure::Unsupported);
    }
    if reader.available_bytes() > 0 || sectors > MAX_ZERO_SECTORS {
        return Err(Failure::Io);
    }
    let bytes = u64::from(sectors) * SECTOR_BYTES;
    let offset = backend.offset(sector, bytes).ok_or(Failure::Io)?;
    match (bytes, discards) {
        (0, _) => Ok(()),
        (_, true) => Ok(backend.discard(offset, bytes)?),
        (_, false) => Ok(backend.write_zeroes(offset, bytes, flags & UNMAP != 0)?),
    }
}

fn data_offset(backend: &Backend, sector: u64, bytes: u64) -> Result<u64, Failure> {
    if bytes > MAX_DATA_BYTES {
        return Err(Failure::Io);
    }
    backend.offset(sector, bytes).ok_or(Failure::Io)
}
