//! JSON that ends in a checksum over all bytes before it, so that people can read it, and every byte
//! counts.

use serde::Serialize;

use super::digest::{Hex128, file_digest};

const CHECKSUM_FIELD: &str = ",\n  \"checksum\": \"";
const END: &str = "\"\n}\n";
const CHECKSUM_DIGITS: usize = 32;

/// Why bytes are not intact.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// There is no checksum at its end.
    #[error("it doesn't end in a checksum, so it is truncated or no such file")]
    Unterminated,
    /// The checksum contradicts the rest.
    #[error("its checksum says {recorded}, its bytes say {computed}")]
    Checksum {
        /// As written in it.
        recorded: Hex128,
        /// As computed.
        computed: Hex128,
    },
}

/// Encodes a struct with its checksum as the last field.
pub(super) fn seal(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut text = serde_json::to_string_pretty(value)?;
    // A pretty-printed struct ends in a line that holds only the brace.
    text.truncate(text.strip_suffix("\n}").map_or(text.len(), str::len));
    let checksum = file_digest(text.as_bytes());
    text.push_str(&format!("{CHECKSUM_FIELD}{checksum}{END}"));
    Ok(text.into_bytes())
}

/// The struct's JSON without the checksum, which is right.
pub(super) fn unseal(bytes: &[u8]) -> Result<Vec<u8>, SealError> {
    let (body, recorded) = split_checksum(bytes).ok_or(SealError::Unterminated)?;
    let computed = file_digest(body);
    if recorded != computed {
        return Err(SealError::Checksum { recorded, computed });
    }
    Ok([body, b"}"].concat())
}

fn split_checksum(bytes: &[u8]) -> Option<(&[u8], Hex128)> {
    let rest = bytes.strip_suffix(END.as_bytes())?;
    let (rest, digits) = rest.split_at_checked(rest.len().checked_sub(CHECKSUM_DIGITS)?)?;
    let checksum = Hex128::parse(std::str::from_utf8(digits).ok()?)?;
    Some((rest.strip_suffix(CHECKSUM_FIELD.as_bytes())?, checksum))
}
