//! Test data in which a lost, repeated or swapped piece is noticed.

use anyhow::{bail, ensure};

/// `count` bytes, different ones for each seed.
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

/// Reports the first difference; both are too long to be shown.
pub(crate) fn ensure_same(received: &[u8], sent: &[u8]) -> anyhow::Result<()> {
    if let Some(place) = received
        .iter()
        .zip(sent)
        .position(|(one, other)| one != other)
    {
        bail!("byte {place} of {} was changed", sent.len());
    }
    ensure!(
        received.len() == sent.len(),
        "{} bytes received of {}",
        received.len(),
        sent.len()
    );
    Ok(())
}
