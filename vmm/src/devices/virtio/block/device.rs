//! The device: configuration space, activation, service of its queue.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vmm_sys_util::eventfd::EventFd;

use super::backend::{Backend, BlockConfig, BlockError, SECTOR_BYTES};
use super::identity::DiskIdentity;
use super::request::MAX_ZERO_SECTORS;
use super::state::BlockState;
use super::worker::{BlockHost, Worker};
use crate::devices::virtio::device::{
    Activation, DeviceError, SavedQueue, VirtioDevice, read_config_space,
};
use crate::devices::virtio::request_queue::RequestQueue;
use crate::sys::fd::borrow;

/// Type of a block device (virtio 1.2, 5.2.1).
const DEVICE_TYPE: u32 = 2;
const QUEUE_SIZE: u16 = 256;
/// The longest chain is as long as the queue; header and status take one descriptor each.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Block size, which is the size of a sector.
const BLOCK_BYTES: u32 = 512;
/// `struct virtio_blk_config` up to `write_zeroes_may_unmap`.
const CONFIG_BYTES: usize = 60;

/// A disk.
#[derive(Debug)]
pub struct Block {
    worker: Worker,
}

impl Block {
    /// Opens and locks the file, and starts the disk's thread.
    ///
    /// # Errors
    /// [`BlockError`] where it is not usable.
    pub fn new(config: &BlockConfig, host: Arc<dyn BlockHost>) -> Result<Self, BlockError> {
        let backend = Backend::open(config)?;
        backend.mark().map_err(|source| BlockError::Open {
            path: config.path.clone(),
            source,
        })?;
        Self::serving(backend, config, host, false)
    }

    /// Opens a saved disk; the path may differ, size and mode may not, and neither may the disk's `identity`,
    /// where it is known. The guest sees the same serial number as before. Requests that change the disk
    /// wait until [`VirtioDevice::let_writes_pass`].
    ///
    /// # Errors
    /// [`BlockError`] where it is not usable.
    pub fn restore(
        config: &BlockConfig,
        state: &BlockState,
        identity: Option<&DiskIdentity>,
        host: Arc<dyn BlockHost>,
    ) -> Result<Self, BlockError> {
        let mut backend = Backend::open(config)?;
        let BlockState {
            size_bytes: saved_bytes,
            read_only,
            ref id,
        } = *state;
        let path = config.path.clone();
        let size_bytes = backend.size_bytes();
        if size_bytes != saved_bytes {
            return Err(BlockError::SizeChanged {
                path,
                size_bytes,
                saved_bytes,
            });
        }
        if backend.read_only() != read_only {
            return Err(BlockError::ModeChanged { path, read_only });
        }
        if let Some(saved) = identity {
            let now = backend.identity().map_err(|source| BlockError::Open {
                path: path.clone(),
                source,
            })?;
            if let Some(difference) = saved.difference(&now) {
                return Err(BlockError::Changed { path, difference });
            }
        }
        backend.set_id(id);
        Self::serving(backend, config, host, true)
    }

    fn serving(
        backend: Backend,
        config: &BlockConfig,
        host: Arc<dyn BlockHost>,
        writes_wait: bool,
    ) -> Result<Self, BlockError> {
        let worker = Worker::start(backend, host, writes_wait);
        let worker = worker.map_err(|source| BlockError::Thread {
            path: config.path.clone(),
            source,
        })?;
        Ok(Self { worker })
    }

    fn backend(&self) -> &Backend {
        self.worker.backend()
    }

    /// Another descriptor of the file.
    ///
    /// # Errors
    /// Where the host has no descriptor left.
    pub fn file(&self) -> std::io::Result<File> {
        self.backend().file()
    }

    /// Its size.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.backend().size_bytes()
    }

    fn config(&self) -> [u8; CONFIG_BYTES] {
        let mut config = [0; CONFIG_BYTES];
        let mut put = |at: usize, value: u32| {
            config[at..at + 4].copy_from_slice(&value.to_le_bytes());
        };
        put(12, SEG_MAX);
        put(20, BLOCK_BYTES);
        if !self.backend().read_only() {
            put(36, MAX_ZERO_SECTORS);
            put(40, 1); // segments per discard
            put(44, 8); // discard alignment: 4 KiB, a block of most file systems
            put(48, MAX_ZERO_SECTORS);
            put(52, 1); // segments per write-zeroes
            put(56, 1); // write-zeroes may unmap
        }
        let sectors = self.backend().size_bytes() / SECTOR_BYTES;
        config[..8].copy_from_slice(&sectors.to_le_bytes());
        config
    }

    /// Serves what is in the queue now, and waits for that.
    #[cfg(test)]
    pub(super) fn serve_now(&self) {
        self.worker.serve_now();
    }

    /// Its state beyond the queue, to be saved.
    pub(in crate::devices::virtio) fn state(&self) -> BlockState {
        BlockState {
            size_bytes: self.backend().size_bytes(),
            read_only: self.backend().read_only(),
            id: self.backend().id().to_owned(),
        }
    }
}

impl VirtioDevice for Block {
    fn name(&self) -> &'static str {
        "block"
    }

    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn features(&self) -> u64 {
        let bits: &[u32] = if self.backend().read_only() {
            &[VIRTIO_BLK_F_RO]
        } else {
            &[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]
        };
        let always = [
            VIRTIO_BLK_F_SEG_MAX,
            VIRTIO_BLK_F_BLK_SIZE,
            VIRTIO_BLK_F_FLUSH,
        ];
        bits.iter()
            .chain(&always)
            .fold(1 << VIRTIO_F_VERSION_1, |features, bit| features | 1 << bit)
    }

    fn queue_max_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config_space(&self.config(), offset, data);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.worker.begin(RequestQueue::new(activation)?);
        Ok(())
    }

    fn queues(&self) -> Vec<SavedQueue> {
        self.worker.queues()
    }

    fn own_doorbells(&self) -> Option<Vec<Arc<EventFd>>> {
        Some(vec![Arc::clone(self.worker.doorbell())])
    }

    fn serve_queue(&mut self, _index: u16) -> Result<(), DeviceError> {
        Ok(())
    }

    /// The thread reports a broken queue this way.
    fn backend_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(borrow(self.worker.broken()))
    }

    fn serve_backend(&mut self) -> Result<(), DeviceError> {
        self.worker.take_error().map_or(Ok(()), Err)
    }

    fn hold(&mut self, round: u64) -> bool {
        self.worker.hold(round);
        true
    }

    fn release(&mut self) {
        self.worker.release();
    }

    fn let_writes_pass(&mut self) {
        self.worker.let_writes_pass();
    }

    fn reset(&mut self) {
        self.worker.end();
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        // An interrupt that was raised but not taken when the machine was saved may be lost with
        // the old VMM. The transport rings the doorbell.
        self.worker.signal();
        Ok(())
    }
}
