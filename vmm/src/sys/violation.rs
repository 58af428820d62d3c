//! The handler of filter violations: writes a line to the log and ends the process.

use std::ffi::{c_int, c_void};

use libc::siginfo_t;
use vmm_sys_util::errno;
use vmm_sys_util::signal::register_signal_handler;

use super::in_handler;

/// Offset of `si_syscall` in `siginfo_t` (Linux, include/uapi/asm-generic/siginfo.h: `_sigsys` begins
/// at 16 with a pointer). libc has no accessor for it.
const SI_SYSCALL_OFFSET: usize = 24;
/// As for any failure of the VMM while the guest ran.
const EXIT_CODE: c_int = vmm_control::exit_code::FAILED;

/// Installs the handler; once per process.
///
/// # Errors
/// The errno of sigaction.
pub(crate) fn install_handler() -> Result<(), errno::Error> {
    register_signal_handler(libc::SIGSYS, on_violation)
}

extern "C" fn on_violation(_signal: c_int, info: *mut siginfo_t, _context: *mut c_void) {
    let field = info
        .cast::<u8>()
        .wrapping_add(SI_SYSCALL_OFFSET)
        .cast::<c_int>();
    // SAFETY: the kernel passes a whole siginfo_t, in which the field lies, aligned.
    let call = unsafe { field.read() };
    let mut line = *b"the sandbox forbids system call       , which ends this process\n";
    write_number(&mut line[32..38], call.unsigned_abs());
    in_handler::write(libc::STDERR_FILENO, &line);
    in_handler::exit(EXIT_CODE);
}

/// Writes a number right-aligned, without an allocation.
fn write_number(field: &mut [u8], mut number: u32) {
    for place in field.iter_mut().rev() {
        // One digit.
        *place = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        if number == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_right_aligned() {
        let mut field = *b"      ";
        write_number(&mut field, 435);
        assert_eq!(&field, b"   435");
    }
}
