//! The device: registers, activation, service of its queue.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::GuestMemoryMmap;

use super::backend::{Backend, BlockError, SECTOR_BYTES};
use super::request::{self, MAX_ZERO_SECTORS};
use super::state::BlockState;
use crate::devices::virtio::device::{Activation, DeviceError, DeviceState, VirtioDevice};
use crate::devices::virtio::interrupt::Interrupt;

/// Type of a block device (virtio 1.2, 5.2.1).
const DEVICE_TYPE: u32 = 2;
const QUEUE_SIZE: u16 = 256;
/// The longest chain is as long as the queue; header and status take one descriptor each.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Block size, the same as a sector.
const BLOCK_BYTES: u32 = 512;
/// VIRTIO_F_VERSION_1.
const VERSION_1: u64 = 1 << 32;
/// `struct virtio_blk_config` up to `write_zeroes_may_unmap`.
const CONFIG_BYTES: usize = 60;

/// What a disk is to be.
#[derive(Debug, Clone)]
pub struct BlockConfig {
    /// A raw file or a block device.
    pub path: PathBuf,
    /// The guest may only read it.
    pub read_only: bool,
}

/// A disk.
#[derive(Debug)]
pub struct Block {
    backend: Backend,
    active: Option<Active>,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Active {
    memory: GuestMemoryMmap,
    interrupt: Arc<dyn Interrupt>,
    queues: Vec<Queue>,
}

impl Block {
    /// Opens and locks the file.
    ///
    /// # Errors
    /// [`BlockError`] where it is not usable.
    pub fn new(config: BlockConfig) -> Result<Self, BlockError> {
        Ok(Self {
            backend: Backend::open(&config)?,
            active: None,
            buffer: Vec::new(),
        })
    }

    /// Opens the file that takes the place of a saved disk's; path may differ, size and mode may
    /// not. The guest goes on seeing the serial number that it has seen.
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
        block.backend.keep_id(id);
        Ok(block)
    }

    /// A further descriptor of the file, if the guest may write to it.
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

    /// Serves what the guest has asked for by now; a later request comes with a notification of its
    /// own.
    fn serve(&mut self) -> Result<(), DeviceError> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let broken = |source| DeviceError::Queue { index: 0, source };
        let mut used = false;
        for _ in 0..active.queues[0].size() {
            let mut chains = active.queues[0].iter(&active.memory).map_err(broken)?;
            let Some(chain) = chains.next() else {
                break;
            };
            let head = chain.head_index();
            let written = request::serve(&self.backend, &active.memory, chain, &mut self.buffer);
            active.queues[0]
                .add_used(&active.memory, head, written)
                .map_err(broken)?;
            used = true;
        }
        if used {
            active.interrupt.signal_used();
        }
        Ok(())
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
            .fold(VERSION_1, |features, bit| features | 1 << bit)
    }

    fn queue_max_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = offset
                .checked_add(index)
                .and_then(|at| config.get(at))
                .copied()
                .unwrap_or(0);
        }
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
        self.serve()
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn save(&self) -> DeviceState {
        DeviceState::Block(BlockState {
            size_bytes: self.backend.size_bytes(),
            read_only: self.backend.read_only(),
            id: self.backend.id().to_owned(),
        })
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.serve()?;
        // An interrupt that was raised but not taken when the machine was saved may be lost with
        // the old VMM.
        if let Some(active) = &self.active {
            active.interrupt.signal_used();
        }
        Ok(())
    }
}
