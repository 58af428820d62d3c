//! Every unsafe block of guest-init: calls for which neither std nor nix has a safe form.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use guest_protocol::{ENTROPY_BYTES, TerminalSize};
use nix::sys::socket::{SockFlag, accept4};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;

// linux/random.h: _IOW('R', 0x03, int[2]) and _IO('R', 0x07).
const RNDADDENTROPY: libc::c_ulong = 0x4008_5203;
const RNDRESEEDCRNG: libc::c_ulong = 0x5207;

/// `struct rand_pool_info` of linux/random.h with a buffer of fixed size.
#[repr(C)]
struct PoolInput {
    entropy_bits: libc::c_int,
    buffer_bytes: libc::c_int,
    buffer: [u8; ENTROPY_BYTES],
}

/// Registers `fd`, which must be non-blocking, with the current runtime.
pub(crate) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the AsyncFd owns the descriptor. It stays open and unchanged until the AsyncFd
    // is dropped, because OwnedFd hands out no way to replace or close it.
    let registered = unsafe { AsyncFd::register(fd) };
    registered.map_err(io::Error::from)
}

/// Accepts a connection that waits on `listener`.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let accepted = accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
    // SAFETY: the call has just made this descriptor, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(accepted) })
}

/// Makes the child the leader of a session of its own, with its standard input as the controlling
/// terminal if `has_terminal`, in the control group of `cgroup_procs` if given.
pub(crate) fn isolate(command: &mut Command, has_terminal: bool, cgroup_procs: Option<OwnedFd>) {
    let prepare = move || {
        if let Some(fd) = &cgroup_procs {
            // "0" means the writer itself.
            nix::unistd::write(fd, b"0")?;
        }
        nix::unistd::setsid()?;
        if has_terminal {
            take_terminal()?;
        }
        Ok(())
    };
    // SAFETY: the closure runs between fork and exec, where only async-signal-safe calls are
    // allowed. write, setsid and ioctl are; it neither allocates nor takes locks, and the
    // conversion of an errno into io::Error allocates nothing either.
    unsafe { command.pre_exec(prepare) };
}

fn take_terminal() -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer argument and touches no memory of ours; 0 is standard
    // input, set up by std before the closure runs.
    let result = unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sets the window size of the terminal `fd`; its foreground processes get SIGWINCH.
pub(crate) fn resize_terminal(fd: BorrowedFd<'_>, size: TerminalSize) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize, which lives until the call returns.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Mixes `entropy` into the kernel's random pool and credits all of its bits. `random` is
/// `/dev/random` or `/dev/urandom`.
pub(crate) fn credit_entropy(
    random: BorrowedFd<'_>,
    entropy: [u8; ENTROPY_BYTES],
) -> io::Result<()> {
    const BYTES: libc::c_int = 32;
    let input = PoolInput {
        entropy_bits: BYTES * 8,
        buffer_bytes: BYTES,
        buffer: entropy,
    };
    // SAFETY: RNDADDENTROPY reads two ints and buffer_bytes bytes after them, which is exactly
    // a PoolInput; it lives until the call returns.
    let result = unsafe { libc::ioctl(random.as_raw_fd(), RNDADDENTROPY, &raw const input) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes the kernel's generator take a new key from its pool at once.
pub(crate) fn reseed_generator(random: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: RNDRESEEDCRNG takes no argument.
    let result = unsafe { libc::ioctl(random.as_raw_fd(), RNDRESEEDCRNG) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sends a signal by number, which may be a real-time signal, to one process.
pub(crate) fn send_signal(pid: Pid, number: libc::c_int) -> io::Result<()> {
    // SAFETY: kill touches no memory; a bad number or pid is an error, not undefined.
    let result = unsafe { libc::kill(pid.as_raw(), number) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Reaps one child that has ended, if any: its pid and status. Only the reaper calls it.
pub(crate) fn wait_for_any() -> io::Result<Option<(Pid, libc::c_int)>> {
    let mut status = 0;
    // SAFETY: waitpid writes the status to the given int, which lives until the call returns.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    match pid {
        0 => Ok(None),
        1.. => Ok(Some((Pid::from_raw(pid), status))),
        _ => Err(io::Error::last_os_error()),
    }
}
