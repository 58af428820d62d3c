//! Serves exits from KVM_RUN: register accesses go to the buses, other exits end the guest.

use std::sync::Arc;

use kvm_ioctls::VcpuExit;

use crate::bus::Bus;

/// The two address spaces that a vCPU can access.
#[derive(Debug, Clone)]
pub struct Buses {
    /// I/O ports.
    pub ports: Arc<Bus>,
    /// Guest-physical addresses outside of memory.
    pub mmio: Arc<Bus>,
}

/// What the vCPU does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Enter the guest again.
    Enter,
    /// The guest can't continue.
    Stop(Fault),
}

/// Why a guest can't continue.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// A fault while delivering a double fault.
    #[error("the guest shut its processor down by a triple fault")]
    TripleFault,
    /// KVM could not emulate an instruction, or worse.
    #[error("KVM cannot continue the guest (KVM_EXIT_INTERNAL_ERROR)")]
    Internal,
    /// The processor refused the state.
    #[error("the processor refused to enter the guest, reason {reason:#x}")]
    EntryRefused {
        /// Hardware-specific.
        reason: u64,
    },
    /// Guest memory could not be provided.
    #[error("guest memory at {address:#x} cannot be provided")]
    MemoryFault {
        /// Guest-physical.
        address: u64,
    },
    /// KVM_RUN itself failed; EFAULT means that guest memory could not be read or written.
    #[error("KVM_RUN failed: {}", std::io::Error::from_raw_os_error(*.errno))]
    Run {
        /// The kernel's error number.
        errno: i32,
    },
    /// An exit that this VMM does not serve.
    #[error("unexpected exit from KVM: {name}")]
    Unexpected {
        /// Debug name of the exit.
        name: String,
    },
}

impl Fault {
    /// Whether the host has failed, and the guest has done nothing wrong: it could not get at the guest's
    /// memory, or has none left for KVM.
    #[must_use]
    pub fn is_of_host(&self) -> bool {
        match self {
            Self::MemoryFault { .. } => true,
            Self::Run { errno } => matches!(
                *errno,
                libc::EFAULT | libc::EIO | libc::ENOMEM | libc::EHWPOISON
            ),
            Self::TripleFault
            | Self::Internal
            | Self::EntryRefused { .. }
            | Self::Unexpected { .. } => false,
        }
    }
}

/// Serves one exit.
pub fn serve_exit(exit: VcpuExit<'_>, buses: &Buses) -> Next {
    match exit {
        VcpuExit::IoIn(port, data) => buses.ports.read(port.into(), data),
        VcpuExit::IoOut(port, data) => buses.ports.write(port.into(), data),
        VcpuExit::MmioRead(address, data) => buses.mmio.read(address, data),
        VcpuExit::MmioWrite(address, data) => buses.mmio.write(address, data),
        VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::SetTpr => {}
        VcpuExit::Shutdown => return Next::Stop(Fault::TripleFault),
        VcpuExit::InternalError => return Next::Stop(Fault::Internal),
        VcpuExit::FailEntry(reason, _cpu) => return Next::Stop(Fault::EntryRefused { reason }),
        VcpuExit::MemoryFault { gpa, .. } => {
            return Next::Stop(Fault::MemoryFault { address: gpa });
        }
        other => {
            return Next::Stop(Fault::Unexpected {
                name: format!("{other:?}"),
            });
        }
    }
    Next::Enter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_host_cannot_provide_is_no_crash_of_the_guest() {
        assert!(
            Fault::Run {
                errno: libc::EFAULT
            }
            .is_of_host()
        );
        assert!(Fault::MemoryFault { address: 0 }.is_of_host());
        assert!(
            !Fault::Run {
                errno: libc::EINVAL
            }
            .is_of_host()
        );
        assert!(!Fault::TripleFault.is_of_host());
        assert!(!Fault::Internal.is_of_host());
    }
}
