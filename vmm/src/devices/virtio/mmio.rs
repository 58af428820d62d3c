//! The MMIO transport (virtio 1.2, 4.2): registers in front of one device.
//!
//! It negotiates features, receives the driver's queue set-up, activates and resets the device. The owner
//! connects [`MmioTransport::doorbells`] and [`MmioTransport::interrupt_line`].
//!
//! Device status (virtio 1.2, 2.1) only moves forward, until it is written 0:
//!
//! ```text
//! 0 ─▶ ACKNOWLEDGE ─▶ DRIVER ─▶ FEATURES_OK ─▶ DRIVER_OK      NEEDS_RESET and FAILED join any
//! ```

mod registers;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use self::registers::{TransportState, new_queues};
use super::device::{DeviceError, SavedQueue};
use super::interrupt::Interrupt;
use super::saved_device::{DeviceState, SavedDevice};
use crate::bus::BusDevice;
use crate::log;
use crate::sys::fd::new_event;

/// Offset of the doorbell register; the value written is the queue's index.
pub const QUEUE_NOTIFY: u64 = 0x50;

const INTERRUPT_STATUS: u64 = 0x60;
const CONFIG_SPACE: u64 = 0x100;
const USED_BUFFER: u32 = 1 << 0;
const CONFIG_CHANGE: u32 = 1 << 1;

/// Why a transport can't be built.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The host gives no descriptor.
    #[error("cannot create an eventfd for the {device} device")]
    EventFd {
        /// Which device.
        device: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// A queue can't be that large.
    #[error("cannot create queue {index} of the {device} device")]
    Queue {
        /// Which device.
        device: &'static str,
        /// Which queue.
        index: usize,
        /// Why.
        source: virtio_queue::Error,
    },
    /// A saved state doesn't fit.
    #[error("saved state of the {device} device's transport is not usable: {what}")]
    State {
        /// Which device.
        device: &'static str,
        /// What is wrong.
        what: &'static str,
    },
    /// The device refuses its saved queues.
    #[error("cannot put the {device} device back into service")]
    Activate {
        /// Which device.
        device: &'static str,
        /// Why.
        source: DeviceError,
    },
}

/// The interrupt of one device: status bits and a line.
#[derive(Debug)]
struct MmioInterrupt {
    status: AtomicU32,
    /// Changes with each configuration change, so that a driver can detect torn reads.
    generation: AtomicU32,
    line: EventFd,
}

impl MmioInterrupt {
    fn raise(&self, bit: u32) {
        // The driver reads the status in its interrupt service, so it is set first.
        self.status.fetch_or(bit, Ordering::SeqCst);
        // The eventfd's counter can't overflow, since KVM resets it.
        let _ = self.line.write(1);
    }
}

impl Interrupt for MmioInterrupt {
    fn signal_used(&self) {
        self.raise(USED_BUFFER);
    }

    fn signal_config(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
        self.raise(CONFIG_CHANGE);
    }
}

/// Registers of one device. vCPUs access them, the event loop serves the device; a lock keeps them apart.
#[derive(Debug)]
pub struct MmioTransport {
    name: &'static str,
    state: Mutex<TransportState>,
    interrupt: Arc<MmioInterrupt>,
    doorbells: Vec<Arc<EventFd>>,
    /// A thread of the device waits for the doorbells.
    serves_itself: bool,
    backend: Option<OwnedFd>,
    /// A broken device is logged once, since its guest could break it in a loop.
    is_logged: AtomicBool,
}

/// A transport's saved state, its device's included. Not trusted on the way in.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedTransport {
    status: u32,
    device_features_page: u32,
    driver_features_page: u32,
    driver_features: u64,
    selected_queue: u32,
    interrupt_status: u32,
    config_generation: u32,
    active: bool,
    queues: Vec<SavedQueue>,
    /// The device's own.
    pub device: DeviceState,
}

impl MmioTransport {
    /// A transport after reset.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn new(
        device: Box<dyn SavedDevice>,
        memory: GuestMemoryMmap,
    ) -> Result<Self, TransportError> {
        let name = device.name();
        let eventfd = || {
            new_event().map_err(|source| TransportError::EventFd {
                device: name,
                source,
            })
        };
        let interrupt = Arc::new(MmioInterrupt {
            status: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            line: eventfd()?,
        });
        let queues = new_queues(device.as_ref())?;
        let own_doorbells = device.own_doorbells();
        let serves_itself = own_doorbells.is_some();
        let doorbells = match own_doorbells {
            Some(doorbells) => doorbells,
            None => queues
                .iter()
                .map(|_| eventfd().map(Arc::new))
                .collect::<Result<_, _>>()?,
        };
        let backend = device
            .backend_fd()
            .map(|fd| fd.try_clone_to_owned())
            .transpose()
            .map_err(|source| TransportError::EventFd {
                device: name,
                source,
            })?;
        let state = TransportState {
            device,
            memory,
            interrupt: Arc::clone(&interrupt),
            status: 0,
            device_features_page: 0,
            driver_features_page: 0,
            driver_features: 0,
            selected_queue: 0,
            queues,
            active: false,
        };
        Ok(Self {
            name,
            state: Mutex::new(state),
            interrupt,
            doorbells,
            serves_itself,
            backend,
            is_logged: AtomicBool::new(false),
        })
    }

    /// A transport as it was saved, in front of a restored device.
    ///
    /// # Errors
    /// [`TransportError`].
    pub fn restore(
        device: Box<dyn SavedDevice>,
        memory: GuestMemoryMmap,
        saved: &SavedTransport,
    ) -> Result<Self, TransportError> {
        let transport = Self::new(device, memory)?;
        transport.lock().restore(saved)?;
        Ok(transport)
    }

    /// Lets the device tell the guest about the restore, and repeats notifications that may be lost. Once,
    /// with line and doorbells connected, before any vCPU runs.
    pub fn resume(&self) {
        let mut state = self.lock();
        if state.active {
            let result = state.device.resume();
            self.retire_if_broken(&mut state, result);
            // A doorbell that rang just before the save is not saved. A spurious one is harmless.
            for doorbell in &self.doorbells {
                let _ = doorbell.write(1);
            }
        }
        drop(state);
        // KVM delivers irqfds through a work queue, so a line raised just before the save may be missing
        // from the saved interrupt controller. A second interrupt for the same status finds nothing to do.
        if self.interrupt.status.load(Ordering::SeqCst) != 0 {
            let _ = self.interrupt.line.write(1);
        }
    }

    /// State of transport and device. vCPUs are halted and the device is not being served.
    #[must_use]
    pub fn save(&self) -> SavedTransport {
        let state = self.lock();
        SavedTransport {
            status: state.status,
            device_features_page: state.device_features_page,
            driver_features_page: state.driver_features_page,
            driver_features: state.driver_features,
            selected_queue: state.selected_queue,
            interrupt_status: self.interrupt.status.load(Ordering::SeqCst),
            config_generation: self.interrupt.generation.load(Ordering::SeqCst),
            active: state.active,
            queues: state.saved_queues(),
            device: state.device.save(),
        }
    }

    /// The device's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Written to raise the device's interrupt.
    #[must_use]
    pub fn interrupt_line(&self) -> &EventFd {
        &self.interrupt.line
    }

    /// One per queue, signalled when the guest writes its index to [`QUEUE_NOTIFY`].
    #[must_use]
    pub fn doorbells(&self) -> &[Arc<EventFd>] {
        &self.doorbells
    }

    /// A thread of the device waits for the doorbells, and nobody else may.
    #[must_use]
    pub fn serves_itself(&self) -> bool {
        self.serves_itself
    }

    /// Lets the device serve no further request. Returns whether it will tell when none is in service.
    pub fn hold(&self, round: u64) -> bool {
        self.lock().device.hold(round)
    }

    /// Ends a hold.
    pub fn release(&self) {
        self.lock().device.release();
    }

    /// Lets a restored device change what outlives the guest.
    pub fn let_writes_pass(&self) {
        self.lock().device.let_writes_pass();
    }

    /// Readable while the device's backend has work.
    #[must_use]
    pub fn backend(&self) -> Option<&OwnedFd> {
        self.backend.as_ref()
    }

    /// Clears a doorbell and serves its queue.
    pub fn serve_queue(&self, index: u16) {
        let Some(doorbell) = self.doorbells.get(usize::from(index)) else {
            return;
        };
        // Cleared first, so that a ring during the service is not lost.
        if doorbell.read().is_err() {
            return;
        }
        let mut state = self.lock();
        if state.active {
            let result = state.device.serve_queue(index);
            self.retire_if_broken(&mut state, result);
        }
    }

    /// Serves the device's backend.
    pub fn serve_backend(&self) {
        let mut state = self.lock();
        // Served also without a guest driver, or after it broke its device: host programs may connect
        // nevertheless, and need an answer.
        let result = state.device.serve_backend();
        self.retire_if_broken(&mut state, result);
    }

    fn lock(&self) -> MutexGuard<'_, TransportState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a device out of service that its guest broke, and tells the guest, as the machine itself has not
    /// failed.
    fn retire_if_broken(&self, state: &mut TransportState, result: Result<(), DeviceError>) {
        let Err(error) = result else { return };
        if !self.is_logged.swap(true, Ordering::Relaxed) {
            let text = error_text::with_causes(&error);
            log::line(format_args!(
                "{} device needs a reset by its driver: {text}",
                self.name
            ));
        }
        // Its rings must not be used again.
        state.take_out_of_service();
        state.status |= VIRTIO_CONFIG_S_NEEDS_RESET;
        if state.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.interrupt.signal_config();
        }
    }

    fn write_register(&self, offset: u64, value: u32) {
        match offset {
            0x50 => {
                // Reached only before the doorbell is connected, or with an invalid index.
                let index = usize::try_from(value).unwrap_or(usize::MAX);
                if let Some(doorbell) = self.doorbells.get(index) {
                    let _ = doorbell.write(1);
                }
            }
            0x64 => {
                self.interrupt.status.fetch_and(!value, Ordering::SeqCst);
            }
            0x70 => {
                let mut state = self.lock();
                let result = state.write_status(value);
                self.retire_if_broken(&mut state, result);
            }
            _ => self.lock().write(offset, value),
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // Read in each interrupt: not behind a lock.
        if offset == INTERRUPT_STATUS && data.len() == 4 {
            let status = self.interrupt.status.load(Ordering::SeqCst);
            return data.copy_from_slice(&status.to_le_bytes());
        }
        let state = self.lock();
        if let Some(offset) = offset.checked_sub(CONFIG_SPACE) {
            return state.device.read_config(offset, data);
        }
        // All registers are 32 bits wide and aligned (virtio 1.2, 4.2.2.2).
        // What KVM takes from `data` after any other access would be that of an earlier one.
        data.fill(0);
        if let Ok(data) = <&mut [u8; 4]>::try_from(data)
            && offset.is_multiple_of(4)
        {
            *data = state.read(offset).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG_SPACE) {
            return self.lock().device.write_config(offset, data);
        }
        if let Ok(data) = <[u8; 4]>::try_from(data) {
            self.write_register(offset, u32::from_le_bytes(data));
        }
    }
}

#[cfg(test)]
mod tests;
