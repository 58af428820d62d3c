//! Machines and API tokens as the database has them.

use std::time::Duration;

use machine_api::{Attempt, ImageRef, MachineConfig, PublishedPort, StartKind, TokenScope};
use serde::{Deserialize, Serialize};

use crate::model::graceful_stop::GuestEnd;
use crate::model::process_identity::ProcessIdentity;
use crate::model::restart_policy::{self, Autostart};
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

    /// Takes a lease, or refreshes the one that the request names.
    pub(crate) fn take_lease(
        &mut self,
        wanted: LeaseWanted,
        now_ms: i64,
    ) -> Result<&LeaseFact, LeaseRefusal> {
        let refreshed = match self.facts.lease_in_force(now_ms) {
            Some(lease) if wanted.nonce.as_ref() == Some(&lease.nonce) => Some(lease.nonce.clone()),
            Some(lease) => {
                return Err(LeaseRefusal::Held {
                    expires_at_s: lease.expires_at_ms / 1_000,
                });
            }
            None if wanted.nonce.is_some() => return Err(LeaseRefusal::Unknown),
            None => None,
        };
        Ok(self.facts.lease.insert(LeaseFact {
            nonce: refreshed.unwrap_or_else(ids::new_ulid),
            expires_at_ms: now_ms + i64::from(wanted.ttl_s) * 1_000,
            description: wanted.description,
            version: self.instance_id.clone(),
        }))
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
    /// When it became started last, in milliseconds since 1970.
    pub(crate) started_at_ms: Option<i64>,
    /// When it ended last, or could not be started.
    pub(crate) ended_at_ms: Option<i64>,
    /// Runs in a row that ended by themselves soon after their start, or did not come about.
    pub(crate) short_runs: u32,
    /// Its image was damaged, which was found while it ran: somebody has to look at it.
    pub(crate) broken: bool,
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
    /// It was created to be started, which has not begun yet.
    pub(crate) start_due: bool,
    /// How the stop, restart or update under way ends its guest.
    pub(crate) ending: Option<GuestEnd>,
    /// The update under way leaves it stopped.
    pub(crate) skip_launch: bool,
    /// Its VMM ended and the restart policy will start it again.
    pub(crate) restart_due: bool,
    /// It has ended, and its configuration says that it is removed then.
    pub(crate) destroy_due: bool,
    /// Its published ports, with the addresses in use.
    pub(crate) published: Vec<PublishedPort>,
    /// The version of the protocol that its guest-init speaks, as its last status said.
    pub(crate) guest_protocol: Option<u32>,
    /// First generation in which leaked sockets were seen, as long as there are some.
    pub(crate) leaking_since: Option<u64>,
}

/// A lease that somebody wants.
#[derive(Debug, Clone)]
pub(crate) struct LeaseWanted {
    /// For so many seconds.
    pub(crate) ttl_s: u32,
    /// For people.
    pub(crate) description: String,
    /// The nonce of the lease that is refreshed; none for a new one.
    pub(crate) nonce: Option<String>,
}

/// Why somebody does not get a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeaseRefusal {
    /// Another one is in force.
    Held {
        /// Seconds since 1970.
        expires_at_s: i64,
    },
    /// The one that is to be refreshed is not in force.
    Unknown,
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
    /// How long it has run, by the host's clock, which also counts what no supervisor saw.
    pub(crate) fn ran_for(&self, now_ms: i64) -> Option<Duration> {
        since(self.started_at_ms, now_ms)
    }

    /// Records an end that nobody asked for, or a start that failed.
    pub(crate) fn record_end(&mut self, ran: Option<Duration>, now_ms: i64) {
        self.short_runs = match restart_policy::is_stable(ran) {
            true => 0,
            false => self.short_runs.saturating_add(1),
        };
        self.ended_at_ms = Some(now_ms);
    }

    /// Records whether the restart policy starts it again after a `wait`; `restarts` counts those in a row so
    /// far.
    pub(crate) fn plan_restart(&mut self, restarts: u32, wait: Option<Duration>) {
        self.restart_due = wait.is_some();
        self.restarts = restarts + u32::from(wait.is_some());
    }

    /// Whether a connection to one of its ports may start it now.
    pub(crate) fn autostart(&self, now_ms: i64) -> Autostart {
        let ended = since(self.ended_at_ms, now_ms);
        restart_policy::autostart(self.short_runs, ended, self.broken)
    }

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

/// None also where the host's clock was set back.
fn since(then_ms: Option<i64>, now_ms: i64) -> Option<Duration> {
    let elapsed = now_ms.checked_sub(then_ms?)?;
    Some(Duration::from_millis(u64::try_from(elapsed).ok()?))
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
    fn a_run_is_measured_by_the_hosts_clock_over_restarts_of_supervisor_and_host() {
        let mut facts = Facts {
            started_at_ms: Some(1_000),
            short_runs: 3,
            ..Facts::default()
        };
        assert_eq!(facts.ran_for(61_001), Some(Duration::from_millis(60_001)));
        facts.record_end(facts.ran_for(61_001), 61_001);
        assert_eq!((facts.short_runs, facts.ended_at_ms), (0, Some(61_001)));
        assert_eq!(facts.autostart(61_001), Autostart::Now);
        facts.started_at_ms = Some(62_000);
        facts.record_end(facts.ran_for(62_500), 62_500);
        assert_eq!(facts.short_runs, 1);
        assert!(matches!(facts.autostart(62_500), Autostart::After(_)));
        assert_eq!(facts.autostart(99_000), Autostart::Now);
        // The host's clock was set back.
        assert_eq!(facts.ran_for(5), None);
        facts.record_end(facts.ran_for(5), 5);
        assert_eq!(facts.short_runs, 2);
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
