//! `manifest.json`: its fields, and how it is encoded, decoded and checked.
//!
//! Works on bytes, not on files. The manifest is JSON, so that people can read it, but every byte counts:
//! its last field is a checksum over all bytes before that field.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::digest::Hex128;
use super::sealed_json::{SealError, seal, unseal};

/// First field of each manifest.
pub const MAGIC: &str = "mctl-image";
/// Version of the whole image's format.
pub const VERSION: u32 = 1;
/// Longest manifest that is read, in bytes.
pub const MAX_MANIFEST_BYTES: u64 = 1 << 20;
/// Longest `state.bin` that is written or read, in bytes.
pub const MAX_STATE_BYTES: u64 = 64 << 20;

/// Random name of one suspend; ties the memory file to its manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageId(pub Hex128);

impl ImageId {
    /// A new one.
    pub fn random() -> Self {
        Self(Hex128(rand::random()))
    }
}

/// The host processor as far as a saved vCPU state depends on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuIdentity {
    /// `AuthenticAMD`, `GenuineIntel`, …
    pub vendor: String,
    /// CPUID family, extended part included.
    pub family: u32,
    /// CPUID model, extended part included.
    pub model: u32,
    /// CPUID stepping.
    pub stepping: u32,
    /// Digest over the features that guests of this host see.
    pub feature_digest: String,
}

impl fmt::Display for CpuIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            vendor,
            family,
            model,
            stepping,
            feature_digest,
        } = self;
        write!(
            f,
            "{vendor} {family}/{model}/{stepping} with features {feature_digest}"
        )
    }
}

/// Size and digest of one of the image's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileFacts {
    /// Length.
    pub bytes: u64,
    /// Over all of it.
    pub digest: Hex128,
}

/// Facts about guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryFacts {
    /// Size of the machine.
    pub memory_mib: u32,
    /// Length of `memory`, header page included.
    pub file_bytes: u64,
    /// `memory.sums`; its digest covers all of memory, since the sums do.
    pub sums: FileFacts,
}

/// The contents of `manifest.json`, without its checksum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MAGIC`].
    pub magic: String,
    /// [`VERSION`].
    pub version: u32,
    /// Whose image this is.
    pub machine_id: String,
    /// Generation of the machine that was suspended into it.
    pub generation: u64,
    /// A new one for each suspend.
    pub image_id: ImageId,
    /// Seconds since 1970, by the host's clock.
    pub created_at_unix_s: u64,
    /// The machine's configuration; opaque here.
    pub machine: serde_json::Value,
    /// The processor it ran on.
    pub cpu: CpuIdentity,
    /// `memory` and `memory.sums`.
    pub memory: MemoryFacts,
    /// `state.bin`.
    pub state: FileFacts,
}

/// Why bytes are not a manifest that this program can use.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not intact.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Intact, but without magic or version.
    #[error("it doesn't carry the magic \"{MAGIC}\" and a version")]
    Magic,
    /// Intact, but of another version.
    #[error("it has format version {found}, and this program reads version {VERSION}")]
    Version {
        /// Its version.
        found: u64,
    },
    /// Intact and of this version, but with other fields.
    #[error("its fields are not those of version {VERSION}")]
    Fields(#[source] serde_json::Error),
}

impl Manifest {
    /// Encodes it, with its checksum.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        seal(self)
    }

    /// Reads it back, and finds all that is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let object = unseal(bytes)?;
        let value: serde_json::Value =
            serde_json::from_slice(&object).map_err(ManifestError::Fields)?;
        if value.get("magic").and_then(|magic| magic.as_str()) != Some(MAGIC) {
            return Err(ManifestError::Magic);
        }
        match value.get("version").and_then(serde_json::Value::as_u64) {
            Some(version) if version == u64::from(VERSION) => {}
            Some(found) => return Err(ManifestError::Version { found }),
            None => return Err(ManifestError::Magic),
        }
        serde_json::from_value(value).map_err(ManifestError::Fields)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::digest::file_digest;

    fn manifest() -> Manifest {
        let facts = FileFacts {
            bytes: 12,
            digest: file_digest(b"hello, world"),
        };
        Manifest {
            magic: MAGIC.to_owned(),
            version: VERSION,
            machine_id: "m1".to_owned(),
            generation: 7,
            image_id: ImageId::random(),
            created_at_unix_s: 1_795_000_000,
            machine: serde_json::json!({"vcpus": 2, "cmdline": "quiet }\n", "disks": []}),
            cpu: CpuIdentity {
                vendor: "AuthenticAMD".to_owned(),
                family: 25,
                model: 1,
                stepping: 1,
                feature_digest: "00ff".to_owned(),
            },
            memory: MemoryFacts {
                memory_mib: 64,
                file_bytes: (64 << 20) + 4096,
                sums: facts,
            },
            state: facts,
        }
    }

    #[test]
    fn a_manifest_survives_its_file() {
        let manifest = manifest();

        let bytes = manifest.encode().unwrap();

        assert_eq!(Manifest::decode(&bytes).unwrap(), manifest);
        serde_json::from_slice::<serde_json::Value>(&bytes).expect("people's tools can read it");
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let bytes = manifest().encode().unwrap();

        for position in 0..bytes.len() {
            for bit in 0..8 {
                let mut damaged = bytes.clone();
                damaged[position] ^= 1 << bit;
                assert!(
                    Manifest::decode(&damaged).is_err(),
                    "byte {position}, bit {bit}"
                );
            }
        }
    }

    #[test]
    fn every_truncation_is_found() {
        let bytes = manifest().encode().unwrap();

        for length in 0..bytes.len() {
            assert!(
                matches!(
                    Manifest::decode(&bytes[..length]),
                    Err(ManifestError::Seal(SealError::Unterminated))
                ),
                "{length} bytes"
            );
        }
    }

    #[test]
    fn another_version_is_named_even_with_other_fields() {
        let other = serde_json::json!({"magic": MAGIC, "version": 2, "new": 1});

        let refusal = Manifest::decode(&seal(&other).unwrap());

        assert!(
            matches!(refusal, Err(ManifestError::Version { found: 2 })),
            "{refusal:?}"
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert!(Manifest::decode(&bytes).is_err());
        }
    }
}
