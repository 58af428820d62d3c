//! Dispatches accesses to the device at an address; one bus for ports, one for memory-mapped registers.
//!
//! vCPU threads reach devices only through a bus. Each device has its own lock, so accesses to
//! different devices never wait for each other.

use std::sync::Arc;

/// A device with registers in an address range. Called from vCPU threads, several at once.
pub trait BusDevice: Send + Sync + std::fmt::Debug {
    /// Fills `data` from the register at `offset` bytes into the range.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes `data` to it.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Why a range can't be added.
#[derive(Debug, thiserror::Error)]
#[error("bus range {start:#x}+{length:#x} is empty, wraps or overlaps another")]
pub struct RangeTaken {
    start: u64,
    length: u64,
}

/// Address ranges and their devices, sorted, never overlapping.
#[derive(Debug, Default)]
pub struct Bus {
    ranges: Vec<Range>,
}

#[derive(Debug)]
struct Range {
    start: u64,
    length: u64,
    device: Arc<dyn BusDevice>,
}

impl Bus {
    /// Adds a device.
    ///
    /// # Errors
    /// [`RangeTaken`] where the range overlaps another.
    pub fn add(
        &mut self,
        start: u64,
        length: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), RangeTaken> {
        let taken = RangeTaken { start, length };
        let end = match start.checked_add(length) {
            Some(end) if length > 0 => end,
            _ => return Err(taken),
        };
        let overlaps = |range: &Range| start < range.start + range.length && range.start < end;
        if self.ranges.iter().any(overlaps) {
            return Err(taken);
        }
        let position = self.ranges.partition_point(|range| range.start < start);
        self.ranges.insert(
            position,
            Range {
                start,
                length,
                device,
            },
        );
        Ok(())
    }

    /// Reads. An address without a device, or an access across the end of a range, reads as all ones, as
    /// on a real bus without a responder.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((range, offset)) => range.device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes; ignored at an address without a device.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((range, offset)) = self.find(address, data.len()) {
            range.device.write(offset, data);
        }
    }

    fn find(&self, address: u64, length: usize) -> Option<(&Range, u64)> {
        let after = self.ranges.partition_point(|range| range.start <= address);
        let range = self.ranges.get(after.checked_sub(1)?)?;
        let offset = address - range.start;
        let end = offset.checked_add(u64::try_from(length).ok()?)?;
        (end <= range.length).then_some((range, offset))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Debug, Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn accesses_reach_the_device_that_owns_the_address() {
        let low = Arc::new(Recorder::default());
        let high = Arc::new(Recorder::default());
        let mut bus = Bus::default();
        bus.add(0x2000, 0x1000, high.clone()).unwrap();
        bus.add(0x1000, 0x1000, low.clone()).unwrap();
        bus.write(0x1ffc, &[1, 2, 3, 4]);
        bus.write(0x2000, &[5]);
        assert_eq!(*low.0.lock().unwrap(), [(0xffc, vec![1, 2, 3, 4])]);
        assert_eq!(*high.0.lock().unwrap(), [(0, vec![5])]);
    }

    #[test]
    fn an_address_without_owner_reads_as_ones() {
        let mut bus = Bus::default();
        bus.add(0x1000, 8, Arc::new(Recorder::default())).unwrap();
        let mut data = [0; 4];
        bus.read(0x1006, &mut data);
        assert_eq!(
            data, [0xff; 4],
            "an access across the end reaches no device"
        );
        bus.read(0x10, &mut data);
        assert_eq!(data, [0xff; 4]);
        bus.read(0x1004, &mut data);
        assert_eq!(data, [4; 4]);
    }

    #[test]
    fn overlapping_and_wrapping_ranges_are_refused() {
        let mut bus = Bus::default();
        bus.add(0x1000, 0x10, Arc::new(Recorder::default()))
            .unwrap();
        assert!(bus.add(0x100f, 1, Arc::new(Recorder::default())).is_err());
        assert!(bus.add(0xff0, 0x11, Arc::new(Recorder::default())).is_err());
        assert!(bus.add(u64::MAX, 2, Arc::new(Recorder::default())).is_err());
        assert!(bus.add(5, 0, Arc::new(Recorder::default())).is_err());
    }
}
