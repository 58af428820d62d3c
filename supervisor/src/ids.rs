//! Identifiers, random names and secrets.

use rand::RngExt;

use crate::clock;

/// Crockford's base 32, which ULIDs are written in.
const BASE_32: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

const ADJECTIVES: [&str; 16] = [
    "amber", "bold", "calm", "clear", "crisp", "early", "fresh", "keen", "lively", "mellow",
    "quiet", "round", "still", "sunny", "swift", "warm",
];
const NOUNS: [&str; 16] = [
    "brook", "cliff", "dune", "field", "fjord", "glade", "grove", "heath", "lake", "marsh",
    "meadow", "peak", "reef", "ridge", "shore", "vale",
];

/// 14 hexadecimal digits, at random.
pub(crate) fn new_machine_id() -> String {
    format!("{:014x}", rand::rng().random::<u64>() >> 8)
}

/// Names a version, an event, a token or a lease: 26 characters, 48 bits of time and 80 random ones.
/// They sort by time.
pub(crate) fn new_ulid() -> String {
    let time = u128::try_from(clock::realtime_ms()).unwrap_or(0) << 80;
    let value = time | (rand::rng().random::<u128>() >> 48);
    (0..26)
        .rev()
        .map(|digit| {
            let index = usize::try_from((value >> (5 * digit)) & 31).unwrap_or(0);
            char::from(BASE_32[index])
        })
        .collect()
}

/// A name for a machine that was given none, such as `calm-reef-0042`.
pub(crate) fn random_name() -> String {
    let mut rng = rand::rng();
    let adjective = ADJECTIVES[rng.random_range(0..ADJECTIVES.len())];
    let noun = NOUNS[rng.random_range(0..NOUNS.len())];
    format!("{adjective}-{noun}-{:04}", rng.random_range(0..10_000))
}

/// 32 random bytes as 64 hexadecimal digits, for secrets.
pub(crate) fn random_hex() -> String {
    hex::encode(rand::rng().random::<[u8; 32]>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_their_shapes() {
        let id = new_machine_id();
        assert_eq!(id.len(), 14);
        assert!(id.chars().all(|c| c.is_ascii_hexdigit()));
        assert_eq!(new_ulid().len(), 26);
        assert_eq!(random_hex().len(), 64);
    }
}
