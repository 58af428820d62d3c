//! The interface of a virtio device for its transport and the event loop.
//!
//! A device uses guest memory, its queues and an [`Interrupt`]. It does not know KVM, vCPUs or who
//! drives it. A device's configuration space, activation and queue service are in its `device.rs`; its
//! backend and requests are in the files beside that.
//!
//! All calls come from two places, under one lock per device: register accesses from vCPU
//! threads, and the rest from the event loop. Nothing in them may block for long, so a device whose
//! backend can be slow serves its queue on a thread of its own.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::Interrupt;

/// What a device gets when the guest driver sets DRIVER_OK (virtio 1.2, 3.1.1), or on restore.
#[derive(Debug)]
pub struct Activation {
    /// Guest memory; cheap to clone.
    pub memory: GuestMemoryMmap,
    /// Notifies the guest driver.
    pub interrupt: Arc<dyn Interrupt>,
    /// The queues, as many as the device has; those the driver left unready are unready.
    pub queues: Vec<Queue>,
    /// Features that driver and device agreed on.
    pub features: u64,
}

/// Why a device can't continue. The transport then sets DEVICE_NEEDS_RESET (virtio 1.2, 2.1.2), and
/// the device does nothing until it is reset.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A queue's rings lie outside of memory or contradict themselves.
    #[error("virtqueue {index} is broken")]
    Queue {
        /// Which queue.
        index: u16,
        /// What is wrong.
        source: virtio_queue::Error,
    },
    /// The driver activated the device without a queue that it needs.
    #[error("virtqueue {index} is not ready")]
    QueueNotReady {
        /// Which queue.
        index: u16,
    },
    /// A saved state contradicts itself or the device.
    #[error("saved state of the {device} device is not usable: {what}")]
    State {
        /// Name of the device.
        device: &'static str,
        /// What is wrong.
        what: &'static str,
    },
    /// The host side failed (epoll, eventfd).
    #[error("cannot {what}")]
    Host {
        /// What was attempted.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

/// A virtio device behind a transport.
///
/// Life: created → (`activate` → `serve_*`… → `reset`)* . A restored device gets `activate` with its old queues (if it was active) and
/// then `resume` once, before any vCPU runs.
pub trait VirtioDevice: Send + std::fmt::Debug {
    /// Short lower-case name for logs and errors.
    fn name(&self) -> &'static str;
    /// Device type of virtio 1.2, chapter 5.
    fn device_type(&self) -> u32;
    /// Feature bits offered (VIRTIO_F_VERSION_1 included).
    fn features(&self) -> u64;
    /// Largest size of each queue; its length is the number of queues.
    fn queue_max_sizes(&self) -> &'static [u16];
    /// Reads the device-specific configuration space; bytes beyond its end are zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes to it; ignored where it is read-only.
    fn write_config(&mut self, offset: u64, data: &[u8]);
    /// Takes the queues and begins to serve them.
    ///
    /// # Errors
    /// [`DeviceError`] where the driver's set-up can't be used.
    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError>;
    /// State of the queues in service; empty before activation and after a reset.
    fn queues(&self) -> Vec<SavedQueue>;
    /// Serves a queue that the guest driver has notified, if the device has no thread for that.
    ///
    /// # Errors
    /// [`DeviceError`] where the guest broke the queue.
    fn serve_queue(&mut self, index: u16) -> Result<(), DeviceError>;
    /// The doorbells of its queues, if a thread of the device waits for them and serves the queues.
    fn own_doorbells(&self) -> Option<Vec<Arc<EventFd>>> {
        None
    }
    /// Serves no further request until [`Self::release`]. Returns whether the device tells by itself, with
    /// this number, when none is in service any more; else none is, since the event loop serves it.
    fn hold(&mut self, _round: u64) -> bool {
        false
    }
    /// Ends a hold.
    fn release(&mut self) {}
    /// What outlives the guest may change from now on. A restored device holds such requests back until
    /// then.
    fn let_writes_pass(&mut self) {}
    /// A descriptor that is readable while the backend has work (sockets, timers). It stays the same for
    /// the life of the device, so the transport asks for it once.
    fn backend_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// Serves the backend.
    ///
    /// # Errors
    /// [`DeviceError`] where the guest broke a queue that this needs.
    fn serve_backend(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }
    /// Drops the queues and the negotiated features (virtio 1.2, 2.4). Connections to the host end; the
    /// device's configuration stays.
    fn reset(&mut self);
    /// Called once after a restore and its `activate`, before vCPUs run: tells the guest what it must know
    /// about the restore.
    ///
    /// # Errors
    /// [`DeviceError`] where the saved queues can't be used.
    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// Checks that the driver has set a queue up, within guest memory.
pub(super) fn check_ready(
    queues: &[Queue],
    index: u16,
    memory: &GuestMemoryMmap,
) -> Result<(), DeviceError> {
    let queue = queues.get(usize::from(index));
    if !queue.is_some_and(|queue| queue.ready() && queue.is_valid(memory)) {
        return Err(DeviceError::QueueNotReady { index });
    }
    Ok(())
}

/// Fills `data` from `offset` on in a configuration space; bytes beyond its end are zero.
pub(super) fn read_config_space(config: &[u8], offset: u64, data: &mut [u8]) {
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    let rest = config.get(offset..).unwrap_or_default();
    let copied = rest.len().min(data.len());
    data[..copied].copy_from_slice(&rest[..copied]);
    data[copied..].fill(0);
}

/// A queue's state as it is saved; mirrors [`QueueState`], which has no serde.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedQueue {
    max_size: u16,
    next_avail: u16,
    next_used: u16,
    event_idx_enabled: bool,
    size: u16,
    ready: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

impl SavedQueue {
    /// Most descriptors that it may have.
    pub(super) fn max_size(&self) -> u16 {
        self.max_size
    }

    /// The driver has set it up.
    pub(super) fn ready(&self) -> bool {
        self.ready
    }
}

impl From<&Queue> for SavedQueue {
    fn from(queue: &Queue) -> Self {
        let state = queue.state();
        Self {
            max_size: state.max_size,
            next_avail: state.next_avail,
            next_used: state.next_used,
            event_idx_enabled: state.event_idx_enabled,
            size: state.size,
            ready: state.ready,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        }
    }
}

impl TryFrom<SavedQueue> for Queue {
    type Error = virtio_queue::Error;

    fn try_from(saved: SavedQueue) -> Result<Self, Self::Error> {
        Self::try_from(QueueState {
            max_size: saved.max_size,
            next_avail: saved.next_avail,
            next_used: saved.next_used,
            event_idx_enabled: saved.event_idx_enabled,
            size: saved.size,
            ready: saved.ready,
            desc_table: saved.desc_table,
            avail_ring: saved.avail_ring,
            used_ring: saved.used_ring,
        })
    }
}
