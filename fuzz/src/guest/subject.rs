//! A virtio device behind its transport, with the guest that drives it, and what must hold after each step.

use vmm::bus::BusDevice;
use vmm::devices::virtio::mmio::{MmioTransport, QUEUE_NOTIFY, SavedTransport};
use vmm::devices::virtio::saved_device::{DeviceState, SavedDevice};

use super::meanwhile::{Write, while_writing};
use super::memory::{Memory, QUEUES};
use super::queue::{Descriptor, DriverQueue, WRITE};
use super::step::{AnyDescriptor, Meanwhile, Step};
use crate::changed::changed;

const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_PAGE: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_PAGE: u64 = 0x24;
const SELECTED_QUEUE: u64 = 0x30;
const QUEUE_MAX_SIZE: u64 = 0x34;
const QUEUE_SIZE: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
const STATUS: u64 = 0x70;
/// The registers with the addresses of a queue's three parts.
const QUEUE_PARTS: [u64; 3] = [0x80, 0x90, 0xa0];
/// ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK (virtio 1.2, 2.1).
const STATUSES: [u32; 4] = [1, 3, 11, 15];
const NEEDS_RESET: u32 = 64;
/// VIRTIO_F_VERSION_1, in the second page of the features.
const VERSION_1: u32 = 1;

/// Makes the device under test, and knows its host.
pub(crate) trait Host {
    /// A device as after a boot.
    fn boot(&mut self) -> Box<dyn SavedDevice>;
    /// A device with this state; none if it is refused.
    fn restore(&mut self, state: &DeviceState) -> Option<Box<dyn SavedDevice>>;
    /// Waits for a device that has a thread of its own, if it may have been rung.
    fn settle(&mut self, _is_idle: &dyn Fn() -> bool) {}
    /// Waits until no request is in service. The device is held.
    fn wait_for_hold(&mut self) {}
}

/// A device and its guest.
#[derive(Debug)]
pub(crate) struct Subject<H> {
    pub(crate) memory: Memory,
    pub(crate) queues: Vec<DriverQueue>,
    pub(crate) host: H,
    transport: Option<MmioTransport>,
    /// The guest keeps to its area for buffers, so what the device may write to is known.
    confined: bool,
    /// The rings say what the device has served: nothing has changed them behind its back.
    exact: bool,
}

impl<H: Host> Subject<H> {
    /// A device after a boot, with a guest that does not use it yet.
    pub(crate) fn new(mut host: H, confined: bool) -> Self {
        let memory = Memory::new();
        let device = host.boot();
        let transport = MmioTransport::new(device, memory.map().clone()).expect("descriptors");
        Self {
            memory,
            queues: Vec::new(),
            host,
            transport: Some(transport),
            confined,
            exact: confined,
        }
    }

    /// Whether the rings have been used as a driver does, so that the guest may rely on them.
    pub(crate) fn is_exact(&self) -> bool {
        self.exact
    }

    /// The transport.
    pub(crate) fn transport(&self) -> &MmioTransport {
        self.transport
            .as_ref()
            .expect("there is one between two steps")
    }

    /// The queue of that number.
    pub(crate) fn queue(&self, number: u8) -> Option<usize> {
        usize::from(number).checked_rem(self.queues.len())
    }

    /// Offers a chain as a driver does.
    pub(crate) fn offer(
        &mut self,
        number: u8,
        readable: &[&[u8]],
        writable: &[u32],
    ) -> Option<u16> {
        let queue = self.queue(number)?;
        Some(self.queues[queue].offer(&mut self.memory, readable, writable))
    }

    /// Takes a step.
    pub(crate) fn take(&mut self, step: &Step) {
        match step {
            Step::Offer {
                queue,
                readable,
                writable,
            } => {
                let readable: Vec<&[u8]> = readable.iter().map(Vec::as_slice).collect();
                let writable: Vec<u32> = writable.iter().copied().map(u32::from).collect();
                self.offer(*queue, &readable, &writable);
            }
            Step::Store {
                queue,
                slot,
                descriptor,
            } => {
                let writes = self.stored(*queue, *slot, descriptor);
                self.write_all(writes);
            }
            Step::Publish { queue, head } => {
                if let Some(queue) = self.queue(*queue) {
                    let writes = self.queues[queue].publish(*head);
                    self.write_all(writes);
                }
            }
            Step::Jump { queue, by } => {
                if let Some(queue) = self.queue(*queue) {
                    let write = self.queues[queue].jump(*by);
                    self.write_all([write]);
                }
            }
            Step::Write { address, bytes } => {
                let address = address.resolve(self.confined);
                let bytes = self.within_buffers(address, bytes);
                self.memory.write(address, bytes);
            }
            Step::Kick { queue } => self.serve(|subject| subject.kick(*queue)),
            Step::KickWhile { queue, changes } => self.kick_while(*queue, changes),
            Step::Backend => self.serve(|subject| subject.transport().serve_backend()),
            Step::Establish { sizes, features } => self.establish(*sizes, *features),
            Step::Reset => self.reset(),
            Step::WriteRegister { offset, value } => self.write_register(*offset, *value),
            Step::Read { offset, bytes } => self.read(*offset, *bytes),
            Step::Restore => self.restore(),
            Step::RestoreChanged { change } => self.restore_changed(change),
            Step::Hold => {
                if self.transport().hold(1) {
                    self.host.wait_for_hold();
                }
            }
            Step::Release => self.serve(|subject| subject.transport().release()),
            Step::LetWritesPass => self.serve(|subject| subject.transport().let_writes_pass()),
        }
    }

    /// What must hold at the end of an input.
    pub(crate) fn finish(mut self) -> H {
        self.reset();
        // A device with a thread no longer writes.
        self.transport = None;
        if self.confined {
            self.memory.assert_unharmed();
        }
        self.host
    }

    /// Does what serves queues, and checks how many chains the device has given back.
    pub(crate) fn serve(&mut self, serve: impl FnOnce(&Self)) {
        let before: Vec<(u16, u16)> = self.indexes();
        serve(self);
        self.settle();
        self.transport().serve_backend();
        if !self.exact {
            return;
        }
        let after = self.indexes();
        for (number, ((avail, used), (_, now_used))) in before.iter().zip(after).enumerate() {
            let waiting = avail.wrapping_sub(*used);
            let served = now_used.wrapping_sub(*used);
            // A ring that claims more chains than it can hold is broken, and not served; a device with a
            // thread may have been at it before that.
            let is_whole =
                waiting <= self.queues[number].size() || self.transport().serves_itself();
            let most = if is_whole { waiting } else { 0 };
            assert!(
                served <= most,
                "queue {number}: {served} chains were given back of {most}"
            );
        }
    }

    fn indexes(&self) -> Vec<(u16, u16)> {
        let indexes = |queue: &DriverQueue| {
            (
                queue.avail_index(&self.memory),
                queue.used_index(&self.memory),
            )
        };
        self.queues.iter().map(indexes).collect()
    }

    /// Waits for a device that serves by itself.
    fn settle(&mut self) {
        let (memory, queues) = (&self.memory, &self.queues);
        let transport = self
            .transport
            .as_ref()
            .expect("there is one between two steps");
        let is_idle = || {
            queues.iter().all(|queue| queue.waiting(memory) == 0)
                || register(transport, STATUS) & NEEDS_RESET != 0
        };
        self.host.settle(&is_idle);
    }

    fn kick(&self, number: u8) {
        let transport = self.transport();
        let queues = u8::try_from(transport.doorbells().len()).expect("a few queues");
        let queue = number % queues;
        set_register(transport, QUEUE_NOTIFY, queue.into());
        if !transport.serves_itself() {
            transport.serve_queue(queue.into());
        }
    }

    fn kick_while(&mut self, number: u8, changes: &[Meanwhile]) {
        let writes: Vec<Write> = changes
            .iter()
            .flat_map(|change| self.meanwhile(change))
            .collect();
        for (address, bytes) in &writes {
            self.memory.expect(*address, bytes);
        }
        let map = self.memory.map().clone();
        // How much is served depends on which of the two is faster.
        let exact = std::mem::replace(&mut self.exact, false);
        self.serve(|subject| while_writing(&map, writes, || subject.kick(number)));
        // Every chain that came meanwhile is served now, or the next time that the doorbell rings.
        self.serve(|subject| subject.kick(number));
        self.exact = exact;
    }

    fn meanwhile(&mut self, change: &Meanwhile) -> Vec<Write> {
        match change {
            Meanwhile::Write { address, bytes } => {
                let address = address.resolve(self.confined);
                let bytes = self.within_buffers(address, bytes).to_vec();
                vec![(address, bytes)]
            }
            Meanwhile::Store {
                queue,
                slot,
                descriptor,
            } => self.stored(*queue, *slot, descriptor),
            Meanwhile::Refill { queue, head } => match self.queue(*queue) {
                Some(queue) => self.queues[queue].publish((*head).into()).to_vec(),
                None => Vec::new(),
            },
        }
    }

    /// The writes that store a descriptor, through which the device may write from then on.
    fn stored(&mut self, number: u8, slot: u8, any: &AnyDescriptor) -> Vec<Write> {
        let Some(queue) = self.queue(number) else {
            return Vec::new();
        };
        let descriptor = Descriptor {
            address: any.address.resolve(self.confined),
            bytes: any.bytes(self.confined),
            flags: any.flags(self.confined),
            next: any.next,
        };
        if descriptor.flags & WRITE != 0 {
            self.memory
                .allow(descriptor.address, descriptor.bytes.into());
        }
        vec![self.queues[queue].store(slot.into(), descriptor)]
    }

    fn within_buffers<'b>(&self, address: u64, bytes: &'b [u8]) -> &'b [u8] {
        let room = super::memory::BUFFERS.end.saturating_sub(address);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        if self.confined {
            &bytes[..bytes.len().min(room)]
        } else {
            bytes
        }
    }

    fn write_all(&mut self, writes: impl IntoIterator<Item = Write>) {
        for (address, bytes) in writes {
            self.memory.write(address, &bytes);
        }
    }

    /// Resets the device and sets it up, as a driver does (virtio 1.2, 3.1.1).
    fn establish(&mut self, sizes: [u8; QUEUES], features: u8) {
        self.reset();
        let count = self.transport().doorbells().len();
        let transport = self
            .transport
            .as_ref()
            .expect("there is one between two steps");
        for status in &STATUSES[..2] {
            set_register(transport, STATUS, *status);
        }
        // Any subset of what the device offers, and always version 1.
        let masks = [
            u32::from(features) << 24 | u32::from(features) << 8 | 0xff_00ff,
            VERSION_1,
        ];
        for (page, mask) in (0..).zip(masks) {
            set_register(transport, DEVICE_FEATURES_PAGE, page);
            let offered = register(transport, DEVICE_FEATURES);
            set_register(transport, DRIVER_FEATURES_PAGE, page);
            set_register(transport, DRIVER_FEATURES, offered & mask);
        }
        set_register(transport, STATUS, STATUSES[2]);
        self.queues.clear();
        for (number, size) in (0..count).zip(sizes) {
            set_register(
                transport,
                SELECTED_QUEUE,
                u32::try_from(number).expect("a few queues"),
            );
            let most = register(transport, QUEUE_MAX_SIZE);
            let size = (1_u32 << (size % 16)).min(most);
            let queue = DriverQueue::new(
                &mut self.memory,
                number,
                u16::try_from(size).expect("at most the largest"),
            );
            set_register(transport, QUEUE_SIZE, size);
            for (part, address) in QUEUE_PARTS.into_iter().zip([
                queue.descriptors(),
                queue.avail_ring(),
                queue.used_ring(),
            ]) {
                set_register(
                    transport,
                    part,
                    u32::try_from(address).expect("small memory"),
                );
            }
            set_register(transport, QUEUE_READY, 1);
            self.queues.push(queue);
        }
        self.exact = self.confined;
        self.serve(|subject| set_register(subject.transport(), STATUS, STATUSES[3]));
        assert_eq!(
            register(self.transport(), STATUS),
            STATUSES[3],
            "a correct set-up is accepted"
        );
    }

    fn reset(&mut self) {
        set_register(self.transport(), STATUS, 0);
        assert_eq!(
            register(self.transport(), STATUS),
            0,
            "a reset is never refused"
        );
    }

    fn write_register(&mut self, offset: u16, value: u32) {
        let offset = u64::from(offset % 0x200);
        // A queue that lies elsewhere is not one whose rings are known.
        if self.confined
            && (offset == QUEUE_READY || offset == QUEUE_SIZE || (0x80..0xb0).contains(&offset))
        {
            return;
        }
        self.serve(|subject| {
            set_register(subject.transport(), offset, value);
        });
    }

    fn read(&self, offset: u16, bytes: u8) {
        let length = usize::from(bytes % 9);
        let read = |fill: u8| {
            let mut data = vec![fill; length];
            self.transport().read(u64::from(offset), &mut data);
            data
        };
        let (first, second) = (read(0x55), read(0xaa));
        let untouched =
            first.iter().all(|byte| *byte == 0x55) && second.iter().all(|byte| *byte == 0xaa);
        assert!(
            length == 0 || !untouched,
            "a read of {length} bytes at {offset:#x} returns what was there before"
        );
    }

    /// The state of a device at rest.
    fn save(&mut self) -> SavedTransport {
        if self.transport().hold(2) {
            self.host.wait_for_hold();
        }
        self.transport().save()
    }

    fn restore(&mut self) {
        let saved = self.save();
        let bytes = postcard::to_stdvec(&saved).expect("plain data");
        let decoded: SavedTransport =
            postcard::from_bytes(&bytes).expect("what was encoded is decoded");
        self.transport = None;
        let device = self
            .host
            .restore(&decoded.device)
            .expect("a state that was saved is restored");
        let restored = MmioTransport::restore(device, self.memory.map().clone(), &decoded);
        self.transport = Some(restored.expect("a state that was saved is restored"));
        let again = self.save();
        // A device with a thread goes on with what is in its queue at once.
        let (was, is) = match self.transport().serves_itself() {
            true => (
                postcard::to_stdvec(&saved.device),
                postcard::to_stdvec(&again.device),
            ),
            false => (Ok(bytes), postcard::to_stdvec(&again)),
        };
        assert_eq!(was, is, "a restored device has the state that was saved");
        self.transport().release();
        self.serve(|subject| subject.transport().resume());
    }

    fn restore_changed(&mut self, change: &crate::changed::Change) {
        let saved = self.save();
        self.transport().release();
        let Some(changed) = changed(&saved, change) else {
            return;
        };
        self.transport = None;
        // The device's next chain may be another than the rings say.
        self.exact = false;
        let device = self.host.restore(&changed.device);
        let restored = device.and_then(|device| {
            MmioTransport::restore(device, self.memory.map().clone(), &changed).ok()
        });
        match restored {
            Some(transport) => {
                self.transport = Some(transport);
                self.confined = false;
                self.serve(|subject| subject.transport().resume());
            }
            None => {
                let device = self.host.boot();
                let transport = MmioTransport::new(device, self.memory.map().clone());
                self.transport = Some(transport.expect("descriptors"));
            }
        }
    }
}

fn register(transport: &MmioTransport, offset: u64) -> u32 {
    let mut data = [0; 4];
    transport.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn set_register(transport: &MmioTransport, offset: u64, value: u32) {
    transport.write(offset, &value.to_le_bytes());
}
