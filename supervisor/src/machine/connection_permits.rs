//! How many connections to published ports there may be: of one machine, so that its guest cannot take the
//! descriptors of others by keeping connections open, and of all together, so that some are left for
//! everything else.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::model::guest_share::GuestShare;

/// Each connection has a descriptor at either end.
const DESCRIPTORS: usize = 2;
/// A machine may have this part of all descriptors, and all machines together this one.
const PART_OF_ONE: usize = 8;
const PARTS_OF_ALL: (usize, usize) = (3, 4);
/// So many connections a machine may have where there are very few descriptors.
const LEAST: usize = 8;

/// Permits for connections of all machines; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct HostConnections {
    free: Arc<Semaphore>,
    most_of_one: usize,
}

/// Permits for the connections of one machine; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct ConnectionPermits {
    own: Arc<Semaphore>,
    of_all: Arc<Semaphore>,
}

/// Allows one connection until it is dropped.
#[derive(Debug)]
pub(crate) struct ConnectionPermit {
    _own: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl HostConnections {
    /// For a supervisor that may have so many `descriptors`.
    pub(crate) fn new(share: &GuestShare, descriptors: usize) -> Self {
        let (part, whole) = PARTS_OF_ALL;
        let all = descriptors / whole * part / DESCRIPTORS;
        let one = (descriptors / PART_OF_ONE / DESCRIPTORS).max(LEAST);
        let wanted = usize::try_from(share.connections.get()).unwrap_or(usize::MAX);
        Self {
            free: Arc::new(Semaphore::new(all.clamp(LEAST, Semaphore::MAX_PERMITS))),
            most_of_one: wanted.min(one).min(Semaphore::MAX_PERMITS),
        }
    }

    /// Permits for a machine, none of which is taken.
    pub(crate) fn of_machine(&self) -> ConnectionPermits {
        ConnectionPermits {
            own: Arc::new(Semaphore::new(self.most_of_one)),
            of_all: self.free.clone(),
        }
    }
}

impl ConnectionPermits {
    /// Waits for a permit; none once the supervisor ends. The machine's own comes first, so that one with many
    /// connections does not queue for those of others.
    pub(crate) async fn acquire(&self) -> Option<ConnectionPermit> {
        Some(ConnectionPermit {
            _own: self.own.clone().acquire_owned().await.ok()?,
            _of_all: self.of_all.clone().acquire_owned().await.ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn take_all(permits: &ConnectionPermits) -> Vec<ConnectionPermit> {
        let mut taken = Vec::new();
        while let Ok(Some(permit)) = timeout(Duration::from_secs(1), permits.acquire()).await {
            taken.push(permit);
        }
        taken
    }

    #[tokio::test(start_paused = true)]
    async fn one_machine_leaves_connections_to_others_and_all_leave_descriptors() {
        let host = HostConnections::new(&GuestShare::default(), 1_024);
        let hostile = take_all(&host.of_machine()).await;
        assert_eq!(hostile.len(), 64);
        let mut all = hostile.len();
        let mut held = Vec::new();
        for _ in 0..20 {
            let permits = host.of_machine();
            held.push(take_all(&permits).await);
            all += held.last().map_or(0, Vec::len);
        }
        assert_eq!(all * DESCRIPTORS, 1_024 * 3 / 4);
        assert_eq!(held[0].len(), 64);
        drop(hostile);
        assert!(!take_all(&host.of_machine()).await.is_empty());
    }

    #[test]
    fn with_many_descriptors_the_operators_number_counts() {
        let host = HostConnections::new(&GuestShare::default(), 1 << 20);
        assert_eq!(host.most_of_one, 10_000);
    }
}
