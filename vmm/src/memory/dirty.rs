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
        let (pages, source) = match self.collect_pages(pagemap::scan) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
                (self.collect_pages(pagemap::read), DirtySource::Pagemap)
            }
            answer => (answer, DirtySource::PagemapScan),
        };
        let source = match self.origin {
            Origin::Anonymous => DirtySource::Content,
            Origin::Image(_) => source,
        };
        Ok((pages.map_err(ScanError::Pagemap)?, source))
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
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use proptest::prelude::*;
    use vm_memory::Bytes;

    use super::*;
    use crate::memory::file::{CHUNK_BYTES, HEADER_BYTES, MemoryFile, page_offset};
    use crate::memory::regions::Layout;

    const MEMORY_MIB: u32 = 64;

    /// A machine on a private mapping of a real file, of which every 16th page is data.
    fn resumed() -> MachineMemory {
        let layout = Layout::new(MEMORY_MIB).unwrap();
        let file = tempfile::tempfile().unwrap();
        file.set_len(HEADER_BYTES + layout.bytes()).unwrap();
        for page in (0..layout.pages()).step_by(16) {
            file.write_all_at(&[1; PAGE_LEN], page_offset(page))
                .unwrap();
        }
        let sums = vec![0; usize::try_from(layout.bytes() / CHUNK_BYTES).unwrap()];
        let lock = Arc::new(File::open("/").unwrap());
        let memory = MemoryFile::new(file, sums, lock);
        MachineMemory::from_image(layout, Arc::new(memory)).unwrap()
    }

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

    /// The answers of both sources, or only the older one where the kernel lacks the newer.
    fn answers(memory: &MachineMemory) -> Vec<PageSet> {
        let table = memory.collect_pages(pagemap::read).unwrap();
        match memory.collect_pages(pagemap::scan) {
            Ok(scanned) => vec![table, scanned],
            Err(error) => {
                let line = format!("SKIPPED: PAGEMAP_SCAN is not compared: {error}\n");
                io::Write::write_all(&mut io::stderr(), line.as_bytes()).unwrap();
                vec![table]
            }
        }
    }

    fn assert_private(memory: &MachineMemory, expected: &[u64]) {
        for answer in answers(memory) {
            assert!(
                answer == set(expected),
                "{:?}",
                answer.runs().collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn an_untouched_mapping_has_no_private_pages() {
        assert_private(&resumed(), &[]);
    }

    #[test]
    fn pages_that_were_only_read_are_not_private() {
        let memory = resumed();
        let mut bytes = vec![0; 64 << 20];

        memory.guest.read_slice(&mut bytes, address(0)).unwrap();

        assert_private(&memory, &[]);
    }

    #[test]
    fn written_pages_are_private_whether_they_were_data_or_holes() {
        let memory = resumed();

        memory.guest.write_obj(7u8, address(0)).unwrap();
        memory.guest.write_obj(7u8, address(1)).unwrap();
        memory.guest.write_obj(7u8, address(16_383)).unwrap();

        assert_private(&memory, &[0, 1, 16_383]);
    }

    #[test]
    fn a_page_written_with_what_it_held_counts_as_changed() {
        let memory = resumed();

        memory
            .guest
            .write_slice(&[1; PAGE_LEN], address(16))
            .unwrap();

        assert_private(&memory, &[16]);
    }

    #[test]
    fn more_runs_than_one_answer_holds_are_all_found() {
        let memory = resumed();
        let pages: Vec<u64> = (0..16_384).step_by(2).collect();

        for page in &pages {
            memory.guest.write_obj(7u8, address(*page)).unwrap();
        }

        assert_private(&memory, &pages);
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
        let memory = resumed();
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

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn both_sources_agree_on_what_was_written(
            reads in prop::collection::vec(0u64..16_384, 0..200),
            writes in prop::collection::vec(0u64..16_384, 0..200),
        ) {
            let memory = resumed();
            for page in &reads {
                memory.guest.read_obj::<u8>(address(*page)).unwrap();
            }
            for page in &writes {
                memory.guest.write_obj(9u8, address(*page)).unwrap();
            }

            for answer in answers(&memory) {
                prop_assert!(answer == set(&writes));
            }
        }
    }
}
