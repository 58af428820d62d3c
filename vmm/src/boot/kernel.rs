//! Puts kernel and initramfs into guest memory.
//!
//! Files are not trusted: this file checks beforehand what linux-loader would misread or report with a
//! vague error, and that nothing overwrites the boot tables.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use linux_loader::loader::{self, KernelLoader};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::layout::HIGH_MEMORY;
use crate::bytes::array_at;
use crate::memory::regions::GAP_START;
use crate::page::PAGE_BYTES;

const ELF_HEADER_BYTES: usize = 64;
const PROGRAM_HEADER_BYTES: usize = 56;
const PT_LOAD: u32 = 1;
const EM_X86_64: u16 = 62;
const ELF_CLASS_64: u8 = 2;

/// Why a machine can't boot from these files.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The file can't be read.
    #[error("cannot read {path}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A packed kernel.
    #[error(
        "{path} is a compressed kernel (bzImage); unpack its vmlinux first, as mctl-rootfs does"
    )]
    Compressed {
        /// Which file.
        path: PathBuf,
    },
    /// No kernel.
    #[error("{path} is not a 64-bit x86 ELF kernel: {what}")]
    NotAKernel {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
    },
    /// linux-loader refused it.
    #[error("cannot load kernel {path}")]
    Load {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: loader::Error,
    },
    /// Larger than guest memory.
    #[error(
        "{path} needs {needed_mib} MiB of memory, the machine has {memory_mib} MiB below 3 GiB"
    )]
    DoesNotFit {
        /// Which file.
        path: PathBuf,
        /// Including everything below it.
        needed_mib: u64,
        /// Available.
        memory_mib: u64,
    },
    /// Writing it into guest memory failed.
    #[error("cannot copy {path} into guest memory")]
    Copy {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: vm_memory::GuestMemoryError,
    },
}

/// Where the kernel is in guest memory.
#[derive(Debug, Clone, Copy)]
pub struct LoadedKernel {
    /// First instruction.
    pub entry: u64,
    /// First byte behind it.
    pub end: u64,
}

/// Where the initramfs is in guest memory.
#[derive(Debug, Clone, Copy)]
pub struct LoadedInitramfs {
    /// Guest-physical.
    pub address: u64,
    /// In bytes.
    pub length: u64,
}

/// Loads an uncompressed kernel at its linked addresses.
///
/// # Errors
/// [`KernelError`].
pub fn load_kernel(memory: &GuestMemoryMmap, path: &Path) -> Result<LoadedKernel, KernelError> {
    let read = |source| KernelError::Read {
        path: path.into(),
        source,
    };
    let mut file = File::open(path).map_err(read)?;
    let needed = check_elf(&file, path)?;
    let available = low_memory_bytes(memory);
    if needed > available {
        return Err(KernelError::DoesNotFit {
            path: path.into(),
            needed_mib: needed.div_ceil(1 << 20),
            memory_mib: available >> 20,
        });
    }
    let start = Some(GuestAddress(HIGH_MEMORY));
    let loaded =
        loader::Elf::load(memory, None, &mut file, start).map_err(|source| KernelError::Load {
            path: path.into(),
            source,
        })?;
    let entry = loaded.kernel_load.raw_value();
    if entry >= loaded.kernel_end {
        let what = "its entry lies outside of it";
        return Err(KernelError::NotAKernel {
            path: path.into(),
            what,
        });
    }
    Ok(LoadedKernel {
        entry,
        end: loaded.kernel_end,
    })
}

/// Loads an initramfs as high as possible, out of reach of a kernel that unpacks itself or moves.
///
/// # Errors
/// [`KernelError`].
pub fn load_initramfs(
    memory: &GuestMemoryMmap,
    path: &Path,
    kernel: LoadedKernel,
) -> Result<LoadedInitramfs, KernelError> {
    let read = |source| KernelError::Read {
        path: path.into(),
        source,
    };
    let mut file = File::open(path).map_err(read)?;
    let length = file.metadata().map_err(read)?.len();
    let available = low_memory_bytes(memory);
    let address = available
        .checked_sub(length)
        .map(|address| address & !(PAGE_BYTES - 1));
    let Some(address) = address.filter(|address| *address >= kernel.end) else {
        return Err(KernelError::DoesNotFit {
            path: path.into(),
            needed_mib: (kernel.end.saturating_add(length)).div_ceil(1 << 20),
            memory_mib: available >> 20,
        });
    };
    let copy = |source| KernelError::Copy {
        path: path.into(),
        source,
    };
    let count = usize::try_from(length).unwrap_or(usize::MAX);
    memory
        .read_exact_volatile_from(GuestAddress(address), &mut file, count)
        .map_err(copy)?;
    Ok(LoadedInitramfs { address, length })
}

/// Memory below the gap for devices, which the boot protocol's 32-bit fields can address.
fn low_memory_bytes(memory: &GuestMemoryMmap) -> u64 {
    (memory.last_addr().raw_value() + 1).min(GAP_START)
}

/// Checks the headers and returns the address behind the highest segment.
fn check_elf(file: &File, path: &Path) -> Result<u64, KernelError> {
    let wrong = |what| KernelError::NotAKernel {
        path: path.into(),
        what,
    };
    let read = |source| KernelError::Read {
        path: path.into(),
        source,
    };
    let mut header = Vec::new();
    file.take(ELF_HEADER_BYTES as u64)
        .read_to_end(&mut header)
        .map_err(read)?;
    let header: [u8; ELF_HEADER_BYTES] = header
        .try_into()
        .map_err(|_| wrong("it is shorter than an ELF header"))?;
    if header[..4] != *b"\x7fELF" {
        return Err(if is_bzimage(file) {
            KernelError::Compressed { path: path.into() }
        } else {
            wrong("it has no ELF magic")
        });
    }
    if header[4] != ELF_CLASS_64 {
        return Err(wrong("it is 32-bit"));
    }
    if u16_at(&header, 18) != EM_X86_64 {
        return Err(wrong("it is for another processor"));
    }
    let (table, count) = (u64_at(&header, 32), u16_at(&header, 56));
    let mut end = 0;
    for index in 0..u64::from(count) {
        let offset = index * PROGRAM_HEADER_BYTES as u64;
        let mut segment = [0; PROGRAM_HEADER_BYTES];
        table
            .checked_add(offset)
            .and_then(|offset| file.read_exact_at(&mut segment, offset).ok())
            .ok_or_else(|| wrong("its program headers are truncated"))?;
        if u32_at(&segment, 0) == PT_LOAD {
            let (start, bytes) = (u64_at(&segment, 24), u64_at(&segment, 40));
            if start < HIGH_MEMORY || u64_at(&segment, 32) > bytes {
                return Err(wrong("a segment lies below 1 MiB or contradicts itself"));
            }
            let segment_end = start
                .checked_add(bytes)
                .ok_or_else(|| wrong("a segment wraps"))?;
            end = end.max(segment_end);
        }
    }
    if end == 0 {
        return Err(wrong("it has nothing to load"));
    }
    Ok(end)
}

/// The boot protocol's magic, at 0x202.
fn is_bzimage(file: &File) -> bool {
    let mut magic = [0; 4];
    file.read_exact_at(&mut magic, 0x202).is_ok() && magic == *b"HdrS"
}

fn u16_at(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(array_at(bytes, offset))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array_at(bytes, offset))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array_at(bytes, offset))
}
