//! Leaks one of each kind, as guest-init could if its code for a new generation were wrong.
//!
//! Only with the `leaks` feature, for the run that shows that each leak is caught (`mctl-e2e leaks`).

use std::fs::File;
use std::hint::black_box;
use std::io;
use std::mem::forget;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread;

use nix::libc::{VMADDR_CID_ANY, VMADDR_PORT_ANY};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, listen, socket,
};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};

use crate::os::sys;

/// Leaked memory, in bytes.
const MEMORY: usize = 64 << 10;

/// Leaks a descriptor, a thread (which is a task of the guest, too), memory, a vsock that listens,
/// an epoll entry and a timer.
pub(crate) fn leak_one_of_each() -> io::Result<()> {
    forget(File::open("/dev/null")?);
    thread::Builder::new().spawn(|| {
        loop {
            thread::park();
        }
    })?;
    // Without a look at it the compiler would leave it out.
    forget(black_box(vec![1_u8; MEMORY]));
    let vsock = socket(
        AddressFamily::Vsock,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    bind(
        vsock.as_raw_fd(),
        &VsockAddr::new(VMADDR_CID_ANY, VMADDR_PORT_ANY),
    )?;
    listen(&vsock, Backlog::new(1)?)?;
    forget(vsock);
    let (watched, other) = UnixStream::pair()?;
    watched.set_nonblocking(true)?;
    forget((sys::register(watched.into())?, other));
    forget(TimerFd::new(
        ClockId::CLOCK_MONOTONIC,
        TimerFlags::TFD_CLOEXEC,
    )?);
    Ok(())
}
