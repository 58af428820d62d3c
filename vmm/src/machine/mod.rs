//! One machine: its parts, and actions on all of its vCPUs.
//!
//! `build` makes it from a kernel, `restore` from an image; `run` is the single loop that owns it from
//! then on. vCPU threads and the loop lock one device at a time.

pub mod build;
pub mod configuration;
pub mod devices;
pub mod ending;
pub mod events;
pub mod halt;
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
    /// The supervisor waits for the event that the image's use is durable.
    announces_consumption: bool,
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

/// Filters of the threads that a machine begins with; none where threads are not confined.
#[derive(Debug, Default)]
struct Filters {
    vcpu: Option<Arc<BpfProgram>>,
    disk: Option<Arc<BpfProgram>>,
}

/// Installs the handler of filter violations and compiles the filters.
fn prepare_sandbox(enabled: bool, has_disks: bool) -> Result<Filters, SandboxError> {
    if !enabled {
        return Ok(Filters::default());
    }
    sandbox::install_violation_handler()?;
    let disk = has_disks.then(|| sandbox::filter(ThreadKind::Disk));
    Ok(Filters {
        vcpu: Some(Arc::new(sandbox::filter(ThreadKind::Vcpu)?)),
        disk: disk.transpose()?.map(Arc::new),
    })
}

impl Machine {
    /// Lets all vCPUs run.
    fn run_vcpus(&self) -> Result<(), VcpuError> {
        self.vcpus.iter().try_for_each(VcpuThread::run)
    }

    fn clock(&self) -> Result<kvm_clock_data, VmError> {
        self.vm.clock()
    }
}
