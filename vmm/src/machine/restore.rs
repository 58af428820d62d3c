//! Makes a machine from its image.
//!
//! Order: first everything that may refuse the image; then KVM and devices get their state; then devices
//! tell the guest about the restore. The image stays as it is: `run` consumes it right before the first
//! vCPU runs, so that a failure before that leaves it for another attempt.

use std::path::PathBuf;
use std::sync::Arc;

use kvm_bindings::CpuId;
use vmm_control::ExitReason;
use vmm_sys_util::errno;

use super::configuration::{Disk, HostSide, Identity, MachineConfiguration};
use super::devices::{DeviceContext, Devices, DevicesError};
use super::events;
use super::suspend::MachineState;
use super::{Machine, RestoredImage, prepare_sandbox};
use crate::image::{self, CpuIdentity, Expectation, Fault, OpenError, VerifyError};
use crate::memory::MemoryError;
use crate::phases::Phases;
use crate::sandbox::SandboxError;
use crate::sys::tsc::host_tsc;
use crate::vcpu::msrs::{MsrError, saved_indices};
use crate::vcpu::registers::TscMove;
use crate::vcpu::template::CpuTemplate;
use crate::vcpu::thread::{Shared, Start, VcpuError, VcpuThread};
use crate::vcpu::{cpuid, features};
use crate::vm::{Capabilities, Vm, VmError, host_capabilities, open_kvm};

/// What to restore.
#[derive(Debug, Clone)]
pub struct RestoreSource {
    /// The image directory.
    pub image: PathBuf,
    /// Which generation must have been suspended into it.
    pub expected_generation: Option<u64>,
    /// When memory is checked.
    pub verify: Verify,
    /// These replace the saved disks, by position; none keeps them.
    pub disks: Vec<Disk>,
    /// Replaces the saved vsock address.
    pub vsock_cid: Option<u32>,
}

/// When the checksums of guest memory are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verify {
    /// Before the guest runs.
    Full,
    /// While it runs.
    Background,
    /// Never.
    Off,
}

/// Why a machine can't be restored. Some variants are also in `BuildError`: each operation has an error
/// type of its own.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The image is refused.
    #[error(transparent)]
    Image(#[from] OpenError),
    /// Its memory is damaged.
    #[error("the image's memory was found damaged before the guest ran")]
    Verify(#[from] VerifyError),
    /// Its manifest holds another kind of configuration.
    #[error("the machine configuration in the manifest is not usable")]
    Configuration(#[source] serde_json::Error),
    /// Its state can't be decoded.
    #[error("state.bin is not usable")]
    State(#[source] postcard::Error),
    /// State and configuration contradict each other.
    #[error("the image holds {saved} vCPUs, its configuration says {configured}")]
    VcpuCount {
        /// In state.bin.
        saved: usize,
        /// In the manifest.
        configured: u8,
    },
    /// The guest saw features that KVM does not offer here.
    #[error("the guest needs {missing}, which KVM does not offer here ({host})")]
    Features {
        /// Names of features.
        missing: String,
        /// This host's processor.
        host: String,
    },
    /// Memory can't be mapped.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// KVM.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// KVM's CPUID.
    #[error("cannot determine which processor KVM supports")]
    Cpuid(#[source] errno::Error),
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

impl RestoreError {
    /// What is at fault: it decides what becomes of the image.
    #[must_use]
    pub fn fault(&self) -> Fault {
        let unfit = |refused| match refused {
            true => Fault::Unfit,
            false => Fault::Host,
        };
        match self {
            Self::Image(error) => error.fault(),
            Self::Verify(error) => error.fault(),
            // Their digests are right, so another program has written them.
            Self::Configuration(_) | Self::State(_) | Self::VcpuCount { .. } => Fault::Unfit,
            Self::Features { .. } => Fault::Unfit,
            Self::Devices(error) => unfit(error.refuses_state()),
            Self::Vcpu(VcpuError::Registers { source, .. }) => unfit(source.refuses_state()),
            Self::Memory(_)
            | Self::Vm(_)
            | Self::Cpuid(_)
            | Self::Msrs(_)
            | Self::Vcpu(_)
            | Self::Sandbox(_)
            | Self::Events(_) => Fault::Host,
        }
    }

    /// Why a VMM ends that cannot restore the image.
    #[must_use]
    pub fn exit_reason(&self) -> ExitReason {
        match self.fault() {
            Fault::Damaged => ExitReason::ImageRefused,
            Fault::Unfit => ExitReason::ImageUnfit,
            Fault::Host => ExitReason::HostFailed,
        }
    }
}

/// Restores a machine whose vCPUs are about to continue.
///
/// # Errors
/// [`RestoreError`].
pub fn restore(
    identity: Identity,
    source: &RestoreSource,
    host: HostSide,
    mut phases: Phases,
) -> Result<Machine, RestoreError> {
    let kvm = open_kvm()?;
    let supported = cpuid::supported(&kvm).map_err(RestoreError::Cpuid)?;
    let cpu = cpuid::identity(&supported, host_capabilities(&kvm)).map_err(RestoreError::Cpuid)?;
    phases.end("vmm_start");

    let expectation = Expectation {
        machine_id: &identity.machine_id,
        generation: source.expected_generation,
        cpu: &cpu,
    };
    let image = image::open(&source.image, &expectation)?;
    let configuration = configuration(&image.manifest.machine, source)?;
    let state: MachineState = postcard::from_bytes(&image.state).map_err(RestoreError::State)?;
    if state.vcpus.len() != usize::from(configuration.vcpus) {
        let (saved, configured) = (state.vcpus.len(), configuration.vcpus);
        return Err(RestoreError::VcpuCount { saved, configured });
    }
    check_features(&state, &supported, host_capabilities(&kvm), &cpu)?;
    phases.end("image_open");

    let memory = Arc::new(image.map()?);
    phases.end("memory_map");
    if source.verify == Verify::Full {
        image.verify_full()?;
        phases.end("verify");
    }

    let vm = Arc::new(Vm::create(kvm, &memory.guest)?);
    let filters = prepare_sandbox(host.sandbox, !configuration.disks.is_empty())?;
    let (event_sender, events) = events::queue().map_err(RestoreError::Events)?;
    let context = DeviceContext {
        configuration: &configuration,
        vsock: host.vsock.as_ref(),
        memory: &memory.guest,
        events: &event_sender,
        disk_filter: filters.disk,
    };
    let devices = Devices::restore(
        &context,
        host.console,
        &state.devices,
        image
            .supplement
            .as_ref()
            .map(|supplement| &*supplement.disks),
    )?;
    let shared = Shared {
        vm: Arc::clone(&vm),
        buses: devices.buses.clone(),
        msr_indices: saved_indices(vm.kvm())?.into(),
        observer: Arc::new(event_sender.clone()),
        filter: filters.vcpu,
    };
    let supplement = image.supplement.as_ref();
    let tsc = TscMove {
        saved: state.host_tsc,
        saved_host_khz: supplement.and_then(|supplement| supplement.host_tsc_khz),
        now: host_tsc(),
    };
    let start = |state| Start::Restore { state, tsc };
    let starts = state.vcpus.into_iter().map(start).collect();
    let vcpus = VcpuThread::start_all(starts, &shared)?;
    vm.restore(&state.vm)?;
    devices.connect(&vm)?;
    devices.resume();
    phases.end("kvm_restore");
    let restored_from = RestoredImage {
        image,
        check_memory: source.verify == Verify::Background,
    };
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
        restored_from: Some(restored_from),
    })
}

/// Checks that KVM offers here what the guest saw.
fn check_features(
    state: &MachineState,
    supported: &CpuId,
    capabilities: Capabilities,
    cpu: &CpuIdentity,
) -> Result<(), RestoreError> {
    let vcpus = u8::try_from(state.vcpus.len()).unwrap_or(u8::MAX);
    let Some(first) = state.vcpus.first() else {
        return Ok(());
    };
    let offered = cpuid::for_vcpu(supported, 0, vcpus, capabilities, CpuTemplate::Host)
        .map_err(RestoreError::Cpuid)?;
    let missing = features::missing(first.seen(), offered.as_slice());
    if missing.is_empty() {
        return Ok(());
    }
    Err(RestoreError::Features {
        missing: features::in_words(&missing),
        host: cpu.to_string(),
    })
}

/// The saved configuration, with the disks and the vsock address that `source` replaces.
fn configuration(
    saved: &serde_json::Value,
    source: &RestoreSource,
) -> Result<MachineConfiguration, RestoreError> {
    let mut configuration: MachineConfiguration =
        serde::Deserialize::deserialize(saved).map_err(RestoreError::Configuration)?;
    if !source.disks.is_empty() {
        if source.disks.len() != configuration.disks.len() {
            return Err(DevicesError::DiskCount.into());
        }
        configuration.disks.clone_from(&source.disks);
    }
    // An address alone does not add a vsock device.
    if configuration.vsock_cid.is_some() && source.vsock_cid.is_some() {
        configuration.vsock_cid = source.vsock_cid;
    }
    Ok(configuration)
}
