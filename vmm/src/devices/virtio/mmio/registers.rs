//! The state behind the transport's registers: device status, features, queue set-up.
//!
//! The transport's lock guards all of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use super::{MmioInterrupt, SavedTransport, TransportError};
use crate::bytes::array_at;
use crate::devices::virtio::device::{Activation, DeviceError, SavedQueue, VirtioDevice};
use crate::devices::virtio::saved_device::SavedDevice;

const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// "MCTL"; drivers ignore it.
const VENDOR: u32 = u32::from_le_bytes(*b"MCTL");
/// The length of a shared memory region that does not exist (virtio 1.2, 4.2.2.1).
const NO_REGION: u32 = u32::MAX;

#[derive(Debug)]
pub(super) struct TransportState {
    pub(super) device: Box<dyn SavedDevice>,
    pub(super) memory: GuestMemoryMmap,
    pub(super) interrupt: Arc<MmioInterrupt>,
    pub(super) status: u32,
    pub(super) device_features_page: u32,
    pub(super) driver_features_page: u32,
    pub(super) driver_features: u64,
    pub(super) selected_queue: u32,
    /// Set up by the driver; the device owns them from DRIVER_OK to reset.
    pub(super) queues: Vec<Queue>,
    pub(super) active: bool,
}

impl TransportState {
    pub(super) fn read(&self, offset: u64) -> u32 {
        match offset {
            0x00 => MAGIC,
            0x04 => VERSION,
            0x08 => self.device.device_type(),
            0x0c => VENDOR,
            0x10 => features_word(self.device.features(), self.device_features_page),
            0x34 => self
                .selected()
                .map_or(0, |queue| u32::from(queue.max_size())),
            0x44 => self.selected().map_or(0, |queue| u32::from(queue.ready())),
            0x70 => self.status,
            0xb0 | 0xb4 | 0xb8 | 0xbc => NO_REGION,
            0xfc => self.interrupt.generation.load(Ordering::SeqCst),
            _ => 0,
        }
    }

    pub(super) fn write(&mut self, offset: u64, value: u32) {
        match offset {
            0x14 => self.device_features_page = value,
            0x20 if self.negotiates() => self.set_driver_features(value),
            0x24 => self.driver_features_page = value,
            0x30 => self.selected_queue = value,
            _ => self.configure_queue(offset, value),
        }
    }

    /// Queue set-up is valid between FEATURES_OK and DRIVER_OK (virtio 1.2, 3.1.1), and ignored otherwise.
    fn configure_queue(&mut self, offset: u64, value: u32) {
        let phase = VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK;
        if self.status & phase != VIRTIO_CONFIG_S_FEATURES_OK {
            return;
        }
        let selected = usize::try_from(self.selected_queue).unwrap_or(usize::MAX);
        let Some(queue) = self.queues.get_mut(selected) else {
            return;
        };
        match offset {
            // The setter ignores sizes that are too large or not powers of two.
            0x38 => queue.set_size(u16::try_from(value).unwrap_or(0)),
            0x44 => queue.set_ready(value == 1),
            0x80 => queue.set_desc_table_address(Some(value), None),
            0x84 => queue.set_desc_table_address(None, Some(value)),
            0x90 => queue.set_avail_ring_address(Some(value), None),
            0x94 => queue.set_avail_ring_address(None, Some(value)),
            0xa0 => queue.set_used_ring_address(Some(value), None),
            0xa4 => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    /// State of the queues, whoever has them.
    pub(super) fn saved_queues(&self) -> Vec<SavedQueue> {
        if self.active {
            self.device.queues()
        } else {
            self.queues.iter().map(SavedQueue::from).collect()
        }
    }

    fn selected(&self) -> Option<SavedQueue> {
        let queues = self.saved_queues();
        queues
            .get(usize::try_from(self.selected_queue).ok()?)
            .copied()
    }

    fn negotiates(&self) -> bool {
        self.status & VIRTIO_CONFIG_S_DRIVER != 0 && self.status & VIRTIO_CONFIG_S_FEATURES_OK == 0
    }

    fn set_driver_features(&mut self, value: u32) {
        let shift = match self.driver_features_page {
            0 => 0,
            1 => 32,
            _ => return,
        };
        self.driver_features &= !(u64::from(u32::MAX) << shift);
        self.driver_features |= u64::from(value) << shift;
    }

    pub(super) fn write_status(&mut self, value: u32) -> Result<(), DeviceError> {
        if value == 0 {
            self.reset();
            return Ok(());
        }
        let known = VIRTIO_CONFIG_S_ACKNOWLEDGE
            | VIRTIO_CONFIG_S_DRIVER
            | VIRTIO_CONFIG_S_FEATURES_OK
            | VIRTIO_CONFIG_S_DRIVER_OK
            | VIRTIO_CONFIG_S_FAILED;
        // Bits are only ever added; the driver must not clear any (virtio 1.2, 2.1.1).
        let mut added = value & known & !self.status;
        let after = |bit, before| added & bit == 0 || (self.status | added) & before != 0;
        let in_order = after(VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_ACKNOWLEDGE)
            && after(VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_DRIVER)
            && after(VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK);
        if !in_order {
            return Ok(());
        }
        if added & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !self.features_acceptable() {
            // The driver reads the status back and sees the refusal (virtio 1.2, 3.1.1, step 6).
            added &= !(VIRTIO_CONFIG_S_FEATURES_OK | VIRTIO_CONFIG_S_DRIVER_OK);
        }
        self.status |= added;
        if added & VIRTIO_CONFIG_S_DRIVER_OK != 0
            && self.status & (VIRTIO_CONFIG_S_FAILED | VIRTIO_CONFIG_S_NEEDS_RESET) == 0
        {
            return self.activate();
        }
        Ok(())
    }

    fn features_acceptable(&self) -> bool {
        let version_1 = 1 << VIRTIO_F_VERSION_1;
        self.driver_features & !self.device.features() == 0 && self.driver_features & version_1 != 0
    }

    fn activate(&mut self) -> Result<(), DeviceError> {
        let event_idx = self.driver_features & (1 << VIRTIO_RING_F_EVENT_IDX) != 0;
        let mut queues = std::mem::take(&mut self.queues);
        for queue in &mut queues {
            queue.set_event_idx(event_idx);
        }
        self.active = true;
        self.device.activate(Activation {
            memory: self.memory.clone(),
            interrupt: self.interrupt.clone(),
            queues,
            features: self.driver_features,
        })
    }

    /// Takes the device's queues away, and lets the driver set up new ones.
    pub(super) fn take_out_of_service(&mut self) {
        if self.active {
            self.device.reset();
        }
        self.active = false;
        // Cannot fail, since the same sizes were valid when the transport was made.
        self.queues = new_queues(self.device.as_ref()).unwrap_or_default();
    }

    fn reset(&mut self) {
        self.take_out_of_service();
        self.status = 0;
        self.device_features_page = 0;
        self.driver_features_page = 0;
        self.driver_features = 0;
        self.selected_queue = 0;
        self.interrupt.status.store(0, Ordering::SeqCst);
    }

    pub(super) fn restore(&mut self, saved: &SavedTransport) -> Result<(), TransportError> {
        let device = self.device.name();
        let wrong = |what| TransportError::State { device, what };
        // Before they are agreed on, the register holds whatever the guest has written.
        let agreed = saved.active || saved.status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
        if agreed && saved.driver_features & !self.device.features() != 0 {
            return Err(wrong(
                "its driver uses features that the device no longer offers",
            ));
        }
        let max_sizes = self.device.queue_max_sizes();
        if saved.queues.len() != max_sizes.len() {
            return Err(wrong("it has another number of queues"));
        }
        let mut queues = Vec::with_capacity(saved.queues.len());
        for (index, queue) in saved.queues.iter().enumerate() {
            let queue = Queue::try_from(*queue).map_err(|source| TransportError::Queue {
                device,
                index,
                source,
            })?;
            if queue.max_size() != max_sizes[index] {
                return Err(wrong("a queue has another size"));
            }
            queues.push(queue);
        }
        self.status = saved.status;
        self.device_features_page = saved.device_features_page;
        self.driver_features_page = saved.driver_features_page;
        self.driver_features = saved.driver_features;
        self.selected_queue = saved.selected_queue;
        self.interrupt
            .status
            .store(saved.interrupt_status, Ordering::SeqCst);
        self.interrupt
            .generation
            .store(saved.config_generation, Ordering::SeqCst);
        self.queues = queues;
        if saved.active {
            self.activate()
                .map_err(|source| TransportError::Activate { device, source })?;
        }
        Ok(())
    }
}

pub(super) fn new_queues(device: &dyn VirtioDevice) -> Result<Vec<Queue>, TransportError> {
    let new = |(index, size): (usize, &u16)| {
        Queue::new(*size).map_err(|source| TransportError::Queue {
            device: device.name(),
            index,
            source,
        })
    };
    device
        .queue_max_sizes()
        .iter()
        .enumerate()
        .map(new)
        .collect()
}

/// A half of the features, by its page.
fn features_word(features: u64, page: u32) -> u32 {
    let bytes = features.to_le_bytes();
    match page {
        0 => u32::from_le_bytes(array_at(&bytes, 0)),
        1 => u32::from_le_bytes(array_at(&bytes, 4)),
        _ => 0,
    }
}
