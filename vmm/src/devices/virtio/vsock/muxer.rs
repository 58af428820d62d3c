//! Routes packets and stream events to connections, and lets those that have packets for the guest take
//! turns.
//!
//! Connections are found by their pair, host streams by the token under which they are watched. The number
//! of connections, each one's backlog and the RSTs that wait for an RX buffer are bounded.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::io::Result;
use std::time::Instant;

use super::connection::{Connection, Deadlines, Outcome, Phase, Settings};
use super::counters::CountersHandle;
use super::host_end::HostStream;
use super::packet::{Header, MAX_PAYLOAD_BYTES, Op, TYPE_STREAM};
use super::ports::LocalPorts;
use super::state::Pair;

/// While this many RSTs wait for RX buffers, the guest's packets wait too (virtio 1.2, 5.10.6.1).
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
    /// No service listens there, or its backlog is full.
    fn dial(&mut self, port: u32) -> Result<(S, Token)>;
}

/// Limits of all connections.
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

/// An RST to the guest, for a pair without a connection.
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
    /// Whether it is in `ready`.
    queued: bool,
    /// Its deadline as listed in `deadlines`.
    deadline: Option<Instant>,
    /// The phase under which the counters have it.
    counted: Option<Phase>,
}

/// All connections.
#[derive(Debug)]
pub(super) struct Muxer<S> {
    connections: HashMap<Pair, Entry<S>>,
    tokens: HashMap<Token, Pair>,
    /// In the order of their turns; the token distinguishes a pair's owner from an earlier one.
    ready: VecDeque<(Pair, Token)>,
    resets: VecDeque<WaitingReset>,
    deadlines: BTreeSet<(Instant, Pair)>,
    /// Pairs that no new connection of the host gets, as long as this muxer exists.
    reserved: HashSet<Pair>,
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
            reserved: HashSet::new(),
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

    /// Reserves pairs that are being evicted, so that no new connection gets one.
    ///
    /// Linux sends a second RST on such a pair when the owner of the evicted socket finally closes it
    /// (virtio_transport_common.c: virtio_transport_close), which may be long after the reset. It would end
    /// a new connection on the same pair.
    pub(super) fn reserve(&mut self, pairs: &[Pair]) {
        self.reserved.extend(pairs);
    }

    pub(super) fn next_local_port(&self) -> u32 {
        self.ports.next()
    }

    /// A host program asks for `port` of the guest. Returns its stream with a refusal.
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
        let (connections, reserved) = (&self.connections, &self.reserved);
        let in_use = |local| {
            let pair = Pair { local, peer: port };
            connections.contains_key(&pair) || reserved.contains(&pair)
        };
        // One attempt more than there are pairs in use is always enough.
        let attempts = connections.len() + reserved.len() + 1;
        let Some(local) = self.ports.next_free(attempts, in_use) else {
            return Err((stream, Refusal::NoFreePort));
        };
        let pair = Pair { local, peer: port };
        let connection = Connection::requesting(pair, stream, early, self.settings(now));
        self.insert(pair, token, connection);
        Ok(())
    }

    /// Handles a packet of the guest whose addresses have been checked.
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
            self.refresh(pair);
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

    /// Handles a malformed packet of the guest, by the pair in its header.
    pub(super) fn receive_malformed(&mut self, header: &Header) {
        let pair = header.pair_from_guest();
        if let Some(entry) = self.connections.get_mut(&pair) {
            entry.connection.receive_malformed();
            self.refresh(pair);
        } else {
            self.reset(pair, header.socket_type);
        }
    }

    /// Handles an event of a host stream.
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
            self.refresh(pair);
        }
    }

    /// Whether [`Muxer::next_packet`] may have a packet.
    pub(super) fn has_packet(&self) -> bool {
        !self.resets.is_empty() || (self.gate_open && !self.ready.is_empty())
    }

    /// Whether so many RSTs wait that the guest's packets must wait too.
    pub(super) fn is_congested(&self) -> bool {
        self.resets.len() >= MAX_WAITING_RESETS
    }

    /// The next packet for the guest, its payload at the front of `payload`. Connections take turns; each
    /// has at most one per call, as one with data for which there is no room has a turn again at once.
    pub(super) fn next_packet(&mut self, payload: &mut [u8], now: Instant) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            let header = Header::to_guest(reset.pair, Op::Reset);
            return Some(Header {
                socket_type: reset.socket_type,
                ..header
            });
        }
        let turns = if self.gate_open { self.ready.len() } else { 0 };
        for _ in 0..turns {
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
            self.refresh(pair);
            if let Some(header) = packet {
                let bytes = u64::from(header.payload_bytes);
                self.counters
                    .update(|counters| counters.bytes_to_guest += bytes);
                return Some(header);
            }
        }
        None
    }

    /// How many turns are queued, also of connections that no longer exist.
    #[cfg(test)]
    pub(super) fn waiting_turns(&self) -> usize {
        self.ready.len()
    }

    /// When [`Muxer::expire`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|(deadline, _)| *deadline)
    }

    /// Expires connections whose deadline has passed.
    pub(super) fn expire(&mut self, now: Instant) {
        while let Some(&(deadline, pair)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            self.deadlines.remove(&(deadline, pair));
            if let Some(entry) = self.connections.get_mut(&pair) {
                entry.deadline = None;
                entry.connection.expire();
                self.refresh(pair);
            }
        }
    }

    /// Queues an RST for a pair that is not connected.
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
        self.reserved.clear();
        self.counters.forget_phases();
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

    /// Pairs on which the guest waits for an answer, which after a save can only be an RST.
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
        let connection = Connection::accepting(stream, request, self.settings(now));
        self.insert(pair, token, connection);
    }

    fn insert(&mut self, pair: Pair, token: Token, connection: Connection<S>) {
        let entry = Entry {
            connection,
            token,
            queued: false,
            deadline: None,
            counted: None,
        };
        self.connections.insert(pair, entry);
        self.tokens.insert(token, pair);
        self.refresh(pair);
        self.count_live();
    }

    /// Updates counters, RSTs, deadlines and turns after a connection has changed.
    fn refresh(&mut self, pair: Pair) {
        let Some(entry) = self.connections.get_mut(&pair) else {
            return;
        };
        if let Some(outcome) = entry.connection.take_outcome() {
            count(&self.counters, outcome, pair);
        }
        let phase = entry.connection.phase();
        if entry.counted != Some(phase) {
            self.counters
                .count_phase(entry.counted.replace(phase), phase);
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
        if entry.connection.is_closed() {
            self.tokens.remove(&entry.token);
            self.connections.remove(&pair);
            self.drop_stale_turns();
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

    /// Drops turns of connections that no longer exist, so that they do not accumulate while the guest takes
    /// no packets.
    fn drop_stale_turns(&mut self) {
        if self.ready.len() > 2 * self.connections.len() + 64 {
            let connections = &self.connections;
            self.ready.retain(|(pair, token)| {
                connections
                    .get(pair)
                    .is_some_and(|entry| entry.token == *token)
            });
        }
    }

    fn settings(&self, now: Instant) -> Settings {
        let full = self.connections.len() < FULL_BUFFERS;
        let buffer_bytes = if full {
            FULL_BUFFER_BYTES
        } else {
            SMALL_BUFFER_BYTES
        };
        Settings {
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
        Outcome::Refused => counters.count_collision(pair),
    }
}
