//! The vsock device behind its queues, with programs of the host that connect to the guest and that the
//! guest connects to.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vmm::devices::virtio::saved_device::{DeviceState, SavedDevice};
use vmm::devices::virtio::vsock::{PortPolicy, Vsock, VsockConfig, VsockObserver};

use crate::changed::Change;
use crate::guest::step::{Meanwhile, Step};
use crate::guest::subject::{Host, Subject};
use crate::{scratch, steps};

const RX: u8 = 0;
const TX: u8 = 1;
const EVENT: u8 = 2;
const HEADER_BYTES: usize = 44;
const GUEST_CID: u32 = 3;
const HOST_CID: u64 = 2;
/// The service of the host that the guest may connect to.
const SERVICE_PORT: u32 = 5;
/// Most programs of the host at a time.
const PROGRAMS: usize = 24;

/// Ports of the packets that a guest sends.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Pair {
    /// Of a packet that it has got, by number from the latest.
    Known(u8),
    /// To the host's service, from this port.
    Service(u8),
    /// Any two.
    Any { local: u32, peer: u32 },
}

/// A step of a guest or its host.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum VsockStep {
    /// What any guest does.
    Any(Step),
    /// The guest sends a packet.
    Packet {
        pair: Pair,
        op: u8,
        flags: u8,
        credit: u32,
        forwarded: u32,
        payload: Vec<u8>,
    },
    /// The guest offers buffers to receive packets in.
    Buffers { count: u8, bytes: u16 },
    /// The guest offers buffers for events.
    EventBuffers { count: u8, bytes: u16 },
    /// The guest takes the packets that it has got, and answers requests.
    Receive { accepts: bool },
    /// A program of the host connects to a port of the guest.
    Connect { port: u32 },
    /// A program of the host sends something else.
    Greet { line: Vec<u8> },
    /// A program writes.
    HostWrite { program: u8, bytes: u16 },
    /// A program reads all that is there.
    HostRead { program: u8 },
    /// A program ends one direction.
    HostShutdown { program: u8, writing: bool },
    /// A program closes its connection.
    HostClose { program: u8 },
    /// The host's service begins or ends.
    Service { runs: bool },
}

#[derive(Debug)]
struct Nobody;

impl VsockObserver for Nobody {
    fn reset_acknowledged(&self) {}
}

#[derive(Debug)]
struct VsockHost {
    socket: PathBuf,
    eviction: bool,
    impatient: bool,
}

impl VsockHost {
    fn config(&self) -> VsockConfig {
        VsockConfig {
            guest_cid: GUEST_CID,
            host_socket: self.socket.clone(),
            // The one that is the same after a restore.
            port_policy: PortPolicy::Continue,
            eviction: self.eviction,
            request_timeout: if self.impatient {
                Duration::ZERO
            } else {
                Duration::from_secs(10)
            },
            observer: Arc::new(Nobody),
        }
    }
}

impl Host for VsockHost {
    fn boot(&mut self) -> Box<dyn SavedDevice> {
        Box::new(Vsock::new(self.config()).expect("the host socket is free"))
    }

    fn restore(&mut self, state: &DeviceState) -> Option<Box<dyn SavedDevice>> {
        let DeviceState::Vsock(state) = state else {
            return None;
        };
        let vsock = Vsock::restore(self.config(), state);
        vsock
            .ok()
            .map(|vsock| Box::new(vsock) as Box<dyn SavedDevice>)
    }
}

/// A program of the host.
#[derive(Debug)]
struct Program {
    stream: UnixStream,
    /// It was told that it is connected, or the guest has connected to it.
    connected: bool,
    received: usize,
}

#[derive(Debug)]
struct World {
    subject: Subject<VsockHost>,
    programs: Vec<Program>,
    service: Option<UnixListener>,
    /// Pairs of the packets that the guest has got, (local, peer), the latest first.
    known: VecDeque<(u32, u32)>,
}

impl World {
    fn take(&mut self, step: VsockStep) {
        match step {
            VsockStep::Any(step) => {
                let resets = matches!(step, Step::Reset | Step::Establish { .. });
                self.subject.take(&step);
                if resets {
                    self.assert_disconnected();
                }
            }
            VsockStep::Packet {
                pair,
                op,
                flags,
                credit,
                forwarded,
                payload,
            } => {
                let pair = self.pair(pair);
                self.send(pair, op.into(), flags, (credit, forwarded), &payload);
            }
            VsockStep::Buffers { count, bytes } => self.offer(RX, count, bytes),
            VsockStep::EventBuffers { count, bytes } => self.offer(EVENT, count, bytes),
            VsockStep::Receive { accepts } => self.receive(accepts),
            VsockStep::Connect { port } => self.greet(format!("CONNECT {port}\n").as_bytes()),
            VsockStep::Greet { line } => self.greet(&line),
            VsockStep::HostWrite { program, bytes } => {
                let data = vec![program; bytes.into()];
                self.with_program(program, |program| {
                    // Fails where the device has closed the connection, or does not read.
                    let _ = program.stream.write(&data);
                });
            }
            VsockStep::HostRead { program } => {
                self.with_program(program, |program| {
                    read_all(program);
                });
            }
            VsockStep::HostShutdown { program, writing } => self.with_program(program, |program| {
                let how = if writing {
                    std::net::Shutdown::Write
                } else {
                    std::net::Shutdown::Read
                };
                let _ = program.stream.shutdown(how);
            }),
            VsockStep::HostClose { program } => {
                if let Some(index) = usize::from(program).checked_rem(self.programs.len()) {
                    self.programs.remove(index);
                }
            }
            VsockStep::Service { runs } => {
                let path = self.service_path();
                let _ = std::fs::remove_file(&path);
                self.service = runs.then(|| {
                    let listener = UnixListener::bind(&path).expect("the path is free");
                    listener.set_nonblocking(true).expect("a socket");
                    listener
                });
            }
        }
        self.subject
            .serve(|subject| subject.transport().serve_backend());
        self.accept();
    }

    fn service_path(&self) -> PathBuf {
        let mut path = self.subject.host.socket.clone().into_os_string();
        path.push(format!("_{SERVICE_PORT}"));
        path.into()
    }

    fn with_program(&mut self, number: u8, act: impl FnOnce(&mut Program)) {
        if let Some(index) = usize::from(number).checked_rem(self.programs.len()) {
            act(&mut self.programs[index]);
        }
    }

    fn add(&mut self, stream: UnixStream, connected: bool) {
        stream.set_nonblocking(true).expect("a socket");
        if self.programs.len() < PROGRAMS {
            self.programs.push(Program {
                stream,
                connected,
                received: 0,
            });
        }
    }

    fn greet(&mut self, line: &[u8]) {
        // The listener's backlog is longer than the number of programs.
        let mut stream =
            UnixStream::connect(&self.subject.host.socket).expect("the device listens");
        let _ = stream.write_all(line);
        self.add(stream, false);
    }

    fn accept(&mut self) {
        while let Some(Ok((stream, _))) = self.service.as_ref().map(UnixListener::accept) {
            self.add(stream, true);
        }
    }

    fn pair(&self, pair: Pair) -> (u32, u32) {
        match pair {
            Pair::Known(number) => {
                let index = usize::from(number).checked_rem(self.known.len());
                index.map_or((1 << 30, 1024), |index| self.known[index])
            }
            Pair::Service(port) => (SERVICE_PORT, port.into()),
            Pair::Any { local, peer } => (local, peer),
        }
    }

    fn send(
        &mut self,
        (local, peer): (u32, u32),
        op: u16,
        flags: u8,
        (credit, forwarded): (u32, u32),
        payload: &[u8],
    ) {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(&u64::from(GUEST_CID).to_le_bytes());
        header[8..16].copy_from_slice(&HOST_CID.to_le_bytes());
        header[16..20].copy_from_slice(&peer.to_le_bytes());
        header[20..24].copy_from_slice(&local.to_le_bytes());
        let bytes = u32::try_from(payload.len()).expect("a short payload");
        header[24..28].copy_from_slice(&bytes.to_le_bytes());
        header[28] = 1;
        header[30..32].copy_from_slice(&op.to_le_bytes());
        header[32] = flags;
        header[36..40].copy_from_slice(&credit.to_le_bytes());
        header[40..44].copy_from_slice(&forwarded.to_le_bytes());
        self.subject.offer(TX, &[&header, payload], &[]);
        self.subject.take(&Step::Kick { queue: TX });
    }

    fn offer(&mut self, queue: u8, count: u8, bytes: u16) {
        for _ in 0..count % 32 {
            self.subject.offer(queue, &[], &[bytes.into()]);
        }
        self.subject.take(&Step::Kick { queue });
    }

    /// Takes the packets from the RX queue. A request is answered, as by a guest in which programs listen.
    fn receive(&mut self, accepts: bool) {
        let Some(queue) = self.subject.queue(RX) else {
            return;
        };
        // A guest whose rings are not what a driver makes of them may find anything there.
        if !self.subject.is_exact() {
            return;
        }
        let most = self.subject.queues[queue].size();
        for _ in 0..most {
            let memory = &self.subject.memory;
            let Some(used) = self.subject.queues[queue].pop_used(memory) else {
                return;
            };
            let address = self.subject.queues[queue].buffer_of(memory, used.head);
            let bytes = memory.read_bytes(address, used.written as usize);
            let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
                continue;
            };
            let word =
                |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
            let pair = (word(16), word(20));
            self.known.push_front(pair);
            self.known.truncate(16);
            if accepts && header[30] == 1 {
                self.send(pair, 2, 0, (64 << 10, 0), &[]);
            }
        }
    }

    /// Nothing of a connection stays after a reset: its program reads to the end.
    fn assert_disconnected(&mut self) {
        self.accept();
        for program in &mut self.programs {
            let ended = read_all(program);
            assert!(
                ended || !program.connected,
                "a program is still connected after a reset of the device"
            );
        }
    }
}

/// Reads all that is there; whether that is the end.
fn read_all(program: &mut Program) -> bool {
    let mut buffer = [0; 4096];
    loop {
        match program.stream.read(&mut buffer) {
            Ok(0) => return true,
            Ok(bytes) => {
                program.connected |= program.received == 0 && buffer.starts_with(b"OK ");
                program.received += bytes;
            }
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
}

/// See [`crate::TARGETS`].
pub(crate) fn target(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else {
        return;
    };
    let socket = scratch::path("vsock");
    let host = VsockHost {
        socket,
        eviction: first & 8 != 0,
        impatient: first & 16 != 0,
    };
    let mut world = World {
        subject: Subject::new(host, first % 4 != 0),
        programs: Vec::new(),
        service: None,
        known: VecDeque::new(),
    };
    world.take(VsockStep::Service { runs: true });
    for step in steps::decode::<VsockStep>(rest) {
        world.take(step);
    }
    world.take(VsockStep::Service { runs: false });
    world.subject.finish();
}

/// See [`crate::TARGETS`].
#[rustfmt::skip]
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    use VsockStep::{Any, Buffers, Connect, EventBuffers, HostRead, HostShutdown, HostWrite, Packet, Receive};
    let establish = || vec![
        Any(Step::Establish { sizes: [8, 8, 6], features: 0xff }),
        Buffers { count: 20, bytes: 2048 },
        EventBuffers { count: 8, bytes: 8 },
    ];
    let packet = |pair, op, flags, payload: &[u8]| Packet {
        pair, op, flags, credit: 64 << 10, forwarded: 0, payload: payload.to_vec(),
    };
    let connected = || [establish(), vec![Connect { port: 1024 }, Receive { accepts: true }, HostRead { program: 0 }]].concat();
    let host = [connected(), vec![
        HostWrite { program: 0, bytes: 5000 }, Receive { accepts: true },
        packet(Pair::Known(0), 5, 0, b"an answer"), HostRead { program: 0 },
        HostShutdown { program: 0, writing: true }, Receive { accepts: true },
        packet(Pair::Known(0), 4, 3, &[]), Receive { accepts: true },
    ]].concat();
    let guest = [establish(), vec![
        packet(Pair::Service(9), 1, 0, &[]), Receive { accepts: true },
        packet(Pair::Service(9), 5, 0, &[7; 300]), HostRead { program: 0 },
        packet(Pair::Service(9), 7, 0, &[]), HostWrite { program: 0, bytes: 100 }, Receive { accepts: true },
        packet(Pair::Service(9), 3, 0, &[]),
        packet(Pair::Any { local: 77, peer: 8 }, 1, 0, &[]), packet(Pair::Service(1), 200, 0, &[]),
    ]].concat();
    let restored = |change: Option<Change>| [connected(), vec![
        match change {
            Some(change) => Any(Step::RestoreChanged { change }),
            None => Any(Step::Restore),
        },
        Buffers { count: 20, bytes: 2048 }, Receive { accepts: true },
        packet(Pair::Known(1), 3, 0, &[]), packet(Pair::Any { local: u32::MAX, peer: u32::MAX }, 3, 0, &[]),
        EventBuffers { count: 1, bytes: 4 }, Connect { port: 7 }, Receive { accepts: true },
        Any(Step::Reset),
    ]].concat();
    let racing = [connected(), vec![
        HostWrite { program: 0, bytes: 60_000 },
        Any(Step::KickWhile { queue: RX, changes: vec![
            Meanwhile::Refill { queue: RX, head: 0 },
            Meanwhile::Refill { queue: RX, head: 1 },
            Meanwhile::Write { address: crate::guest::step::Address::Buffer(30), bytes: vec![5; 30] },
        ] }),
        HostShutdown { program: 0, writing: false },
        packet(Pair::Known(0), 5, 0, &[1; 100]),
        Any(Step::KickWhile { queue: TX, changes: vec![Meanwhile::Refill { queue: TX, head: 2 }] }),
    ]].concat();
    [
        ("host", 1, host), ("guest", 1, guest), ("restored", 1, restored(None)), ("evicting", 9, restored(None)),
        ("changed", 9, restored(Some(Change::Number { place: 3, value: 5 }))), ("racing", 1, racing.clone()),
        ("impatient", 17, connected()), ("wild", 4, racing),
    ]
        .map(|(name, first, steps)| (name, [vec![first], steps::encode(&steps)].concat()))
        .into()
}
