//! All clients of the control socket, behind one descriptor that the event loop waits for.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use vmm_control::{Message, Request};

use super::connection::Connection;
use super::{ControlListener, MAX_CONNECTIONS};
use crate::epoll::ready_now;

const LISTENER: u64 = 0;

/// Identifies a client; never used again once it has disconnected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientId(u64);

/// The clients.
#[derive(Debug)]
pub struct Clients {
    epoll: OwnedFd,
    listener: Option<ControlListener>,
    connections: BTreeMap<ClientId, Connection>,
    next_id: u64,
}

impl Clients {
    /// No clients yet; without a listener there never are any.
    ///
    /// # Errors
    /// Where the host gives no epoll.
    pub fn new(listener: Option<ControlListener>) -> io::Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        if let Some(listener) = &listener {
            epoll::add(
                &epoll,
                listener,
                EventData::new_u64(LISTENER),
                EventFlags::IN,
            )?;
        }
        Ok(Self {
            epoll,
            listener,
            connections: BTreeMap::new(),
            next_id: LISTENER + 1,
        })
    }

    /// Accepts, reads and writes what can be, without waiting. New clients are greeted with `hello`.
    ///
    /// # Errors
    /// Where epoll fails.
    pub fn serve(&mut self, hello: impl Fn() -> Message) -> io::Result<Vec<(ClientId, Request)>> {
        let mut requests = Vec::new();
        for event in ready_now(&self.epoll, MAX_CONNECTIONS + 1)? {
            match event.data.u64() {
                LISTENER => self.accept(&hello)?,
                id => self.serve_client(ClientId(id), &mut requests)?,
            }
        }
        Ok(requests)
    }

    /// Sends to one client. Ignored if it has disconnected; one that does not read is disconnected.
    pub fn send(&mut self, id: ClientId, message: &Message) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        if !connection.send(message) {
            self.connections.remove(&id);
        }
        // If this fails, the client gets the rest together with the next message.
        let _ = self.update_interest(id);
    }

    /// Sends to all clients.
    pub fn broadcast(&mut self, message: &Message) {
        let ids: Vec<ClientId> = self.connections.keys().copied().collect();
        for id in ids {
            self.send(id, message);
        }
    }

    fn accept(&mut self, hello: &impl Fn() -> Message) -> io::Result<()> {
        let Some(mut connection) = self.listener.as_ref().and_then(ControlListener::accept) else {
            return Ok(());
        };
        // A connection beyond the limit is closed at once.
        if self.connections.len() < MAX_CONNECTIONS && connection.send(&hello()) {
            let id = ClientId(self.next_id);
            self.next_id += 1;
            epoll::add(
                &self.epoll,
                &connection,
                EventData::new_u64(id.0),
                EventFlags::IN,
            )?;
            self.connections.insert(id, connection);
            self.update_interest(id)?;
        }
        Ok(())
    }

    fn serve_client(
        &mut self,
        id: ClientId,
        requests: &mut Vec<(ClientId, Request)>,
    ) -> io::Result<()> {
        let Some(connection) = self.connections.get_mut(&id) else {
            return Ok(());
        };
        let writable = connection.flush();
        let received = connection.receive();
        requests.extend(received.requests.into_iter().map(|request| (id, request)));
        if !writable || received.ended {
            // The drop closes the socket, which removes it from the epoll.
            self.connections.remove(&id);
        }
        self.update_interest(id)
    }

    /// Watches for room in a client's socket only while output waits for it.
    fn update_interest(&self, id: ClientId) -> io::Result<()> {
        let Some(connection) = self.connections.get(&id) else {
            return Ok(());
        };
        let mut flags = EventFlags::empty();
        flags.set(EventFlags::IN, connection.reads());
        flags.set(EventFlags::OUT, connection.has_waiting_output());
        Ok(epoll::modify(
            &self.epoll,
            connection,
            EventData::new_u64(id.0),
            flags,
        )?)
    }
}

impl AsFd for Clients {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
