//! Guest memory: maps it, and finds the pages that have changed.
//!
//! A machine's memory is anonymous after a boot, and a private mapping of its image's memory
//! file after a resume: pages are read from the file on first touch, and a page that the guest or a
//! device writes becomes an anonymous page of this process. The mapping never changes the file. The
//! caller knows the file's format, checks it and writes it.

pub mod dirty;
pub mod file;
pub mod pages;
pub mod regions;

use std::fs::File;
use std::io;
use std::sync::Arc;

use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use file::MemoryFile;
use regions::{Layout, MAX_MEMORY_MIB, MIN_MEMORY_MIB, Region};

/// Why guest memory can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// No machine may have that size.
    #[error("{memory_mib} MiB of memory is outside of {MIN_MEMORY_MIB} to {MAX_MEMORY_MIB} MiB")]
    Size {
        /// The size.
        memory_mib: u32,
    },
    /// The kernel refused the mapping.
    #[error("cannot map {bytes} bytes of guest memory at {guest_base:#x}")]
    Map {
        /// Guest-physical address of the region.
        guest_base: u64,
        /// Its length.
        bytes: u64,
        /// Why not.
        source: MmapRegionError,
    },
    /// The regions don't fit together.
    #[error("cannot assemble the regions of guest memory")]
    Regions(#[from] vm_memory::GuestRegionCollectionError),
    /// The next suspend needs `/proc/self/pagemap`.
    #[error("cannot open /proc/self/pagemap, which a suspend needs to find changed pages")]
    Pagemap(#[source] io::Error),
}

/// The contents of pages that this process has not written.
#[derive(Debug, Clone)]
pub enum Origin {
    /// Zeros: the machine was booted.
    Anonymous,
    /// Those of the image's memory file: the machine was resumed.
    Image(Arc<MemoryFile>),
}

/// The memory of one machine.
#[derive(Debug)]
pub struct MachineMemory {
    /// The mapped regions, for vCPUs and devices; cheap to clone.
    pub guest: GuestMemoryMmap,
    layout: Layout,
    origin: Origin,
    /// Opened early, before system calls are filtered.
    pagemap: File,
}

impl MachineMemory {
    /// Maps zeroed memory for a machine that boots.
    pub fn anonymous(memory_mib: u32) -> Result<Self, MemoryError> {
        let layout = Layout::new(memory_mib).ok_or(MemoryError::Size { memory_mib })?;
        Self::map(layout, Origin::Anonymous)
    }

    /// Maps an image's memory file privately; no page is read before it is touched.
    pub(crate) fn from_image(layout: Layout, file: Arc<MemoryFile>) -> Result<Self, MemoryError> {
        Self::map(layout, Origin::Image(file))
    }

    fn map(layout: Layout, origin: Origin) -> Result<Self, MemoryError> {
        let regions = layout
            .regions()
            .iter()
            .map(|region| map_region(region, &origin))
            .collect::<Result<Vec<_>, _>>()?;
        let guest = GuestMemoryMmap::from_regions(regions)?;
        let pagemap = File::open("/proc/self/pagemap").map_err(MemoryError::Pagemap)?;
        Ok(Self {
            guest,
            layout,
            origin,
            pagemap,
        })
    }

    /// Where the regions lie.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The contents of unwritten pages.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }
}

fn map_region(region: &Region, origin: &Origin) -> Result<GuestRegionMmap, MemoryError> {
    let (file_offset, anonymous) = match origin {
        Origin::Anonymous => (None, libc::MAP_ANONYMOUS),
        Origin::Image(memory) => {
            let start = file::page_offset(region.first_page);
            (
                Some(FileOffset::from_arc(Arc::clone(memory.file()), start)),
                0,
            )
        }
    };
    let failed = |source| MemoryError::Map {
        guest_base: region.guest_base,
        bytes: region.bytes,
        source,
    };
    // Swap is not reserved, since most guests never use all of their memory.
    let mapping = MmapRegion::build(
        file_offset,
        usize::try_from(region.bytes).unwrap_or(usize::MAX),
        libc::PROT_READ | libc::PROT_WRITE,
        libc::MAP_PRIVATE | libc::MAP_NORESERVE | anonymous,
    )
    .map_err(failed)?;
    GuestRegionMmap::new(mapping, GuestAddress(region.guest_base))
        .ok_or_else(|| failed(MmapRegionError::InvalidOffsetLength))
}
