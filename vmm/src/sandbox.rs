//! System call filters: which calls each kind of thread may make once the machine is set up.
//!
//! A guest that takes over a vCPU thread can neither open a file nor start a program, and one that takes
//! over the thread of a disk can do no more than read and write open files. The event loop
//! and the threads that it starts (which save and check an image) may open files, as an image's path
//! comes with the request, but not start programs or use a network. A forbidden call ends the process
//! at once, after a line in the log that names it (see `sys::violation`).

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use vmm_sys_util::errno;

use crate::sys::violation;

/// Why threads can't be confined.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The rules don't compile.
    #[error("cannot compile the system call filter")]
    Compile(#[source] seccompiler::BackendError),
    /// The kernel refuses.
    #[error("cannot install the system call filter; --no-sandbox runs without it")]
    Install(#[source] seccompiler::Error),
    /// The handler that reports violations.
    #[error("cannot install the handler of filter violations")]
    Handler(#[source] errno::Error),
}

/// Kinds of threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ThreadKind {
    /// Runs a vCPU.
    Vcpu,
    /// Serves a disk.
    Disk,
    /// The event loop, and the threads that it starts.
    EventLoop,
}

impl ThreadKind {
    fn groups(self) -> &'static [&'static [i64]] {
        match self {
            Self::Vcpu => &[RUNTIME, DEVICES],
            Self::Disk => &[RUNTIME, DISKS],
            Self::EventLoop => &[RUNTIME, DEVICES, DISKS, FILES, THREADS],
        }
    }
}

/// Installs the signal handler that reports violations; once, before any thread is confined.
///
/// # Errors
/// [`SandboxError::Handler`].
pub fn install_violation_handler() -> Result<(), SandboxError> {
    violation::install_handler().map_err(SandboxError::Handler)
}

/// Compiles the filter of a kind of thread.
///
/// # Errors
/// [`SandboxError::Compile`].
pub fn filter(kind: ThreadKind) -> Result<BpfProgram, SandboxError> {
    compile(kind, SeccompAction::Trap)
}

/// Confines the calling thread and all threads that it starts later.
///
/// # Errors
/// [`SandboxError::Install`].
pub fn confine(filter: &BpfProgram) -> Result<(), SandboxError> {
    seccompiler::apply_filter(filter).map_err(SandboxError::Install)
}

/// Memory, locks, signals, exit: the calls that the language's runtime needs in any thread.
const RUNTIME: &[i64] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_write,
    libc::SYS_writev,
];

/// Calls on open descriptors and local sockets. vCPU threads need them too: a guest's register access
/// may reset a device, which ends its connections.
const DEVICES: &[i64] = &[
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd2,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_getsockopt,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_shutdown,
    libc::SYS_timerfd_settime,
];

/// Calls on the open file of a disk, or of an image.
const DISKS: &[i64] = &[
    libc::SYS_fallocate,
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_lseek,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
];

/// Calls on an image's directory and the exit report.
const FILES: &[i64] = &[
    libc::SYS_fadvise64,
    libc::SYS_fgetxattr,
    libc::SYS_flock,
    libc::SYS_fsetxattr,
    libc::SYS_fstatfs,
    libc::SYS_ftruncate,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_stat,
    libc::SYS_statx,
    libc::SYS_sync_file_range,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
];

/// Calls that start threads. Their flags may be in memory, which a filter can't read; but a new process
/// could do no more than its parent.
const THREADS: &[i64] = &[
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_ioprio_set,
    libc::SYS_setpriority,
];

/// Selects the group of an ioctl, the second byte of its number.
const IOCTL_GROUP_MASK: u64 = 0xff00;
/// KVM's.
const IOCTL_KVM: u64 = 0xae00;
/// That of procfs, whose PAGEMAP_SCAN finds the changed pages.
const IOCTL_FILES: u64 = 0x6600;
/// Makes a socket non-blocking.
const FIONBIO: u64 = 0x5421;

fn compile(kind: ThreadKind, denied: SeccompAction) -> Result<BpfProgram, SandboxError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = kind
        .groups()
        .iter()
        .flat_map(|group| group.iter())
        .map(|call| (*call, Vec::new()))
        .collect();
    if kind != ThreadKind::Disk {
        rules.insert(libc::SYS_ioctl, ioctls()?);
        let local = u64::from(libc::AF_UNIX.cast_unsigned());
        let socket = any_of(vec![condition(0, SeccompCmpOp::Eq, local)?])?;
        rules.insert(libc::SYS_socket, socket);
    }
    SeccompFilter::new(rules, denied, SeccompAction::Allow, TargetArch::x86_64)
        .and_then(BpfProgram::try_from)
        .map_err(SandboxError::Compile)
}

fn ioctls() -> Result<Vec<SeccompRule>, SandboxError> {
    let group = SeccompCmpOp::MaskedEq(IOCTL_GROUP_MASK);
    any_of(vec![
        condition(1, group.clone(), IOCTL_KVM)?,
        condition(1, group, IOCTL_FILES)?,
        condition(1, SeccompCmpOp::Eq, FIONBIO)?,
    ])
}

fn any_of(conditions: Vec<SeccompCondition>) -> Result<Vec<SeccompRule>, SandboxError> {
    conditions
        .into_iter()
        .map(|condition| SeccompRule::new(vec![condition]))
        .collect::<Result<_, _>>()
        .map_err(SandboxError::Compile)
}

fn condition(
    argument: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, SandboxError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
        .map_err(SandboxError::Compile)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::net::TcpListener;
    use std::os::unix::net::UnixStream;

    use super::*;

    const DENIED: SeccompAction = SeccompAction::Errno(1);

    #[test]
    fn a_vcpu_thread_opens_no_file_and_no_network() {
        let filter = compile(ThreadKind::Vcpu, DENIED).unwrap();
        std::thread::spawn(move || {
            confine(&filter).unwrap();
            let open = std::fs::File::open("/").unwrap_err();
            assert_eq!(open.kind(), ErrorKind::PermissionDenied);
            let listen = TcpListener::bind("127.0.0.1:0").unwrap_err();
            assert_eq!(listen.kind(), ErrorKind::PermissionDenied);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn a_vcpu_thread_writes_the_console() {
        use std::io::Write;
        let filter = compile(ThreadKind::Vcpu, DENIED).unwrap();
        let file = tempfile::tempfile().unwrap();
        let length = file.try_clone().unwrap();
        let mut console = crate::devices::serial::ConsoleOutput::new(file).unwrap();
        std::thread::spawn(move || {
            confine(&filter).unwrap();
            // The first line looks at the size of the file.
            console.write_all(b"login:\n").unwrap();
            assert!(console.sees_the_size_of_its_file());
        })
        .join()
        .unwrap();
        assert_eq!(length.metadata().unwrap().len(), 7);
    }

    #[test]
    fn a_disks_thread_opens_no_file_and_no_socket() {
        let filter = compile(ThreadKind::Disk, DENIED).unwrap();
        std::thread::spawn(move || {
            confine(&filter).unwrap();
            let open = std::fs::File::open("/").unwrap_err();
            assert_eq!(open.kind(), ErrorKind::PermissionDenied);
            let connect = UnixStream::connect("/nowhere").unwrap_err();
            assert_eq!(connect.kind(), ErrorKind::PermissionDenied);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn the_event_loop_starts_no_program() {
        let filter = compile(ThreadKind::EventLoop, DENIED).unwrap();
        std::thread::spawn(move || {
            confine(&filter).unwrap();
            assert!(std::fs::File::open("/").is_ok());
            let nobody = UnixStream::connect("/nowhere").unwrap_err();
            assert_eq!(nobody.kind(), ErrorKind::NotFound);
            assert!(std::process::Command::new("/bin/true").status().is_err());
        })
        .join()
        .unwrap();
    }
}
