//! The driver's end of virtqueues, for tests of devices: rings and buffers in guest memory of its
//! own.
//!
//! It does what a driver does, and what a hostile one may do: any descriptor can be put anywhere.
//! [`assert_no_harm`] checks what a device made of that.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::{Strategy, any, prop_oneof};
use virtio_queue::{Queue, QueueT};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

use super::device::{Activation, SavedQueue};
use super::interrupt::Interrupt;

/// Guest memory of the tests.
pub(crate) const MEMORY_BYTES: u64 = 64 << 20;
/// Memory of one queue, for its rings and buffers.
const QUEUE_SPACE: u64 = 16 << 20;
/// Where a queue's buffers begin, behind its rings.
const BUFFERS: u64 = 64 << 10;
/// Where hostile buffers begin that leave the rings of up to three queues alone.
const HOSTILE_BUFFERS: u64 = 3 * QUEUE_SPACE;

/// VIRTQ_DESC_F_WRITE: the device writes to it.
pub(crate) const WRITE: u16 = 2;
/// VIRTQ_DESC_F_NEXT: another one follows.
pub(crate) const NEXT: u16 = 1;
/// VIRTQ_DESC_F_INDIRECT: it holds a table of descriptors.
const INDIRECT: u16 = 4;

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
    pub(crate) fn take_count(&self) -> usize {
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

/// Descriptors of a hostile driver, for a queue of `size`: buffers of all lengths, chains that end,
/// loop or lead nowhere.
///
/// `confined` ones lie where no ring is, some of them beyond the end of memory. Others lie anywhere, so
/// that a device may be made to write into its own rings.
pub(crate) fn hostile_descriptor(size: u16, confined: bool) -> impl Strategy<Value = Descriptor> {
    let bytes = prop_oneof![4 => 0_u32..200, 2 => 0_u32..100_000, 1 => any::<u32>()];
    let flags = prop_oneof![7 => 0_u16..INDIRECT, 1 => any::<u16>()];
    let next = 0..size + size / 8;
    (0..2 * MEMORY_BYTES, bytes, flags, next).prop_map(move |(place, bytes, flags, next)| {
        let address = if confined {
            HOSTILE_BUFFERS + place % (2 * QUEUE_SPACE)
        } else {
            place
        };
        Descriptor {
            address,
            bytes,
            flags,
            next,
        }
    })
}

/// Heads of a hostile driver's chains, for a queue of `size`; a few are no index of a descriptor.
pub(crate) fn hostile_head(size: u16) -> impl Strategy<Value = u16> {
    prop_oneof![100 => 0..size, 1 => size..size + 32]
}

/// Guest memory before a device served hostile chains.
pub(crate) struct MemoryBefore(Vec<u8>);

impl MemoryBefore {
    pub(crate) fn of(memory: &GuestMemoryMmap) -> Self {
        Self(all_bytes(memory))
    }
}

fn all_bytes(memory: &GuestMemoryMmap) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(MEMORY_BYTES).expect("64 bits")];
    memory
        .read_slice(&mut bytes, GuestAddress(0))
        .expect("in memory");
    bytes
}

/// Checks that a device has done no harm: of guest memory it has changed only the used rings and the
/// buffers that descriptors name as writable; it has given back only chains that were offered to it,
/// none more often than it was offered; and it claims no more bytes than a chain has room for.
///
/// Only for descriptors that leave the rings alone.
pub(crate) fn assert_no_harm(before: MemoryBefore, queues: &[&DriverQueue]) {
    let MemoryBefore(mut expected) = before;
    let found = all_bytes(&queues[0].memory);
    for range in queues.iter().flat_map(|queue| queue.writable_ranges()) {
        let range = usize::try_from(range.start).expect("64 bits")
            ..usize::try_from(range.end).expect("64 bits");
        expected[range.clone()].copy_from_slice(&found[range]);
    }
    if expected != found {
        let address = expected.iter().zip(&found).position(|(a, b)| a != b);
        panic!("the device wrote to {address:x?}, which no descriptor names as writable");
    }
    for queue in queues {
        queue.assert_used_entries_are_right();
    }
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
        // A driver clears the rings of a queue that it sets up anew.
        let rings = vec![0; usize::try_from(BUFFERS).expect("64 bits")];
        memory
            .write_slice(&rings, GuestAddress(QUEUE_SPACE * index))
            .expect("in memory");
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

    /// Offers a chain of bytes to read and spaces to write to; returns its head.
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

    /// Writes a descriptor of any content.
    pub(crate) fn store(&self, slot: u16, descriptor: Descriptor) {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&descriptor.address.to_le_bytes());
        raw[8..12].copy_from_slice(&descriptor.bytes.to_le_bytes());
        raw[12..14].copy_from_slice(&descriptor.flags.to_le_bytes());
        raw[14..].copy_from_slice(&descriptor.next.to_le_bytes());
        let address = GuestAddress(self.base + 16 * u64::from(slot));
        self.memory.write_slice(&raw, address).expect("in memory");
    }

    /// Makes a chain available by its head, which may be none.
    pub(crate) fn publish(&mut self, head: u16) {
        let entry = self.avail_ring() + 4 + 2 * u64::from(self.avail % self.size);
        self.memory
            .write_obj(head, GuestAddress(entry))
            .expect("in memory");
        self.avail = self.avail.wrapping_add(1);
        self.set_avail_index(self.avail);
    }

    /// Sets the index that says how many chains are available, to any value.
    pub(crate) fn set_avail_index(&self, index: u16) {
        self.memory
            .write_obj(index, GuestAddress(self.avail_ring() + 2))
            .expect("in memory");
    }

    /// The next buffer that the device has given back.
    pub(crate) fn pop_used(&mut self) -> Option<Used> {
        let ring = self.used_ring();
        let index: u16 = self.read(ring + 2);
        if index == self.used {
            return None;
        }
        let entry = ring + 4 + 8 * u64::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        let head: u32 = self.read(entry);
        let written: u32 = self.read(entry + 4);
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

    /// What the device may write to: the used ring, and what any descriptor names as writable.
    fn writable_ranges(&self) -> Vec<Range<u64>> {
        let used = self.used_ring()..self.used_ring() + 6 + 8 * u64::from(self.size);
        (0..self.size)
            .map(|slot| self.descriptor(slot))
            .filter(|descriptor| descriptor.flags & WRITE != 0)
            .map(|descriptor| {
                let end = descriptor.address + u64::from(descriptor.bytes);
                descriptor.address.min(MEMORY_BYTES)..end.min(MEMORY_BYTES)
            })
            .chain([used])
            .collect()
    }

    fn assert_used_entries_are_right(&self) {
        let ring = self.used_ring();
        let used: u16 = self.read(ring + 2);
        let offered: u16 = self.read(self.avail_ring() + 2);
        assert!(
            used <= offered && used <= self.size,
            "{used} chains were given back, of {offered} that were offered"
        );
        let heads: BTreeSet<u32> = (0..offered.min(self.size))
            .map(|at| u32::from(self.read::<u16>(self.avail_ring() + 4 + 2 * u64::from(at))))
            .collect();
        for at in 0..u64::from(used) {
            let head: u32 = self.read(ring + 4 + 8 * at);
            let written: u32 = self.read(ring + 8 + 8 * at);
            assert!(heads.contains(&head), "chain {head} was never offered");
            let head = u16::try_from(head).expect("it was offered as such");
            if let Some(room) = self.writable_bytes(head) {
                assert!(
                    u64::from(written) <= room,
                    "chain {head} has room for {room} bytes, not for {written}"
                );
            }
        }
    }

    /// How many bytes of a chain the device may write; none where a table of descriptors says so.
    fn writable_bytes(&self, head: u16) -> Option<u64> {
        let mut room = 0;
        let mut slot = head;
        // A chain that loops is cut at the length that a chain can have.
        for _ in 0..self.size {
            if slot >= self.size {
                break;
            }
            let descriptor = self.descriptor(slot);
            if descriptor.flags & INDIRECT != 0 {
                return None;
            }
            if descriptor.flags & WRITE != 0 {
                room += u64::from(descriptor.bytes);
            }
            if descriptor.flags & NEXT == 0 {
                break;
            }
            slot = descriptor.next;
        }
        Some(room)
    }

    fn descriptor(&self, slot: u16) -> Descriptor {
        let at = self.base + 16 * u64::from(slot);
        Descriptor {
            address: self.read(at),
            bytes: self.read(at + 8),
            flags: self.read(at + 12),
            next: self.read(at + 14),
        }
    }

    fn read<T: ByteValued>(&self, address: u64) -> T {
        self.memory
            .read_obj(GuestAddress(address))
            .expect("in memory")
    }

    fn avail_ring(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    fn used_ring(&self) -> u64 {
        (self.avail_ring() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }
}

/// The queues of a device as they come out of a saved state.
pub(crate) fn saved_queues(saved: Vec<SavedQueue>) -> Vec<Queue> {
    saved
        .into_iter()
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
