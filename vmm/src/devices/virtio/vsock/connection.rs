//! One connection: a pure state machine between a host stream and the guest's packets.
//!
//! ```text
//! host connects:   Requesting ─▶ Requested ─▶ Established ─▶ (Draining) ─▶ Closed
//! guest connects:  Accepting ───────────────▶ Established
//! ```
//!
//! Data from the guest is written to the host stream at once; the rest waits in a backlog, which is at
//! most as long as the guest's credit. Data from the host stays in the stream until the guest has both
//! credit and a buffer. This file knows no file descriptors, queues or other connections, and gets the
//! time from the caller.

use std::time::{Duration, Instant};

use super::credit::{LocalCredit, PeerCredit};
use super::host_end::{HostEnd, HostStream};
use super::packet::{Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::state::Pair;

/// How long each phase may last.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadlines {
    /// A request may wait for an RX buffer, or for the reset gate.
    pub(super) delivery: Duration,
    /// The guest may take to answer a request, from its delivery on.
    pub(super) answer: Duration,
    /// The guest may take to answer the SHUTDOWN that ends a connection.
    pub(super) shutdown: Duration,
    /// Either end may take to begin to read data that the other has sent before its end.
    pub(super) drain: Duration,
}

/// The settings of a new connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    /// How much the guest may send before the host has read it.
    pub(super) buffer_bytes: u32,
    pub(super) deadlines: Deadlines,
    pub(super) now: Instant,
}

/// The outcome of a request to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Sent,
    Accepted,
    Refused,
    Unanswered,
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The host has connected; REQUEST is due.
    Requesting,
    /// REQUEST was delivered.
    Requested,
    /// The guest has connected; RESPONSE is due.
    Accepting,
    /// Data flows.
    Established,
    /// The guest's end is closed; the host gets the backlog.
    Draining,
    /// Nothing is left to do.
    Closed,
}

/// One connection.
#[derive(Debug)]
pub(super) struct Connection<S> {
    pair: Pair,
    host: HostEnd<S>,
    phase: Phase,
    to_guest: PeerCredit,
    from_guest: LocalCredit,
    guest_sends: bool,
    guest_receives: bool,
    /// The SHUTDOWN flags that were sent to the guest.
    shutdown_sent: u32,
    /// The guest was asked for credit, and has not given any since.
    credit_asked: bool,
    /// The guest has asked for a credit update.
    credit_wanted: bool,
    /// The guest must get an RST.
    reset_due: bool,
    /// The guest holds the pair connected, or has held it.
    established: bool,
    outcome: Option<Outcome>,
    deadline: Option<Instant>,
    deadlines: Deadlines,
    /// The time of the current event.
    now: Instant,
}

impl<S: HostStream> Connection<S> {
    /// A connection that the host asked for; `early` is the data that came with its request.
    pub(super) fn requesting(pair: Pair, stream: S, early: Vec<u8>, settings: Settings) -> Self {
        let host = HostEnd::new(stream, early);
        let mut connection = Self::new(pair, host, Phase::Requesting, settings);
        connection.deadline = Some(settings.now + settings.deadlines.delivery);
        connection
    }

    /// A connection that the guest asked for by `request`.
    pub(super) fn accepting(stream: S, request: &Header, settings: Settings) -> Self {
        let host = HostEnd::new(stream, Vec::new());
        let pair = request.pair_from_guest();
        let mut connection = Self::new(pair, host, Phase::Accepting, settings);
        connection
            .to_guest
            .update(request.buffer_bytes, request.forwarded);
        connection
    }

    fn new(pair: Pair, host: HostEnd<S>, phase: Phase, settings: Settings) -> Self {
        Self {
            pair,
            host,
            phase,
            to_guest: PeerCredit::default(),
            from_guest: LocalCredit::new(settings.buffer_bytes),
            guest_sends: true,
            guest_receives: true,
            shutdown_sent: 0,
            credit_asked: false,
            credit_wanted: false,
            reset_due: false,
            established: false,
            outcome: None,
            deadline: None,
            deadlines: settings.deadlines,
            now: settings.now,
        }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    pub(super) fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Whether the guest may hold this pair connected.
    pub(super) fn is_known_to_guest(&self) -> bool {
        matches!(self.phase, Phase::Requested | Phase::Established)
    }

    /// Whether the guest has ever held this pair connected.
    pub(super) fn was_established(&self) -> bool {
        self.established
    }

    /// Whether the guest waits for an answer to its request.
    pub(super) fn is_awaited_by_guest(&self) -> bool {
        self.phase == Phase::Accepting
    }

    /// When [`Connection::expire`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// Whether the guest must get an RST; true once.
    pub(super) fn take_reset(&mut self) -> bool {
        std::mem::take(&mut self.reset_due)
    }

    /// The outcome of the request; returned once.
    pub(super) fn take_outcome(&mut self) -> Option<Outcome> {
        self.outcome.take()
    }

    /// Handles a packet of the guest; returns the number of payload bytes accepted.
    pub(super) fn receive(&mut self, header: &Header, payload: &[u8], now: Instant) -> usize {
        self.now = now;
        if self.phase == Phase::Requesting {
            // The guest can't know this request yet, so the packet is for an earlier owner of the pair.
            return 0;
        }
        self.to_guest.update(header.buffer_bytes, header.forwarded);
        if self.to_guest.available() > 0 {
            self.credit_asked = false;
        }
        match (self.phase, header.op) {
            (_, Op::Reset) => self.lose_guest(),
            (Phase::Requested, Op::Response) => self.establish(),
            (Phase::Established, Op::Data) => return self.receive_data(payload),
            (Phase::Established, Op::Shutdown) => self.receive_shutdown(header.flags),
            (Phase::Established, Op::CreditRequest) => self.credit_wanted = true,
            (Phase::Established, Op::CreditUpdate) => {}
            // Late packets for an earlier owner of the pair, or for this connection. No answer is expected.
            (Phase::Requested | Phase::Draining, op) if op != Op::Request => {}
            (_, _) => self.fail(),
        }
        0
    }

    /// Handles a malformed packet of the guest.
    pub(super) fn receive_malformed(&mut self) {
        if self.phase != Phase::Requesting {
            self.fail();
        }
    }

    /// The host stream may have become readable, writable, or closed by its other end.
    pub(super) fn host_ready(&mut self, readable: bool, hung_up: bool, now: Instant) {
        self.now = now;
        if readable || hung_up {
            self.host.set_readable();
        }
        if hung_up {
            let lost = self.host.stop_receiving();
            self.forward(lost);
        }
        self.flush();
        self.check_host_receives();
        if self.phase == Phase::Draining {
            self.deadline = Some(now + self.deadlines.drain);
        }
    }

    /// Whether [`Connection::next_packet`] may have one.
    pub(super) fn has_packet(&self) -> bool {
        match self.phase {
            Phase::Requesting | Phase::Accepting => true,
            Phase::Established => {
                self.may_read()
                    || self.shutdown_due() != 0
                    || self.credit_request_due()
                    || self.credit_update_due()
            }
            Phase::Requested | Phase::Draining | Phase::Closed => false,
        }
    }

    /// The next packet for the guest, its payload at the front of `payload`.
    pub(super) fn next_packet(&mut self, payload: &mut [u8], now: Instant) -> Option<Header> {
        self.now = now;
        let (op, flags, payload_bytes) = match self.phase {
            Phase::Requesting => {
                self.phase = Phase::Requested;
                self.outcome = Some(Outcome::Sent);
                self.deadline = Some(now + self.deadlines.answer);
                (Op::Request, 0, 0)
            }
            Phase::Accepting => {
                self.phase = Phase::Established;
                self.established = true;
                (Op::Response, 0, 0)
            }
            Phase::Established => self.next_established(payload)?,
            Phase::Requested | Phase::Draining | Phase::Closed => return None,
        };
        self.credit_wanted = false;
        Some(Header {
            flags,
            payload_bytes,
            buffer_bytes: self.from_guest.buffer_bytes(),
            forwarded: self.from_guest.announce(),
            ..Header::to_guest(self.pair, op)
        })
    }

    /// The deadline has passed.
    pub(super) fn expire(&mut self) {
        match self.phase {
            Phase::Requesting => self.answer_host("GONE"),
            Phase::Requested => {
                self.outcome = Some(Outcome::Unanswered);
                self.answer_host("NOREPLY");
            }
            Phase::Accepting | Phase::Established => self.reset_due = true,
            Phase::Draining | Phase::Closed => {}
        }
        self.finish();
    }

    /// The device is taken out of service.
    pub(super) fn abandon(&mut self) {
        if matches!(self.phase, Phase::Requesting | Phase::Requested) {
            self.answer_host("GONE");
        }
        self.finish();
    }

    fn next_established(&mut self, payload: &mut [u8]) -> Option<(Op, u32, u32)> {
        if self.may_read() {
            let bytes = self.read_host(payload);
            if bytes > 0 {
                return Some((Op::Data, 0, bytes));
            }
        }
        let flags = self.shutdown_due();
        if flags != 0 {
            self.shutdown_sent |= flags;
            if self.shutdown_sent == SHUTDOWN_BOTH {
                self.deadline = Some(self.now + self.deadlines.shutdown);
            }
            return Some((Op::Shutdown, self.shutdown_sent, 0));
        }
        if self.credit_request_due() {
            self.credit_asked = true;
            return Some((Op::CreditRequest, 0, 0));
        }
        self.credit_update_due().then_some((Op::CreditUpdate, 0, 0))
    }

    /// Whether host data could go to the guest now.
    fn may_read(&self) -> bool {
        self.host.is_readable() && self.guest_receives && self.to_guest.available() > 0
    }

    /// Whether to ask the guest to report when it has credit again; once per stall.
    fn credit_request_due(&self) -> bool {
        let stalled = self.host.is_readable() && self.to_guest.available() == 0;
        stalled && self.guest_receives && !self.credit_asked
    }

    fn credit_update_due(&self) -> bool {
        self.credit_wanted || (self.guest_sends && self.from_guest.update_due())
    }

    /// The SHUTDOWN flags that are still to be sent to the guest.
    fn shutdown_due(&self) -> u32 {
        let mut flags = 0;
        if !self.host.sends() {
            flags |= SHUTDOWN_SEND;
        }
        // Once neither end sends any more, both flags make the guest close the connection.
        let finished = !self.host.sends() && !self.guest_sends && !self.host.has_backlog();
        if !self.host.receives() || finished {
            flags |= SHUTDOWN_RECEIVE;
        }
        flags & !self.shutdown_sent
    }

    fn read_host(&mut self, payload: &mut [u8]) -> u32 {
        let credit = usize::try_from(self.to_guest.available()).unwrap_or(usize::MAX);
        let room = payload.len().min(credit);
        let bytes = self.host.read(&mut payload[..room]);
        let bytes = u32::try_from(bytes).unwrap_or(0);
        self.to_guest.spend(bytes);
        if bytes > 0 && !self.host.receives() {
            self.deadline = Some(self.now + self.deadlines.drain);
        }
        bytes
    }

    fn establish(&mut self) {
        self.phase = Phase::Established;
        self.established = true;
        self.outcome = Some(Outcome::Accepted);
        self.deadline = None;
        if !self.host.write_handshake_line("OK", self.pair.local) {
            self.host.stop_receiving();
            self.check_host_receives();
        }
    }

    fn receive_data(&mut self, payload: &[u8]) -> usize {
        let in_credit =
            u32::try_from(payload.len()).is_ok_and(|bytes| self.from_guest.receive(bytes).is_ok());
        if !self.guest_sends || !in_credit {
            self.fail();
            return 0;
        }
        let forwarded = self.host.write(payload);
        self.forward(forwarded);
        self.check_host_receives();
        payload.len()
    }

    fn receive_shutdown(&mut self, flags: u32) {
        if flags & SHUTDOWN_RECEIVE != 0 && self.guest_receives {
            self.guest_receives = false;
            self.host.stop_reading();
        }
        if flags & SHUTDOWN_SEND != 0 {
            self.guest_sends = false;
            self.flush();
        }
        if !self.guest_receives && !self.guest_sends {
            // Linux keeps the pair occupied until it is answered, or for 8 s (VSOCK_CLOSE_TIMEOUT).
            self.reset_due = true;
            self.lose_guest();
        }
    }

    /// The guest's end is closed. The host still gets the data that it sent before.
    fn lose_guest(&mut self) {
        match self.phase {
            Phase::Requested => {
                self.outcome = Some(Outcome::Refused);
                self.answer_host("RST");
                self.finish();
            }
            Phase::Established if self.host.has_backlog() => {
                self.phase = Phase::Draining;
                self.deadline = Some(self.now + self.deadlines.drain);
            }
            Phase::Draining => {}
            Phase::Requesting | Phase::Accepting | Phase::Established | Phase::Closed => {
                self.finish();
            }
        }
    }

    /// The guest broke the protocol.
    fn fail(&mut self) {
        self.reset_due = true;
        if self.phase == Phase::Requested {
            self.answer_host("GONE");
        }
        if self.phase != Phase::Draining {
            self.finish();
        }
    }

    /// Ends the connection, or sets its deadline, if the host won't read any more.
    fn check_host_receives(&mut self) {
        if self.host.receives() {
            return;
        }
        match self.phase {
            // If the guest still answers, it gets an RST.
            Phase::Requested => {
                self.outcome = Some(Outcome::Unanswered);
                self.finish();
            }
            // The guest does not know the connection, or has closed it.
            Phase::Requesting | Phase::Draining => self.finish(),
            // A guest that gives no credit must not keep the connection open for ever.
            Phase::Established if self.deadline.is_none() => {
                self.deadline = Some(self.now + self.deadlines.drain);
            }
            Phase::Accepting | Phase::Established | Phase::Closed => {}
        }
    }

    /// Writes as much of the backlog as the host takes.
    fn flush(&mut self) {
        let forwarded = self.host.flush();
        self.forward(forwarded);
        if self.host.has_backlog() {
            return;
        }
        if self.phase == Phase::Draining {
            self.finish();
        } else if !self.guest_sends && self.host.receives() {
            self.host.end_writing();
        }
    }

    fn forward(&mut self, bytes: usize) {
        // A backlog is never longer than the guest's credit.
        self.from_guest
            .forward(u32::try_from(bytes).unwrap_or(u32::MAX));
    }

    fn answer_host(&mut self, word: &str) {
        // Fails only if the client has disconnected.
        let _ = self.host.write_handshake_line(word, self.pair.local);
    }

    fn finish(&mut self) {
        self.phase = Phase::Closed;
        self.deadline = None;
    }
}
