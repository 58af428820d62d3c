//! The device: one queue, nothing to configure, no state.

use std::io::Write;
use std::sync::Arc;

use rand::TryRng;
use rand::rngs::SysRng;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use crate::devices::virtio::device::{Activation, DeviceError, DeviceState, VirtioDevice};
use crate::devices::virtio::interrupt::Interrupt;

/// Type of an entropy device (virtio 1.2, 5.4.1).
const DEVICE_TYPE: u32 = 4;
/// VIRTIO_F_VERSION_1; the device has no features of its own.
const FEATURES: u64 = 1 << 32;
/// Most bytes per request. The driver takes what it gets and asks again.
const MAX_FILL_BYTES: usize = 4096;

/// An entropy device.
#[derive(Debug, Default)]
pub struct Rng {
    active: Option<Active>,
}

#[derive(Debug)]
struct Active {
    memory: GuestMemoryMmap,
    interrupt: Arc<dyn Interrupt>,
    queues: Vec<Queue>,
}

impl Rng {
    /// Makes one; a restored one is made the same way.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Active {
    fn serve(&mut self) -> Result<(), DeviceError> {
        let broken = |source| DeviceError::Queue { index: 0, source };
        let mut used = false;
        for _ in 0..self.queues[0].size() {
            let Some(chain) = self.queues[0].iter(&self.memory).map_err(broken)?.next() else {
                break;
            };
            let head = chain.head_index();
            let filled = fill(&self.memory, chain);
            self.queues[0]
                .add_used(&self.memory, head, filled)
                .map_err(broken)?;
            used = true;
        }
        if used {
            self.interrupt.signal_used();
        }
        Ok(())
    }
}

/// Fills a chain from the host's pool; the number of bytes, which is 0 for a chain that can't be
/// written to.
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

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let Activation {
            memory,
            interrupt,
            queues,
            features: _,
        } = activation;
        if !queues
            .first()
            .is_some_and(|queue| queue.ready() && queue.is_valid(&memory))
        {
            return Err(DeviceError::QueueNotReady { index: 0 });
        }
        self.active = Some(Active {
            memory,
            interrupt,
            queues,
        });
        Ok(())
    }

    fn queues(&self) -> &[Queue] {
        self.active.as_ref().map_or(&[], |active| &active.queues)
    }

    fn serve_queue(&mut self, _index: u16) -> Result<(), DeviceError> {
        self.active.as_mut().map_or(Ok(()), Active::serve)
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn save(&self) -> DeviceState {
        DeviceState::Rng
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        // Requests that were made but not served, and an interrupt that was raised but not taken.
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        active.serve()?;
        active.interrupt.signal_used();
        Ok(())
    }
}
