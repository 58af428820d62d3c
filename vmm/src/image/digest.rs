//! Digests of whole files and sums of chunks of guest memory.

use std::fmt;
use std::sync::LazyLock;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::memory::file::CHUNK_LEN;

/// 128 bits, written as 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Hex128(pub u128);

impl Hex128 {
    /// Parses only the spelling that [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        let lower_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 32 || !text.as_bytes().iter().all(lower_hex) {
            return None;
        }
        u128::from_str_radix(text, 16).ok().map(Self)
    }
}

impl fmt::Display for Hex128 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Hex128 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Hex128 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hex128 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| {
            de::Error::invalid_value(de::Unexpected::Str(&text), &"32 lower-case hex digits")
        })
    }
}

/// Digest of a whole file.
pub fn file_digest(bytes: &[u8]) -> Hex128 {
    Hex128(xxh3_128(bytes))
}

/// Sum of one chunk of guest memory.
pub fn chunk_sum(chunk: &[u8]) -> u64 {
    xxh3_64(chunk)
}

/// Sum of a chunk of zeros, such as a hole of the memory file.
pub fn zero_chunk_sum() -> u64 {
    static SUM: LazyLock<u64> = LazyLock::new(|| xxh3_64(&[0; CHUNK_LEN]));
    *SUM
}

/// The contents of `memory.sums`.
pub fn encode_sums(sums: &[u64]) -> Vec<u8> {
    sums.iter().flat_map(|sum| sum.to_le_bytes()).collect()
}

/// Reads `memory.sums` back. The caller has checked the length; a remainder of less than eight bytes is
/// ignored.
pub fn decode_sums(bytes: &[u8]) -> Vec<u64> {
    bytes
        .as_chunks::<8>()
        .0
        .iter()
        .map(|sum| u64::from_le_bytes(*sum))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_spelling_is_a_digest() {
        let digest = file_digest(b"some bytes");

        assert_eq!(Hex128::parse(&digest.to_string()), Some(digest));
        assert_eq!(Hex128::parse(&digest.to_string().to_uppercase()), None);
        assert_eq!(Hex128::parse("+1234567890123456789012345678901"), None);
        assert_eq!(Hex128::parse("12"), None);
    }

    #[test]
    fn sums_survive_their_file() {
        let sums = vec![0, 1, u64::MAX, zero_chunk_sum()];

        assert_eq!(decode_sums(&encode_sums(&sums)), sums);
    }
}
