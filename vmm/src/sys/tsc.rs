//! The time stamp counter: the host's own, and the offset of a vCPU's from it.

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// Reads the host's counter.
pub(crate) fn host_tsc() -> u64 {
    // SAFETY: the instruction exists on every 64-bit x86 processor and touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// KVM_VCPU_TSC_OFFSET (Documentation/virt/kvm/devices/vcpu.rst, 4.1): guest counter minus host counter,
/// wrapping. Linux 5.16 and later.
///
/// # Errors
/// The errno of the ioctl; ENXIO where KVM doesn't know the attribute.
pub(crate) fn tsc_offset(vcpu: &VcpuFd) -> Result<u64, errno::Error> {
    let mut offset = 0_u64;
    let attribute = attribute((&raw mut offset).expose_provenance());
    // SAFETY: the attribute holds the address of a live u64, and KVM writes a u64 for this attribute.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &attribute) };
    if result == 0 {
        Ok(offset)
    } else {
        errno::errno_result()
    }
}

/// Sets the offset.
///
/// # Errors
/// As [`tsc_offset`].
pub(crate) fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> Result<(), errno::Error> {
    let attribute = attribute((&raw const offset).expose_provenance());
    // SAFETY: the attribute holds the address of a live u64, and KVM reads a u64 for this attribute.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attribute) };
    if result == 0 {
        Ok(())
    } else {
        errno::errno_result()
    }
}

fn attribute(address: usize) -> kvm_device_attr {
    kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: address as u64,
    }
}
