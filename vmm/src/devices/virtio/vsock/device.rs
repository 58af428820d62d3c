//! The device: configuration space, activation, service of the queues and of the host side, save and
//! restore.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vmm_control::{ConnectionCounts, VsockCounters};

use super::config::{VsockConfig, VsockError, VsockObserver};
use super::connection::Deadlines;
use super::counters::CountersHandle;
use super::host_sockets::{HostEvent, HostSockets, bind};
use super::muxer::{Limits, Muxer};
use super::packet::{
    HOST_CID, Header, MAX_PAYLOAD_BYTES, Malformed, Op, SHUTDOWN_BOTH, TYPE_STREAM,
};
use super::ports::LocalPorts;
use super::queues::{EVENT, QUEUES, Queues, TX};
use super::reset::ResetGate;
use super::state::{Pair, VsockState};
use crate::devices::virtio::device::{
    Activation, DeviceError, SavedQueue, VirtioDevice, read_config_space,
};

/// Type of a socket device (virtio 1.2, 5.10.1).
const DEVICE_TYPE: u32 = 19;
/// No other: streams need no feature, and without EVENT_IDX no saved ring can suppress the driver's
/// notifications.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1;
/// Linux gives as many RX buffers of 4 KiB as the queue is long; it puts 8 into the event queue.
const QUEUE_SIZES: [u16; QUEUES] = [256, 256, 64];
/// Most packets to the guest in one call, so that one fast connection can't occupy the event loop.
const MAX_BATCH: usize = 256;
/// How long a request may wait until the guest receives it.
const DELIVERY_TIME: Duration = Duration::from_secs(30);
/// How long the guest may take to close a connection that was shut down.
const SHUTDOWN_TIME: Duration = Duration::from_secs(2);
/// How long a host program may leave data unread that the guest has sent before its end.
const DRAIN_TIME: Duration = Duration::from_secs(30);

/// A vsock device.
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u32,
    /// The address that the guest driver has read; it reads again on a transport reset.
    driver_cid: u32,
    eviction: bool,
    observer: Arc<dyn VsockObserver>,
    queues: Option<Queues>,
    muxer: Muxer<UnixStream>,
    sockets: HostSockets,
    gate: ResetGate,
    /// The saved state, until `resume` has told the guest; none after a boot.
    saved: Option<VsockState>,
    counters: CountersHandle,
    payload: Vec<u8>,
}

impl Vsock {
    /// Makes a device for a machine that boots, and binds its host socket.
    ///
    /// # Errors
    /// [`VsockError`] where the configuration or the host doesn't allow it.
    pub fn new(config: VsockConfig) -> Result<Self, VsockError> {
        Self::build(config, None)
    }

    /// Makes a device from a saved one. Its host connections have ended; [`VirtioDevice::resume`] tells the
    /// guest.
    ///
    /// # Errors
    /// [`VsockError`] as in [`Vsock::new`], and where the state is not usable.
    pub fn restore(config: VsockConfig, state: &VsockState) -> Result<Self, VsockError> {
        state.check().map_err(|what| VsockError::State { what })?;
        Self::build(config, Some(state.clone()))
    }

    fn build(config: VsockConfig, saved: Option<VsockState>) -> Result<Self, VsockError> {
        let VsockConfig {
            guest_cid,
            host_socket: path,
            port_policy,
            ..
        } = config;
        if guest_cid < 3 || guest_cid == u32::MAX {
            return Err(VsockError::ReservedCid { cid: guest_cid });
        }
        let listener = bind(&path).map_err(|source| VsockError::Bind {
            path: path.clone(),
            source,
        })?;
        let sockets = HostSockets::new(listener, path.clone())
            .map_err(|source| VsockError::Watch { path, source })?;
        let ports = LocalPorts::new(
            port_policy,
            saved.as_ref().map(|saved| saved.next_local_port),
        );
        let counters = CountersHandle::default();
        counters.update(|counters| {
            counters.first_local_port = ports.next();
            counters.next_local_port = ports.next();
            counters.port_policy = port_policy.name().to_owned();
            counters.connections = Some(ConnectionCounts::default());
        });
        let limits = Limits {
            connections: sockets.max_connections(),
            deadlines: Deadlines {
                delivery: DELIVERY_TIME,
                answer: config.request_timeout,
                shutdown: SHUTDOWN_TIME,
                drain: DRAIN_TIME,
            },
        };
        Ok(Self {
            guest_cid,
            driver_cid: saved.as_ref().map_or(guest_cid, |saved| saved.guest_cid),
            eviction: config.eviction,
            observer: config.observer,
            queues: None,
            muxer: Muxer::new(ports, limits, counters.clone()),
            sockets,
            gate: ResetGate::open(),
            saved,
            counters,
            payload: vec![0; MAX_PAYLOAD_BYTES],
        })
    }

    /// The counters as they are now.
    pub fn counters(&self) -> VsockCounters {
        self.counters.read()
    }

    /// A view of the counters that does not need the device's lock.
    pub fn counters_handle(&self) -> CountersHandle {
        self.counters.clone()
    }

    /// Serves everything that is ready: first packets of the guest, since they may end connections, then
    /// the reset, then packets to the guest.
    fn serve(&mut self, now: Instant) -> Result<(), DeviceError> {
        let congested = self.receive_packets(now)?;
        self.advance_reset(now)?;
        let batch_full = self.send_packets(now)?;
        if let Some(queues) = &mut self.queues {
            queues.signal_if_used();
        }
        // Without RX buffers the congestion stays; then the driver's next notification continues.
        if batch_full || (congested && !self.muxer.is_congested()) {
            self.sockets.ask_for_another_turn();
        }
        let deadline = [self.muxer.deadline(), self.gate.deadline()]
            .into_iter()
            .flatten()
            .min();
        self.sockets
            .arm(deadline, now)
            .map_err(|source| DeviceError::Host {
                what: "set the timer of the vsock device",
                source,
            })
    }

    /// Handles the packets that are in the queue now; later ones come with a notification of their own.
    /// True if packets were left because too many RSTs wait.
    fn receive_packets(&mut self, now: Instant) -> Result<bool, DeviceError> {
        for _ in 0..QUEUE_SIZES[usize::from(TX)] {
            if self.muxer.is_congested() {
                return Ok(true);
            }
            let Some(queues) = &mut self.queues else {
                break;
            };
            match queues.pop_packet(&mut self.payload)? {
                None => break,
                Some(Ok(header)) => self.receive(&header, now),
                Some(Err(malformed)) => self.refuse_malformed(malformed),
            }
        }
        Ok(false)
    }

    fn receive(&mut self, header: &Header, now: Instant) {
        if !self.is_from_guest(header) {
            self.counters
                .update(|counters| counters.guest_packets_dropped += 1);
            return;
        }
        if !self.gate.is_open() && header.op != Op::Request {
            self.receive_stale(header, now);
            return;
        }
        let bytes = match header.op {
            Op::Data => usize::try_from(header.payload_bytes).unwrap_or(0),
            _ => 0,
        };
        let payload = self.payload.get(..bytes).unwrap_or_default();
        self.muxer.receive(header, payload, now, &mut self.sockets);
    }

    /// Handles a packet that the guest sent before it has handled the transport reset: it belongs to a
    /// connection of the VMM that saved. The reset will soon kill the guest's socket, so it needs no answer,
    /// with one exception: a socket that is being closed would wait 8 s for the answer and keep its pair in
    /// use.
    fn receive_stale(&mut self, header: &Header, now: Instant) {
        let pair = header.pair_from_guest();
        match header.op {
            Op::Reset => {
                if self.gate.guest_reset(pair, now) {
                    self.counters.update(|counters| counters.pairs_evicted += 1);
                }
                // The guest may also cancel a request of its own that waits for the gate.
                self.muxer.receive(header, &[], now, &mut self.sockets);
            }
            Op::Shutdown if header.flags & SHUTDOWN_BOTH == SHUTDOWN_BOTH => {
                self.muxer.reset(pair, TYPE_STREAM);
            }
            _ => self
                .counters
                .update(|counters| counters.gate_dropped_packets += 1),
        }
    }

    fn is_from_guest(&self, header: &Header) -> bool {
        let source = header.source_cid;
        let known = source == u64::from(self.guest_cid)
            || (!self.gate.is_open() && source == u64::from(self.driver_cid));
        known && header.destination_cid == HOST_CID
    }

    fn refuse_malformed(&mut self, malformed: Malformed) {
        self.counters
            .update(|counters| counters.guest_packets_dropped += 1);
        if let Malformed::Payload(header) = malformed
            && self.is_from_guest(&header)
            && self.gate.is_open()
        {
            self.muxer.receive_malformed(&header);
        }
    }

    /// Sends packets to the guest as long as it has buffers; true if there may be more.
    fn send_packets(&mut self, now: Instant) -> Result<bool, DeviceError> {
        let Self {
            queues: Some(queues),
            gate,
            muxer,
            payload,
            ..
        } = self
        else {
            return Ok(false);
        };
        // While the driver may still use the address from before the restore, packets have that one.
        let cid = u64::from(if gate.is_open() {
            self.guest_cid
        } else {
            self.driver_cid
        });
        for _ in 0..MAX_BATCH {
            if !gate.has_eviction_packet() && !muxer.has_packet() {
                return Ok(false);
            }
            let delivered = queues.push_packet(payload, |room| {
                let header = gate
                    .next_eviction_packet(now)
                    .or_else(|| muxer.next_packet(room, now))?;
                Some(Header {
                    destination_cid: cid,
                    ..header
                })
            })?;
            if !delivered {
                // There was no packet after all, or no buffer; the driver notifies when it adds some.
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Publishes a reset that is due, and checks for the acknowledgement of one that is published.
    fn advance_reset(&mut self, now: Instant) -> Result<(), DeviceError> {
        let Some(queues) = &mut self.queues else {
            return Ok(());
        };
        self.gate.expire(now);
        if self.gate.is_unpublished() {
            let avail_index = queues.avail_index(EVENT)?;
            if queues.push_transport_reset()? {
                self.gate.published(avail_index);
            }
        } else if self.gate.unacknowledged().is_some()
            && self.gate.observe(queues.avail_index(EVENT)?)
        {
            self.driver_cid = self.guest_cid;
            self.publish_gate();
            self.observer.reset_acknowledged();
        }
        Ok(())
    }

    fn publish_gate(&mut self) {
        let open = self.gate.is_open();
        self.muxer.set_gate(open);
        self.counters
            .update(|counters| counters.gate_closed = !open);
    }

    /// Starts the reset that a saved state requires of a device whose driver was active.
    fn begin_reset(&mut self, saved: VsockState, now: Instant) {
        for pair in saved.refused {
            self.muxer.reset(pair, TYPE_STREAM);
        }
        self.gate = match saved.unacknowledged_reset {
            // Nothing has connected since, so that reset is enough, unless the address has changed.
            Some(avail_index) if saved.guest_cid == self.guest_cid => {
                ResetGate::published_before(avail_index)
            }
            _ if self.eviction => {
                self.muxer.reserve(&saved.connected);
                ResetGate::due(saved.connected, now)
            }
            _ => ResetGate::due(Vec::new(), now),
        };
        self.publish_gate();
    }

    /// Its state beyond the queues, to be saved.
    pub(in crate::devices::virtio) fn state(&self) -> VsockState {
        let connected: BTreeSet<Pair> = self
            .muxer
            .connected_pairs()
            .chain(self.gate.unevicted())
            .collect();
        let mut state = VsockState {
            guest_cid: self.driver_cid,
            next_local_port: self.muxer.next_local_port(),
            connected: connected.into_iter().collect(),
            refused: self.muxer.refused_pairs().collect(),
            unacknowledged_reset: self.gate.unacknowledged(),
        };
        if let Some(saved) = &self.saved {
            // Restored, but not resumed: the guest still has to be told.
            state.connected.extend(&saved.connected);
            state.refused.extend(&saved.refused);
            state.unacknowledged_reset = saved.unacknowledged_reset;
        }
        state
    }
}

impl VirtioDevice for Vsock {
    fn name(&self) -> &'static str {
        "vsock"
    }

    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_max_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&u64::from(self.guest_cid).to_le_bytes(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.queues = Some(Queues::new(activation)?);
        Ok(())
    }

    fn queues(&self) -> Vec<SavedQueue> {
        let queues = self.queues.as_ref().map_or(&[][..], Queues::all);
        queues.iter().map(SavedQueue::from).collect()
    }

    fn serve_queue(&mut self, _index: u16) -> Result<(), DeviceError> {
        self.serve(Instant::now())
    }

    fn backend_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.sockets.fd())
    }

    fn serve_backend(&mut self) -> Result<(), DeviceError> {
        let now = Instant::now();
        let events = self.sockets.poll(now).map_err(|source| DeviceError::Host {
            what: "wait for host sockets of the vsock device",
            source,
        })?;
        for event in events {
            match event {
                HostEvent::Connect {
                    stream,
                    token,
                    port,
                    early,
                } => {
                    if let Err((stream, refusal)) =
                        self.muxer.connect(stream, token, port, early, now)
                    {
                        HostSockets::refuse(&stream, refusal);
                    }
                }
                HostEvent::Ready {
                    token,
                    readable,
                    hung_up,
                } => {
                    self.muxer.stream_ready(token, readable, hung_up, now);
                }
            }
        }
        self.muxer.expire(now);
        self.serve(now)
    }

    fn reset(&mut self) {
        self.queues = None;
        self.muxer.abandon_all();
        // A driver that starts anew reads the address and has no connections, so it needs no reset.
        self.gate = ResetGate::open();
        self.saved = None;
        self.driver_cid = self.guest_cid;
        self.publish_gate();
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        let now = Instant::now();
        let saved = self.saved.take();
        if self.queues.is_none() {
            // No driver, no connections, no reset.
            self.driver_cid = self.guest_cid;
            return Ok(());
        }
        if let Some(saved) = saved {
            self.begin_reset(saved, now);
        }
        self.serve(now)?;
        // An interrupt that was raised but not taken when the machine was saved may be lost with
        // the old VMM.
        if let Some(queues) = &mut self.queues {
            queues.signal();
        }
        Ok(())
    }
}
