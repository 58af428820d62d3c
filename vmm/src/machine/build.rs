//! Cold boot: makes a machine from a kernel.

use std::path::PathBuf;
use std::sync::Arc;

use vm_memory::GuestMemoryError;
use vmm_sys_util::errno;

use super::configuration::{HostSide, Identity, MachineConfiguration};
use super::devices::{DeviceContext, Devices, DevicesError};
use super::events;
use super::{Machine, prepare_sandbox};
use crate::boot::acpi::{self, AcpiError, Hardware};
use crate::boot::entry;
use crate::boot::kernel::{KernelError, load_initramfs, load_kernel};
use crate::boot::parameters::{self, ParametersError};
use crate::memory::{MachineMemory, MemoryError};
use crate::phases::Phases;
use crate::sandbox::SandboxError;
use crate::vcpu::msrs::{MsrError, saved_indices};
use crate::vcpu::template::CpuTemplate;
use crate::vcpu::thread::{Shared, Start, VcpuError, VcpuThread};
use crate::vcpu::{cpuid, features};
use crate::vm::{Vm, VmError, open_kvm};

/// What to boot.
#[derive(Debug, Clone)]
pub struct BootSource {
    /// An uncompressed ELF kernel.
    pub kernel: PathBuf,
    /// Its initial file system.
    pub initramfs: Option<PathBuf>,
    /// Appended to the default command line.
    pub cmdline: String,
    /// Which processor the guest sees.
    pub cpu_template: CpuTemplate,
}

/// Why a machine can't be booted. Some variants are also in `RestoreError`: each operation has an error
/// type of its own.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel or initramfs.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Command line and boot parameters.
    #[error(transparent)]
    Parameters(#[from] ParametersError),
    /// ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// Descriptor and page tables.
    #[error("cannot write boot tables into guest memory")]
    Tables(#[from] GuestMemoryError),
    /// KVM.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// KVM's CPUID.
    #[error("cannot determine which processor KVM supports")]
    Cpuid(#[source] errno::Error),
    /// KVM offers less than the template has.
    #[error("this host has no {template} processor for guests: it lacks {lacking}")]
    Template {
        /// The template.
        template: CpuTemplate,
        /// Names of features.
        lacking: String,
    },
    /// KVM's registers.
    #[error("cannot determine which registers KVM can save")]
    Msrs(#[from] MsrError),
    /// Devices.
    #[error(transparent)]
    Devices(#[from] DevicesError),
    /// vCPUs.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// Threads can't be confined.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The host has no descriptor for an event queue.
    #[error("cannot create an event queue")]
    Events(#[source] std::io::Error),
}

/// Builds a machine that is about to boot.
///
/// # Errors
/// [`BuildError`].
pub fn boot(
    identity: Identity,
    configuration: MachineConfiguration,
    source: &BootSource,
    host: HostSide,
    mut phases: Phases,
) -> Result<Machine, BuildError> {
    phases.end("vmm_start");
    let memory = Arc::new(MachineMemory::anonymous(configuration.memory_mib)?);
    phases.end("memory_map");

    let kernel = load_kernel(&memory.guest, &source.kernel)?;
    let initramfs = match &source.initramfs {
        Some(path) => Some(load_initramfs(&memory.guest, path, kernel)?),
        None => None,
    };
    phases.end("kernel_load");

    let filters = prepare_sandbox(host.sandbox, !configuration.disks.is_empty())?;
    let (event_sender, events) = events::queue().map_err(BuildError::Events)?;
    let context = DeviceContext {
        configuration: &configuration,
        vsock: host.vsock.as_ref(),
        memory: &memory.guest,
        events: &event_sender,
        disk_filter: filters.disk,
    };
    let devices = Devices::new(&context, host.console)?;
    parameters::write(&memory.guest, &source.cmdline, initramfs)?;
    let hardware = Hardware {
        vcpus: configuration.vcpus,
        virtio_devices: devices.virtio_count(),
    };
    acpi::write(&memory.guest, hardware)?;
    let mut boot_entry = Some(Box::new(entry::prepare(&memory.guest, kernel.entry)?));

    let vm = Arc::new(Vm::create(open_kvm()?, &memory.guest)?);
    devices.connect(&vm)?;
    let supported = cpuid::supported(vm.kvm()).map_err(BuildError::Cpuid)?;
    let cpu = cpuid::identity(&supported, vm.capabilities()).map_err(BuildError::Cpuid)?;
    let template = source.cpu_template;
    let lacking = template.lacking(supported.as_slice());
    if !lacking.is_empty() {
        let lacking = features::in_words(&lacking);
        return Err(BuildError::Template { template, lacking });
    }
    let shared = Shared {
        vm: Arc::clone(&vm),
        buses: devices.buses.clone(),
        msr_indices: saved_indices(vm.kvm())?.into(),
        observer: Arc::new(event_sender.clone()),
        filter: filters.vcpu,
    };
    let mut starts = Vec::with_capacity(configuration.vcpus.into());
    for index in 0..configuration.vcpus {
        let vcpus = configuration.vcpus;
        let cpuid = cpuid::for_vcpu(&supported, index, vcpus, vm.capabilities(), template)
            .map_err(BuildError::Cpuid)?;
        starts.push(Start::Boot {
            cpuid,
            entry: boot_entry.take(),
        });
    }
    let vcpus = VcpuThread::start_all(starts, &shared)?;
    phases.end("kvm_setup");
    Ok(Machine {
        vcpus,
        devices,
        vm,
        memory,
        identity,
        configuration,
        cpu,
        phases,
        events,
        event_sender,
        sandbox: host.sandbox,
        announces_consumption: host.announces_consumption,
        restored_from: None,
    })
}
