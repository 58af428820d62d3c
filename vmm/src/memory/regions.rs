//! Where guest memory lies: in guest-physical space, with the gap below 4 GiB, and in the
//! image's memory file, without it.
//!
//! A pure calculation; `memory` maps the regions.

use std::ops::Range;

use crate::page::PAGE_BYTES;

/// First address of the gap that guest memory leaves for devices.
pub const GAP_START: u64 = 3 << 30;
/// First address behind the gap.
pub const GAP_END: u64 = 4 << 30;
/// Smallest machine, in MiB.
pub const MIN_MEMORY_MIB: u32 = 64;
/// Largest machine, in MiB.
pub const MAX_MEMORY_MIB: u32 = 64 << 10;

/// One contiguous piece of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Guest-physical address of its first byte.
    pub guest_base: u64,
    /// Length.
    pub bytes: u64,
    /// Index of its first page among all pages of the machine, counted without the gap.
    pub first_page: u64,
}

impl Region {
    /// Number of pages in it.
    pub fn pages(&self) -> u64 {
        self.bytes / PAGE_BYTES
    }

    /// Its pages, by index.
    pub fn page_range(&self) -> Range<u64> {
        self.first_page..self.first_page + self.pages()
    }
}

/// The regions of a machine of a given size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    memory_mib: u32,
    regions: Vec<Region>,
}

impl Layout {
    /// The layout of a machine of that size; `None` if no machine may have it.
    pub fn new(memory_mib: u32) -> Option<Self> {
        if !(MIN_MEMORY_MIB..=MAX_MEMORY_MIB).contains(&memory_mib) {
            return None;
        }
        let bytes = u64::from(memory_mib) << 20;
        let low = bytes.min(GAP_START);
        let mut regions = vec![Region {
            guest_base: 0,
            bytes: low,
            first_page: 0,
        }];
        if bytes > low {
            regions.push(Region {
                guest_base: GAP_END,
                bytes: bytes - low,
                first_page: low / PAGE_BYTES,
            });
        }
        Some(Self {
            memory_mib,
            regions,
        })
    }

    /// Size in MiB.
    pub fn memory_mib(&self) -> u32 {
        self.memory_mib
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.memory_mib) << 20
    }

    /// Number of pages.
    pub fn pages(&self) -> u64 {
        self.bytes() / PAGE_BYTES
    }

    /// The regions, by rising address.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The region of a page; `None` beyond the last page.
    pub fn region_of(&self, page: u64) -> Option<&Region> {
        self.regions
            .iter()
            .find(|region| region.page_range().contains(&page))
    }

    /// Guest-physical address of a page; `None` beyond the last page.
    pub fn guest_address(&self, page: u64) -> Option<u64> {
        let region = self.region_of(page)?;
        Some(region.guest_base + (page - region.first_page) * PAGE_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_machine_has_one_region_from_zero() {
        let layout = Layout::new(256).unwrap();

        assert_eq!(
            layout.regions(),
            [Region {
                guest_base: 0,
                bytes: 256 << 20,
                first_page: 0
            }]
        );
    }

    #[test]
    fn memory_beyond_three_gib_continues_at_four() {
        let layout = Layout::new(5 << 10).unwrap();

        assert_eq!(
            layout.regions(),
            [
                Region {
                    guest_base: 0,
                    bytes: 3 << 30,
                    first_page: 0
                },
                Region {
                    guest_base: 4 << 30,
                    bytes: 2 << 30,
                    first_page: (3 << 30) / 4096
                },
            ]
        );
        assert_eq!(layout.bytes(), 5 << 30);
    }

    #[test]
    fn exactly_three_gib_needs_no_second_region() {
        assert_eq!(Layout::new(3 << 10).unwrap().regions().len(), 1);
    }

    #[test]
    fn page_indexes_skip_the_gap() {
        let layout = Layout::new(4 << 10).unwrap();
        let last_low = (3u64 << 30) / 4096 - 1;

        assert_eq!(layout.guest_address(last_low), Some((3 << 30) - 4096));
        assert_eq!(layout.guest_address(last_low + 1), Some(4 << 30));
        assert_eq!(layout.guest_address(layout.pages()), None);
    }

    #[test]
    fn sizes_out_of_bounds_are_refused() {
        assert_eq!(Layout::new(63), None);
        assert_eq!(Layout::new((64 << 10) + 1), None);
        assert!(Layout::new(64).is_some());
        assert!(Layout::new(64 << 10).is_some());
    }
}
