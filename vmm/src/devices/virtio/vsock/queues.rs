//! The device's end of its three virtqueues (virtio 1.2, 5.10.2). The caller decides what goes through
//! them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestMemoryMmap};

use super::packet::{Header, Malformed, payload_capacity, read_packet, write_packet};
use crate::devices::virtio::device::{Activation, DeviceError, check_ready};
use crate::devices::virtio::interrupt::Interrupt;

/// Packets to the guest.
pub(super) const RX: u16 = 0;
/// Packets from the guest.
pub(super) const TX: u16 = 1;
/// Events to the guest.
pub(super) const EVENT: u16 = 2;
/// Number of queues.
pub(super) const QUEUES: usize = 3;

/// `struct virtio_vsock_event` with VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, which is zero. Linux
/// ignores an event of any other length.
const TRANSPORT_RESET: [u8; TRANSPORT_RESET_BYTES as usize] = 0_u32.to_le_bytes();
const TRANSPORT_RESET_BYTES: u32 = 4;

/// The queues in service.
#[derive(Debug)]
pub(super) struct Queues {
    memory: GuestMemoryMmap,
    interrupt: Arc<dyn Interrupt>,
    queues: Vec<Queue>,
    used: bool,
}

impl Queues {
    /// Takes them over from the transport.
    pub(super) fn new(activation: Activation) -> Result<Self, DeviceError> {
        let Activation {
            memory,
            interrupt,
            queues,
            features: _,
        } = activation;
        for index in [RX, TX, EVENT] {
            check_ready(&queues, index, &memory)?;
        }
        Ok(Self {
            memory,
            interrupt,
            queues,
            used: false,
        })
    }

    pub(super) fn all(&self) -> &[Queue] {
        &self.queues
    }

    /// Tells the guest driver if buffers were used since the last call.
    pub(super) fn signal_if_used(&mut self) {
        if std::mem::take(&mut self.used) {
            self.interrupt.signal_used();
        }
    }

    /// Tells the guest driver in any case, so that it checks its queues.
    pub(super) fn signal(&mut self) {
        self.used = false;
        self.interrupt.signal_used();
    }

    /// How many chains the guest has put into a queue, by the ring's wrapping counter.
    pub(super) fn avail_index(&self, index: u16) -> Result<u16, DeviceError> {
        self.queues[usize::from(index)]
            .avail_idx(&self.memory, Ordering::Acquire)
            .map(|avail| avail.0)
            .map_err(|source| DeviceError::Queue { index, source })
    }

    /// The next packet of the guest; its payload is put at the front of `payload`.
    pub(super) fn pop_packet(
        &mut self,
        payload: &mut [u8],
    ) -> Result<Option<Result<Header, Malformed>>, DeviceError> {
        let Some(chain) = pop(&mut self.queues, TX, &self.memory)? else {
            return Ok(None);
        };
        let head = chain.head_index();
        let packet = read_packet(&self.memory, chain, payload);
        self.add_used(TX, head, 0)?;
        Ok(Some(packet))
    }

    /// Puts a packet into the guest's next RX buffer, if there are both; returns whether it did. `fill`
    /// gets as much of `payload` as the buffer has room for, and returns the header.
    pub(super) fn push_packet(
        &mut self,
        payload: &mut [u8],
        mut fill: impl FnMut(&mut [u8]) -> Option<Header>,
    ) -> Result<bool, DeviceError> {
        // A driver that adds useless buffers while they are given back has to notify.
        for _ in 0..self.queues[usize::from(RX)].size() {
            let Some(chain) = pop(&mut self.queues, RX, &self.memory)? else {
                return Ok(false);
            };
            let capacity = payload_capacity(&self.memory, &chain);
            let room = capacity.unwrap_or(0).min(payload.len());
            let header = capacity.and_then(|_| fill(&mut payload[..room]));
            let head = chain.head_index();
            if let Some(header) = header {
                let bytes = usize::try_from(header.payload_bytes).unwrap_or(0).min(room);
                let written = write_packet(&self.memory, chain, header, &payload[..bytes]);
                self.add_used(RX, head, written.unwrap_or(0))?;
                return Ok(true);
            }
            if room > 0 {
                // There is no packet after all.
                self.queues[usize::from(RX)].go_to_previous_position();
                return Ok(false);
            }
            // Too small for a header, or for a packet with data. The driver gets it back, empty.
            self.add_used(RX, head, 0)?;
        }
        Ok(false)
    }

    /// Puts a transport reset into the event queue; false where the guest has no buffer there that is
    /// large enough.
    pub(super) fn push_transport_reset(&mut self) -> Result<bool, DeviceError> {
        for _ in 0..self.queues[usize::from(EVENT)].size() {
            let Some(mut chain) = pop(&mut self.queues, EVENT, &self.memory)? else {
                break;
            };
            let head = chain.head_index();
            let written = chain
                .find(|buffer| buffer.is_write_only() && buffer.len() >= TRANSPORT_RESET_BYTES)
                .is_some_and(|buffer| {
                    self.memory
                        .write_slice(&TRANSPORT_RESET, buffer.addr())
                        .is_ok()
                });
            if written {
                self.add_used(EVENT, head, TRANSPORT_RESET_BYTES)?;
                return Ok(true);
            }
            self.add_used(EVENT, head, 0)?;
        }
        Ok(false)
    }

    fn add_used(&mut self, index: u16, head: u16, bytes: u32) -> Result<(), DeviceError> {
        self.used = true;
        self.queues[usize::from(index)]
            .add_used(&self.memory, head, bytes)
            .map_err(|source| DeviceError::Queue { index, source })
    }
}

/// Takes the next chain of a queue.
fn pop<'m>(
    queues: &mut [Queue],
    index: u16,
    memory: &'m GuestMemoryMmap,
) -> Result<Option<DescriptorChain<&'m GuestMemoryMmap>>, DeviceError> {
    let mut chains = queues[usize::from(index)]
        .iter(memory)
        .map_err(|source| DeviceError::Queue { index, source })?;
    Ok(chains.next())
}
