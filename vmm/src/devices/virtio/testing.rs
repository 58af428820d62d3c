//! The driver's end of virtqueues, for tests of devices: rings and buffers in guest memory of its
//! own.
//!
//! It does what a driver would do, unless it is told to lie: any descriptor can be put anywhere.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::device::{Activation, SavedQueue};
use super::interrupt::Interrupt;

/// Guest memory of the tests.
pub(crate) const MEMORY_BYTES: u64 = 64 << 20;
/// A queue's rings and buffers lie within as much memory.
const QUEUE_SPACE: u64 = 16 << 20;
/// Where a queue's buffers begin, behind its rings.
const BUFFERS: u64 = 64 << 10;

/// VIRTQ_DESC_F_WRITE: the device writes to it.
pub(crate) const WRITE: u16 = 2;
/// VIRTQ_DESC_F_NEXT: another one follows.
pub(crate) const NEXT: u16 = 1;

/// Makes guest memory.
pub(crate) fn memory() -> GuestMemoryMmap {
    let bytes = usize::try_from(MEMORY_BYTES).expect("64 bits");
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)]).expect("host memory")
}

/// Counts interrupts.
#[derive(Debug, Default)]
pub(crate) struct CountedInterrupt {
    used: AtomicUsize,
}

impl CountedInterrupt {
    /// How many there were since the last call.
    pub(crate) fn take(&self) -> usize {
        self.used.swap(0, Ordering::SeqCst)
    }
}

impl Interrupt for CountedInterrupt {
    fn signal_used(&self) {
        self.used.fetch_add(1, Ordering::SeqCst);
    }

    fn signal_config(&self) {}
}

/// One descriptor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) bytes: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

/// A buffer that the device has given back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) head: u16,
    /// As the device says.
    pub(crate) written: u32,
    /// What is now in the device-writable parts, as long as `written`.
    pub(crate) bytes: Vec<u8>,
    /// The very last byte that the device could have written: a block request's status.
    pub(crate) last: Option<u8>,
}

/// The driver's end of one queue.
#[derive(Debug)]
pub(crate) struct DriverQueue {
    memory: GuestMemoryMmap,
    base: u64,
    size: u16,
    slot_bytes: u64,
    free: Vec<u16>,
    /// The descriptors of each chain that the device has, by its head.
    chains: HashMap<u16, Vec<Descriptor>>,
    avail: u16,
    used: u16,
}

impl DriverQueue {
    /// A queue whose rings and buffers lie at the `index`th place of memory.
    pub(crate) fn new(memory: &GuestMemoryMmap, index: u64, size: u16) -> Self {
        let slot_bytes = (QUEUE_SPACE - BUFFERS) / u64::from(size);
        Self {
            memory: memory.clone(),
            base: QUEUE_SPACE * index,
            size,
            slot_bytes,
            free: (0..size).rev().collect(),
            chains: HashMap::new(),
            avail: 0,
            used: 0,
        }
    }

    /// The device's end, as the transport would hand it over.
    pub(crate) fn device_end(&self) -> Queue {
        let mut queue = Queue::new(self.size).expect("a size that queues may have");
        let low = |address: u64| u32::try_from(address).ok();
        queue.set_desc_table_address(low(self.base), None);
        queue.set_avail_ring_address(low(self.avail_ring()), None);
        queue.set_used_ring_address(low(self.used_ring()), None);
        queue.set_ready(true);
        queue
    }

    /// The memory that it lies in.
    pub(crate) fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// How many chains can still be made, at one descriptor each.
    pub(crate) fn room(&self) -> usize {
        self.free.len()
    }

    /// Offers bytes for the device to read, in one descriptor.
    pub(crate) fn give_bytes(&mut self, bytes: &[u8]) {
        self.give(&[bytes], &[]).expect("a free descriptor");
    }

    /// Offers space for the device to write to; false where no descriptor is free.
    pub(crate) fn give_space(&mut self, bytes: u32) -> bool {
        self.give(&[], &[bytes]).is_some()
    }

    /// Offers a chain of bytes to read and spaces to write to; its head.
    pub(crate) fn give(&mut self, readable: &[&[u8]], writable: &[u32]) -> Option<u16> {
        let count = readable.len() + writable.len();
        if self.free.len() < count {
            return None;
        }
        let slots = self.free.split_off(self.free.len() - count);
        let mut chain = Vec::with_capacity(count);
        for (at, slot) in slots.iter().enumerate() {
            let address = self.base + BUFFERS + u64::from(*slot) * self.slot_bytes;
            let (bytes, mut flags) = match readable.get(at) {
                Some(bytes) => {
                    self.memory
                        .write_slice(bytes, GuestAddress(address))
                        .expect("in memory");
                    (u32::try_from(bytes.len()).expect("short"), 0)
                }
                None => (writable[at - readable.len()], WRITE),
            };
            assert!(
                u64::from(bytes) <= self.slot_bytes,
                "{bytes} bytes are too many for a slot"
            );
            let next = slots.get(at + 1).copied();
            flags |= next.map_or(0, |_| NEXT);
            chain.push(Descriptor {
                address,
                bytes,
                flags,
                next: next.unwrap_or(0),
            });
        }
        for (slot, descriptor) in slots.iter().zip(&chain) {
            self.store(*slot, *descriptor);
        }
        let head = slots[0];
        self.chains.insert(head, chain);
        self.publish(head);
        Some(head)
    }

    /// Writes a descriptor, whatever it says.
    pub(crate) fn store(&self, slot: u16, descriptor: Descriptor) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&descriptor.address.to_le_bytes());
        raw[8..12].copy_from_slice(&descriptor.bytes.to_le_bytes());
        raw[12..14].copy_from_slice(&descriptor.flags.to_le_bytes());
        raw[14..].copy_from_slice(&descriptor.next.to_le_bytes());
        let address = GuestAddress(self.base + 16 * u64::from(slot));
        self.memory.write_slice(&raw, address).expect("in memory");
    }

    /// Makes a chain available by its head, whatever it is.
    pub(crate) fn publish(&mut self, head: u16) {
        let entry = self.avail_ring() + 4 + 2 * u64::from(self.avail % self.size);
        self.memory
            .write_obj(head, GuestAddress(entry))
            .expect("in memory");
        self.avail = self.avail.wrapping_add(1);
        self.set_avail_index(self.avail);
    }

    /// Sets the index that says how many chains are available, whatever it is.
    pub(crate) fn set_avail_index(&self, index: u16) {
        self.memory
            .write_obj(index, GuestAddress(self.avail_ring() + 2))
            .expect("in memory");
    }

    /// The next buffer that the device has given back.
    pub(crate) fn take(&mut self) -> Option<Used> {
        let ring = self.used_ring();
        let index: u16 = self
            .memory
            .read_obj(GuestAddress(ring + 2))
            .expect("in memory");
        if index == self.used {
            return None;
        }
        let entry = ring + 4 + 8 * u64::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        let head: u32 = self
            .memory
            .read_obj(GuestAddress(entry))
            .expect("in memory");
        let written: u32 = self
            .memory
            .read_obj(GuestAddress(entry + 4))
            .expect("in memory");
        let head = u16::try_from(head).expect("a descriptor index");
        let chain = self.chains.remove(&head).unwrap_or_default();
        let mut bytes = Vec::new();
        let mut last = None;
        let mut slot = head;
        for descriptor in &chain {
            self.free.push(slot);
            slot = descriptor.next;
            if descriptor.flags & WRITE != 0 {
                let length = (written as usize - bytes.len()).min(descriptor.bytes as usize);
                let mut part = vec![0; length];
                self.memory
                    .read_slice(&mut part, GuestAddress(descriptor.address))
                    .expect("in memory");
                bytes.extend(part);
                let end = descriptor.address + u64::from(descriptor.bytes);
                last = self.memory.read_obj(GuestAddress(end - 1)).ok();
            }
        }
        Some(Used {
            head,
            written,
            bytes,
            last,
        })
    }

    fn avail_ring(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    fn used_ring(&self) -> u64 {
        (self.avail_ring() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }
}

/// The queues of a device as they come out of a saved state.
pub(crate) fn saved_queues(queues: &[Queue]) -> Vec<Queue> {
    let saved = queues.iter().map(SavedQueue::from);
    saved
        .map(|saved| Queue::try_from(saved).expect("a queue was saved"))
        .collect()
}

/// What the transport hands to a device whose driver has set up `queues`.
pub(crate) fn activation(
    memory: &GuestMemoryMmap,
    interrupt: &Arc<CountedInterrupt>,
    queues: Vec<Queue>,
) -> Activation {
    Activation {
        memory: memory.clone(),
        interrupt: interrupt.clone(),
        queues,
        features: 1 << 32,
    }
}
