//! KVM calls that kvm-ioctls marks unsafe, with the reasons why they are safe here.

use kvm_bindings::{KVM_EXIT_INTERNAL_ERROR, Xsave, kvm_run, kvm_userspace_memory_region};
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{GuestMemoryRegion, GuestRegionMmap};
use vmm_sys_util::errno;

/// KVM_SET_USER_MEMORY_REGION for one region of guest memory.
///
/// The caller keeps the region mapped for as long as the VM exists.
///
/// # Errors
/// The errno of the ioctl.
pub(crate) fn set_memory_region(
    vm: &VmFd,
    slot: u32,
    region: &GuestRegionMmap,
) -> Result<(), errno::Error> {
    let argument = kvm_userspace_memory_region {
        slot,
        flags: 0,
        guest_phys_addr: region.start_addr().0,
        memory_size: region.len(),
        userspace_addr: region.as_ptr().addr() as u64,
    };
    // SAFETY: address and size are those of a live mapping that vm-memory owns, regions don't
    // overlap, and the machine holds the memory at least as long as the VM.
    unsafe { vm.set_user_memory_region(argument) }
}

/// KVM_GET_XSAVE2.
///
/// # Errors
/// The errno of the ioctl.
pub(crate) fn xsave2(vcpu: &VcpuFd, buffer_bytes: usize) -> Result<Xsave, errno::Error> {
    let entries = buffer_bytes.saturating_sub(XSAVE_LEGACY_BYTES).div_ceil(4);
    let mut xsave = Xsave::new(entries).map_err(|_| errno::Error::new(libc::ENOMEM))?;
    // SAFETY: the buffer has the size that KVM_CAP_XSAVE2 asks for, which can't grow any more: no
    // XSTATE feature is enabled by arch_prctl in this process.
    unsafe { vcpu.get_xsave2(&mut xsave) }?;
    Ok(xsave)
}

/// KVM_SET_XSAVE. `host_bytes` is what KVM_CAP_XSAVE2 asks for on this host.
///
/// # Errors
/// EINVAL where the state is smaller than the host reads, else the errno of the ioctl.
pub(crate) fn set_xsave(
    vcpu: &VcpuFd,
    xsave: &Xsave,
    host_bytes: usize,
) -> Result<(), errno::Error> {
    if xsave_bytes(xsave) < host_bytes {
        return Err(errno::Error::new(libc::EINVAL));
    }
    // SAFETY: KVM reads at most KVM_CAP_XSAVE2 bytes, and the buffer has at least as many.
    unsafe { vcpu.set_xsave2(xsave) }
}

/// Kind and data of an internal error; none after another exit. The words are copied before they are
/// looked at, and their number is bounded.
pub(crate) fn internal_error(run: &kvm_run) -> Option<(u32, Vec<u64>)> {
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return None;
    }
    // SAFETY: this member consists of integers, for which all bytes are valid, and KVM has filled it for
    // this exit reason.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let words = usize::try_from(internal.ndata).unwrap_or(0);
    let words = words.min(internal.data.len());
    Some((internal.suberror, internal.data[..words].to_vec()))
}

/// Size of `kvm_xsave` without its flexible array.
const XSAVE_LEGACY_BYTES: usize = 4096;

fn xsave_bytes(xsave: &Xsave) -> usize {
    XSAVE_LEGACY_BYTES + xsave.as_slice().len() * 4
}
