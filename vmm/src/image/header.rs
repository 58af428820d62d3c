//! The first page of the memory file: whose memory the file holds.
//!
//! A save rewrites it before the pages, so that an older manifest never matches newer memory. Works on
//! bytes, not on files.

use xxhash_rust::xxh3::xxh3_64;

use super::digest::Hex128;
use super::format::{ImageId, VERSION};
use crate::bytes::array_at;
use crate::memory::file::HEADER_LEN;

const MAGIC: [u8; 8] = *b"MCTLMEM\0";
const CHECKSUM_AT: usize = HEADER_LEN - 8;

/// The contents of the header page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The manifest's image id.
    pub image_id: ImageId,
    /// The manifest's generation.
    pub generation: u64,
    /// Bytes of guest memory behind the header.
    pub memory_bytes: u64,
}

/// Why the first page of a memory file is not usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// It doesn't begin as a memory file does.
    #[error("it doesn't begin with the magic of a memory file")]
    Magic,
    /// The checksum contradicts the rest.
    #[error("the checksum of its header page doesn't match")]
    Checksum,
    /// Intact, but of another version.
    #[error("it has format version {found}, and this program reads version {VERSION}")]
    Version {
        /// Its version.
        found: u32,
    },
}

impl Header {
    /// Encodes the page.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut page = [0; HEADER_LEN];
        page[0..8].copy_from_slice(&MAGIC);
        page[8..12].copy_from_slice(&VERSION.to_le_bytes());
        page[16..32].copy_from_slice(&self.image_id.0.0.to_le_bytes());
        page[32..40].copy_from_slice(&self.generation.to_le_bytes());
        page[40..48].copy_from_slice(&self.memory_bytes.to_le_bytes());
        let checksum = xxh3_64(&page[..CHECKSUM_AT]);
        page[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        page
    }

    /// Decodes the page.
    pub fn decode(page: &[u8; HEADER_LEN]) -> Result<Self, HeaderError> {
        if page[0..8] != MAGIC {
            return Err(HeaderError::Magic);
        }
        if page[CHECKSUM_AT..] != xxh3_64(&page[..CHECKSUM_AT]).to_le_bytes() {
            return Err(HeaderError::Checksum);
        }
        let version = u32::from_le_bytes(array_at(page, 8));
        if version != VERSION {
            return Err(HeaderError::Version { found: version });
        }
        Ok(Self {
            image_id: ImageId(Hex128(u128::from_le_bytes(array_at(page, 16)))),
            generation: u64::from_le_bytes(array_at(page, 32)),
            memory_bytes: u64::from_le_bytes(array_at(page, 40)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> Header {
        Header {
            image_id: ImageId::random(),
            generation: 3,
            memory_bytes: 64 << 20,
        }
    }

    #[test]
    fn a_header_survives_its_page() {
        let header = header();

        assert_eq!(Header::decode(&header.encode()), Ok(header));
    }

    #[test]
    fn every_flipped_byte_is_found() {
        let page = header().encode();

        for position in 0..HEADER_LEN {
            let mut damaged = page;
            damaged[position] ^= 0x10;
            assert!(Header::decode(&damaged).is_err(), "byte {position}");
        }
    }
}
