//! The size of a page: 4 KiB, of the guest as well as of the host.

/// As a length in memory.
pub const PAGE_LEN: usize = 4096;
/// As a number of bytes in addresses and file offsets.
pub const PAGE_BYTES: u64 = PAGE_LEN as u64;
