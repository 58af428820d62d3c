//! The memory file of an image that a running machine maps, and which of its chunks are verified.
//!
//! Does not read or check the file: the caller provides the sums and marks chunks.
//!
//! While a machine runs on a mapped file, only a save changes the file, in place. Whoever checks the
//! file meanwhile follows one rule: a chunk that does not match is damaged only if it is still
//! unverified and still does not match while [`MemoryFile::rewriting`] is locked. A save holds that
//! lock, and marks each chunk before it writes into it.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::page::PAGE_BYTES;

/// Length of the header, which precedes guest memory in the file.
pub const HEADER_LEN: usize = 4096;
/// As a file offset.
pub const HEADER_BYTES: u64 = HEADER_LEN as u64;
/// Length of a chunk: the guest memory under one sum.
pub const CHUNK_LEN: usize = 64 << 10;
/// As a file offset.
pub const CHUNK_BYTES: u64 = CHUNK_LEN as u64;
/// Pages of guest memory under one sum.
pub const CHUNK_PAGES: u64 = CHUNK_BYTES / PAGE_BYTES;

/// Offset of a page of guest memory in the file.
pub fn page_offset(page: u64) -> u64 {
    HEADER_BYTES + page * PAGE_BYTES
}

/// Offset of a chunk of guest memory in the file.
pub fn chunk_offset(chunk: u64) -> u64 {
    HEADER_BYTES + chunk * CHUNK_BYTES
}

/// A memory file that a machine runs on.
#[derive(Debug)]
pub struct MemoryFile {
    file: Arc<File>,
    sums: Vec<u64>,
    verified: Vec<AtomicU64>,
    rewriting: Mutex<()>,
    /// The locked directory; held as long as anything maps the file.
    lock: Arc<File>,
}

impl MemoryFile {
    /// A memory file with one sum per chunk, none of them verified yet.
    pub fn new(file: File, sums: Vec<u64>, lock: Arc<File>) -> Self {
        let words = sums.len().div_ceil(64);
        let verified = std::iter::repeat_with(|| AtomicU64::new(0))
            .take(words)
            .collect();
        Self {
            file: Arc::new(file),
            sums,
            verified,
            rewriting: Mutex::new(()),
            lock,
        }
    }

    /// The file itself.
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// The sums of the image when it was opened, one per chunk.
    pub fn sums(&self) -> &[u64] {
        &self.sums
    }

    /// The image directory, locked for this process.
    pub fn lock(&self) -> &Arc<File> {
        &self.lock
    }

    /// Sum of one chunk; `None` beyond the last.
    pub fn sum(&self, chunk: u64) -> Option<u64> {
        self.sums.get(usize::try_from(chunk).ok()?).copied()
    }

    /// Number of chunks.
    pub fn chunks(&self) -> u64 {
        self.sums.len() as u64
    }

    /// Whether a chunk needs no check any more: it matched, or a save has begun to replace it.
    pub fn is_verified(&self, chunk: u64) -> bool {
        let (word, bit) = position(chunk);
        self.verified
            .get(word)
            .is_some_and(|bits| bits.load(Ordering::Acquire) & bit != 0)
    }

    /// Records that a chunk needs no check any more.
    pub fn mark_verified(&self, chunk: u64) {
        let (word, bit) = position(chunk);
        if let Some(bits) = self.verified.get(word) {
            bits.fetch_or(bit, Ordering::AcqRel);
        }
    }

    /// Locks the file against changes; a save holds this from its first write to its end.
    pub fn rewriting(&self) -> MutexGuard<'_, ()> {
        // The mutex guards the file, and a panic of the holder harms it no more than a crash.
        self.rewriting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

fn position(chunk: u64) -> (usize, u64) {
    (
        usize::try_from(chunk / 64).unwrap_or(usize::MAX),
        1 << (chunk % 64),
    )
}
