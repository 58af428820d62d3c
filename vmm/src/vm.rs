//! KVM's virtual machine: memory slots, interrupt controllers, timer, clock.
//!
//! The calls are in the order that Documentation/virt/kvm/api.rst requires. vCPUs are in `vcpu`.

use std::sync::Arc;

use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_PMU_CAPABILITY, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, KVM_PMU_CAP_DISABLE, kvm_clock_data,
    kvm_enable_cap, kvm_irqchip, kvm_pit_config, kvm_pit_state2,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

use crate::sys::kvm::set_memory_region;

/// Three pages for Intel processors' real-mode emulation (api.rst, KVM_SET_TSS_ADDR): below 4 GiB,
/// outside of memory slots and devices.
const TSS_ADDRESS: usize = 0xfffb_d000;
/// One page for the same (api.rst, KVM_SET_IDENTITY_MAP_ADDR).
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// Why KVM could not be used.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// No /dev/kvm, or no permission.
    #[error("cannot open /dev/kvm; load kvm_intel or kvm_amd, and run as root or in group kvm")]
    Open(#[source] errno::Error),
    /// Another KVM API than the stable one.
    #[error("KVM API version {found} is not {KVM_API_VERSION}")]
    ApiVersion {
        /// The kernel's version.
        found: i32,
    },
    /// This kernel's KVM is too old.
    #[error("KVM lacks {capability}; a newer host kernel is needed")]
    MissingCapability {
        /// Name as in api.rst.
        capability: &'static str,
    },
    /// A call failed.
    #[error("{call} failed")]
    Call {
        /// Name as in api.rst.
        call: &'static str,
        /// Why.
        source: errno::Error,
    },
}

impl VmError {
    /// For `map_err`: an error of that call.
    pub(crate) fn call(call: &'static str) -> impl FnOnce(errno::Error) -> Self {
        move |source| Self::Call { call, source }
    }
}

/// Opens this host's KVM.
///
/// # Errors
/// [`VmError`].
pub fn open_kvm() -> Result<Kvm, VmError> {
    let kvm = Kvm::new().map_err(VmError::Open)?;
    // Anything but 12 must be refused (api.rst, 4.1).
    let found = kvm.get_api_version();
    if found.cast_unsigned() != KVM_API_VERSION {
        return Err(VmError::ApiVersion { found });
    }
    Ok(kvm)
}

/// Optional capabilities of this host's KVM.
#[derive(Debug, Clone, Copy)]
pub struct Capabilities {
    /// Bytes of an xsave area; 0 where only KVM_GET_XSAVE exists.
    pub xsave2_bytes: usize,
    /// KVM_SET_TSC_KHZ may scale.
    pub tsc_control: bool,
    /// The LAPIC timer has a TSC-deadline mode.
    pub tsc_deadline: bool,
    /// KVM_KVMCLOCK_CTRL exists.
    pub kvmclock_ctrl: bool,
}

/// The capabilities of this host's KVM for any VM.
#[must_use]
pub fn host_capabilities(kvm: &Kvm) -> Capabilities {
    Capabilities {
        xsave2_bytes: usize::try_from(kvm.check_extension_int(Cap::Xsave2)).unwrap_or(0),
        tsc_control: kvm.check_extension(Cap::TscControl),
        tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
        kvmclock_ctrl: kvm.check_extension(Cap::KvmclockCtrl),
    }
}

/// A VM without vCPUs.
#[derive(Debug)]
pub struct Vm {
    kvm: Kvm,
    fd: Arc<VmFd>,
    capabilities: Capabilities,
    // The memory slots refer to it.
    memory: GuestMemoryMmap,
}

/// State of the VM apart from vCPUs, devices and memory.
#[derive(Debug, Serialize, Deserialize)]
pub struct VmState {
    irqchips: [kvm_irqchip; 3],
    pit: kvm_pit_state2,
    clock: kvm_clock_data,
}

impl Vm {
    /// Creates a VM with in-kernel interrupt controllers and PIT, and gives it memory.
    ///
    /// # Errors
    /// [`VmError`], naming the call.
    pub fn create(kvm: Kvm, memory: &GuestMemoryMmap) -> Result<Self, VmError> {
        let fd = kvm.create_vm().map_err(VmError::call("KVM_CREATE_VM"))?;
        for (capability, name) in [
            (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
            (Cap::Irqfd, "KVM_CAP_IRQFD"),
            (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
            (Cap::AdjustClock, "KVM_CAP_ADJUST_CLOCK"),
            (Cap::MpState, "KVM_CAP_MP_STATE"),
        ] {
            if !fd.check_extension(capability) {
                return Err(VmError::MissingCapability { capability: name });
            }
        }
        let capabilities = Capabilities {
            // The VM's value may be larger than the host's (api.rst, KVM_GET_XSAVE2).
            xsave2_bytes: usize::try_from(fd.check_extension_int(Cap::Xsave2)).unwrap_or(0),
            ..host_capabilities(&kvm)
        };
        disable_performance_counters(&fd)?;
        // Both must precede the first vCPU. AMD processors ignore them.
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            .map_err(VmError::call("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(TSS_ADDRESS)
            .map_err(VmError::call("KVM_SET_TSS_ADDR"))?;
        for (slot, region) in (0..).zip(memory.iter()) {
            set_memory_region(&fd, slot, region)
                .map_err(VmError::call("KVM_SET_USER_MEMORY_REGION"))?;
        }
        // Before any vCPU, so that each gets an in-kernel LAPIC; the PIT needs the irqchip.
        fd.create_irq_chip()
            .map_err(VmError::call("KVM_CREATE_IRQCHIP"))?;
        let pit = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..kvm_pit_config::default()
        };
        fd.create_pit2(pit)
            .map_err(VmError::call("KVM_CREATE_PIT2"))?;
        Ok(Self {
            kvm,
            fd: Arc::new(fd),
            capabilities,
            memory: memory.clone(),
        })
    }

    /// The capabilities of this VM.
    #[must_use]
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The KVM device, for host-wide questions.
    #[must_use]
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// Creates the vCPU of that APIC id.
    ///
    /// # Errors
    /// [`VmError::Call`].
    pub fn create_vcpu(&self, index: u8) -> Result<VcpuFd, VmError> {
        self.fd
            .create_vcpu(index.into())
            .map_err(VmError::call("KVM_CREATE_VCPU"))
    }

    /// Makes writes to `event` pulse an interrupt line.
    ///
    /// # Errors
    /// [`VmError::Call`].
    pub fn connect_interrupt(&self, event: &EventFd, gsi: u32) -> Result<(), VmError> {
        self.fd
            .register_irqfd(event, gsi)
            .map_err(VmError::call("KVM_IRQFD"))
    }

    /// Makes guest writes of `value` at `address` signal `event` without an exit to this process.
    ///
    /// # Errors
    /// [`VmError::Call`].
    pub fn connect_doorbell(
        &self,
        event: &EventFd,
        address: u64,
        value: u32,
    ) -> Result<(), VmError> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(VmError::call("KVM_IOEVENTFD"))
    }

    /// Reads the clock; to be called right after the vCPUs have stopped.
    ///
    /// # Errors
    /// [`VmError::Call`].
    pub fn clock(&self) -> Result<kvm_clock_data, VmError> {
        self.fd.get_clock().map_err(VmError::call("KVM_GET_CLOCK"))
    }

    /// Reads state, once the halted vCPUs have saved theirs (until then, KVM_GET_MP_STATE may move an
    /// interrupt). `clock` was read when they stopped.
    ///
    /// # Errors
    /// [`VmError::Call`].
    pub fn save(&self, clock: kvm_clock_data) -> Result<VmState, VmError> {
        let mut irqchips = [kvm_irqchip::default(); 3];
        for (chip, id) in irqchips.iter_mut().zip(IRQCHIPS) {
            chip.chip_id = id;
            self.fd
                .get_irqchip(chip)
                .map_err(VmError::call("KVM_GET_IRQCHIP"))?;
        }
        let pit = self.fd.get_pit2().map_err(VmError::call("KVM_GET_PIT2"))?;
        Ok(VmState {
            irqchips,
            pit,
            clock,
        })
    }

    /// Writes saved state, once the vCPUs have theirs, since pending lines of the I/O APIC reach the LAPICs
    /// at once.
    ///
    /// # Errors
    /// [`VmError::Call`].
    pub fn restore(&self, state: &VmState) -> Result<(), VmError> {
        self.fd
            .set_pit2(&state.pit)
            .map_err(VmError::call("KVM_SET_PIT2"))?;
        for (chip, id) in state.irqchips.iter().zip(IRQCHIPS) {
            let chip = kvm_irqchip {
                chip_id: id,
                ..*chip
            };
            self.fd
                .set_irqchip(&chip)
                .map_err(VmError::call("KVM_SET_IRQCHIP"))?;
        }
        // Without flags, above all KVM_CLOCK_REALTIME, the clock continues where it stopped. The guest's
        // monotonic time must not include the time for which it was suspended, or all its timeouts and
        // watchdogs fire at once. guest-init steps the wall clock.
        let clock = kvm_clock_data {
            clock: state.clock.clock,
            ..kvm_clock_data::default()
        };
        self.fd
            .set_clock(&clock)
            .map_err(VmError::call("KVM_SET_CLOCK"))
    }
}

/// Counters belong to the host that they ran on, so guests have none (`vcpu/cpuid.rs` hides them). The
/// oldest ones of AMD processors can be used without a CPUID bit, so KVM has to refuse them, which must be
/// enabled before the first vCPU (api.rst, KVM_CAP_PMU_CAPABILITY). Kernels before 5.18 can't.
fn disable_performance_counters(fd: &VmFd) -> Result<(), VmError> {
    let offered = fd.check_extension_raw(KVM_CAP_PMU_CAPABILITY.into());
    if offered & KVM_PMU_CAP_DISABLE.cast_signed() == 0 {
        return Ok(());
    }
    let mut capability = kvm_enable_cap {
        cap: KVM_CAP_PMU_CAPABILITY,
        ..kvm_enable_cap::default()
    };
    capability.args[0] = KVM_PMU_CAP_DISABLE.into();
    fd.enable_cap(&capability)
        .map_err(VmError::call("KVM_ENABLE_CAP (KVM_CAP_PMU_CAPABILITY)"))
}

const IRQCHIPS: [u32; 3] = [
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_IRQCHIP_IOAPIC,
];
