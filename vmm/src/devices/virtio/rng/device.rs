//! The device: one queue, nothing to configure, no state.

use std::io::Write;

use rand::TryRng;
use rand::rngs::SysRng;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryMmap;

use crate::devices::virtio::device::{
    Activation, DeviceError, SavedQueue, VirtioDevice, read_config_space,
};
use crate::devices::virtio::request_queue::RequestQueue;

/// Type of an entropy device (virtio 1.2, 5.4.1).
const DEVICE_TYPE: u32 = 4;
/// The device has no features of its own.
const FEATURES: u64 = 1 << VIRTIO_F_VERSION_1;
/// Most bytes per request. The driver uses what it gets and asks again.
const MAX_FILL_BYTES: usize = 4096;

/// An entropy device.
#[derive(Debug, Default)]
pub struct Rng {
    queue: Option<RequestQueue>,
}

impl Rng {
    /// Makes one; a restored one is made the same way.
    pub fn new() -> Self {
        Self::default()
    }

    fn serve(&mut self) -> Result<(), DeviceError> {
        match &mut self.queue {
            Some(queue) => queue.serve(fill),
            None => Ok(()),
        }
    }
}

/// Fills a chain from the host's pool; returns the number of bytes, which is 0 for a chain that can't
/// be written to.
fn fill(memory: &GuestMemoryMmap, chain: DescriptorChain<&GuestMemoryMmap>) -> u32 {
    let Ok(mut writer) = chain.writer(memory) else {
        return 0;
    };
    let mut bytes = [0; MAX_FILL_BYTES];
    let bytes = &mut bytes[..writer.available_bytes().min(MAX_FILL_BYTES)];
    let filled = SysRng.try_fill_bytes(bytes).is_ok() && writer.write_all(bytes).is_ok();
    if filled {
        u32::try_from(bytes.len()).unwrap_or(0)
    } else {
        0
    }
}

impl VirtioDevice for Rng {
    fn name(&self) -> &'static str {
        "rng"
    }

    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        FEATURES
    }

    fn queue_max_sizes(&self) -> &'static [u16] {
        &[64]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&[], offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.queue = Some(RequestQueue::new(activation)?);
        Ok(())
    }

    fn queues(&self) -> Vec<SavedQueue> {
        self.queue
            .as_ref()
            .map_or_else(Vec::new, RequestQueue::saved)
    }

    fn serve_queue(&mut self, _index: u16) -> Result<(), DeviceError> {
        self.serve()
    }

    fn reset(&mut self) {
        self.queue = None;
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.serve()?;
        // An interrupt that was raised but not taken when the machine was saved may be lost with
        // the old VMM.
        if let Some(queue) = &self.queue {
            queue.signal();
        }
        Ok(())
    }
}
