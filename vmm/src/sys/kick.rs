//! Makes a vCPU thread return from KVM_RUN.
//!
//! A signal alone is racy: it may arrive just before the ioctl. So the handler also sets
//! `kvm_run.immediate_exit`, which makes the next KVM_RUN return EINTR at once (Linux,
//! Documentation/virt/kvm/api.rst, section 5, `immediate_exit`).

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{Ordering, compiler_fence};

use kvm_bindings::kvm_run;
use kvm_ioctls::VcpuFd;
use libc::siginfo_t;
use vmm_sys_util::errno;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// The kvm_run page of the vCPU that this thread runs. Constant-initialised and without a
    /// destructor, so that the signal handler may read it at any moment.
    static CURRENT: Cell<*mut kvm_run> = const { Cell::new(ptr::null_mut()) };
}

/// The signal that kicks vCPU threads.
#[must_use]
pub(crate) fn kick_signal() -> c_int {
    SIGRTMIN()
}

/// Installs the handler; once per process, before any vCPU thread.
///
/// # Errors
/// The errno of sigaction.
pub(crate) fn install_kick_handler() -> Result<(), errno::Error> {
    register_signal_handler(kick_signal(), on_kick)
}

extern "C" fn on_kick(_signal: c_int, _info: *mut siginfo_t, _context: *mut c_void) {
    let run = CURRENT.get();
    if run.is_null() {
        return;
    }
    // SAFETY: `run` was set by `KickTarget::new` on this thread and is cleared before its page is
    // unmapped, so it points into a live mapping.
    let flag = unsafe { &raw mut (*run).immediate_exit };
    // SAFETY: as above; only this thread and the kernel access the field.
    unsafe { ptr::write_volatile(flag, 1) };
    compiler_fence(Ordering::SeqCst);
}

/// The vCPU that the calling thread runs and can be kicked out of, until this is dropped.
#[derive(Debug)]
pub(crate) struct KickTarget {
    fd: VcpuFd,
}

impl KickTarget {
    /// Makes kicks of the calling thread interrupt this vCPU.
    #[must_use]
    pub(crate) fn new(mut fd: VcpuFd) -> Self {
        // The page is mapped as long as `fd` lives, wherever `fd` itself is moved.
        CURRENT.set(ptr::from_mut(fd.get_kvm_run()));
        Self { fd }
    }

    /// The vCPU.
    pub(crate) fn vcpu(&mut self) -> &mut VcpuFd {
        &mut self.fd
    }

    /// Clears earlier kicks. To be called before the thread checks for commands, so that no kick is lost.
    pub(crate) fn clear(&mut self) {
        self.fd.set_kvm_immediate_exit(0);
        compiler_fence(Ordering::SeqCst);
    }
}

impl Drop for KickTarget {
    fn drop(&mut self) {
        CURRENT.set(ptr::null_mut());
    }
}
