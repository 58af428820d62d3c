//! One machine: its parts, and actions on all of its vCPUs.
//!
//! `build` makes it from a kernel, `restore` from an image; `run` is the single loop that owns it from
//! then on. vCPU threads and the loop lock one device at a time.

pub mod build;
pub mod configuration;
pub mod devices;
pub mod ending;
pub mod events;
pub mod restore;
pub mod run;
pub mod state;
pub mod suspend;

use std::sync::Arc;

use kvm_bindings::kvm_clock_data;
use seccompiler::BpfProgram;

use self::configuration::{Identity, MachineConfiguration};
use self::devices::Devices;
use self::events::EventQueue;
use self::events::EventSender;
use crate::image::{CpuIdentity, OpenImage};
use crate::memory::MachineMemory;
use crate::phases::Phases;
use crate::sandbox::{self, SandboxError, ThreadKind};
use crate::vcpu::thread::{VcpuError, VcpuThread};
use crate::vm::{Vm, VmError};

/// A machine whose vCPUs are set up and halted.
#[derive(Debug)]
pub struct Machine {
    // Dropped first, so that no guest code runs while the rest is dropped.
    vcpus: Vec<VcpuThread>,
    devices: Devices,
    vm: Arc<Vm>,
    memory: Arc<MachineMemory>,
    identity: Identity,
    configuration: MachineConfiguration,
    cpu: CpuIdentity,
    phases: Phases,
    events: EventQueue,
    event_sender: EventSender,
    /// Threads are confined.
    sandbox: bool,
    /// Until all vCPUs have been entered; none after a boot.
    restored_from: Option<RestoredImage>,
}

/// The image that a machine was restored from.
#[derive(Debug)]
struct RestoredImage {
    image: OpenImage,
    /// Memory is to be checked while the guest runs.
    check_memory: bool,
}

/// Installs the handler of filter violations and compiles the filter of vCPU threads; none where threads
/// are not confined.
fn prepare_sandbox(enabled: bool) -> Result<Option<Arc<BpfProgram>>, SandboxError> {
    if !enabled {
        return Ok(None);
    }
    sandbox::install_violation_handler()?;
    let filter = sandbox::filter(ThreadKind::Vcpu)?;
    Ok(Some(Arc::new(filter)))
}

impl Machine {
    /// Lets all vCPUs run.
    fn run_vcpus(&self) -> Result<(), VcpuError> {
        self.vcpus.iter().try_for_each(VcpuThread::run)?;
        self.vcpus.iter().try_for_each(VcpuThread::wait_running)
    }

    /// Halts all vCPUs. Sends the command to all before it waits for the first, so that none spins for long
    /// on a lock whose holder has halted.
    fn halt_vcpus(&self) -> Result<(), VcpuError> {
        self.vcpus.iter().try_for_each(VcpuThread::pause)?;
        self.vcpus.iter().try_for_each(VcpuThread::wait_paused)
    }

    fn clock(&self) -> Result<kvm_clock_data, VmError> {
        self.vm.clock()
    }
}
