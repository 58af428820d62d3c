//! The one queue of a device that serves each request at once: entropy and block.
//!
//! What a request means is up to the device.

use std::sync::Arc;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::device::{Activation, DeviceError, check_ready};
use super::interrupt::Interrupt;

/// A queue in service.
#[derive(Debug)]
pub(super) struct RequestQueue {
    memory: GuestMemoryMmap,
    interrupt: Arc<dyn Interrupt>,
    queues: Vec<Queue>,
}

impl RequestQueue {
    /// Takes the queue over from the transport.
    pub(super) fn new(activation: Activation) -> Result<Self, DeviceError> {
        let Activation {
            memory,
            interrupt,
            queues,
            features: _,
        } = activation;
        check_ready(&queues, 0, &memory)?;
        Ok(Self {
            memory,
            interrupt,
            queues,
        })
    }

    /// All queues of the device, of which it has one.
    pub(super) fn all(&self) -> &[Queue] {
        &self.queues
    }

    /// Serves the requests that are in the queue now; a later request comes with a notification of its
    /// own. `serve_one` returns the number of bytes that it has written into the chain.
    pub(super) fn serve(
        &mut self,
        mut serve_one: impl FnMut(&GuestMemoryMmap, DescriptorChain<&GuestMemoryMmap>) -> u32,
    ) -> Result<(), DeviceError> {
        let broken = |source| DeviceError::Queue { index: 0, source };
        let mut used = false;
        for _ in 0..self.queues[0].size() {
            let Some(chain) = self.queues[0].iter(&self.memory).map_err(broken)?.next() else {
                break;
            };
            let head = chain.head_index();
            let written = serve_one(&self.memory, chain);
            self.queues[0]
                .add_used(&self.memory, head, written)
                .map_err(broken)?;
            used = true;
        }
        if used {
            self.signal();
        }
        Ok(())
    }

    /// Tells the driver that it may have got something back.
    pub(super) fn signal(&self) {
        self.interrupt.signal_used();
    }
}
