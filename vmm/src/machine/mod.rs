//! One machine: its parts, and what can be done to all of them at once.
//!
//! `build` makes it from a kernel, `restore` from an image; `run` is the single loop that owns it from
//! then on. The order of locks and threads: vCPU threads lock one device at a time, the loop too.

pub mod build;
pub mod configuration;
pub mod devices;
pub mod ending;
pub mod events;
pub mod phases;
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
use self::phases::Phases;
use crate::image::{CpuIdentity, OpenImage};
use crate::memory::MachineMemory;
use crate::sandbox::{self, SandboxError, ThreadKind};
use crate::vcpu::thread::{VcpuError, VcpuThread};
use crate::vm::{Vm, VmError};

/// A machine whose vCPUs are set up and halted.
#[derive(Debug)]
pub struct Machine {
    // Dropped first, so that no guest code runs while the rest goes.
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
    /// What it was restored from, as long as that is of interest.
    origin: Option<Origin>,
}

/// The image that a machine was restored from.
#[derive(Debug)]
struct Origin {
    image: OpenImage,
    /// Memory is still to be checked, behind the guest's back.
    check_memory: bool,
}

/// Confines vCPU threads.
fn vcpu_filter() -> Result<Arc<BpfProgram>, SandboxError> {
    sandbox::prepare()?;
    sandbox::filter(ThreadKind::Vcpu).map(Arc::new)
}

impl Machine {
    /// Lets all vCPUs run.
    fn run_vcpus(&self) -> Result<(), VcpuError> {
        self.vcpus.iter().try_for_each(VcpuThread::run)?;
        self.vcpus.iter().try_for_each(VcpuThread::wait_running)
    }

    /// Halts all vCPUs. All are told before the first is waited for, so that none spins on a lock whose
    /// holder has halted for longer than need be.
    fn halt_vcpus(&self) -> Result<(), VcpuError> {
        self.vcpus.iter().try_for_each(VcpuThread::pause)?;
        self.vcpus.iter().try_for_each(VcpuThread::wait_paused)
    }

    fn clock(&self) -> Result<kvm_clock_data, VmError> {
        self.vm.clock()
    }
}
