//! The calls to the kernel that would harm a developer's machine: set the clock, reseed the random
//! pool, set the host name, mount. They are behind a trait, so that tests run the server as an
//! ordinary process.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use guest_protocol::ENTROPY_BYTES;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_settime};

use crate::os::mounts::{self, MountError};
use crate::os::netlink::NetlinkError;
use crate::os::sys;
use crate::os::vsock_diag::{self, KernelSocket};

/// The kernel under guest-init.
pub(crate) trait Kernel {
    /// Sets CLOCK_REALTIME.
    fn set_realtime(&self, realtime: TimeSpec) -> io::Result<()>;
    /// Adds entropy to the random pool, credits it, and makes the generator use it at once.
    fn reseed(&self, entropy: [u8; ENTROPY_BYTES]) -> io::Result<()>;
    /// All vsock sockets of the guest.
    fn vsocks(&self) -> Result<Vec<KernelSocket>, NetlinkError>;
    fn set_hostname(&self, name: &str) -> io::Result<()>;
    /// Mounts a block device with an ext4 file system.
    fn mount(&self, device: &str, target: &str, read_only: bool) -> Result<(), MountError>;
}

/// The kernel of the guest whose process 1 this is.
#[derive(Debug)]
pub(crate) struct GuestKernel;

impl Kernel for GuestKernel {
    fn set_realtime(&self, realtime: TimeSpec) -> io::Result<()> {
        clock_settime(ClockId::CLOCK_REALTIME, realtime)?;
        Ok(())
    }

    fn reseed(&self, entropy: [u8; ENTROPY_BYTES]) -> io::Result<()> {
        let random = File::open("/dev/urandom")?;
        sys::credit_entropy(random.as_fd(), entropy)?;
        sys::reseed_generator(random.as_fd())
    }

    fn vsocks(&self) -> Result<Vec<KernelSocket>, NetlinkError> {
        vsock_diag::list()
    }

    fn set_hostname(&self, name: &str) -> io::Result<()> {
        nix::unistd::sethostname(name)?;
        Ok(())
    }

    fn mount(&self, device: &str, target: &str, read_only: bool) -> Result<(), MountError> {
        mounts::mount_block_device(device, target, read_only)
    }
}
