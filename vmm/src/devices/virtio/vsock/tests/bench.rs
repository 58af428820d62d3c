//! A device between a fake guest and host programs, with the steps that tests consist of.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tempfile::TempDir;
use vm_memory::GuestMemoryMmap;

use crate::devices::virtio::device::{DeviceError, VirtioDevice};
use crate::devices::virtio::testing::{
    CountedInterrupt, DriverQueue, activation, memory, saved_queues,
};
use crate::devices::virtio::vsock::packet::{HEADER_BYTES, HOST_CID, Header, Op, TYPE_STREAM};
use crate::devices::virtio::vsock::queues::{EVENT, RX, TX};
use crate::devices::virtio::vsock::state::Pair;
use crate::devices::virtio::vsock::{PortPolicy, Vsock, VsockConfig, VsockObserver, VsockState};

/// The guest's address.
pub(super) const CID: u32 = 3;
/// Longest wait for an event that should happen at once.
const DEADLINE: Duration = Duration::from_secs(10);
/// The size of the fake guest's buffers.
pub(super) const GUEST_BUFFER_BYTES: u32 = 256 * 1024;
/// Sizes of the driver's queues.
pub(super) const PACKET_QUEUE_SIZE: u16 = 128;
pub(super) const EVENT_QUEUE_SIZE: u16 = 16;
/// A page and a header, as Linux has them.
const RX_BUFFER_BYTES: u32 = 4096 + 44;

/// Counts acknowledged resets.
#[derive(Debug, Default)]
pub(super) struct Observer {
    acknowledged: AtomicUsize,
}

impl VsockObserver for Observer {
    fn reset_acknowledged(&self) {
        self.acknowledged.fetch_add(1, Ordering::SeqCst);
    }
}

/// A packet that the guest received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) header: Header,
    pub(super) payload: Vec<u8>,
}

impl Packet {
    pub(super) fn pair(&self) -> Pair {
        Pair {
            local: self.header.source_port,
            peer: self.header.destination_port,
        }
    }
}

/// Options of a test.
#[derive(Debug, Clone)]
pub(super) struct Options {
    pub(super) policy: PortPolicy,
    pub(super) eviction: bool,
    pub(super) timeout: Duration,
    pub(super) cid: u32,
}

impl Default for Options {
    fn default() -> Self {
        let timeout = Duration::from_secs(2);
        Self {
            policy: PortPolicy::Fixed,
            eviction: true,
            timeout,
            cid: CID,
        }
    }
}

/// The device, its guest and its host.
#[derive(Debug)]
pub(super) struct Bench {
    pub(super) vsock: Vsock,
    pub(super) observer: Arc<Observer>,
    pub(super) interrupt: Arc<CountedInterrupt>,
    pub(super) rx: DriverQueue,
    pub(super) tx: DriverQueue,
    pub(super) event: DriverQueue,
    pub(super) options: Options,
    memory: GuestMemoryMmap,
    arrived: VecDeque<Packet>,
    folder: TempDir,
}

/// A device that is still busy after so many rounds always will be.
const MAX_ROUNDS: usize = 10_000;

impl Bench {
    /// A device whose driver is active and has filled its queues.
    pub(super) fn new(options: Options) -> Self {
        let mut bench = Self::without_driver(options);
        bench.fill_rx();
        bench.fill_events();
        bench.activate();
        bench
    }

    /// A device whose driver has not set up anything.
    pub(super) fn without_driver(options: Options) -> Self {
        let folder = TempDir::new().unwrap();
        let memory = memory();
        let observer = Arc::new(Observer::default());
        let vsock = Vsock::new(config(&folder, &options, &observer)).unwrap();
        Self {
            vsock,
            observer,
            interrupt: Arc::default(),
            rx: DriverQueue::new(&memory, 0, PACKET_QUEUE_SIZE),
            tx: DriverQueue::new(&memory, 1, PACKET_QUEUE_SIZE),
            event: DriverQueue::new(&memory, 2, EVENT_QUEUE_SIZE),
            options,
            memory,
            arrived: VecDeque::new(),
            folder,
        }
    }

    /// The driver takes the device out of service, clears its rings and starts anew.
    pub(super) fn restart_driver(&mut self) {
        self.vsock.reset();
        self.rx = DriverQueue::new(&self.memory, 0, PACKET_QUEUE_SIZE);
        self.tx = DriverQueue::new(&self.memory, 1, PACKET_QUEUE_SIZE);
        self.event = DriverQueue::new(&self.memory, 2, EVENT_QUEUE_SIZE);
        self.arrived.clear();
        self.fill_rx();
        self.fill_events();
        self.activate();
    }

    pub(super) fn activate(&mut self) {
        let queues = [&self.rx, &self.tx, &self.event].map(DriverQueue::device_end);
        let activation = activation(&self.memory, &self.interrupt, queues.into());
        self.vsock.activate(activation).unwrap();
    }

    pub(super) fn fill_rx(&mut self) {
        while self.rx.give_space(RX_BUFFER_BYTES) {}
    }

    /// Linux gives 8 buffers.
    pub(super) fn fill_events(&mut self) {
        for _ in 0..8 {
            self.event.give_space(4);
        }
    }

    pub(super) fn state(&self) -> VsockState {
        self.vsock.state()
    }

    /// Saves, ends the device as a process would end, and restores it. The guest does not run meanwhile.
    pub(super) fn suspend_and_restore(&mut self) {
        self.suspend_and_try_restore().unwrap();
    }

    /// As [`Bench::suspend_and_restore`], for a guest that may have broken its queues.
    pub(super) fn suspend_and_try_restore(&mut self) -> Result<(), DeviceError> {
        let state = postcard::to_stdvec(&self.state()).unwrap();
        let state = postcard::from_bytes(&state).unwrap();
        let queues = saved_queues(self.vsock.queues());
        let config = config(&self.folder, &self.options, &self.observer);
        let other = TempDir::new().unwrap();
        // The old device must end before the new one binds, so another takes its place meanwhile.
        let stand_in = self::config(&other, &self.options, &self.observer);
        drop(std::mem::replace(
            &mut self.vsock,
            Vsock::new(stand_in).unwrap(),
        ));
        self.vsock = Vsock::restore(config, &state).unwrap();
        self.interrupt.take_count();
        if !queues.is_empty() {
            let activation = activation(&self.memory, &self.interrupt, queues);
            self.vsock.activate(activation).unwrap();
        }
        self.vsock.resume()
    }

    /// How many acknowledged resets the device has noticed.
    pub(super) fn acknowledged(&self) -> usize {
        self.observer.acknowledged.load(Ordering::SeqCst)
    }

    /// How many connections are in which state, without the states that have none.
    pub(super) fn states(&self) -> Vec<(&'static str, u64)> {
        let counts = self.vsock.counters().connections;
        let counts = counts.expect("they are counted").by_state();
        counts.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    pub(super) fn gate_is_closed(&self) -> bool {
        self.vsock.counters().gate_closed
    }

    /// Takes the events that have arrived, and keeps their buffers.
    pub(super) fn take_events(&mut self) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| self.event.pop_used())
            .map(|used| used.bytes)
            .collect()
    }

    /// Does what the driver does on a reset event: gives the buffer back and notifies.
    pub(super) fn acknowledge_reset(&mut self) {
        assert_eq!(
            self.take_events(),
            vec![vec![0; 4]],
            "one transport reset should have arrived"
        );
        self.event.give_space(4);
        self.vsock.serve_queue(EVENT).unwrap();
    }

    /// A program of the host asks for a port of the guest.
    pub(super) fn connect(&mut self, port: u32) -> UnixStream {
        let mut client = self.dial();
        client
            .write_all(format!("CONNECT {port}\n").as_bytes())
            .unwrap();
        client
    }

    /// A program of the host connects, and has not sent its line yet.
    pub(super) fn dial(&self) -> UnixStream {
        let client = UnixStream::connect(self.socket()).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client
    }

    /// A program of the host offers a service to the guest.
    pub(super) fn listen(&self, port: u32) -> UnixListener {
        let mut path = self.socket().into_os_string();
        path.push(format!("_{port}"));
        UnixListener::bind(path).unwrap()
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.folder.path().join("v.sock")
    }

    /// Serves the host's side until `done`.
    pub(super) fn serve_until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !done(self) {
            assert!(
                Instant::now() < deadline,
                "waited too long for {what}: {:?}",
                self.vsock
            );
            self.serve_host(Duration::from_millis(20));
        }
    }

    /// Serves the host's side once, if something happens there within `wait`; returns whether it did.
    pub(super) fn serve_host(&mut self, wait: Duration) -> bool {
        let fd = self
            .vsock
            .backend_fd()
            .unwrap()
            .try_clone_to_owned()
            .unwrap();
        let mut fds = [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)];
        let wait = Timespec::try_from(wait).unwrap();
        let ready = poll(&mut fds, Some(&wait)).unwrap() > 0;
        if ready {
            self.vsock.serve_backend().unwrap();
        }
        ready
    }

    /// Serves the host's side until nothing happens there.
    pub(super) fn serve_until_idle(&mut self) {
        // A guest must not be able to keep the event loop busy for nothing.
        let idle = (0..MAX_ROUNDS).any(|_| !self.serve_host(Duration::ZERO));
        assert!(idle, "it stays busy for ever: {:?}", self.vsock);
    }

    /// The next packet for the guest, in order of arrival.
    pub(super) fn next_packet(&mut self) -> Packet {
        self.serve_until("a packet for the guest", |bench| {
            bench.collect();
            !bench.arrived.is_empty()
        });
        self.arrived.pop_front().unwrap()
    }

    /// The next packet for the guest, if one has arrived.
    pub(super) fn packet_if_any(&mut self) -> Option<Packet> {
        self.serve_until_idle();
        self.collect();
        self.arrived.pop_front()
    }

    /// The next packet, which must have that operation.
    pub(super) fn expect(&mut self, op: Op) -> Packet {
        let packet = self.next_packet();
        assert_eq!(packet.header.op, op, "{packet:?}");
        packet
    }

    /// Checks that the guest has nothing to receive.
    pub(super) fn expect_nothing(&mut self) {
        self.serve_until_idle();
        self.collect();
        assert_eq!(self.arrived, VecDeque::new());
    }

    /// Takes what has arrived and gives the buffers back.
    fn collect(&mut self) {
        let mut took = false;
        while let Some(used) = self.rx.pop_used() {
            took = true;
            let (header, payload) = used.bytes.split_at(HEADER_BYTES);
            let header = Header::from_bytes(header.try_into().unwrap());
            assert_eq!(header.payload_bytes as usize, payload.len());
            self.arrived.push_back(Packet {
                header,
                payload: payload.to_vec(),
            });
        }
        if took {
            self.fill_rx();
            self.vsock.serve_queue(RX).unwrap();
        }
    }

    /// A packet of the guest, with credit to spare.
    pub(super) fn packet(&self, pair: Pair, op: Op) -> Header {
        Header {
            source_cid: u64::from(self.options.cid),
            destination_cid: HOST_CID,
            source_port: pair.peer,
            destination_port: pair.local,
            payload_bytes: 0,
            socket_type: TYPE_STREAM,
            op,
            flags: 0,
            buffer_bytes: GUEST_BUFFER_BYTES,
            forwarded: 0,
        }
    }

    /// The guest sends a packet without payload.
    pub(super) fn send(&mut self, pair: Pair, op: Op) {
        self.send_packet(self.packet(pair, op), &[]);
    }

    /// The guest sends data.
    pub(super) fn send_data(&mut self, pair: Pair, data: &[u8]) {
        let header = self.packet(pair, Op::Data);
        let payload_bytes = u32::try_from(data.len()).unwrap();
        self.send_packet(
            Header {
                payload_bytes,
                ..header
            },
            data,
        );
    }

    /// The guest sends a SHUTDOWN.
    pub(super) fn send_shutdown(&mut self, pair: Pair, flags: u32) {
        self.send_packet(
            Header {
                flags,
                ..self.packet(pair, Op::Shutdown)
            },
            &[],
        );
    }

    /// The guest sends anything, and notifies.
    pub(super) fn send_packet(&mut self, header: Header, payload: &[u8]) {
        self.queue_packet(header, payload);
        self.vsock.serve_queue(TX).unwrap();
        while self.tx.pop_used().is_some() {}
    }

    /// The guest puts a packet into its queue, and has not notified yet.
    pub(super) fn queue_packet(&mut self, header: Header, payload: &[u8]) {
        self.tx.give_bytes(&[&header.to_bytes(), payload].concat());
    }

    /// An established connection that the host has opened: its client and its pair.
    pub(super) fn established(&mut self, port: u32) -> (UnixStream, Pair) {
        let mut client = self.connect(port);
        let pair = self.expect(Op::Request).pair();
        self.send(pair, Op::Response);
        assert_eq!(line(&mut client), format!("OK {}", pair.local));
        (client, pair)
    }
}

pub(super) fn config(folder: &TempDir, options: &Options, observer: &Arc<Observer>) -> VsockConfig {
    VsockConfig {
        guest_cid: options.cid,
        host_socket: folder.path().join("v.sock"),
        port_policy: options.policy,
        eviction: options.eviction,
        request_timeout: options.timeout,
        observer: observer.clone(),
    }
}

/// The next line that a client gets; empty at the end of the stream.
pub(super) fn line(client: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while client.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

/// All that a client gets up to the end of the stream.
pub(super) fn rest(client: &mut UnixStream) -> Vec<u8> {
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).unwrap();
    rest
}
