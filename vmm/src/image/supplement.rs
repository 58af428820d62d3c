//! `supplement.json`: what an image says beyond its manifest, bound to it by the image's id.
//!
//! A file of its own, so that programs which know nothing of it can read the rest of the image. It is
//! there if there is anything to say: the machine has disks, or a scaled clock. An image without it, or
//! with that of another image, comes from such a program, and says nothing.

use serde::{Deserialize, Serialize};

use super::format::ImageId;
use super::sealed_json::{SealError, seal, unseal};
use crate::devices::virtio::block::DiskIdentity;

/// Longest file that is read, in bytes; a disk takes 300.
pub(super) const MAX_SUPPLEMENT_BYTES: u64 = 1 << 20;

/// The contents of `supplement.json`, without its checksum. Fields that a later program adds are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Supplement {
    /// The image that it belongs to.
    pub image_id: ImageId,
    /// What its disks were like, in the order of their devices.
    #[serde(default)]
    pub disks: Vec<DiskIdentity>,
    /// Frequency of the host's time stamp counter, where it is not the guest's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_tsc_khz: Option<u32>,
}

/// Why bytes are not such a file.
#[derive(Debug, thiserror::Error)]
pub enum SupplementError {
    /// Not intact.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Intact, but with other fields.
    #[error("its fields are not those of a supplement")]
    Fields(#[source] serde_json::Error),
}

impl Supplement {
    /// Encodes it, with its checksum.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        seal(self)
    }

    /// Reads it back.
    pub fn decode(bytes: &[u8]) -> Result<Self, SupplementError> {
        serde_json::from_slice(&unseal(bytes)?).map_err(SupplementError::Fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_survives_its_file_and_every_flipped_bit_is_found() {
        let file = tempfile::tempfile().unwrap();
        let supplement = Supplement {
            image_id: ImageId::random(),
            disks: vec![DiskIdentity::of(&file, 512).unwrap(); 2],
            host_tsc_khz: Some(2_600_000),
        };
        let bytes = supplement.encode().unwrap();
        assert_eq!(Supplement::decode(&bytes).unwrap(), supplement);
        for position in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[position] ^= 1;
            assert!(Supplement::decode(&damaged).is_err(), "byte {position}");
            assert!(Supplement::decode(&bytes[..position]).is_err());
        }
    }

    #[test]
    fn what_a_later_program_adds_is_ignored() {
        let later = serde_json::json!({"image_id": ImageId::random(), "colour": "blue"});
        let supplement = Supplement::decode(&seal(&later).unwrap()).unwrap();
        assert_eq!((supplement.disks.len(), supplement.host_tsc_khz), (0, None));
    }
}
