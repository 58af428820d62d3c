//! A set of pages of one machine, as a bit map of 32 KiB per GiB of guest memory.

use std::ops::Range;

use super::file::CHUNK_PAGES;

const WORD_BITS: u64 = u64::BITS as u64;

/// A set of page indexes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
    pages: u64,
}

impl PageSet {
    /// An empty set for a machine of so many pages.
    pub fn new(pages: u64) -> Self {
        let words = usize::try_from(pages.div_ceil(WORD_BITS)).unwrap_or(0);
        Self {
            words: vec![0; words],
            pages,
        }
    }

    /// Adds pages; ignores those beyond the machine's last.
    pub fn insert(&mut self, pages: Range<u64>) {
        let end = pages.end.min(self.pages);
        let mut page = pages.start;
        while page < end {
            let bit = page % WORD_BITS;
            let count = (WORD_BITS - bit).min(end - page);
            self.words[word_of(page)] |= (u64::MAX >> (WORD_BITS - count)) << bit;
            page += count;
        }
    }

    /// Adds all pages of another set of the same machine.
    pub fn insert_all(&mut self, other: &Self) {
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    /// Number of pages in the set.
    pub fn count(&self) -> u64 {
        self.words
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum()
    }

    /// Whether it holds no page.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The contiguous runs of pages, by rising index.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.runs_in(0..self.pages)
    }

    /// The runs of the pages that lie in `range`.
    pub fn runs_in(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let limit = range.end.min(self.pages);
        let mut from = range.start;
        std::iter::from_fn(move || {
            let start = self.next(from, true).filter(|start| *start < limit)?;
            let end = self.next(start, false).unwrap_or(limit).min(limit);
            from = end;
            Some(start..end)
        })
    }

    /// How many pages of a chunk are in the set.
    pub fn count_in_chunk(&self, chunk: u64) -> u64 {
        let first = chunk * CHUNK_PAGES;
        let word = self.words.get(word_of(first)).copied().unwrap_or(0);
        let bits = (word >> (first % WORD_BITS)) & ((1 << CHUNK_PAGES) - 1);
        u64::from(bits.count_ones())
    }

    /// The first page from `from` on that is in the set, or that isn't.
    fn next(&self, from: u64, present: bool) -> Option<u64> {
        let mut page = from;
        while page < self.pages {
            let word = self.words[word_of(page)];
            let wanted = if present { word } else { !word } >> (page % WORD_BITS);
            if wanted != 0 {
                let found = page + u64::from(wanted.trailing_zeros());
                return (found < self.pages).then_some(found);
            }
            page = (page / WORD_BITS + 1) * WORD_BITS;
        }
        None
    }
}

fn word_of(page: u64) -> usize {
    usize::try_from(page / WORD_BITS).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_agrees_with_a_plain_set(
            pages in 1u64..400,
            ranges in prop::collection::vec((0u64..420, 0u64..90), 0..12),
        ) {
            let mut set = PageSet::new(pages);
            let mut plain = BTreeSet::new();
            for (start, length) in ranges {
                set.insert(start..start + length);
                plain.extend((start..start + length).filter(|page| *page < pages));
            }

            let runs: Vec<_> = set.runs().collect();

            prop_assert_eq!(set.count(), plain.len() as u64);
            prop_assert_eq!(set.is_empty(), plain.is_empty());
            prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert_eq!(runs.into_iter().flatten().collect::<BTreeSet<_>>(), plain.clone());
            for chunk in 0..pages.div_ceil(CHUNK_PAGES) {
                let range = chunk * CHUNK_PAGES..(chunk + 1) * CHUNK_PAGES;
                prop_assert_eq!(set.count_in_chunk(chunk), plain.range(range.clone()).count() as u64);
                let within: Vec<_> = set.runs_in(range.clone()).flatten().collect();
                prop_assert_eq!(within, plain.range(range).copied().collect::<Vec<_>>());
            }
        }
    }
}
