//! The connections that guest-init serves, by the generation in which they were opened.
//!
//! A resume resets all vsock connections. The first call of the new generation closes all
//! connections of older ones before it is answered. That finds every reset socket; waiting for the
//! error state (`os/stream.rs`) is the other way to find one.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::stat::fstat;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use crate::os::console::say;
use crate::os::stream::Stream;

/// Longest wait for aborted connections to be closed. They close as soon as the runtime polls
/// them, so a longer wait means that something blocks the runtime.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Why a connection is not admitted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdmitError {
    #[error("{0} connections are open already")]
    Full(usize),
    #[error("cannot read the inode of the new socket")]
    Inode(#[source] io::Error),
}

/// All connections. Shared by the listener, the server and every [`Ticket`].
#[derive(Debug)]
pub(crate) struct Registry {
    limit: usize,
    next_id: Cell<u64>,
    entries: RefCell<BTreeMap<u64, Entry>>,
    removed: Notify,
}

#[derive(Debug)]
struct Entry {
    inode: u64,
    generation: Option<u64>,
    /// Aborting it closes the connection. None before the task runs, and for exempt connections.
    task: Option<AbortHandle>,
}

/// One open socket of guest-init.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenSocket {
    pub(crate) inode: u64,
    /// None until its call was read.
    pub(crate) generation: Option<u64>,
}

/// One connection's entry in the registry. Drop it after the socket: that removes the entry.
#[derive(Debug)]
pub(crate) struct Ticket {
    id: u64,
    inode: u64,
    registry: Rc<Registry>,
}

impl Registry {
    /// `limit` bounds the connections that are open at once.
    pub(crate) fn new(limit: usize) -> Rc<Self> {
        Rc::new(Self {
            limit,
            next_id: Cell::new(0),
            entries: RefCell::default(),
            removed: Notify::new(),
        })
    }

    /// Registers a connection that has no generation yet.
    pub(crate) fn admit(self: &Rc<Self>, stream: &Stream) -> Result<Ticket, AdmitError> {
        let mut entries = self.entries.borrow_mut();
        if entries.len() >= self.limit {
            return Err(AdmitError::Full(entries.len()));
        }
        let inode = fstat(stream)
            .map_err(|errno| AdmitError::Inode(errno.into()))?
            .st_ino;
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        entries.insert(
            id,
            Entry {
                inode,
                generation: None,
                task: None,
            },
        );
        Ok(Ticket {
            id,
            inode,
            registry: Rc::clone(self),
        })
    }

    /// Sets the task whose end closes the connection.
    pub(crate) fn bind_task(&self, id: u64, task: AbortHandle) {
        // The connection may have ended meanwhile.
        if let Some(entry) = self.entries.borrow_mut().get_mut(&id) {
            entry.task = Some(task);
        }
    }

    /// Whether fewer than `reserve` further connections would be admitted.
    pub(crate) fn is_nearly_full(&self, reserve: usize) -> bool {
        self.entries.borrow().len() + reserve > self.limit
    }

    /// Closes every connection of a generation older than `newest` and returns when that is
    /// done. Connections without a generation stay open: theirs may be the newest.
    pub(crate) async fn close_older(&self, newest: u64) {
        let closing = self.abort_older(newest);
        if closing.is_empty() {
            return;
        }
        let all_removed = async {
            loop {
                let removed = self.removed.notified();
                if !self.contains_any(&closing) {
                    break;
                }
                removed.await;
            }
        };
        if tokio::time::timeout(CLOSE_TIMEOUT, all_removed)
            .await
            .is_err()
        {
            say(format_args!(
                "connections of generations before {newest} did not close within {CLOSE_TIMEOUT:?}"
            ));
        }
    }

    fn abort_older(&self, newest: u64) -> Vec<u64> {
        let entries = self.entries.borrow();
        let mut closing = Vec::new();
        for (id, entry) in entries.iter() {
            let older = entry.generation.is_some_and(|own| own < newest);
            if let (true, Some(task)) = (older, &entry.task) {
                task.abort();
                closing.push(*id);
            }
        }
        closing
    }

    fn contains_any(&self, ids: &[u64]) -> bool {
        let entries = self.entries.borrow();
        ids.iter().any(|id| entries.contains_key(id))
    }

    /// The sockets that are open now.
    pub(crate) fn open_sockets(&self) -> Vec<OpenSocket> {
        let entries = self.entries.borrow();
        entries
            .values()
            .map(|entry| OpenSocket {
                inode: entry.inode,
                generation: entry.generation,
            })
            .collect()
    }
}

impl Ticket {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn inode(&self) -> u64 {
        self.inode
    }

    /// Records the generation that the connection's call carried.
    pub(crate) fn set_generation(&self, generation: u64) {
        if let Some(entry) = self.registry.entries.borrow_mut().get_mut(&self.id) {
            entry.generation = Some(generation);
        }
    }

    /// Exempts the connection from [`Registry::close_older`].
    #[cfg(feature = "leaky")]
    pub(crate) fn exempt_from_closing(&self) {
        if let Some(entry) = self.registry.entries.borrow_mut().get_mut(&self.id) {
            entry.task = None;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.registry.entries.borrow_mut().remove(&self.id);
        self.registry.removed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use tokio::task::LocalSet;

    use super::*;

    /// Opens a connection whose task never ends by itself; returns its other end.
    fn open(registry: &Rc<Registry>, generation: Option<u64>) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        let stream = Stream::new(ours.into()).unwrap();
        let ticket = registry.admit(&stream).unwrap();
        if let Some(generation) = generation {
            ticket.set_generation(generation);
        }
        let id = ticket.id();
        let task = tokio::task::spawn_local(async move {
            let _held = (stream, ticket);
            std::future::pending::<()>().await;
        });
        registry.bind_task(id, task.abort_handle());
        theirs
    }

    fn is_closed(mut peer: &UnixStream) -> bool {
        matches!(peer.read(&mut [0]), Ok(0))
    }

    #[tokio::test]
    async fn a_new_generation_closes_exactly_the_older_ones() {
        LocalSet::new()
            .run_until(async {
                let registry = Registry::new(10);
                let old = open(&registry, Some(1));
                let older = open(&registry, Some(0));
                let current = open(&registry, Some(2));
                let silent = open(&registry, None);

                registry.close_older(2).await;

                let closed = [&old, &older, &current, &silent].map(is_closed);
                assert_eq!(closed, [true, true, false, false]);
                let left: Vec<_> = registry
                    .open_sockets()
                    .iter()
                    .map(|socket| socket.generation)
                    .collect();
                assert_eq!(left, [Some(2), None]);
            })
            .await;
    }

    #[tokio::test]
    async fn connections_beyond_the_limit_are_refused_until_one_leaves() {
        let registry = Registry::new(1);
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let stream = Stream::new(ours.into()).unwrap();
        let ticket = registry.admit(&stream).unwrap();

        assert!(matches!(registry.admit(&stream), Err(AdmitError::Full(1))));
        drop(ticket);
        assert!(registry.admit(&stream).is_ok());
    }
}
