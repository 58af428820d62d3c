//! `manifest.json`: its fields, and how it is encoded, decoded and checked.
//!
//! Works on bytes, not on files. The manifest is JSON, so that people can read it, but every byte counts:
//! its last field is a checksum over all bytes before that field.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::digest::{Hex128, file_digest};

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
    /// There is no checksum at its end: it is truncated, or not a manifest.
    #[error("it doesn't end in a checksum, so it is truncated or no manifest")]
    Unterminated,
    /// The checksum contradicts the rest.
    #[error("its checksum says {recorded}, its bytes say {computed}")]
    Checksum {
        /// As written in it.
        recorded: Hex128,
        /// As computed.
        computed: Hex128,
    },
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

const CHECKSUM_FIELD: &str = ",\n  \"checksum\": \"";
const END: &str = "\"\n}\n";
const CHECKSUM_DIGITS: usize = 32;

impl Manifest {
    /// Encodes it, with its checksum.
    pub fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut text = serde_json::to_string_pretty(self)?;
        // A pretty-printed struct ends in a line that holds only the brace.
        text.truncate(text.strip_suffix("\n}").map_or(text.len(), str::len));
        let checksum = file_digest(text.as_bytes());
        text.push_str(&format!("{CHECKSUM_FIELD}{checksum}{END}"));
        Ok(text.into_bytes())
    }

    /// Reads it back, and finds all that is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        let (body, recorded) = split_checksum(bytes).ok_or(ManifestError::Unterminated)?;
        let computed = file_digest(body);
        if recorded != computed {
            return Err(ManifestError::Checksum { recorded, computed });
        }
        let object = [body, b"}"].concat();
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

fn split_checksum(bytes: &[u8]) -> Option<(&[u8], Hex128)> {
    let rest = bytes.strip_suffix(END.as_bytes())?;
    let (rest, digits) = rest.split_at_checked(rest.len().checked_sub(CHECKSUM_DIGITS)?)?;
    let checksum = Hex128::parse(std::str::from_utf8(digits).ok()?)?;
    Some((rest.strip_suffix(CHECKSUM_FIELD.as_bytes())?, checksum))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
                    Err(ManifestError::Unterminated)
                ),
                "{length} bytes"
            );
        }
    }

    #[test]
    fn another_version_is_named_even_with_other_fields() {
        let mut text =
            "{\n  \"magic\": \"mctl-image\",\n  \"version\": 2,\n  \"new\": 1".to_owned();
        let checksum = file_digest(text.as_bytes());
        text.push_str(&format!("{CHECKSUM_FIELD}{checksum}{END}"));

        let refusal = Manifest::decode(text.as_bytes());

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
