//! Writes guest memory to a file, directly from its mapping.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use vm_memory::VolatileSlice;

/// Writes all of `slice` at `offset`.
pub(crate) fn write_all_at(file: &File, slice: &VolatileSlice<'_>, offset: u64) -> io::Result<()> {
    let mut written = 0;
    while written < slice.len() {
        let rest = slice.offset(written).map_err(io::Error::other)?;
        let position = libc::off_t::try_from(offset + written as u64)
            .map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let memory = rest.ptr_guard();
        // SAFETY: `memory` guards `rest.len()` mapped bytes for as long as it lives. Only the kernel
        // reads them, so a guest that writes to them meanwhile changes only what is written.
        let count = unsafe {
            libc::pwrite(
                file.as_raw_fd(),
                memory.as_ptr().cast(),
                rest.len(),
                position,
            )
        };
        match usize::try_from(count) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}
