//! Routes packets and stream events to connections, and takes turns among those that have something
//! for the guest.
//!
//! Connections are found by their pair, host streams by the token under which they are watched.
//! Bounded: the number of connections, each one's backlog, and the RSTs that wait for an RX buffer.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::io::Result;
use std::time::Instant;

use super::connection::{Connection, Deadlines, Outcome, Setting};
use super::counters::CountersHandle;
use super::host_end::HostStream;
use super::packet::{Header, MAX_PAYLOAD_BYTES, Op, TYPE_STREAM};
use super::ports::LocalPorts;
use super::state::Pair;

/// Above this many RSTs waiting for the guest to give RX buffers, its own packets wait (virtio 1.2,
/// 5.10.6.1).
const MAX_WAITING_RESETS: usize = 1024;
/// Connections up to this number get a full buffer, later ones a small one, so that the sum stays
/// bounded.
const FULL_BUFFERS: usize = 1024;
const FULL_BUFFER_BYTES: u32 = 64 * 1024;
const SMALL_BUFFER_BYTES: u32 = 4 * 1024;

/// Identifies a watched host stream; never used twice.
pub(super) type Token = u64;

/// Connects to the host's services on the guest's behalf.
pub(super) trait Dial<S> {
    /// A stream to the service on `port`, already watched under the token.
    ///
    /// # Errors
    /// Nobody listens there, or is too busy.
    fn dial(&mut self, port: u32) -> Result<(S, Token)>;
}

/// What is set for all connections.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Most connections at a time.
    pub(super) connections: usize,
    /// How long each phase may last.
    pub(super) deadlines: Deadlines,
}

/// Why a host's request was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    TooManyConnections,
    NoFreePort,
}

/// An RST to the guest, for a pair that no connection has any more.
#[derive(Debug, Clone, Copy)]
struct WaitingReset {
    pair: Pair,
    socket_type: u16,
    /// The guest holds the pair connected.
    connected: bool,
}

#[derive(Debug)]
struct Entry<S> {
    connection: Connection<S>,
    token: Token,
    /// It is in `ready`.
    queued: bool,
    /// Its deadline as it stands in `deadlines`.
    deadline: Option<Instant>,
}

/// All connections.
#[derive(Debug)]
pub(super) struct Muxer<S> {
    connections: HashMap<Pair, Entry<S>>,
    tokens: HashMap<Token, Pair>,
    /// In the order of their turns; the token tells a pair's owner from an earlier one.
    ready: VecDeque<(Pair, Token)>,
    resets: VecDeque<WaitingReset>,
    deadlines: BTreeSet<(Instant, Pair)>,
    /// Not given to a connection of the host as long as this muxer lives.
    resting: HashSet<Pair>,
    ports: LocalPorts,
    limits: Limits,
    counters: CountersHandle,
    gate_open: bool,
}

impl<S: HostStream> Muxer<S> {
    pub(super) fn new(ports: LocalPorts, limits: Limits, counters: CountersHandle) -> Self {
        Self {
            connections: HashMap::new(),
            tokens: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            deadlines: BTreeSet::new(),
            resting: HashSet::new(),
            ports,
            limits,
            counters,
            gate_open: true,
        }
    }

    /// Opens or closes the gate for packets of connections; RSTs always pass.
    pub(super) fn set_gate(&mut self, open: bool) {
        self.gate_open = open;
    }

    /// Keeps pairs that are being evicted from new connections.
    ///
    /// Linux sends a second RST on such a pair when the owner of the evicted socket closes it at
    /// last (virtio_transport_common.c: virtio_transport_close), which may be long after the reset.
    /// It would hit whichever connection had the pair by then.
    pub(super) fn let_rest(&mut self, pairs: &[Pair]) {
        self.resting.extend(pairs);
    }

    pub(super) fn next_local_port(&self) -> u32 {
        self.ports.next()
    }

    /// A host program asks for `port` of the guest. On a refusal it gets its stream back.
    pub(super) fn connect(
        &mut self,
        stream: S,
        token: Token,
        port: u32,
        early: Vec<u8>,
        now: Instant,
    ) -> std::result::Result<(), (S, Refusal)> {
        if self.connections.len() >= self.limits.connections {
            return Err((stream, Refusal::TooManyConnections));
        }
        let (connections, resting) = (&self.connections, &self.resting);
        let in_use = |local| {
            let pair = Pair { local, peer: port };
            connections.contains_key(&pair) || resting.contains(&pair)
        };
        // One more attempt than there are pairs in use always suffices.
        let attempts = connections.len() + resting.len() + 1;
        let Some(local) = self.ports.take(attempts, in_use) else {
            return Err((stream, Refusal::NoFreePort));
        };
        let pair = Pair { local, peer: port };
        let connection = Connection::requesting(pair, stream, early, self.setting(now));
        self.insert(pair, token, connection);
        Ok(())
    }

    /// Takes a packet of the guest whose addresses have been checked.
    pub(super) fn receive(
        &mut self,
        header: &Header,
        payload: &[u8],
        now: Instant,
        dialer: &mut impl Dial<S>,
    ) {
        let pair = header.pair_from_guest();
        if header.socket_type != TYPE_STREAM {
            self.reset(pair, header.socket_type);
            return;
        }
        if let Some(entry) = self.connections.get_mut(&pair) {
            let accepted = entry.connection.receive(header, payload, now);
            if accepted > 0 {
                self.counters
                    .update(|counters| counters.bytes_from_guest += accepted as u64);
            }
            self.settle(pair);
            return;
        }
        match header.op {
            Op::Request => self.accept(header, now, dialer),
            // An RST is never answered with one.
            Op::Reset => {}
            _ => {
                self.counters
                    .update(|counters| counters.guest_packets_dropped += 1);
                self.reset(pair, TYPE_STREAM);
            }
        }
    }

    /// The guest has sent something that is not a packet, but says to which pair it belongs.
    pub(super) fn receive_malformed(&mut self, header: &Header) {
        let pair = header.pair_from_guest();
        if let Some(entry) = self.connections.get_mut(&pair) {
            entry.connection.receive_malformed();
            self.settle(pair);
        } else {
            self.reset(pair, header.socket_type);
        }
    }

    /// Something happened to a host stream.
    pub(super) fn stream_ready(
        &mut self,
        token: Token,
        readable: bool,
        hung_up: bool,
        now: Instant,
    ) {
        let Some(&pair) = self.tokens.get(&token) else {
            return;
        };
        if let Some(entry) = self.connections.get_mut(&pair) {
            entry.connection.host_ready(readable, hung_up, now);
            self.settle(pair);
        }
    }

    /// Whether [`Muxer::next_packet`] may have a packet.
    pub(super) fn has_packet(&self) -> bool {
        !self.resets.is_empty() || (self.gate_open && !self.ready.is_empty())
    }

    /// Whether so many answers wait that the guest's packets must wait too.
    pub(super) fn is_congested(&self) -> bool {
        self.resets.len() >= MAX_WAITING_RESETS
    }

    /// The next packet for the guest, its payload at the front of `payload`. Connections take
    /// turns.
    pub(super) fn next_packet(&mut self, payload: &mut [u8], now: Instant) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            let header = Header::to_guest(reset.pair, Op::Reset);
            return Some(Header {
                socket_type: reset.socket_type,
                ..header
            });
        }
        while self.gate_open {
            let (pair, token) = self.ready.pop_front()?;
            let Some(entry) = self
                .connections
                .get_mut(&pair)
                .filter(|entry| entry.token == token)
            else {
                continue;
            };
            entry.queued = false;
            let room = payload.len().min(MAX_PAYLOAD_BYTES);
            let packet = entry.connection.next_packet(&mut payload[..room], now);
            self.settle(pair);
            if let Some(header) = packet {
                let bytes = u64::from(header.payload_bytes);
                self.counters
                    .update(|counters| counters.bytes_to_guest += bytes);
                return Some(header);
            }
        }
        None
    }

    /// How many turns wait, for connections that are there or not.
    #[cfg(test)]
    pub(super) fn waiting_turns(&self) -> usize {
        self.ready.len()
    }

    /// When [`Muxer::expire`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Ends what has waited too long.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(&(deadline, pair)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            self.deadlines.remove(&(deadline, pair));
            if let Some(entry) = self.connections.get_mut(&pair) {
                entry.deadline = None;
                entry.connection.expire();
                self.settle(pair);
            }
        }
    }

    /// Answers with RST on a pair that is not connected.
    pub(super) fn reset(&mut self, pair: Pair, socket_type: u16) {
        self.resets.push_back(WaitingReset {
            pair,
            socket_type,
            connected: false,
        });
    }

    /// Ends all connections, as the device is taken out of service.
    pub(super) fn abandon_all(&mut self) {
        for (_, mut entry) in self.connections.drain() {
            entry.connection.abandon();
        }
        self.tokens.clear();
        self.ready.clear();
        self.resets.clear();
        self.deadlines.clear();
        self.resting.clear();
        self.count_live();
    }

    /// Pairs that the guest may hold connected.
    pub(super) fn connected_pairs(&self) -> impl Iterator<Item = Pair> + '_ {
        let known = self
            .connections
            .iter()
            .filter(|(_, entry)| entry.connection.is_known_to_guest());
        let waiting = self.resets.iter().filter(|reset| reset.connected);
        known
            .map(|(pair, _)| *pair)
            .chain(waiting.map(|reset| reset.pair))
    }

    /// Pairs on which the guest waits for an answer, and by now can only get an RST.
    pub(super) fn refused_pairs(&self) -> impl Iterator<Item = Pair> + '_ {
        let awaited = self
            .connections
            .iter()
            .filter(|(_, entry)| entry.connection.is_awaited_by_guest());
        let waiting = self.resets.iter().filter(|reset| !reset.connected);
        awaited
            .map(|(pair, _)| *pair)
            .chain(waiting.map(|reset| reset.pair))
    }

    fn accept(&mut self, request: &Header, now: Instant, dialer: &mut impl Dial<S>) {
        let pair = request.pair_from_guest();
        let dialed = if self.connections.len() < self.limits.connections {
            dialer.dial(pair.local).ok()
        } else {
            None
        };
        let Some((stream, token)) = dialed else {
            self.counters
                .update(|counters| counters.guest_connections_refused += 1);
            self.reset(pair, TYPE_STREAM);
            return;
        };
        self.counters
            .update(|counters| counters.guest_connections_accepted += 1);
        let connection = Connection::accepting(stream, request, self.setting(now));
        self.insert(pair, token, connection);
    }

    fn insert(&mut self, pair: Pair, token: Token, connection: Connection<S>) {
        let entry = Entry {
            connection,
            token,
            queued: false,
            deadline: None,
        };
        self.connections.insert(pair, entry);
        self.tokens.insert(token, pair);
        self.settle(pair);
        self.count_live();
    }

    /// Brings everything about a connection in line with what it now wants.
    fn settle(&mut self, pair: Pair) {
        let Some(entry) = self.connections.get_mut(&pair) else {
            return;
        };
        if let Some(outcome) = entry.connection.take_outcome() {
            count(&self.counters, outcome, pair);
        }
        if entry.connection.take_reset() {
            let connected = entry.connection.was_established();
            self.resets.push_back(WaitingReset {
                pair,
                socket_type: TYPE_STREAM,
                connected,
            });
        }
        let deadline = entry.connection.deadline();
        if entry.deadline != deadline {
            if let Some(old) = entry.deadline {
                self.deadlines.remove(&(old, pair));
            }
            if let Some(new) = deadline {
                self.deadlines.insert((new, pair));
            }
            entry.deadline = deadline;
        }
        if entry.connection.is_over() {
            self.tokens.remove(&entry.token);
            self.connections.remove(&pair);
            self.forget_departed();
            self.count_live();
        } else if !entry.queued && entry.connection.has_packet() {
            entry.queued = true;
            self.ready.push_back((pair, entry.token));
            if !self.gate_open {
                self.counters
                    .update(|counters| counters.gate_held_packets += 1);
            }
        }
    }

    /// Keeps the turns of connections that are gone from piling up while the guest takes no
    /// packets.
    fn forget_departed(&mut self) {
        if self.ready.len() > 2 * self.connections.len() + 64 {
            let connections = &self.connections;
            self.ready.retain(|(pair, token)| {
                connections
                    .get(pair)
                    .is_some_and(|entry| entry.token == *token)
            });
        }
    }

    fn setting(&self, now: Instant) -> Setting {
        let full = self.connections.len() < FULL_BUFFERS;
        let buffer_bytes = if full {
            FULL_BUFFER_BYTES
        } else {
            SMALL_BUFFER_BYTES
        };
        Setting {
            buffer_bytes,
            deadlines: self.limits.deadlines,
            now,
        }
    }

    fn count_live(&self) {
        let live = self.connections.len() as u64;
        let next = self.ports.next();
        self.counters.update(|counters| {
            counters.live_connections = live;
            counters.next_local_port = next;
        });
    }
}

fn count(counters: &CountersHandle, outcome: Outcome, pair: Pair) {
    match outcome {
        Outcome::Sent => counters.update(|counters| counters.requests_sent += 1),
        Outcome::Accepted => counters.update(|counters| counters.requests_accepted += 1),
        Outcome::Unanswered => counters.update(|counters| counters.requests_unanswered += 1),
        Outcome::Refused => counters.collided(pair),
    }
}
