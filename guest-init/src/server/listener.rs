//! The accept loop. It never ends: a listening socket survives a transport reset. A connection
//! that was waiting to be accepted does not; it is closed at once.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

use super::Server;
use crate::connection::Connection;
use crate::os::console::say;
use crate::os::stream::Stream;
use crate::os::vsock_listener::VsockListener;

/// Pause after a failed accept. The likely cause is that guest-init is out of descriptors; trying
/// again at once would take the CPU from the tasks that could close some.
const PAUSE: Duration = Duration::from_millis(50);

/// A source of connections.
pub(crate) trait Accept {
    /// Waits for the next connection.
    async fn accept(&self) -> io::Result<OwnedFd>;
}

impl Accept for VsockListener {
    async fn accept(&self) -> io::Result<OwnedFd> {
        VsockListener::accept(self).await
    }
}

/// Serves every connection in a task of its own, for ever.
pub(crate) async fn serve(listener: impl Accept, server: Rc<Server>) {
    let mut failed_before = false;
    loop {
        let accepted = listener.accept().await;
        let failed_to_accept = accepted.is_err();
        let started = accepted.and_then(|fd| start_connection(fd, &server));
        if let Err(error) = &started
            && !failed_before
        {
            // Only the first failure: the console is slow, and the cause may last.
            say(format_args!("cannot accept connections: {error}"));
        }
        failed_before = started.is_err();
        if failed_to_accept {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

fn start_connection(fd: OwnedFd, server: &Rc<Server>) -> io::Result<()> {
    let stream = Stream::new(fd)?;
    if stream.is_dead() {
        return Ok(());
    }
    let registry = server.registry();
    let ticket = registry.admit(&stream).map_err(io::Error::other)?;
    let id = ticket.id();
    let connection = Connection::new(stream, ticket);
    let task = tokio::task::spawn_local(super::serve(Rc::clone(server), connection));
    registry.bind_task(id, task.abort_handle());
    Ok(())
}
