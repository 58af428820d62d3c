//! Carries the bytes of a connection both ways, until both ends have closed it or one of them is gone.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::guest::{GuestStream, SharedPace};

/// Bytes that are copied at once, in each direction.
const PIECE_BYTES: usize = 8 << 10;
/// Silence after which a connection ends of which one end has closed its half. A client that closes all of its
/// connection looks just like that, so otherwise a guest could keep it for ever.
const HALF_CLOSED_LIMIT: Duration = Duration::from_secs(600);
/// Silence after which the kernel probes whether a client still exists.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// Copies both ways. The end of one direction is passed on and does not end the other.
pub(super) async fn exchange(mut client: TcpStream, guest: GuestStream) {
    // Latency of small writes matters more than full packets.
    let _ = client.set_nodelay(true);
    let _ = rustix::net::sockopt::set_socket_keepalive(&client, true)
        .and_then(|()| rustix::net::sockopt::set_tcp_keepidle(&client, KEEP_ALIVE));
    let pace = guest.pace();
    let (from_guest, to_guest, early) = guest.into_raw();
    let (from_client, to_client) = client.split();
    // An error of either direction means that the whole connection is over.
    let carried = Carried {
        moved: AtomicU64::new(0),
        pace,
    };
    let (up, down) = ((from_client, to_guest), (from_guest, to_client));
    let _ = carried.carry_both(up, down, &early).await;
}

/// What both directions of a connection have in common.
#[derive(Debug)]
struct Carried {
    /// Bytes that were carried.
    moved: AtomicU64,
    /// Of all connections to the machine.
    pace: Option<SharedPace>,
}

impl Carried {
    async fn carry_both(
        &self,
        (mut from_client, mut to_guest): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
        (mut from_guest, mut to_client): (impl AsyncRead + Unpin, impl AsyncWrite + Unpin),
        early: &[u8],
    ) -> io::Result<()> {
        let up = self.copy(&mut from_client, &mut to_guest);
        let down = async {
            to_client.write_all(early).await?;
            self.copy(&mut from_guest, &mut to_client).await
        };
        let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
        let client_ended = tokio::select! {
            ended = &mut up => ended.map(|()| true)?,
            ended = &mut down => ended.map(|()| false)?,
        };
        let rest = async { if client_ended { down.await } else { up.await } };
        tokio::select! {
            ended = rest => ended,
            () = self.silence() => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// Copies up to the end, which it passes on.
    async fn copy(
        &self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
    ) -> io::Result<()> {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let read = from.read(&mut piece).await?;
            if read == 0 {
                let _ = to.shutdown().await;
                return Ok(());
            }
            to.write_all(&piece[..read]).await?;
            self.moved.fetch_add(read as u64, Ordering::Relaxed);
            let wait = self.pace.as_ref().map(|pace| pace.wait_after(read));
            if let Some(wait) = wait.filter(|wait| !wait.is_zero()) {
                sleep(wait).await;
            }
        }
    }

    /// Resolves once nothing has moved for [`HALF_CLOSED_LIMIT`].
    async fn silence(&self) {
        loop {
            let before = self.moved.load(Ordering::Relaxed);
            sleep(HALF_CLOSED_LIMIT).await;
            if self.moved.load(Ordering::Relaxed) == before {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{DuplexStream, duplex, split};
    use tokio::time::{Instant, timeout};

    use super::*;

    /// A connection that is carried: its two outer ends, and how it ends.
    fn carried() -> (
        DuplexStream,
        DuplexStream,
        tokio::task::JoinHandle<io::Result<()>>,
    ) {
        let (client, ours) = duplex(64);
        let (guest, theirs) = duplex(64);
        let carrying = tokio::spawn(async move {
            let (from_client, to_client) = split(ours);
            let (from_guest, to_guest) = split(theirs);
            let carried = Carried {
                moved: AtomicU64::new(0),
                pace: None,
            };
            let (up, down) = ((from_client, to_guest), (from_guest, to_client));
            carried.carry_both(up, down, b"early").await
        });
        (client, guest, carrying)
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_never_closes_does_not_keep_what_its_client_has_closed() {
        let (mut client, guest, carrying) = carried();
        client.shutdown().await.unwrap();
        let begun = Instant::now();
        let limit = HALF_CLOSED_LIMIT * 3;
        let ended = timeout(limit, carrying).await.unwrap().unwrap();
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() <= HALF_CLOSED_LIMIT * 2);
        drop(guest);
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_a_connection_is_carried_for_as_long_as_something_moves() {
        let (mut client, mut guest, carrying) = carried();
        client.shutdown().await.unwrap();
        let mut early = [0; 5];
        client.read_exact(&mut early).await.unwrap();
        assert_eq!(&early, b"early");
        for _ in 0..5 {
            sleep(HALF_CLOSED_LIMIT / 2).await;
            guest.write_all(b"x").await.unwrap();
            client.read_exact(&mut [0]).await.unwrap();
        }
        drop(guest);
        assert!(carrying.await.unwrap().is_ok());
        assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_that_both_ends_have_open_stays() {
        let (client, guest, carrying) = carried();
        sleep(HALF_CLOSED_LIMIT * 10).await;
        assert!(!carrying.is_finished());
        drop((client, guest));
    }
}
