//! The readiness check: a machine is started only when guest-init has answered in the current
//! generation.
//!
//! Each attempt is recorded with its local port, and has a deadline of its own: a request on an
//! occupied pair may get no answer at all. Between attempts the wait grows, with jitter, so that
//! machines which resume together do not ask together.

use std::pin::Pin;
use std::time::Duration;

use guest_protocol::{ENTROPY_BYTES, GuestStatus, OLDEST_VERSION, Reply, Request, Wake, backoff};
use machine_api::{Attempt, AttemptOutcome};
use rand::RngExt;
use tokio::time::{Instant, sleep_until, timeout};

use crate::error_chain::error_chain;
use crate::guest::{GuestAddress, GuestError};
use crate::model::settings::ReadinessLimits;
use crate::{clock, exhaustion};

/// A successful attempt.
#[derive(Debug)]
pub(crate) struct Success<T> {
    /// Its result.
    pub(crate) value: T,
    /// Attempts that failed before it.
    pub(crate) failed: u32,
    /// When it began.
    pub(crate) attempt_ns: u64,
}

/// An attempt under way: its result, and the local port that it used.
pub(crate) type AttemptFuture<T> =
    Pin<Box<dyn Future<Output = Result<(T, u32), GuestError>> + Send>>;

/// No attempt succeeded in time.
#[derive(Debug, thiserror::Error)]
#[error("guest-init did not become ready within {} ms ({})", limit.as_millis(), last.as_deref().unwrap_or("no attempt ended"))]
pub(crate) struct NotReady {
    limit: Duration,
    last: Option<String>,
    /// The last attempt failed because the supervisor is out of something, which says nothing about
    /// the guest.
    pub(crate) is_exhaustion: bool,
    /// guest-init speaks another version of the protocol, which says nothing about the guest either.
    pub(crate) is_of_another_version: bool,
}

/// Most attempts that are recorded. They are stored with each start, and shown with the machine.
const MOST_ATTEMPTS: usize = 256;

/// Repeats `attempt` until it succeeds or the limits are reached; adds each to `attempts`.
pub(crate) async fn repeat<T>(
    limits: &ReadinessLimits,
    what: &str,
    attempts: &mut Vec<Attempt>,
    mut attempt: impl FnMut() -> AttemptFuture<T>,
) -> Result<Success<T>, NotReady> {
    let deadline = Instant::now() + limits.total;
    let mut last = None;
    let mut is_exhaustion = false;
    let mut is_of_another_version = false;
    for failed in 0_u32.. {
        // Beyond, the newest takes the place of the one before.
        attempts.truncate(MOST_ATTEMPTS - 1);
        let attempt_ns = clock::monotonic_ns();
        let left = deadline.saturating_duration_since(Instant::now());
        let result = timeout(limits.attempt.min(left), attempt()).await;
        let ms = clock::ms_between(attempt_ns, clock::monotonic_ns());
        match result {
            Ok(Ok((value, local_port))) => {
                let outcome = AttemptOutcome::Ok;
                attempts.push(Attempt {
                    local_port: Some(local_port),
                    outcome,
                    ms,
                    message: None,
                });
                return Ok(Success {
                    value,
                    failed,
                    attempt_ns,
                });
            }
            Ok(Err(error)) => {
                let message = format!("{what}: {}", error_chain(&error));
                is_exhaustion = exhaustion::is_exhaustion(&error);
                is_of_another_version = error.is_of_another_version();
                last = Some(message.clone());
                let (local_port, outcome) = (error.local_port(), outcome_of(&error));
                tracing::debug!(local_port, ?outcome, ms, message, "an attempt failed");
                attempts.push(Attempt {
                    local_port,
                    outcome,
                    ms,
                    message: Some(message),
                });
            }
            Err(_) => {
                let message = format!("{what}: no answer within {} ms", limits.attempt.as_millis());
                last = Some(message.clone());
                let outcome = AttemptOutcome::NoReply;
                tracing::debug!(?outcome, ms, message, "an attempt failed");
                attempts.push(Attempt {
                    local_port: None,
                    outcome,
                    ms,
                    message: Some(message),
                });
            }
        }
        let jitter = rand::rng().random_range(backoff::JITTER);
        let next = Instant::now() + limits.backoff.wait(failed, jitter);
        if next >= deadline {
            break;
        }
        sleep_until(next).await;
    }
    Err(NotReady {
        limit: limits.total,
        last,
        is_exhaustion,
        is_of_another_version,
    })
}

/// Asks for the status. An answer of another generation is an error. A guest-init of the release before
/// refuses the version of this one, if they differ, and is asked in its own.
pub(crate) async fn ask_status(address: &GuestAddress) -> Result<StatusReply, GuestError> {
    match ask_status_once(address).await {
        Err(error) if error.is_of_another_version() => {
            let before = address.clone().speaking(OLDEST_VERSION);
            if before.version() == address.version() {
                return Err(error);
            }
            ask_status_once(&before).await
        }
        result => result,
    }
}

async fn ask_status_once(address: &GuestAddress) -> Result<StatusReply, GuestError> {
    let mut connection = address.connect().await?;
    let connected_ns = clock::monotonic_ns();
    let local_port = connection.local_port();
    let call = address.call_with(Request::Status, Some(wake()));
    match connection.ask(&call).await? {
        Reply::Status(status) if status.generation == address.generation => Ok(StatusReply {
            status,
            connected_ns,
            local_port,
        }),
        _ => Err(GuestError::BadReply {
            expected: "a status of this generation",
            local_port,
        }),
    }
}

/// guest-init's answer to the readiness check.
#[derive(Debug)]
pub(crate) struct StatusReply {
    /// The status.
    pub(crate) status: GuestStatus,
    /// When the connection was open.
    pub(crate) connected_ns: u64,
    /// Host end of the pair.
    pub(crate) local_port: u32,
}

/// The time and fresh entropy, for a guest that may have been suspended.
pub(crate) fn wake() -> Wake {
    let entropy: [u8; ENTROPY_BYTES] = rand::rng().random();
    Wake::new(clock::realtime_ns(), &entropy)
}

/// The outcome of an attempt that failed with `error`.
fn outcome_of(error: &GuestError) -> AttemptOutcome {
    match error {
        GuestError::Reset { .. } => AttemptOutcome::Reset,
        GuestError::NoReply { .. } => AttemptOutcome::NoReply,
        GuestError::Dial(_) | GuestError::Closed { .. } => AttemptOutcome::Closed,
        GuestError::Frame(_)
        | GuestError::BadReply { .. }
        | GuestError::Refused(_)
        | GuestError::TooMany { .. } => AttemptOutcome::BadReply,
    }
}

#[cfg(test)]
mod tests {
    use guest_protocol::backoff::Backoff;
    use guest_protocol::{Call, Decoded, Frame, Refusal, RefusalKind};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;

    use super::*;
    use crate::guest::testing::status;

    const LIMITS: ReadinessLimits = ReadinessLimits {
        attempt: Duration::from_millis(100),
        backoff: Backoff {
            first: Duration::from_millis(25),
            longest: Duration::from_secs(1),
        },
        total: Duration::from_secs(10),
    };

    #[tokio::test(start_paused = true)]
    async fn every_failed_attempt_is_recorded_with_port_and_outcome() {
        let mut attempts = Vec::new();
        let mut port = 0;
        let found = repeat(&LIMITS, "status", &mut attempts, || {
            port += 1;
            Box::pin(async move {
                match port {
                    1 => Err(GuestError::Reset { local_port: 1 }),
                    2 => Err(GuestError::NoReply { local_port: 2 }),
                    3 => std::future::pending().await,
                    4 => Err(GuestError::BadReply {
                        expected: "x",
                        local_port: 4,
                    }),
                    _ => Ok(("there", port)),
                }
            })
        })
        .await
        .unwrap();
        assert_eq!(found.value, "there");
        use AttemptOutcome::{BadReply, NoReply, Ok as Succeeded, Reset};
        let seen: Vec<_> = attempts.iter().map(|a| (a.local_port, a.outcome)).collect();
        let expected = [
            (Some(1), Reset),
            (Some(2), NoReply),
            (None, NoReply),
            (Some(4), BadReply),
            (Some(5), Succeeded),
        ];
        assert_eq!(seen, expected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_refuses_for_hours_leaves_a_bounded_record() {
        let limits = ReadinessLimits {
            total: Duration::from_secs(3_600),
            ..LIMITS
        };
        let mut attempts = Vec::new();
        let refuse = || -> AttemptFuture<()> {
            let refusal = Refusal {
                kind: RefusalKind::Invalid,
                message: "x".repeat(100_000),
            };
            Box::pin(async { Err(GuestError::refused(refusal)) })
        };
        let error = repeat(&limits, "status", &mut attempts, refuse).await;
        assert!(error.unwrap_err().to_string().len() < 1_000);
        assert_eq!(attempts.len(), MOST_ATTEMPTS);
        let bytes = serde_json::to_vec(&attempts).unwrap().len();
        assert!(bytes < 200_000, "{bytes}");
    }

    /// A guest-init that speaks the oldest version alone.
    async fn serve_oldest(listener: UnixListener) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = vec![0; 4_096];
            let mut arrived = 0;
            stream.write_all(b"OK 7\n").await.unwrap();
            let call: Call = loop {
                arrived += stream.read(&mut asked[arrived..]).await.unwrap();
                let line = asked
                    .iter()
                    .position(|byte| *byte == b'\n')
                    .map_or(0, |end| end + 1);
                match guest_protocol::decode(&asked[line..arrived]).unwrap() {
                    Decoded::Frame(Frame::Json(json), _) => {
                        break serde_json::from_slice(json).unwrap();
                    }
                    _ => assert!(arrived < asked.len()),
                }
            };
            let reply = if call.version == OLDEST_VERSION {
                Reply::Status(GuestStatus {
                    generation: call.generation,
                    protocol: OLDEST_VERSION,
                    ..status()
                })
            } else {
                Reply::Refused(Refusal {
                    kind: RefusalKind::Version,
                    message: "it is not mine".to_owned(),
                })
            };
            let json = serde_json::to_vec(&reply).unwrap();
            let mut bytes = Vec::new();
            guest_protocol::encode(Frame::Json(&json), &mut bytes).unwrap();
            stream.write_all(&bytes).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_guest_that_refuses_our_version_is_asked_in_the_oldest() {
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let path = folder.path().join("v.sock");
        let guest = tokio::spawn(serve_oldest(UnixListener::bind(&path).unwrap()));
        let address = GuestAddress::new(path, 3).calling_in(OLDEST_VERSION + 1);
        let answer = ask_status(&address).await.unwrap();
        assert_eq!(answer.status.generation, 3);
        guest.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn the_check_ends_at_its_total_deadline() {
        let begun = Instant::now();
        let mut attempts = Vec::new();
        let silent = || -> AttemptFuture<()> { Box::pin(std::future::pending()) };
        let error = repeat(&LIMITS, "status", &mut attempts, silent)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("10000 ms"), "{error}");
        assert!(begun.elapsed() <= Duration::from_millis(10_100));
    }
}
