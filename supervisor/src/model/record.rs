//! Machines and API tokens as the database has them.

use machine_api::{Attempt, ImageRef, MachineConfig, PublishedPort, StartKind, TokenScope};
use serde::{Deserialize, Serialize};

use crate::model::process_identity::ProcessIdentity;
use crate::model::state::State;
use crate::{clock, ids};

/// A machine.
#[derive(Debug, Clone)]
pub(crate) struct MachineRecord {
    /// 14 hexadecimal digits.
    pub(crate) id: String,
    /// The app it belongs to.
    pub(crate) app: String,
    /// Unique among machines of the app that are not destroyed.
    pub(crate) name: String,
    /// Its state.
    pub(crate) state: State,
    /// Its version.
    pub(crate) instance_id: String,
    /// Its configuration.
    pub(crate) config: MachineConfig,
    /// The image it boots.
    pub(crate) image_ref: ImageRef,
    /// Milliseconds since 1970.
    pub(crate) created_at_ms: i64,
    /// Milliseconds since 1970.
    pub(crate) updated_at_ms: i64,
    /// Raised and stored before each launch of a VMM.
    pub(crate) generation: u64,
    /// Generation of the image that a resume uses, if there is one.
    pub(crate) image_generation: Option<u64>,
    /// Its VMM, if one is known to run.
    pub(crate) vmm: Option<ProcessIdentity>,
    /// What is never searched for.
    pub(crate) facts: Facts,
}

impl MachineRecord {
    /// A machine that was never started.
    pub(crate) fn new(
        app: &str,
        name: Option<String>,
        config: MachineConfig,
        image_ref: ImageRef,
    ) -> Self {
        let now = clock::realtime_ms();
        Self {
            id: ids::new_machine_id(),
            app: app.to_owned(),
            name: name.unwrap_or_else(ids::random_name),
            state: State::Created,
            instance_id: ids::new_ulid(),
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

    /// Notes that somebody wants the machine to be stopped: the restart policy no longer applies.
    pub(crate) fn cancel_restart(&mut self) {
        self.facts.stop_requested = true;
        self.facts.restart_due = false;
    }
}

/// What is stored of a machine as one JSON value, since nothing searches for it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Facts {
    /// No new connections are routed to it.
    pub(crate) cordoned: bool,
    /// A user asked for the last stop.
    pub(crate) stop_requested: bool,
    /// Restarts in a row by the restart policy.
    pub(crate) restarts: u32,
    /// How the last start went.
    pub(crate) last_start: Option<StartKind>,
    /// Readiness attempts of the last start or resume.
    pub(crate) readiness: Vec<Attempt>,
    /// Why the image of a suspended machine must not be resumed.
    pub(crate) image_unusable: Option<String>,
    /// Why the start under way boots although the machine had an image.
    pub(crate) cold_reason: Option<String>,
    /// Warnings for the operator.
    pub(crate) warnings: Vec<String>,
    /// The lease taken last; it may have expired.
    pub(crate) lease: Option<LeaseFact>,
    /// The update under way leaves it stopped.
    pub(crate) skip_launch: bool,
    /// Its VMM ended and the restart policy will start it again.
    pub(crate) restart_due: bool,
    /// It has ended, and its configuration says that it is removed then.
    pub(crate) destroy_due: bool,
    /// Its published ports, with the addresses in use.
    pub(crate) published: Vec<PublishedPort>,
    /// First generation in which leaked sockets were seen, as long as there are some.
    pub(crate) leaking_since: Option<u64>,
}

/// A lease as it is stored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct LeaseFact {
    /// Proves that a request comes from the holder.
    pub(crate) nonce: String,
    /// Milliseconds since 1970.
    pub(crate) expires_at_ms: i64,
    /// For people.
    pub(crate) description: String,
    /// The machine's version when it was taken.
    pub(crate) version: String,
}

impl Facts {
    /// The lease in force, if there is one.
    pub(crate) fn lease_in_force(&self, now_ms: i64) -> Option<&LeaseFact> {
        self.lease
            .as_ref()
            .filter(|lease| lease.expires_at_ms > now_ms)
    }

    /// Records how many sockets of older generations the first status after a start reported.
    pub(crate) fn record_leaks(&mut self, older: u32, generation: u64) {
        self.warnings.clear();
        if older == 0 {
            self.leaking_since = None;
            return;
        }
        let since = *self.leaking_since.get_or_insert(generation);
        self.warnings.push(format!(
            "{older} vsock sockets of older generations are still open in the guest (first seen \
             in generation {since})"
        ));
    }
}

/// An API token as the database has it.
#[derive(Debug, Clone)]
pub(crate) struct TokenRecord {
    /// Names it.
    pub(crate) id: String,
    /// For people.
    pub(crate) name: String,
    /// What it allows.
    pub(crate) scope: TokenScope,
    /// SHA-256 of the token.
    pub(crate) sha256: [u8; 32],
    /// Milliseconds since 1970.
    pub(crate) created_at_ms: i64,
}

/// Whether `name` is allowed for a machine: it is used in paths and host names.
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
    fn a_random_name_is_a_valid_name() {
        let record = MachineRecord::new(
            "default",
            None,
            MachineConfig::default(),
            ImageRef::default(),
        );
        assert!(is_name(&record.name), "{}", record.name);
    }

    #[test]
    fn a_leak_is_warned_of_with_its_size_and_its_beginning_until_it_is_gone() {
        let mut facts = Facts::default();
        facts.record_leaks(0, 3);
        assert!(facts.warnings.is_empty());
        facts.record_leaks(1, 4);
        facts.record_leaks(2, 5);
        assert_eq!(facts.leaking_since, Some(4));
        assert_eq!(
            facts.warnings,
            [
                "2 vsock sockets of older generations are still open in the guest (first seen in \
                 generation 4)"
            ]
        );
        facts.record_leaks(0, 6);
        assert!(facts.warnings.is_empty() && facts.leaking_since.is_none());
    }
}
