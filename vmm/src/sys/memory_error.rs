//! SIGBUS: the host cannot provide a page of a mapping, usually because the image's memory file cannot be
//! read. It hits whichever thread touches guest memory.
//!
//! The event loop is told and ends the machine in order, while the thread that was hit waits for ever. If
//! the event loop itself was hit, or there is none yet, the report is written in the handler.

use std::ffi::{CString, c_int, c_void};
use std::os::fd::AsRawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use libc::siginfo_t;
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::register_signal_handler;

use super::{fd, in_handler};

/// Offset of `si_addr` in `siginfo_t` (Linux, include/uapi/asm-generic/siginfo.h: `_sigfault` begins at
/// 16 with it).
const SI_ADDRESS_OFFSET: usize = 16;
/// As for all failures of the host.
const EXIT_CODE: c_int = vmm_control::exit_code::HOST_REFUSED;

/// What is written if the event loop cannot do so.
#[derive(Debug)]
pub(crate) struct LastWords {
    /// Where the report is written before it is whole.
    pub(crate) unfinished: CString,
    /// Its final name.
    pub(crate) path: CString,
    /// The report.
    pub(crate) text: Vec<u8>,
}

static LAST_WORDS: OnceLock<Option<LastWords>> = OnceLock::new();
/// The thread that runs the event loop, and has set the handler up.
static LOOP_THREAD: AtomicI32 = AtomicI32::new(0);
/// The descriptor that wakes it.
static WAKE: AtomicI32 = AtomicI32::new(-1);

/// Installs the handler; once per process, on the thread that is going to run the event loop.
///
/// # Errors
/// The errno of sigaction.
pub(crate) fn install_handler(last_words: Option<LastWords>) -> Result<(), errno::Error> {
    LOOP_THREAD.store(
        rustix::thread::gettid().as_raw_nonzero().get(),
        Ordering::SeqCst,
    );
    // A second call leaves the first report.
    let _ = LAST_WORDS.set(last_words);
    register_signal_handler(libc::SIGBUS, on_memory_error)
}

/// An eventfd that becomes readable when another thread was hit. Once per process.
///
/// # Errors
/// Where the host gives no descriptor.
pub(crate) fn memory_error_event() -> std::io::Result<EventFd> {
    let event = fd::new_event()?;
    let handler_event = event.try_clone()?;
    WAKE.store(handler_event.as_raw_fd(), Ordering::SeqCst);
    // The handler may run until the end of the process.
    std::mem::forget(handler_event);
    Ok(event)
}

extern "C" fn on_memory_error(_signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    let field = info
        .cast::<u8>()
        .wrapping_add(SI_ADDRESS_OFFSET)
        .cast::<usize>();
    // SAFETY: the kernel passes a whole siginfo_t, in which the field lies, aligned.
    let address = unsafe { field.read() };
    let mut line = *b"the host cannot provide memory at 0x0000000000000000 (SIGBUS)\n";
    write_hexadecimal(&mut line[36..52], address);
    in_handler::write(libc::STDERR_FILENO, &line);
    let wake = WAKE.load(Ordering::SeqCst);
    if wake >= 0
        && rustix::thread::gettid().as_raw_nonzero().get() != LOOP_THREAD.load(Ordering::SeqCst)
    {
        in_handler::write(wake, &1_u64.to_ne_bytes());
        loop {
            // SAFETY: waits for nothing, without descriptors; async-signal-safe.
            unsafe { libc::poll(std::ptr::null_mut(), 0, -1) };
        }
    }
    if let Some(Some(last_words)) = LAST_WORDS.get() {
        leave_report(last_words);
    }
    in_handler::exit(EXIT_CODE);
}

fn leave_report(last_words: &LastWords) {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC | libc::O_CLOEXEC;
    // SAFETY: opens the file of a live, terminated string; async-signal-safe.
    let file = unsafe { libc::open(last_words.unfinished.as_ptr(), flags, 0o600) };
    if file < 0 {
        return;
    }
    in_handler::write(file, &last_words.text);
    // SAFETY: two live, terminated strings; async-signal-safe.
    unsafe { libc::rename(last_words.unfinished.as_ptr(), last_words.path.as_ptr()) };
}

/// Writes a number with leading zeroes, without an allocation.
fn write_hexadecimal(field: &mut [u8], mut number: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for place in field.iter_mut().rev() {
        *place = DIGITS[number & 0xf];
        number >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Command, Output};

    use rustix::mm::{MapFlags, ProtFlags, mmap};

    use super::*;

    const FOLDER: &str = "MEMORY_ERROR_FOLDER";
    const OTHER_THREAD: &str = "MEMORY_ERROR_OTHER_THREAD";

    /// Touches a page that its file does not have.
    fn touch_missing_page() {
        let file = tempfile::tempfile().unwrap();
        let (protection, flags) = (ProtFlags::READ, MapFlags::SHARED);
        // SAFETY: a new mapping that nothing else refers to.
        let page =
            unsafe { mmap(std::ptr::null_mut(), 4096, protection, flags, &file, 0) }.unwrap();
        // SAFETY: the address is mapped; that the page cannot be provided is what is tested.
        unsafe { page.cast::<u8>().read_volatile() };
    }

    #[test]
    #[ignore = "the process that is hit; started by the tests below"]
    fn child() {
        let folder = std::env::var(FOLDER).unwrap();
        let path = |name: &str| CString::new(format!("{folder}/{name}")).unwrap();
        let last_words = LastWords {
            unfinished: path("exit.json.tmp"),
            path: path("exit.json"),
            text: b"the report".to_vec(),
        };
        install_handler(Some(last_words)).unwrap();
        if std::env::var_os(OTHER_THREAD).is_none() {
            touch_missing_page();
            return;
        }
        let event = memory_error_event().unwrap();
        std::thread::spawn(touch_missing_page);
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(
            fd::borrow(&event),
            rustix::event::PollFlags::IN,
        )];
        let limit = rustix::event::Timespec {
            tv_sec: 10,
            tv_nsec: 0,
        };
        let told = rustix::event::poll(&mut fds, Some(&limit)).unwrap();
        std::process::exit(if told == 1 { 42 } else { 43 });
    }

    fn run_child(folder: &Path, other_thread: bool) -> Output {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--ignored", "--exact", "sys::memory_error::tests::child"])
            .env(FOLDER, folder);
        if other_thread {
            command.env(OTHER_THREAD, "1");
        }
        command.output().unwrap()
    }

    #[test]
    fn the_event_loops_thread_leaves_a_report_and_ends() {
        let folder = tempfile::tempdir().unwrap();
        let output = run_child(folder.path(), false);
        assert_eq!(output.status.code(), Some(EXIT_CODE));
        let report = std::fs::read(folder.path().join("exit.json")).unwrap();
        assert_eq!(report, b"the report");
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            log.contains("the host cannot provide memory at 0x"),
            "{log}"
        );
    }

    #[test]
    fn another_thread_tells_the_event_loop_and_waits() {
        let folder = tempfile::tempdir().unwrap();
        let output = run_child(folder.path(), true);
        assert_eq!(output.status.code(), Some(42));
        assert!(
            !folder.path().join("exit.json").exists(),
            "the loop writes it"
        );
    }

    #[test]
    fn numbers_have_leading_zeroes() {
        let mut field = *b"000000";
        write_hexadecimal(&mut field, 0x7fab);
        assert_eq!(&field, b"007fab");
    }
}
