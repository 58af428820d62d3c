//! The one queue of a device that serves one request after the other: entropy and block.
//!
//! What a request means is up to the device.

use std::sync::Arc;

use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::device::{Activation, DeviceError, SavedQueue, check_ready};
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

    /// State of all queues of the device, of which it has one.
    pub(super) fn saved(&self) -> Vec<SavedQueue> {
        self.queues.iter().map(SavedQueue::from).collect()
    }

    /// Most requests that it can hold.
    pub(super) fn size(&self) -> u16 {
        self.queues[0].size()
    }

    /// Where it lies.
    pub(super) fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Takes the next request.
    pub(super) fn take<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
    ) -> Result<Option<DescriptorChain<&'m GuestMemoryMmap>>, DeviceError> {
        Ok(self.queues[0].iter(memory).map_err(broken)?.next())
    }

    /// Undoes the last [`Self::take`].
    pub(super) fn put_back(&mut self) {
        let queue = &mut self.queues[0];
        queue.set_next_avail(queue.next_avail().wrapping_sub(1));
    }

    /// Gives a request back to the driver, with the number of bytes that were written into it.
    pub(super) fn give_back(
        &mut self,
        memory: &GuestMemoryMmap,
        head: u16,
        written: u32,
    ) -> Result<(), DeviceError> {
        self.queues[0]
            .add_used(memory, head, written)
            .map_err(broken)
    }

    /// Serves the requests that are in the queue now; a later request comes with a notification of its
    /// own. `serve_one` returns the number of bytes that it has written into the chain.
    pub(super) fn serve(
        &mut self,
        mut serve_one: impl FnMut(&GuestMemoryMmap, DescriptorChain<&GuestMemoryMmap>) -> u32,
    ) -> Result<(), DeviceError> {
        let memory = self.memory.clone();
        let mut used = false;
        for _ in 0..self.size() {
            let Some(chain) = self.take(&memory)? else {
                break;
            };
            let head = chain.head_index();
            let written = serve_one(&memory, chain);
            self.give_back(&memory, head, written)?;
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

fn broken(source: virtio_queue::Error) -> DeviceError {
    DeviceError::Queue { index: 0, source }
}
