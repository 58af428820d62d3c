//! Which pages are private to this process: anonymous memory, in core or swapped out.
//!
//! Of a private file mapping these are the pages that were written; pages that were only read still
//! belong to the file. Of anonymous memory they are the pages that were ever written. Two sources
//! give the same answer: the `PAGEMAP_SCAN` ioctl (Linux 6.7) and the table of 64-bit entries
//! (Documentation/admin-guide/mm/pagemap.rst). Both use `/proc/self/pagemap`.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use crate::page::PAGE_LEN;

// uapi/linux/fs.h
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
/// The shared page of zeros, which reading untouched anonymous memory maps.
const PAGE_IS_PFNZERO: u64 = 1 << 5;

const ENTRY_FILE: u64 = 1 << 61;
const ENTRY_SWAPPED: u64 = 1 << 62;
const ENTRY_PRESENT: u64 = 1 << 63;

const SCAN_REGIONS: usize = 512;
const READ_ENTRIES: usize = 8192;

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Debug, Default)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct ScannedRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// Finds the private pages in `addresses` with `PAGEMAP_SCAN`. Kernels without it return ENOTTY.
pub(crate) fn scan(
    pagemap: &File,
    addresses: Range<usize>,
    found: &mut dyn FnMut(Range<usize>),
) -> io::Result<()> {
    let mut regions = [ScannedRegion::default(); SCAN_REGIONS];
    let mut arguments = ScanArguments {
        size: size_of::<ScanArguments>() as u64,
        start: addresses.start as u64,
        end: addresses.end as u64,
        vec: regions.as_mut_ptr().expose_provenance() as u64,
        vec_len: SCAN_REGIONS as u64,
        category_inverted: PAGE_IS_FILE | PAGE_IS_PFNZERO,
        category_mask: PAGE_IS_FILE | PAGE_IS_PFNZERO,
        category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        // A vector needs a non-zero mask. No page that is found has this bit, so adjacent pages are
        // reported as one region.
        return_mask: PAGE_IS_FILE,
        ..ScanArguments::default()
    };
    while arguments.start < arguments.end {
        // SAFETY: the argument is a valid `pm_scan_arg` of the size that it states; the kernel
        // writes only it and at most `vec_len` elements of `regions`, which outlives the call.
        let count = unsafe {
            libc::ioctl(
                pagemap.as_raw_fd(),
                PAGEMAP_SCAN,
                std::ptr::from_mut(&mut arguments),
            )
        };
        let Ok(count) = usize::try_from(count) else {
            match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            }
        };
        for region in regions.iter().take(count) {
            found(to_address(region.start)..to_address(region.end));
        }
        if arguments.walk_end <= arguments.start {
            return Err(io::Error::other("PAGEMAP_SCAN made no progress"));
        }
        arguments.start = arguments.walk_end;
    }
    Ok(())
}

/// Finds the private pages in `addresses` by reading their entries, eight bytes per page.
pub(crate) fn read(
    pagemap: &File,
    addresses: Range<usize>,
    found: &mut dyn FnMut(Range<usize>),
) -> io::Result<()> {
    let mut buffer = vec![0; READ_ENTRIES * 8];
    let mut address = addresses.start;
    while address < addresses.end {
        let entries = READ_ENTRIES.min((addresses.end - address) / PAGE_LEN);
        let bytes = &mut buffer[..entries * 8];
        pagemap.read_exact_at(bytes, (address / PAGE_LEN * 8) as u64)?;
        for entry in bytes.as_chunks::<8>().0 {
            let entry = u64::from_ne_bytes(*entry);
            // A page under migration counts as swapped, and keeps its file bit.
            if entry & (ENTRY_PRESENT | ENTRY_SWAPPED) != 0 && entry & ENTRY_FILE == 0 {
                found(address..address + PAGE_LEN);
            }
            address += PAGE_LEN;
        }
    }
    Ok(())
}

fn to_address(value: u64) -> usize {
    // Addresses of this process fit by definition.
    usize::try_from(value).unwrap_or(usize::MAX)
}
