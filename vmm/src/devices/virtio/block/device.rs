//! The device: configuration space, activation, service of its queue.

use std::fs::File;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_queue::Queue;

use super::backend::{Backend, BlockConfig, BlockError, SECTOR_BYTES};
use super::request::{self, MAX_ZERO_SECTORS};
use super::state::BlockState;
use crate::devices::virtio::device::{Activation, DeviceError, VirtioDevice, read_config_space};
use crate::devices::virtio::request_queue::RequestQueue;

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
    backend: Backend,
    queue: Option<RequestQueue>,
    buffer: Vec<u8>,
}

impl Block {
    /// Opens and locks the file.
    ///
    /// # Errors
    /// [`BlockError`] where it is not usable.
    pub fn new(config: BlockConfig) -> Result<Self, BlockError> {
        Ok(Self {
            backend: Backend::open(&config)?,
            queue: None,
            buffer: Vec::new(),
        })
    }

    /// Opens the file that replaces a saved disk's; the path may differ, size and mode may not. The guest
    /// sees the same serial number as before.
    ///
    /// # Errors
    /// [`BlockError`] where it is not usable.
    pub fn restore(config: BlockConfig, state: &BlockState) -> Result<Self, BlockError> {
        let path = config.path.clone();
        let mut block = Self::new(config)?;
        let BlockState {
            size_bytes: saved_bytes,
            read_only,
            ref id,
        } = *state;
        let size_bytes = block.backend.size_bytes();
        if size_bytes != saved_bytes {
            return Err(BlockError::SizeChanged {
                path,
                size_bytes,
                saved_bytes,
            });
        }
        if block.backend.read_only() != read_only {
            return Err(BlockError::ModeChanged { path, read_only });
        }
        block.backend.set_id(id);
        Ok(block)
    }

    /// Another descriptor of the file, if the guest may write to it.
    ///
    /// # Errors
    /// Where the host has no descriptor left.
    pub fn written_file(&self) -> std::io::Result<Option<File>> {
        self.backend.written_file()
    }

    fn config(&self) -> [u8; CONFIG_BYTES] {
        let mut config = [0; CONFIG_BYTES];
        let mut put = |at: usize, value: u32| {
            config[at..at + 4].copy_from_slice(&value.to_le_bytes());
        };
        put(12, SEG_MAX);
        put(20, BLOCK_BYTES);
        if !self.backend.read_only() {
            put(36, MAX_ZERO_SECTORS);
            put(40, 1); // segments per discard
            put(44, 8); // discard alignment: 4 KiB, a block of most file systems
            put(48, MAX_ZERO_SECTORS);
            put(52, 1); // segments per write-zeroes
            put(56, 1); // write-zeroes may unmap
        }
        let sectors = self.backend.size_bytes() / SECTOR_BYTES;
        config[..8].copy_from_slice(&sectors.to_le_bytes());
        config
    }

    fn serve(&mut self) -> Result<(), DeviceError> {
        let Self {
            backend,
            queue,
            buffer,
        } = self;
        match queue {
            Some(queue) => {
                queue.serve(|memory, chain| request::serve(backend, memory, chain, buffer))
            }
            None => Ok(()),
        }
    }

    /// Its state beyond the queue, to be saved.
    pub(in crate::devices::virtio) fn state(&self) -> BlockState {
        BlockState {
            size_bytes: self.backend.size_bytes(),
            read_only: self.backend.read_only(),
            id: self.backend.id().to_owned(),
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
        let bits: &[u32] = if self.backend.read_only() {
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
        self.queue = Some(RequestQueue::new(activation)?);
        Ok(())
    }

    fn queues(&self) -> &[Queue] {
        self.queue.as_ref().map_or(&[], RequestQueue::all)
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
