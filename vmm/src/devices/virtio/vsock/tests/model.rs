//! One muxer between a modelled guest and modelled host streams, under random schedules.
//!
//! Without queues, sockets and clock, these tests check that every byte arrives once and in order under
//! any schedule, and that buffers stay within their bounds.

#![expect(
    clippy::cast_possible_truncation,
    reason = "the model moves less than 4 GiB"
)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::Shutdown;
use std::rc::Rc;
use std::time::{Duration, Instant};

use proptest::prelude::{Strategy, prop, prop_oneof, proptest};

use crate::devices::virtio::vsock::connection::Deadlines;
use crate::devices::virtio::vsock::counters::CountersHandle;
use crate::devices::virtio::vsock::host_end::HostStream;
use crate::devices::virtio::vsock::muxer::{Dial, Limits, Muxer, Refusal, Token};
use crate::devices::virtio::vsock::packet::{
    HOST_CID, Header, MAX_PAYLOAD_BYTES, Op, SHUTDOWN_BOTH, SHUTDOWN_SEND, TYPE_STREAM,
};
use crate::devices::virtio::vsock::ports::{LocalPorts, PortPolicy};
use crate::devices::virtio::vsock::state::Pair;

/// How much a stream buffers for a program that does not read, like a socket.
const STREAM_BYTES: usize = 10_000;
const GUEST_BUFFER_BYTES: usize = 30_000;

/// The host program's view of a stream.
#[derive(Debug, Default)]
struct Program {
    to_device: VecDeque<u8>,
    from_device: VecDeque<u8>,
    ended: bool,
    saw_end: bool,
}

#[derive(Debug, Clone, Default)]
struct FakeStream(Rc<RefCell<Program>>);

impl Read for FakeStream {
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let mut program = self.0.borrow_mut();
        if program.to_device.is_empty() && !program.ended {
            return Err(Error::from(ErrorKind::WouldBlock));
        }
        let bytes = buffer.len().min(program.to_device.len());
        for (slot, byte) in buffer.iter_mut().zip(program.to_device.drain(..bytes)) {
            *slot = byte;
        }
        Ok(bytes)
    }
}

impl Write for FakeStream {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let mut program = self.0.borrow_mut();
        let room = STREAM_BYTES - program.from_device.len();
        if room == 0 {
            return Err(Error::from(ErrorKind::WouldBlock));
        }
        let count = room.min(bytes.len());
        program.from_device.extend(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

impl HostStream for FakeStream {
    fn shut_down(&self, how: Shutdown) -> Result<()> {
        if how == Shutdown::Write {
            self.0.borrow_mut().saw_end = true;
        }
        Ok(())
    }
}

/// There are no services.
struct Nobody;

impl Dial<FakeStream> for Nobody {
    fn dial(&mut self, _port: u32) -> Result<(FakeStream, Token)> {
        Err(ErrorKind::NotFound.into())
    }
}

fn muxer(connections: usize) -> Muxer<FakeStream> {
    let second = Duration::from_secs(1);
    let deadlines = Deadlines {
        delivery: 30 * second,
        answer: 2 * second,
        shutdown: second,
        drain: second,
    };
    let ports = LocalPorts::new(PortPolicy::Fixed, None);
    Muxer::new(
        ports,
        Limits {
            connections,
            deadlines,
        },
        CountersHandle::default(),
    )
}

/// A guest that follows the protocol, with one connection.
#[derive(Debug)]
struct World {
    muxer: Muxer<FakeStream>,
    program: FakeStream,
    pair: Pair,
    now: Instant,
    /// Received by the guest's kernel, not yet read by its program.
    held: VecDeque<u8>,
    read_by_guest: Vec<u8>,
    read_by_program: Vec<u8>,
    written_by_guest: usize,
    written_by_program: usize,
    guest_forwarded: u32,
    device_buffer: u32,
    device_forwarded: u32,
    guest_ended: bool,
    guest_saw_end: bool,
}

/// The `at`th byte of a direction's data.
fn byte(at: usize) -> u8 {
    (at % 251) as u8
}

#[derive(Debug, Clone)]
enum Step {
    ProgramWrites(usize),
    ProgramReads(usize),
    ProgramEnds,
    GuestWrites(usize),
    GuestReads(usize),
    GuestEnds,
    Deliver(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1_usize..20_000).prop_map(Step::ProgramWrites),
        6 => (1_usize..20_000).prop_map(Step::ProgramReads),
        1 => prop::strategy::Just(Step::ProgramEnds),
        6 => (1_usize..20_000).prop_map(Step::GuestWrites),
        6 => (1_usize..20_000).prop_map(Step::GuestReads),
        1 => prop::strategy::Just(Step::GuestEnds),
        8 => (1_usize..5).prop_map(Step::Deliver),
    ]
}

impl World {
    fn new() -> Self {
        let mut muxer = muxer(10);
        let program = FakeStream::default();
        let now = Instant::now();
        muxer
            .connect(program.clone(), 1, 1024, Vec::new(), now)
            .unwrap();
        let mut world = Self {
            muxer,
            program,
            pair: Pair {
                local: 1 << 30,
                peer: 1024,
            },
            now,
            held: VecDeque::new(),
            read_by_guest: Vec::new(),
            read_by_program: Vec::new(),
            written_by_guest: 0,
            written_by_program: 0,
            guest_forwarded: 0,
            device_buffer: 0,
            device_forwarded: 0,
            guest_ended: false,
            guest_saw_end: false,
        };
        world.deliver(1);
        world.send(Op::Response, 0, &[]);
        let greeting: Vec<u8> = world.program.0.borrow_mut().from_device.drain(..).collect();
        assert_eq!(greeting, b"OK 1073741824\n");
        world
    }

    fn send(&mut self, op: Op, flags: u32, payload: &[u8]) {
        let header = Header {
            source_cid: 3,
            destination_cid: HOST_CID,
            source_port: self.pair.peer,
            destination_port: self.pair.local,
            payload_bytes: payload.len() as u32,
            socket_type: TYPE_STREAM,
            op,
            flags,
            buffer_bytes: GUEST_BUFFER_BYTES as u32,
            forwarded: self.guest_forwarded,
        };
        self.muxer.receive(&header, payload, self.now, &mut Nobody);
    }

    /// The guest takes packets, into RX buffers of 4 KiB.
    fn deliver(&mut self, packets: usize) -> bool {
        let mut buffer = [0; 4096];
        for _ in 0..packets {
            let Some(header) = self.muxer.next_packet(&mut buffer, self.now) else {
                return false;
            };
            self.device_buffer = header.buffer_bytes;
            self.device_forwarded = header.forwarded;
            match header.op {
                Op::Data => {
                    self.held.extend(&buffer[..header.payload_bytes as usize]);
                    assert!(
                        self.held.len() <= GUEST_BUFFER_BYTES,
                        "the guest's buffer overran"
                    );
                    assert!(!self.guest_saw_end, "data came behind their end");
                }
                Op::Shutdown => self.guest_saw_end |= header.flags & SHUTDOWN_SEND != 0,
                Op::CreditRequest => self.send(Op::CreditUpdate, 0, &[]),
                Op::Request | Op::CreditUpdate => {}
                other => panic!("{other:?} on a sound connection"),
            }
        }
        true
    }

    fn apply(&mut self, step: &Step) {
        match *step {
            Step::ProgramWrites(bytes) => self.program_writes(bytes),
            Step::ProgramReads(bytes) => self.program_reads(bytes),
            Step::ProgramEnds => {
                self.program.0.borrow_mut().ended = true;
                self.muxer.stream_ready(1, true, false, self.now);
            }
            Step::GuestWrites(bytes) => self.guest_writes(bytes),
            Step::GuestReads(bytes) => self.guest_reads(bytes),
            Step::GuestEnds if !self.guest_ended => {
                self.guest_ended = true;
                self.send(Op::Shutdown, SHUTDOWN_SEND, &[]);
            }
            Step::GuestEnds => {}
            Step::Deliver(packets) => {
                self.deliver(packets);
            }
        }
    }

    fn program_writes(&mut self, bytes: usize) {
        let mut program = self.program.0.borrow_mut();
        if program.ended {
            return;
        }
        let bytes = bytes.min(STREAM_BYTES - program.to_device.len());
        let from = self.written_by_program;
        program.to_device.extend((from..from + bytes).map(byte));
        self.written_by_program += bytes;
        drop(program);
        self.muxer.stream_ready(1, true, false, self.now);
    }

    fn program_reads(&mut self, bytes: usize) {
        let mut program = self.program.0.borrow_mut();
        let bytes = bytes.min(program.from_device.len());
        self.read_by_program
            .extend(program.from_device.drain(..bytes));
        drop(program);
        self.muxer.stream_ready(1, false, false, self.now);
    }

    fn guest_writes(&mut self, bytes: usize) {
        if self.guest_ended {
            return;
        }
        let under_way = (self.written_by_guest as u32).wrapping_sub(self.device_forwarded);
        let credit = self.device_buffer.saturating_sub(under_way) as usize;
        let bytes = bytes.min(credit).min(MAX_PAYLOAD_BYTES);
        let from = self.written_by_guest;
        let payload: Vec<u8> = (from..from + bytes).map(byte).collect();
        if !payload.is_empty() {
            self.written_by_guest += bytes;
            self.send(Op::Data, 0, &payload);
        }
    }

    fn guest_reads(&mut self, bytes: usize) {
        let bytes = bytes.min(self.held.len());
        self.read_by_guest.extend(self.held.drain(..bytes));
        self.guest_forwarded = self.guest_forwarded.wrapping_add(bytes as u32);
        self.send(Op::CreditUpdate, 0, &[]);
    }

    /// Both sides read until no data is left.
    fn finish(&mut self) {
        for _ in 0..10_000 {
            let before = (self.read_by_guest.len(), self.read_by_program.len());
            self.deliver(100);
            self.guest_reads(usize::MAX);
            self.program_reads(usize::MAX);
            if before == (self.read_by_guest.len(), self.read_by_program.len()) {
                break;
            }
        }
        self.deliver(100);
    }
}

fn is_data(data: &[u8]) -> bool {
    data.iter()
        .enumerate()
        .all(|(at, value)| *value == byte(at))
}

proptest! {
    #[test]
    fn every_byte_arrives_once_and_in_order_whatever_the_schedule(
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut world = World::new();
        for step in &steps {
            world.apply(step);
        }
        world.finish();
        assert_eq!(world.read_by_guest.len(), world.written_by_program);
        assert_eq!(world.read_by_program.len(), world.written_by_guest);
        assert!(is_data(&world.read_by_guest) && is_data(&world.read_by_program));
        let program = world.program.0.borrow();
        assert_eq!(world.guest_saw_end, program.ended, "the guest sees the host's end");
        assert_eq!(program.saw_end, world.guest_ended, "the host sees the guest's end");
    }
}

#[test]
fn requests_and_shutdowns_have_deadlines() {
    let mut muxer = muxer(10);
    let begin = Instant::now();
    let (undelivered, unanswered) = (FakeStream::default(), FakeStream::default());
    muxer
        .connect(unanswered.clone(), 1, 1024, Vec::new(), begin)
        .unwrap();
    let delivered = begin + Duration::from_secs(10);
    assert_eq!(
        muxer.next_packet(&mut [0; 100], delivered).map(|it| it.op),
        Some(Op::Request)
    );
    assert_eq!(muxer.deadline(), Some(delivered + Duration::from_secs(2)));
    muxer.expire(delivered + Duration::from_secs(2));
    assert_eq!(unanswered.0.borrow().from_device, b"NOREPLY 1073741824\n");
    muxer
        .connect(undelivered.clone(), 2, 1024, Vec::new(), begin)
        .unwrap();
    muxer.expire(begin + Duration::from_secs(30));
    assert_eq!(undelivered.0.borrow().from_device, b"GONE 1073741825\n");
    assert_eq!(muxer.deadline(), None);
}

#[test]
fn a_guest_that_ignores_a_shutdown_is_reset_in_the_end() {
    let mut world = World::new();
    world.program.0.borrow_mut().ended = true;
    world.muxer.stream_ready(1, true, true, world.now);
    world.deliver(10);
    let late = world.now + Duration::from_secs(1);
    world.muxer.expire(late);
    let last = world
        .muxer
        .next_packet(&mut [0; 100], late)
        .map(|header| header.op);
    assert_eq!(last, Some(Op::Reset));
    assert_eq!(world.muxer.deadline(), None);
}

#[test]
fn a_program_that_never_reads_what_is_left_is_given_up() {
    let mut world = World::new();
    world.guest_writes(20_000);
    world.send(Op::Shutdown, SHUTDOWN_BOTH, &[]);
    assert!(world.muxer.deadline().is_some());
    world.muxer.expire(world.now + Duration::from_secs(1));
    assert_eq!(world.muxer.deadline(), None);
    assert_eq!(
        Rc::strong_count(&world.program.0),
        1,
        "the stream is still held"
    );
}

#[test]
fn one_connection_too_many_is_refused() {
    let mut muxer = muxer(2);
    let now = Instant::now();
    let mut connect = |token| {
        muxer
            .connect(FakeStream::default(), token, 1024, Vec::new(), now)
            .map_err(|(_, why)| why)
    };
    assert_eq!(connect(1), Ok(()));
    assert_eq!(connect(2), Ok(()));
    assert_eq!(connect(3), Err(Refusal::TooManyConnections));
}

#[test]
fn clients_that_come_and_go_while_the_guest_takes_nothing_leave_no_trace() {
    let mut muxer = muxer(2);
    let now = Instant::now();
    for token in 1..10_000 {
        muxer
            .connect(FakeStream::default(), token, 1024, Vec::new(), now)
            .unwrap();
        muxer.stream_ready(token, true, true, now);
    }
    assert!(
        muxer.waiting_turns() < 100,
        "{} turns are queued without a connection",
        muxer.waiting_turns()
    );
    assert!(muxer.next_packet(&mut [0; 100], now).is_none());
}
