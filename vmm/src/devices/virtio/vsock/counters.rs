//! Counters of a vsock device, readable without the device's lock.

use std::sync::{Arc, Mutex, PoisonError};

use vmm_control::{CollidedPair, ConnectionCounts, VsockCounters};

use super::connection::Phase;
use super::state::Pair;
use crate::clock::monotonic_ns;

/// How many collided pairs are remembered.
const MAX_COLLIDED: usize = 64;

/// A view of a device's counters. Clones see the same counters.
#[derive(Debug, Clone, Default)]
pub struct CountersHandle(Arc<Mutex<VsockCounters>>);

impl CountersHandle {
    /// The counters as they are now.
    pub fn read(&self) -> VsockCounters {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Changes them.
    pub(super) fn update(&self, change: impl FnOnce(&mut VsockCounters)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Counts a connection that went from one phase to another; `None` before its first.
    pub(super) fn count_phase(&self, before: Option<Phase>, now: Phase) {
        self.update(|counters| {
            let counts = counters.connections.get_or_insert_default();
            if let Some(count) = before.and_then(|phase| count_of(counts, phase)) {
                *count = count.saturating_sub(1);
            }
            if let Some(count) = count_of(counts, now) {
                *count += 1;
            }
        });
    }

    /// All connections have ended at once.
    pub(super) fn forget_phases(&self) {
        self.update(|counters| counters.connections = Some(ConnectionCounts::default()));
    }

    /// Counts a request that the guest has refused, and remembers its pair.
    pub(super) fn count_collision(&self, pair: Pair) {
        let at_ns = monotonic_ns();
        self.update(|counters| {
            counters.requests_reset += 1;
            if counters.last_collided.len() == MAX_COLLIDED {
                counters.last_collided.remove(0);
            }
            counters.last_collided.push(CollidedPair {
                local_port: pair.local,
                peer_port: pair.peer,
                at_ns,
            });
        });
    }
}

/// The count of open connections in that phase; none for those that are closed.
fn count_of(counts: &mut ConnectionCounts, phase: Phase) -> Option<&mut u64> {
    Some(match phase {
        Phase::Requesting => &mut counts.requesting,
        Phase::Requested => &mut counts.requested,
        Phase::Accepting => &mut counts.accepting,
        Phase::Established => &mut counts.established,
        Phase::Draining => &mut counts.draining,
        Phase::Closed => return None,
    })
}
