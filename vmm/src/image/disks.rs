//! `disks.json`: the identities of a machine's disks when it was saved, bound to its image by the id.
//!
//! A file of its own, so that programs which know nothing of it can read the rest of the image. It is
//! there if the machine has disks. An image without it, or with that of another image, comes from such a
//! program, and says nothing about disks.

use serde::{Deserialize, Serialize};

use super::format::ImageId;
use super::sealed_json::{SealError, seal, unseal};
use crate::devices::virtio::block::DiskIdentity;

/// Longest file that is read, in bytes; a disk takes 300.
pub(super) const MAX_DISKS_BYTES: u64 = 1 << 20;

/// The contents of `disks.json`, without its checksum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedDisks {
    /// The image that they belong to.
    pub image_id: ImageId,
    /// In the order of their devices.
    pub disks: Vec<DiskIdentity>,
}

/// Why bytes are not such a file.
#[derive(Debug, thiserror::Error)]
pub enum SavedDisksError {
    /// Not intact.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Intact, but with other fields.
    #[error("its fields are not those of a list of disks")]
    Fields(#[source] serde_json::Error),
}

impl SavedDisks {
    /// Encodes it, with its checksum.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        seal(self)
    }

    /// Reads it back.
    pub fn decode(bytes: &[u8]) -> Result<Self, SavedDisksError> {
        serde_json::from_slice(&unseal(bytes)?).map_err(SavedDisksError::Fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_survives_its_file_and_every_flipped_bit_is_found() {
        let file = tempfile::tempfile().unwrap();
        let saved = SavedDisks {
            image_id: ImageId::random(),
            disks: vec![DiskIdentity::of(&file, 512).unwrap(); 2],
        };
        let bytes = saved.encode().unwrap();
        assert_eq!(SavedDisks::decode(&bytes).unwrap(), saved);
        for position in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[position] ^= 1;
            assert!(SavedDisks::decode(&damaged).is_err(), "byte {position}");
            assert!(SavedDisks::decode(&bytes[..position]).is_err());
        }
    }
}
