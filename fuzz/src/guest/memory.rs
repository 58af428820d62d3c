//! Guest memory that knows what the device may write to. Everything else must stay as the guest wrote it.

use std::cell::Cell;

use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryMmap};

/// Where the rings of queues lie, one after the other.
pub(crate) const RING_SPACE: u64 = 0x2000;
/// Most queues of a device.
pub(crate) const QUEUES: usize = 3;
/// Where buffers lie. There is memory on both sides of them that no guest offers to its device.
pub(crate) const BUFFERS: std::ops::Range<u64> = 0x8000..0x1_8000;
/// The end of the first region; a hole follows, and then the second.
const FIRST_END: u64 = 0x1_a000;
const SECOND: std::ops::Range<u64> = 0x2_0000..0x2_2000;
/// What memory holds that the guest has not written to.
const UNWRITTEN: u8 = 0xa5;

thread_local! {
    static MAPPED: GuestMemoryMmap = GuestMemoryMmap::from_ranges(&[
        (GuestAddress(0), usize::try_from(FIRST_END).expect("64 bits")),
        (GuestAddress(SECOND.start), usize::try_from(SECOND.end - SECOND.start).expect("64 bits")),
    ]).expect("host memory");
    /// What an earlier input has left over, since new memory is slow under a sanitizer.
    static SPARE: Cell<(Vec<u8>, Vec<bool>)> = const { Cell::new((Vec::new(), Vec::new())) };
}

/// A guest's memory.
#[derive(Debug)]
pub(crate) struct Memory {
    map: GuestMemoryMmap,
    /// As the guest wrote it.
    expected: Vec<u8>,
    /// What the device may write to.
    writable: Vec<bool>,
}

impl Memory {
    /// Memory that nobody has written to.
    pub(crate) fn new() -> Self {
        let bytes = usize::try_from(SECOND.end).expect("64 bits");
        let (mut expected, mut writable) = SPARE.take();
        expected.clear();
        expected.resize(bytes, UNWRITTEN);
        writable.clear();
        writable.resize(bytes, false);
        let memory = Self {
            map: MAPPED.with(GuestMemoryMmap::clone),
            expected,
            writable,
        };
        for region in [0..FIRST_END, SECOND] {
            let bytes = &memory.expected[range(region.clone())];
            memory
                .map
                .write_slice(bytes, GuestAddress(region.start))
                .expect("in memory");
        }
        memory
    }

    /// As the device sees it.
    pub(crate) fn map(&self) -> &GuestMemoryMmap {
        &self.map
    }

    /// The guest writes. What lies outside of memory is lost.
    pub(crate) fn write(&mut self, address: u64, bytes: &[u8]) {
        // Fails for a range that lies outside in part; then some may have been written.
        let written = self.map.write(bytes, GuestAddress(address)).unwrap_or(0);
        self.expect(address, &bytes[..written]);
    }

    /// Somebody else writes this for the guest.
    pub(crate) fn expect(&mut self, address: u64, bytes: &[u8]) {
        let Ok(start) = usize::try_from(address) else {
            return;
        };
        let Some(known) = self.expected.get_mut(start..) else {
            return;
        };
        let count = known.len().min(bytes.len());
        known[..count].copy_from_slice(&bytes[..count]);
    }

    /// The device may write here from now on.
    pub(crate) fn allow(&mut self, address: u64, bytes: u64) {
        let end = address.saturating_add(bytes).min(SECOND.end);
        if address < end {
            self.writable[range(address..end)].fill(true);
        }
    }

    /// Reads a value that lies in memory.
    pub(crate) fn read<T: ByteValued>(&self, address: u64) -> T {
        self.map.read_obj(GuestAddress(address)).expect("in memory")
    }

    /// Reads bytes, as far as they lie in memory.
    pub(crate) fn read_bytes(&self, address: u64, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        let read = self
            .map
            .read(&mut bytes, GuestAddress(address))
            .unwrap_or(0);
        bytes.truncate(read);
        bytes
    }

    /// Panics if the device has written to what it may not.
    pub(crate) fn assert_unharmed(&self) {
        for region in [0..FIRST_END, SECOND] {
            let place = range(region.clone());
            let found = self.read_bytes(region.start, place.len());
            let expected = &self.expected[place.clone()];
            if found == expected {
                continue;
            }
            let differs = found.iter().zip(expected).zip(&self.writable[place]);
            let harmed = differs.map(|((found, expected), may)| found != expected && !may);
            let at: Vec<usize> = harmed
                .enumerate()
                .filter_map(|(at, is)| is.then_some(at))
                .collect();
            assert!(
                at.is_empty(),
                "the device wrote to {} bytes from {:#x} on that no descriptor names as writable",
                at.len(),
                region.start + at[0] as u64
            );
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        SPARE.set((
            std::mem::take(&mut self.expected),
            std::mem::take(&mut self.writable),
        ));
    }
}

fn range(addresses: std::ops::Range<u64>) -> std::ops::Range<usize> {
    let index = |address| usize::try_from(address).expect("64 bits");
    index(addresses.start)..index(addresses.end)
}
