//! How many calls to a guest clients may have under way, and how fast they exchange bytes with it. A guest that
//! never answers, or answers a byte at a time, keeps each call open; one that answers without end would keep
//! the supervisor busy.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use guest_protocol::Request;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::guest::GuestError;
use crate::model::guest_share::{CALLS, GuestShare, ReadPace};

/// The permits and the pace of a machine; clones share them.
#[derive(Debug, Clone)]
pub(crate) struct CallPermits {
    execs: Permits,
    calls: Permits,
    pace: SharedPace,
    /// Whether calls are counted; if not, only their pace is bounded.
    is_counting: bool,
}

/// How fast all connections of a machine together are read; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct SharedPace(Arc<Mutex<ReadPace>>);

#[derive(Debug, Clone)]
struct Permits {
    what: &'static str,
    most: u32,
    free: Arc<Semaphore>,
}

impl SharedPace {
    /// Counts a piece of so many bytes; how long to wait before the next one is read.
    pub(crate) fn wait_after(&self, bytes: usize) -> Duration {
        let mut pace = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pace.wait_after(1, bytes, Instant::now())
    }
}

impl Permits {
    fn new(what: &'static str, most: u32) -> Self {
        let free = usize::try_from(most).unwrap_or(Semaphore::MAX_PERMITS);
        Self {
            what,
            most,
            free: Arc::new(Semaphore::new(free.min(Semaphore::MAX_PERMITS))),
        }
    }
}

impl CallPermits {
    /// As many as `share` says.
    pub(crate) fn new(share: &GuestShare) -> Self {
        let pace = ReadPace::of_clients(share.mib_per_second, Instant::now());
        Self {
            execs: Permits::new("commands", share.execs.get()),
            calls: Permits::new("calls", CALLS),
            pace: SharedPace(Arc::new(Mutex::new(pace))),
            is_counting: true,
        }
    }

    /// The same pace, without a bound on the number of calls.
    pub(super) fn not_counting(self) -> Self {
        Self {
            is_counting: false,
            ..self
        }
    }

    /// The machine's pace.
    pub(super) fn pace(&self) -> &SharedPace {
        &self.pace
    }

    /// A permit for `request`; none for a connection to a port of the guest, which is counted where it is
    /// accepted.
    pub(super) fn take(
        &self,
        request: &Request,
    ) -> Result<Option<OwnedSemaphorePermit>, GuestError> {
        let permits = match request {
            Request::Forward { .. } => return Ok(None),
            _ if !self.is_counting => return Ok(None),
            Request::Exec { .. } => &self.execs,
            _ => &self.calls,
        };
        let Permits { what, most, free } = permits;
        let (what, most) = (*what, *most);
        let taken = free.clone().try_acquire_owned();
        taken
            .map(Some)
            .map_err(|_| GuestError::TooMany { what, most })
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use guest_protocol::ExecSpec;

    use super::*;

    #[tokio::test]
    async fn commands_are_counted_by_themselves_and_connections_are_not() {
        let permits = CallPermits::new(&GuestShare {
            execs: NonZeroU32::MIN,
            ..GuestShare::default()
        });
        let exec = Request::Exec {
            exec: ExecSpec::default(),
            timeout_ms: 0,
        };
        let first = permits.take(&exec).unwrap();
        assert!(matches!(
            permits.take(&exec),
            Err(GuestError::TooMany { most: 1, .. })
        ));
        // A check of the supervisor's own is no client's call.
        assert!(permits.clone().not_counting().take(&exec).is_ok());
        let calls: Vec<_> = (0..CALLS)
            .map(|_| permits.take(&Request::Processes).unwrap())
            .collect();
        assert!(permits.take(&Request::Processes).is_err());
        let port = permits.take(&Request::Forward { port: 80 });
        assert!(port.unwrap().is_none());
        drop((first, calls));
        assert!(permits.take(&exec).is_ok() && permits.take(&Request::Processes).is_ok());
    }
}
