//! A vCPU's state: reads and writes it, in an order that loses nothing.
//!
//! The reasons for this order (Documentation/virt/kvm/api.rst and the kernel behind it): KVM_GET_MP_STATE
//! accepts pending INIT and SIPI, which changes other state, so it is read first; KVM_GET_VCPU_EVENTS is
//! read last, when no other call can move an event any more. CPUID is written first, since it decides
//! which other values are valid; SREGS before LAPIC, as they hold the APIC's mode; LAPIC before
//! the TSC deadline, as it holds the timer's mode; events last, as KVM_SET_REGS drops a pending
//! exception.

use kvm_bindings::{
    CpuId, Xsave, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry,
    kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use vmm_sys_util::errno;

use super::msrs::{self, IA32_TSC, MsrError};
use super::tsc::{HostCounter, Scaling, continued_offset, is_unscaled};
use crate::sys::kvm::{set_xsave, xsave2};
use crate::sys::tsc::{set_tsc_offset, tsc_offset};
use crate::vm::Capabilities;

/// Registers of the boot processor at the kernel's entry.
#[derive(Debug)]
pub struct EntryState {
    /// General registers.
    pub regs: kvm_regs,
    /// Applied to the reset values of the segment and control registers.
    pub sregs: fn(&mut kvm_sregs),
}

/// Everything that a vCPU needs to continue where it was.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    cpuid: Vec<kvm_cpuid_entry2>,
    tsc_khz: Option<u32>,
    /// From the host's counter; none where KVM does not report it.
    tsc_offset: Option<u64>,
    mp_state: kvm_mp_state,
    regs: kvm_regs,
    sregs: kvm_sregs,
    xsave: Xsave,
    xcrs: kvm_xcrs,
    debug_regs: kvm_debugregs,
    lapic: kvm_lapic_state,
    msrs: Vec<kvm_msr_entry>,
    events: kvm_vcpu_events,
}

/// Why state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RegistersError {
    /// A call failed.
    #[error("{call} failed")]
    Call {
        /// Name as in api.rst.
        call: &'static str,
        /// Why.
        source: errno::Error,
    },
    /// Model-specific registers.
    #[error("cannot read or write model-specific registers")]
    Msrs(#[from] MsrError),
    /// The guest's time stamp counter runs at a frequency that this host can't give.
    #[error("the guest's TSC runs at {saved} kHz, this host's at {host} kHz and cannot be scaled")]
    TscFrequency {
        /// In the image.
        saved: u32,
        /// Here.
        host: u32,
    },
}

impl RegistersError {
    /// Whether saved values are at fault, which this host can't restore.
    #[must_use]
    pub fn refuses_state(&self) -> bool {
        match self {
            Self::TscFrequency { .. } | Self::Msrs(MsrError::Refused { .. }) => true,
            Self::Call { .. } | Self::Msrs(MsrError::Call { .. }) => false,
        }
    }
}

fn call(call: &'static str) -> impl FnOnce(errno::Error) -> RegistersError {
    move |source| RegistersError::Call { call, source }
}

/// Reads state, on the vCPU's own thread, after KVM_RUN has returned EINTR: until then an access that
/// the guest began may be incomplete (api.rst, section 5, KVM_EXIT_IO and KVM_EXIT_MMIO).
///
/// # Errors
/// [`RegistersError`].
pub fn save(
    vcpu: &VcpuFd,
    cpuid: &CpuId,
    msr_indices: &[u32],
    capabilities: Capabilities,
) -> Result<VcpuState, RegistersError> {
    let mp_state = vcpu.get_mp_state().map_err(call("KVM_GET_MP_STATE"))?;
    let regs = vcpu.get_regs().map_err(call("KVM_GET_REGS"))?;
    let sregs = vcpu.get_sregs().map_err(call("KVM_GET_SREGS"))?;
    let xsave = save_xsave(vcpu, capabilities.xsave2_bytes)?;
    let xcrs = vcpu.get_xcrs().map_err(call("KVM_GET_XCRS"))?;
    let debug_regs = vcpu.get_debug_regs().map_err(call("KVM_GET_DEBUGREGS"))?;
    let lapic = vcpu.get_lapic().map_err(call("KVM_GET_LAPIC"))?;
    let msrs = msrs::read(vcpu, msr_indices)?;
    let events = vcpu
        .get_vcpu_events()
        .map_err(call("KVM_GET_VCPU_EVENTS"))?;
    Ok(VcpuState {
        cpuid: cpuid.as_slice().to_vec(),
        // Fails on hosts whose TSC is unstable; then there is no frequency to keep.
        tsc_khz: vcpu.get_tsc_khz().ok(),
        tsc_offset: tsc_offset(vcpu).ok(),
        mp_state,
        regs,
        sregs,
        xsave,
        xcrs,
        debug_regs,
        lapic,
        msrs,
        events,
    })
}

fn save_xsave(vcpu: &VcpuFd, xsave2_bytes: usize) -> Result<Xsave, RegistersError> {
    if xsave2_bytes > 0 {
        return xsave2(vcpu, xsave2_bytes).map_err(call("KVM_GET_XSAVE2"));
    }
    let legacy = vcpu.get_xsave().map_err(call("KVM_GET_XSAVE"))?;
    Xsave::from_header(legacy.into()).map_err(|_| RegistersError::Call {
        call: "allocating an xsave area",
        source: errno::Error::new(libc::ENOMEM),
    })
}

/// The hosts of a guest's time stamp counter: the one that it ran on, and the one that it goes on on.
#[derive(Debug, Clone, Copy)]
pub struct TscMove {
    /// The former host's counter when the vCPUs had halted.
    pub saved: u64,
    /// The former host's frequency; none if it was the guest's.
    pub saved_host_khz: Option<u32>,
    /// This host's counter at one moment of the restore, the same for all vCPUs.
    pub now: u64,
}

/// Writes saved state, on the vCPU's own thread, before it ever ran.
///
/// # Errors
/// [`RegistersError`].
pub fn restore(
    vcpu: &VcpuFd,
    state: &VcpuState,
    tsc: TscMove,
    capabilities: Capabilities,
) -> Result<(), RegistersError> {
    let cpuid = state.cpuid()?;
    // A new vCPU runs at the host's frequency.
    let host_khz = vcpu.get_tsc_khz().ok();
    vcpu.set_cpuid2(&cpuid).map_err(call("KVM_SET_CPUID2"))?;
    restore_tsc_frequency(vcpu, state.tsc_khz, capabilities)?;
    vcpu.set_mp_state(state.mp_state)
        .map_err(call("KVM_SET_MP_STATE"))?;
    vcpu.set_regs(&state.regs).map_err(call("KVM_SET_REGS"))?;
    vcpu.set_sregs(&state.sregs)
        .map_err(call("KVM_SET_SREGS"))?;
    set_xsave(vcpu, &state.xsave, capabilities.xsave2_bytes).map_err(call("KVM_SET_XSAVE"))?;
    vcpu.set_xcrs(&state.xcrs).map_err(call("KVM_SET_XCRS"))?;
    vcpu.set_debug_regs(&state.debug_regs)
        .map_err(call("KVM_SET_DEBUGREGS"))?;
    vcpu.set_lapic(&state.lapic)
        .map_err(call("KVM_SET_LAPIC"))?;
    let mut msrs = msrs::restorable(&state.msrs);
    msrs::fire_expired_deadline(&mut msrs);
    if continue_tsc(vcpu, state, tsc, host_khz) {
        msrs.retain(|entry| entry.index != IA32_TSC);
    }
    msrs::write(vcpu, &msrs)?;
    vcpu.set_vcpu_events(&state.events)
        .map_err(call("KVM_SET_VCPU_EVENTS"))
}

/// Lets the guest's TSC continue from its value when the host's was read at the save, as vcpu.rst (4.1)
/// advises: by offset, from the same two counters for all vCPUs, so that they stay synchronised. False
/// where that is not possible; then the register is written like others. That is second choice because
/// of a flaw: KVM takes a value within a second of the new VM's own counter for an attempt to synchronise
/// and ignores it (arch/x86/kvm/x86.c, `kvm_synchronize_tsc`), so that a guest suspended in its first
/// second would see its counter jump back.
fn continue_tsc(vcpu: &VcpuFd, state: &VcpuState, tsc: TscMove, host_khz: Option<u32>) -> bool {
    let (Some(guest_khz), Some(offset), Some(host_khz)) =
        (state.tsc_khz, state.tsc_offset, host_khz)
    else {
        return false;
    };
    let saved = HostCounter {
        value: tsc.saved,
        khz: tsc.saved_host_khz.unwrap_or(guest_khz),
    };
    let now = HostCounter {
        value: tsc.now,
        khz: host_khz,
    };
    let scaling = state.scaling();
    set_tsc_offset(
        vcpu,
        continued_offset(scaling, guest_khz, offset, saved, now),
    )
    .is_ok()
}

/// Keeps the guest's TSC frequency. Hosts differ by a few parts per million at each boot, which is
/// tolerated.
fn restore_tsc_frequency(
    vcpu: &VcpuFd,
    saved: Option<u32>,
    capabilities: Capabilities,
) -> Result<(), RegistersError> {
    let (Some(saved), Ok(host)) = (saved, vcpu.get_tsc_khz()) else {
        return Ok(());
    };
    if saved == host {
        return Ok(());
    }
    if capabilities.tsc_control {
        return vcpu.set_tsc_khz(saved).map_err(call("KVM_SET_TSC_KHZ"));
    }
    if is_unscaled(saved, host) {
        return Ok(());
    }
    Err(RegistersError::TscFrequency { saved, host })
}

impl VcpuState {
    /// The leaves that the guest saw.
    #[must_use]
    pub fn seen(&self) -> &[kvm_cpuid_entry2] {
        &self.cpuid
    }

    /// The guest's TSC frequency, where KVM has one.
    #[must_use]
    pub fn tsc_khz(&self) -> Option<u32> {
        self.tsc_khz
    }

    /// How KVM scales on processors of the guest's vendor.
    fn scaling(&self) -> Scaling {
        match self.cpuid.iter().find(|leaf| leaf.function == 0) {
            Some(leaf) if leaf.ebx == u32::from_le_bytes(*b"Auth") => Scaling::Amd,
            _ => Scaling::Intel,
        }
    }

    /// The processor that the guest saw.
    ///
    /// # Errors
    /// [`RegistersError::Call`] where it has too many leaves.
    pub fn cpuid(&self) -> Result<CpuId, RegistersError> {
        CpuId::from_entries(&self.cpuid).map_err(|_| RegistersError::Call {
            call: "building a CPUID list",
            source: errno::Error::new(libc::E2BIG),
        })
    }
}

/// Intel SDM vol. 3A, 11.11.2.1: all of memory write-back, variable ranges unused. Linux gives up page
/// attributes altogether where this register is off.
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
/// Offsets into the LAPIC page (Intel SDM vol. 3A, table 11-1).
const LAPIC_LVT_LINT0: usize = 0x350;
const LAPIC_LVT_LINT1: usize = 0x360;
const DELIVERY_EXTINT: u32 = 7 << 8;
const DELIVERY_NMI: u32 = 4 << 8;

/// Gives a new vCPU its CPUID and, if it is the boot processor, its entry state. The others stay as KVM
/// resets them, waiting for INIT and SIPI.
///
/// # Errors
/// [`RegistersError`].
pub fn boot(
    vcpu: &VcpuFd,
    cpuid: &CpuId,
    entry: Option<&EntryState>,
) -> Result<(), RegistersError> {
    vcpu.set_cpuid2(cpuid).map_err(call("KVM_SET_CPUID2"))?;
    let mtrr = kvm_msr_entry {
        index: IA32_MTRR_DEF_TYPE,
        data: MTRR_ENABLED_WRITE_BACK,
        ..kvm_msr_entry::default()
    };
    msrs::write(vcpu, &[mtrr])?;
    msrs::enable_fast_strings(vcpu)?;
    // Virtual wire mode, as firmware leaves it (MultiProcessor Specification 1.4, 3.6.2.2).
    let mut lapic = vcpu.get_lapic().map_err(call("KVM_GET_LAPIC"))?;
    set_lapic_register(&mut lapic, LAPIC_LVT_LINT0, DELIVERY_EXTINT);
    set_lapic_register(&mut lapic, LAPIC_LVT_LINT1, DELIVERY_NMI);
    vcpu.set_lapic(&lapic).map_err(call("KVM_SET_LAPIC"))?;
    if let Some(entry) = entry {
        let mut sregs = vcpu.get_sregs().map_err(call("KVM_GET_SREGS"))?;
        (entry.sregs)(&mut sregs);
        vcpu.set_sregs(&sregs).map_err(call("KVM_SET_SREGS"))?;
        vcpu.set_regs(&entry.regs).map_err(call("KVM_SET_REGS"))?;
    }
    Ok(())
}

fn set_lapic_register(lapic: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (register, byte) in lapic.regs[offset..].iter_mut().zip(value.to_le_bytes()) {
        *register = byte.cast_signed();
    }
}
