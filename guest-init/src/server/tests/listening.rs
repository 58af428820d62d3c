//! The accept loop, and connections that are reset instead of closed.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;

use super::*;
use crate::os::stream::tcp;
use crate::server::listener::{self, Accept};

/// Hands out the given results, then waits for ever.
struct Scripted(RefCell<VecDeque<io::Result<OwnedFd>>>);

impl Accept for Scripted {
    async fn accept(&self) -> io::Result<OwnedFd> {
        let next = self.0.borrow_mut().pop_front();
        match next {
            Some(accepted) => accepted,
            None => std::future::pending().await,
        }
    }
}

#[test]
fn the_accept_loop_outlives_errors_and_closes_dead_connections() {
    with_guest(async |guest: Guest| {
        let (dead, gone) = tcp::pair();
        tcp::reset(gone);
        let (live, theirs) = UnixStream::pair().unwrap();
        let script = [
            Err(io::Error::from_raw_os_error(libc::EMFILE)),
            Ok(dead.into()),
            Ok(live.into()),
        ];
        let listener = Scripted(RefCell::new(script.into()));
        let serving = tokio::task::spawn_local(listener::serve(listener, guest.server.clone()));
        let mut client = Client {
            stream: Stream::new(theirs.into()).unwrap(),
            inbox: Vec::new(),
        };
        let call = Call::new(1, None, Request::Status);

        client.send_json(&call).await;

        let Reply::Status(status) = client.receive_json().await else {
            panic!("no status")
        };
        assert_eq!(status.open_vsocks.total, 0);
        serving.abort();
    });
}

#[test]
fn a_stream_whose_connection_is_reset_is_closed_long_before_its_next_message() {
    with_guest(async |guest: Guest| {
        let (ours, theirs) = tcp::pair();
        let script = [Ok(ours.into())];
        let listener = Scripted(RefCell::new(script.into()));
        let serving = tokio::task::spawn_local(listener::serve(listener, guest.server.clone()));
        let mut client = Client {
            stream: Stream::new(theirs.try_clone().unwrap().into()).unwrap(),
            inbox: Vec::new(),
        };
        let interval_ms = 60_000;
        let call = Call::new(1, None, Request::CpuUsage { interval_ms });
        client.send_json(&call).await;
        assert_eq!(client.receive_json::<Reply>().await, Reply::Streaming);
        let _first: CpuSample = client.receive_json().await;

        drop(client);
        tcp::reset(theirs);

        until(|| guest.server.registry().open_sockets().is_empty()).await;
        serving.abort();
    });
}
