//! Collects a halted machine's state and saves it in a thread of its own, so that the loop can receive
//! a cancellation meanwhile.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};
use vmm_control::{Phase, SuspendFigures};

use super::Machine;
use super::devices::SavedDevices;
use super::events::{EventSender, MachineEvent};
use crate::image::{self, DiskFile, SaveError, SaveRequest};
use crate::phases::Phases;
use crate::sys::tsc::host_tsc;
use crate::vcpu::registers::VcpuState;
use crate::vcpu::thread::{VcpuError, VcpuThread};
use crate::vm::{VmError, VmState};

/// The contents of `state.bin`.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    /// The host's time stamp counter when the vCPUs had halted.
    pub host_tsc: u64,
    /// In the order of their APIC ids.
    pub vcpus: Vec<Box<VcpuState>>,
    /// Interrupt controllers, timer, clock.
    pub vm: VmState,
    /// Serial port and virtio devices.
    pub devices: SavedDevices,
}

/// Why state can't be collected.
#[derive(Debug, thiserror::Error)]
pub enum CollectError {
    /// A vCPU.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// The rest of KVM.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// Encoding the state.
    #[error("cannot encode the machine's state")]
    Encode(#[source] postcard::Error),
    /// Encoding the configuration.
    #[error("cannot encode the machine's configuration")]
    Configuration(#[source] serde_json::Error),
    /// The host gives no thread.
    #[error("cannot start the saving thread")]
    Thread(#[source] std::io::Error),
}

/// A save in progress.
#[derive(Debug)]
pub struct Saving {
    cancel: Arc<AtomicBool>,
    _thread: JoinHandle<()>,
}

impl Saving {
    /// Cancels it, if its image is not committed yet.
    pub fn cancel(&self) {
        self.cancel.store(true, Ordering::SeqCst);
    }
}

impl Machine {
    /// Quiesces devices, collects state and starts to save it. The vCPUs have been halted since the end of
    /// the last phase. The outcome is sent as [`MachineEvent::Saved`].
    pub(super) fn start_save(
        &self,
        directory: PathBuf,
        mut phases: Phases,
    ) -> Result<Saving, CollectError> {
        let clock = self.clock()?;
        let host_tsc = host_tsc();
        self.devices.quiesce();
        phases.end("quiesce");
        let vcpus = self
            .vcpus
            .iter()
            .map(VcpuThread::save)
            .collect::<Result<Vec<_>, _>>()?;
        let host_tsc_khz = vcpus.first().and_then(|vcpu| vcpu.host_tsc_khz);
        let vcpus = vcpus.into_iter().map(|vcpu| vcpu.state).collect();
        let state = MachineState {
            host_tsc,
            vcpus,
            vm: self.vm.save(clock)?,
            devices: self.devices.save(),
        };
        let state = postcard::to_stdvec(&state).map_err(CollectError::Encode)?;
        let machine =
            serde_json::to_value(&self.configuration).map_err(CollectError::Configuration)?;
        phases.end("collect");

        let cancel = Arc::new(AtomicBool::new(false));
        let work = Work {
            directory,
            machine_id: self.identity.machine_id.clone(),
            generation: self.identity.generation,
            machine,
            cpu: self.cpu.clone(),
            state,
            host_tsc_khz,
            disks: self.devices.disk_files(),
            memory: Arc::clone(&self.memory),
            cancel: Arc::clone(&cancel),
            phases,
            events: self.event_sender.clone(),
        };
        let thread = std::thread::Builder::new()
            .name("save".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || work.save())
            .map_err(CollectError::Thread)?;
        Ok(Saving {
            cancel,
            _thread: thread,
        })
    }
}

const STACK_BYTES: usize = 512 << 10;

/// The data of the saving thread.
struct Work {
    directory: PathBuf,
    machine_id: String,
    generation: u64,
    machine: serde_json::Value,
    cpu: image::CpuIdentity,
    state: Vec<u8>,
    host_tsc_khz: Option<u32>,
    disks: Arc<[DiskFile]>,
    memory: Arc<crate::memory::MachineMemory>,
    cancel: Arc<AtomicBool>,
    phases: Phases,
    events: EventSender,
}

impl Work {
    fn save(self) {
        let request = SaveRequest {
            directory: &self.directory,
            machine_id: &self.machine_id,
            generation: self.generation,
            machine: &self.machine,
            cpu: &self.cpu,
            state: &self.state,
            host_tsc_khz: self.host_tsc_khz,
            disks: &self.disks,
            memory: &self.memory,
            cancel: &self.cancel,
        };
        let outcome = image::save(&request).map(|mut figures| {
            prepend_phases(&mut figures, self.phases.list());
            figures
        });
        self.events.send(MachineEvent::Saved(outcome));
    }
}

/// Puts `phases` before those of the image, without a gap between them.
fn prepend_phases(figures: &mut SuspendFigures, phases: &[Phase]) {
    if let (Some(last), Some(first)) = (phases.last(), figures.phases.first_mut()) {
        first.start_ns = last.end_ns;
    }
    figures.phases.splice(..0, phases.iter().cloned());
}

/// The kind of a save's failure on the control socket.
#[must_use]
pub fn failure_kind(error: &SaveError) -> &'static str {
    match error {
        SaveError::Cancelled => "cancelled",
        SaveError::NoSpace { .. } | SaveError::Quota { .. } => "no_space",
        _ => "io",
    }
}
