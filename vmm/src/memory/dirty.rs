//! Finds the pages of a machine's memory that a save has to write.
//!
//! Nothing is tracked while the machine runs. A page that was written is a private page of this process,
//! and the kernel can list these. After a boot, each page that was ever touched is private; those that
//! hold only zeros are found by reading them. After a resume, a page counts as changed once it was
//! written, even with the same contents: a comparison would read as much of the file as it saves.

use std::io;
use std::ops::Range;

use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, VolatileMemory,
    VolatileSlice,
};

use super::pages::PageSet;
use super::{MachineMemory, Origin};
use crate::page::{PAGE_BYTES, PAGE_LEN};
use crate::sys::pagemap;

/// Pages between two checks of the cancel flag.
const BATCH_PAGES: u64 = 1024;

/// How changed pages were found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DirtySource {
    /// By the `PAGEMAP_SCAN` ioctl.
    PagemapScan,
    /// By reading `/proc/self/pagemap`.
    Pagemap,
    /// By reading the touched pages, of which those with only zeros are unchanged: the machine was booted.
    Content,
}

impl DirtySource {
    /// Its name in figures.
    pub fn name(self) -> &'static str {
        match self {
            Self::PagemapScan => "pagemap_scan",
            Self::Pagemap => "pagemap",
            Self::Content => "content",
        }
    }
}

/// Why changed pages can't be found.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The kernel does not list them.
    #[error("cannot ask the kernel which pages are private to this process")]
    Pagemap(#[source] io::Error),
    /// A page lies outside of guest memory.
    #[error("cannot read a page of guest memory")]
    Memory(#[from] GuestMemoryError),
    /// It was asked to stop.
    #[error("the search for changed pages was cancelled")]
    Cancelled,
}

/// Pages sorted by their contents.
#[derive(Debug)]
pub struct SortedPages {
    /// Not all zero.
    pub data: PageSet,
    /// All zero.
    pub zero: PageSet,
}

impl MachineMemory {
    /// The pages that are private to this process, and how they were found.
    pub fn private_pages(&self) -> Result<(PageSet, DirtySource), ScanError> {
        let (pages, source) = match self.private_pages_by_scan() {
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
                (self.private_pages_by_table(), DirtySource::Pagemap)
            }
            answer => (answer, DirtySource::PagemapScan),
        };
        let source = match self.origin {
            Origin::Anonymous => DirtySource::Content,
            Origin::Image(_) => source,
        };
        Ok((pages.map_err(ScanError::Pagemap)?, source))
    }

    /// The private pages by the `PAGEMAP_SCAN` ioctl; ENOTTY where the kernel has none.
    pub fn private_pages_by_scan(&self) -> io::Result<PageSet> {
        self.collect_pages(pagemap::scan)
    }

    /// The private pages by the table in `/proc/self/pagemap`, which each kernel has.
    pub fn private_pages_by_table(&self) -> io::Result<PageSet> {
        self.collect_pages(pagemap::read)
    }

    /// Reads each of `pages` and sorts them into zeros and others.
    pub fn sort_by_content(
        &self,
        pages: &PageSet,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<SortedPages, ScanError> {
        let mut sorted = SortedPages {
            data: PageSet::new(self.layout.pages()),
            zero: PageSet::new(self.layout.pages()),
        };
        for piece in self.pieces(pages, BATCH_PAGES) {
            if is_cancelled() {
                return Err(ScanError::Cancelled);
            }
            let slice = self.slice(&piece)?;
            for page in piece.clone() {
                let offset =
                    usize::try_from((page - piece.start) * PAGE_BYTES).unwrap_or(usize::MAX);
                let is_zero = is_zero_page(&slice, offset)?;
                let set = if is_zero {
                    &mut sorted.zero
                } else {
                    &mut sorted.data
                };
                set.insert(page..page + 1);
            }
        }
        Ok(sorted)
    }

    /// The runs of a set, split at the end of a region and after `max_pages`.
    pub fn pieces<'a>(
        &'a self,
        pages: &'a PageSet,
        max_pages: u64,
    ) -> impl Iterator<Item = Range<u64>> + 'a {
        pages.runs().flat_map(move |run| {
            let mut start = run.start;
            std::iter::from_fn(move || {
                if start >= run.end {
                    return None;
                }
                let region = self.layout.region_of(start)?;
                let end = run.end.min(region.page_range().end).min(start + max_pages);
                let piece = start..end;
                start = end;
                Some(piece)
            })
        })
    }

    /// The memory of pages that lie in one region.
    pub fn slice(&self, pages: &Range<u64>) -> Result<VolatileSlice<'_>, GuestMemoryError> {
        let address = self.layout.guest_address(pages.start).unwrap_or(u64::MAX);
        let bytes = usize::try_from((pages.end - pages.start) * PAGE_BYTES).unwrap_or(usize::MAX);
        self.guest.get_slice(GuestAddress(address), bytes)
    }

    fn collect_pages(&self, look_up: LookUp) -> io::Result<PageSet> {
        let mut pages = PageSet::new(self.layout.pages());
        for (region, mapped) in self.layout.regions().iter().zip(self.guest.iter()) {
            let host_base = mapped.as_ptr().addr();
            let host_end = host_base + usize::try_from(mapped.len()).unwrap_or(0);
            let page_at =
                |address: usize| region.first_page + (address - host_base) as u64 / PAGE_BYTES;
            look_up(&self.pagemap, host_base..host_end, &mut |found| {
                pages.insert(page_at(found.start)..page_at(found.end));
            })?;
        }
        Ok(pages)
    }
}

type LookUp = fn(&std::fs::File, Range<usize>, &mut dyn FnMut(Range<usize>)) -> io::Result<()>;

fn is_zero_page(slice: &VolatileSlice<'_>, offset: usize) -> Result<bool, GuestMemoryError> {
    const WORDS: usize = PAGE_LEN / 8;
    let words = slice
        .get_array_ref::<u64>(offset, WORDS)
        .map_err(GuestMemoryError::from)?;
    Ok((0..WORDS).all(|index| words.load(index) == 0))
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    const MEMORY_MIB: u32 = 64;

    fn address(page: u64) -> GuestAddress {
        GuestAddress(page * PAGE_BYTES)
    }

    fn set(pages: &[u64]) -> PageSet {
        let mut set = PageSet::new(u64::from(MEMORY_MIB) << 8);
        for page in pages {
            set.insert(*page..page + 1);
        }
        set
    }

    #[test]
    fn a_booted_machine_is_searched_only_where_it_was_written() {
        let memory = MachineMemory::anonymous(MEMORY_MIB).unwrap();
        let mut bytes = vec![0; 1 << 20];
        memory.guest.read_slice(&mut bytes, address(0)).unwrap();
        memory.guest.write_obj(7u8, address(3)).unwrap();
        memory.guest.write_obj(0u8, address(5)).unwrap();

        let (pages, source) = memory.private_pages().unwrap();
        let sorted = memory.sort_by_content(&pages, &|| false).unwrap();

        assert_eq!(source, DirtySource::Content);
        assert_eq!(sorted.data, set(&[3]));
        // The older source can't tell a page of zeros that was only read.
        assert!(sorted.zero.count_in_chunk(0) >= 1);
    }

    #[test]
    fn a_search_can_be_cancelled() {
        let memory = MachineMemory::anonymous(MEMORY_MIB).unwrap();
        let pages = set(&[0]);

        let outcome = memory.sort_by_content(&pages, &|| true);

        assert!(matches!(outcome, Err(ScanError::Cancelled)), "{outcome:?}");
    }

    #[test]
    fn both_regions_of_a_large_machine_are_searched() {
        let memory = MachineMemory::anonymous(4096).unwrap();
        let last_low = (3u64 << 30) / PAGE_BYTES - 1;
        memory
            .guest
            .write_obj(1u8, GuestAddress((3 << 30) - 1))
            .unwrap();
        memory.guest.write_obj(1u8, GuestAddress(4 << 30)).unwrap();

        let (pages, _) = memory.private_pages().unwrap();
        let pieces: Vec<_> = memory.pieces(&pages, u64::MAX >> 1).collect();

        assert_eq!(pieces, [last_low..last_low + 1, last_low + 1..last_low + 2]);
    }
}
