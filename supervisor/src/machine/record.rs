//! New records and identifiers: machine ids, versions, names, event ids.

use machine_api::{EventType, ImageRef, MachineConfig, MachineEvent};
use rand::RngExt;

use crate::clock;
use crate::machine::state::State;
use crate::store::{Facts, MachineRecord};

/// Crockford's base 32, as ULIDs use it.
const BASE_32: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

const ADJECTIVES: [&str; 16] = [
    "amber", "bold", "calm", "clear", "crisp", "early", "fresh", "keen", "lively", "mellow",
    "quiet", "round", "still", "sunny", "swift", "warm",
];
const NOUNS: [&str; 16] = [
    "brook", "cliff", "dune", "field", "fjord", "glade", "grove", "heath", "lake", "marsh",
    "meadow", "peak", "reef", "ridge", "shore", "vale",
];

/// A machine that was never started.
pub(crate) fn new(
    app: &str,
    name: Option<String>,
    config: MachineConfig,
    image_ref: ImageRef,
) -> MachineRecord {
    let now = clock::realtime_ms();
    MachineRecord {
        id: format!("{:014x}", rand::rng().random::<u64>() >> 8),
        app: app.to_owned(),
        name: name.unwrap_or_else(random_name),
        state: State::Created,
        instance_id: new_ulid(),
        config,
        image_ref,
        created_at_ms: now,
        updated_at_ms: now,
        generation: 0,
        image_generation: None,
        vmm: None,
        facts: Facts::default(),
    }
}

/// An event of the supervisor's own that is no transition.
pub(crate) fn event(kind: EventType, message: String) -> MachineEvent {
    MachineEvent {
        id: new_ulid(),
        kind,
        status: String::new(),
        source: "flyd".to_owned(),
        timestamp: clock::realtime_ms(),
        request: None,
        duration_ms: None,
        phases: Vec::new(),
        start: None,
        message: Some(message),
    }
}

/// The event of a new version. Clients of that API count starts since it.
pub(crate) fn launch() -> MachineEvent {
    MachineEvent {
        status: State::Created.name().to_owned(),
        source: "user".to_owned(),
        message: None,
        ..event(EventType::Launch, String::new())
    }
}

/// 26 characters: 48 bits of time and 80 random ones, so that they sort by time.
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

fn random_name() -> String {
    let mut rng = rand::rng();
    let adjective = ADJECTIVES[rng.random_range(0..ADJECTIVES.len())];
    let noun = NOUNS[rng.random_range(0..NOUNS.len())];
    format!("{adjective}-{noun}-{:04}", rng.random_range(0..10_000))
}

/// Whether a machine may be called so: it stands in paths and host names.
pub(crate) fn is_name(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_their_shapes() {
        let record = new(
            "default",
            None,
            MachineConfig::default(),
            ImageRef::default(),
        );
        assert_eq!(record.id.len(), 14);
        assert!(record.id.chars().all(|c| c.is_ascii_hexdigit()));
        assert_eq!(record.instance_id.len(), 26);
        assert!(is_name(&record.name), "{}", record.name);
    }
}
