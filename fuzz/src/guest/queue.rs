//! The driver's end of a virtqueue (virtio 1.2, 2.7), which may write anything into it.

use super::memory::{BUFFERS, Memory, RING_SPACE};

/// VIRTQ_DESC_F_NEXT.
pub(crate) const NEXT: u16 = 1;
/// VIRTQ_DESC_F_WRITE.
pub(crate) const WRITE: u16 = 2;
/// VIRTQ_DESC_F_INDIRECT.
pub(crate) const INDIRECT: u16 = 4;

/// A descriptor.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) bytes: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Descriptor {
    fn to_bytes(self) -> [u8; 16] {
        let mut raw = [0; 16];
        raw[..8].copy_from_slice(&self.address.to_le_bytes());
        raw[8..12].copy_from_slice(&self.bytes.to_le_bytes());
        raw[12..14].copy_from_slice(&self.flags.to_le_bytes());
        raw[14..].copy_from_slice(&self.next.to_le_bytes());
        raw
    }
}

/// A buffer that the device has given back.
#[derive(Debug)]
pub(crate) struct Used {
    /// First descriptor of its chain.
    pub(crate) head: u32,
    /// How many bytes the device says to have written.
    pub(crate) written: u32,
}

/// A queue.
#[derive(Debug)]
pub(crate) struct DriverQueue {
    base: u64,
    size: u16,
    /// Chains offered so far.
    avail: u16,
    /// Chains seen in the used ring so far.
    seen: u16,
    next_slot: u16,
    next_buffer: u64,
}

impl DriverQueue {
    /// The queue of that index, with empty rings.
    pub(crate) fn new(memory: &mut Memory, index: usize, size: u16) -> Self {
        let queue = Self {
            base: RING_SPACE * index as u64,
            size,
            avail: 0,
            seen: 0,
            next_slot: 0,
            next_buffer: BUFFERS.start,
        };
        let rings = vec![0; usize::try_from(RING_SPACE).expect("64 bits")];
        memory.write(queue.base, &rings);
        // The last field of the used ring is only for drivers that have negotiated it.
        memory.allow(queue.used_ring(), 4 + 8 * u64::from(size));
        queue
    }

    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    pub(crate) fn descriptors(&self) -> u64 {
        self.base
    }

    pub(crate) fn avail_ring(&self) -> u64 {
        self.base + 16 * u64::from(self.size)
    }

    pub(crate) fn used_ring(&self) -> u64 {
        (self.avail_ring() + 6 + 2 * u64::from(self.size)).next_multiple_of(4)
    }

    /// How many chains wait for the device, by what the rings say.
    pub(crate) fn waiting(&self, memory: &Memory) -> u16 {
        self.avail_index(memory)
            .wrapping_sub(self.used_index(memory))
    }

    pub(crate) fn avail_index(&self, memory: &Memory) -> u16 {
        memory.read(self.avail_ring() + 2)
    }

    pub(crate) fn used_index(&self, memory: &Memory) -> u16 {
        memory.read(self.used_ring() + 2)
    }

    /// The writes that put a descriptor into the table.
    pub(crate) fn store(&self, slot: u16, descriptor: Descriptor) -> (u64, Vec<u8>) {
        let address = self.base + 16 * u64::from(slot % self.size);
        (address, descriptor.to_bytes().to_vec())
    }

    /// The writes that make a chain available.
    pub(crate) fn publish(&mut self, head: u16) -> [(u64, Vec<u8>); 2] {
        let entry = self.avail_ring() + 4 + 2 * u64::from(self.avail % self.size);
        self.avail = self.avail.wrapping_add(1);
        [
            (entry, head.to_le_bytes().to_vec()),
            (self.avail_ring() + 2, self.avail.to_le_bytes().to_vec()),
        ]
    }

    /// The write that claims another number of available chains.
    pub(crate) fn jump(&mut self, by: u16) -> (u64, Vec<u8>) {
        self.avail = self.avail.wrapping_add(by);
        (self.avail_ring() + 2, self.avail.to_le_bytes().to_vec())
    }

    /// Puts a chain of bytes to read and spaces to write to into the table and makes it available, as a
    /// driver does. Returns its head.
    pub(crate) fn offer(
        &mut self,
        memory: &mut Memory,
        readable: &[&[u8]],
        writable: &[u32],
    ) -> u16 {
        let parts = readable.iter().map(|bytes| (bytes.len(), Some(*bytes)));
        let spaces = writable.iter().map(|bytes| (*bytes as usize, None));
        let parts: Vec<_> = parts.chain(spaces).take(self.size.into()).collect();
        let head = self.next_slot;
        let count = parts.len();
        for (at, (bytes, content)) in parts.into_iter().enumerate() {
            let address = self.place(bytes as u64);
            let room = BUFFERS.end - address;
            let bytes = u32::try_from(room.min(bytes as u64)).expect("a small area");
            match content {
                Some(content) => memory.write(address, &content[..bytes as usize]),
                None => memory.allow(address, bytes.into()),
            }
            let slot = self.next_slot;
            self.next_slot = (slot + 1) % self.size;
            let more = if at + 1 < count { NEXT } else { 0 };
            let flags = more | if content.is_none() { WRITE } else { 0 };
            let descriptor = Descriptor {
                address,
                bytes,
                flags,
                next: self.next_slot,
            };
            let (place, bytes) = self.store(slot, descriptor);
            memory.write(place, &bytes);
        }
        if count > 0 {
            for (place, bytes) in self.publish(head) {
                memory.write(place, &bytes);
            }
        }
        head
    }

    /// The next buffer that the device has given back.
    pub(crate) fn pop_used(&mut self, memory: &Memory) -> Option<Used> {
        if self.used_index(memory) == self.seen {
            return None;
        }
        let entry = self.used_ring() + 4 + 8 * u64::from(self.seen % self.size);
        self.seen = self.seen.wrapping_add(1);
        Some(Used {
            head: memory.read(entry),
            written: memory.read(entry + 4),
        })
    }

    /// Where the first buffer of a chain lies.
    pub(crate) fn buffer_of(&self, memory: &Memory, head: u32) -> u64 {
        memory.read(self.base + 16 * (u64::from(head) % u64::from(self.size)))
    }

    /// A place for a buffer; buffers follow each other, and begin anew at the end.
    fn place(&mut self, bytes: u64) -> u64 {
        if self.next_buffer + bytes > BUFFERS.end {
            self.next_buffer = BUFFERS.start;
        }
        let address = self.next_buffer;
        self.next_buffer = (address + bytes.max(1)).min(BUFFERS.end - 1);
        address
    }
}
