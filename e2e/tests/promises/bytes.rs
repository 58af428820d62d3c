//! Bytes to be carried, such that a lost, doubled or swapped piece shows.

use anyhow::{bail, ensure};

/// That many bytes, different ones for each seed.
pub(crate) fn pattern(count: usize, seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(count + 8);
    let mut state = seed.wrapping_mul(2) | 1;
    while bytes.len() < count {
        // xorshift64: its period is far beyond any file here.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

/// Says where what came differs from what was sent, for both are too long to be shown.
pub(crate) fn ensure_same(came: &[u8], sent: &[u8]) -> anyhow::Result<()> {
    if let Some(place) = came.iter().zip(sent).position(|(one, other)| one != other) {
        bail!("byte {place} of {} came changed", sent.len());
    }
    ensure!(
        came.len() == sent.len(),
        "{} bytes came of {}",
        came.len(),
        sent.len()
    );
    Ok(())
}
