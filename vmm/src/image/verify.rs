//! Checking the memory file against its sums: all of it before the guest runs, or in the
//! background while it runs.
//!
//! Reads the file, not the mapping, so that it checks what a resume gets and not what the guest has
//! made of it. The caller decides what happens to a damaged machine.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::SeekFrom;

use super::digest::{chunk_sum, zero_chunk_sum};
use crate::memory::file::{
    CHUNK_BYTES, CHUNK_LEN, CHUNK_PAGES, HEADER_BYTES, MemoryFile, chunk_offset,
};
use crate::memory::regions::Layout;
use crate::sys;

/// Chunks per read.
const BATCH_CHUNKS: usize = 16;
/// Chunks of a hole between two checks of the stop flag.
const HOLE_CHUNKS: u64 = 1024;

/// A range of guest memory that differs from what was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DamagedRange {
    /// Guest-physical address of its first byte.
    pub guest_address: u64,
    /// Offset in the memory file.
    pub file_offset: u64,
    /// Its length.
    pub bytes: u64,
}

/// Guest memory is as it was saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Bytes read; holes are not.
    pub bytes_read: u64,
    /// How long it took.
    pub duration: Duration,
}

/// Why guest memory is not verified.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It is damaged.
    #[error(
        "guest memory from {:#x} to {:#x} is damaged (the image's memory file, {} bytes at offset {})",
        .0.guest_address, .0.guest_address + .0.bytes, .0.bytes, .0.file_offset
    )]
    Damaged(DamagedRange),
    /// It can't be read.
    #[error("cannot read the image's memory file at offset {file_offset}")]
    Read {
        /// Where.
        file_offset: u64,
        /// Why not.
        source: io::Error,
    },
    /// It was asked to stop.
    #[error("verification was stopped")]
    Stopped,
}

/// A thread that checks guest memory after a lazy resume.
#[derive(Debug)]
pub struct BackgroundVerifier {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl BackgroundVerifier {
    pub(super) fn start(
        memory: Arc<MemoryFile>,
        layout: Layout,
        on_end: impl FnOnce(Result<Verified, VerifyError>) + Send + 'static,
    ) -> io::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("verifier".to_owned())
            .spawn(move || {
                sys::priority::lower_this_thread();
                let is_stopped = || stopped.load(Ordering::Relaxed);
                match verify_all(&memory, &layout, &is_stopped) {
                    Err(VerifyError::Stopped) => {}
                    outcome => on_end(outcome),
                }
            })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Ends the check, if it hasn't ended by itself, and waits for its thread: for one read of the memory
    /// file or, during a save, until the save ends.
    pub fn stop(mut self) {
        self.stop_and_join();
    }

    /// Whether the check has ended.
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn stop_and_join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let Some(thread) = self.thread.take() else {
            return;
        };
        // A call from within `on_end` is on that thread, which ends by itself.
        if thread.thread().id() != thread::current().id() {
            // A panic of the thread has been printed already.
            let _ = thread.join();
        }
    }
}

impl Drop for BackgroundVerifier {
    fn drop(&mut self) {
        self.stop_and_join();
    }
}

/// Checks each chunk that is not verified yet.
pub(super) fn verify_all(
    memory: &MemoryFile,
    layout: &Layout,
    is_stopped: &dyn Fn() -> bool,
) -> Result<Verified, VerifyError> {
    let started = Instant::now();
    let mut bytes_read = 0;
    let mut buffer = vec![0; CHUNK_LEN * BATCH_CHUNKS];
    let mut next = 0;
    while next < memory.chunks() {
        // Waits while a save uses the disk and changes the file.
        drop(memory.rewriting());
        if is_stopped() {
            return Err(VerifyError::Stopped);
        }
        sys::priority::let_others_run();
        let data = next_data_chunk(memory, next)?.min(memory.chunks());
        let holes_end = data.min(next + HOLE_CHUNKS);
        for chunk in next..holes_end {
            check_hole(memory, layout, chunk)?;
        }
        next = holes_end;
        if next == data && next < memory.chunks() {
            let count = (BATCH_CHUNKS as u64).min(memory.chunks() - next);
            bytes_read += check_data(memory, layout, next, count, &mut buffer)?;
            next += count;
        }
    }
    Ok(Verified {
        bytes_read,
        duration: started.elapsed(),
    })
}

/// The first chunk from `chunk` on that is not a hole as a whole.
fn next_data_chunk(memory: &MemoryFile, chunk: u64) -> Result<u64, VerifyError> {
    let file_offset = chunk_offset(chunk);
    match rustix::fs::seek(memory.file(), SeekFrom::Data(file_offset)) {
        Ok(data) => Ok(data.saturating_sub(HEADER_BYTES) / CHUNK_BYTES),
        Err(rustix::io::Errno::NXIO) => Ok(u64::MAX),
        Err(error) => Err(VerifyError::Read {
            file_offset,
            source: error.into(),
        }),
    }
}

fn check_hole(memory: &MemoryFile, layout: &Layout, chunk: u64) -> Result<(), VerifyError> {
    if memory.is_verified(chunk) || memory.sum(chunk) == Some(zero_chunk_sum()) {
        memory.mark_verified(chunk);
        return Ok(());
    }
    check_chunk_alone(memory, layout, chunk)
}

fn check_data(
    memory: &MemoryFile,
    layout: &Layout,
    first: u64,
    count: u64,
    buffer: &mut [u8],
) -> Result<u64, VerifyError> {
    let length = usize::try_from(count * CHUNK_BYTES).unwrap_or(buffer.len());
    let buffer = &mut buffer[..length];
    read(memory.file(), buffer, chunk_offset(first))?;
    for (chunk, bytes) in (first..).zip(buffer.chunks_exact(CHUNK_LEN)) {
        if memory.is_verified(chunk) {
            continue;
        }
        sys::priority::let_others_run();
        if memory.sum(chunk) == Some(chunk_sum(bytes)) {
            memory.mark_verified(chunk);
        } else {
            check_chunk_alone(memory, layout, chunk)?;
        }
    }
    Ok(count * CHUNK_BYTES)
}

/// Decides about a chunk that didn't match, while no save can change it.
fn check_chunk_alone(memory: &MemoryFile, layout: &Layout, chunk: u64) -> Result<(), VerifyError> {
    let _no_save = memory.rewriting();
    let mut bytes = vec![0; CHUNK_LEN];
    check_chunk(memory, layout, chunk, &mut bytes)
}

/// Checks one chunk. The caller holds [`MemoryFile::rewriting`].
pub(super) fn check_chunk(
    memory: &MemoryFile,
    layout: &Layout,
    chunk: u64,
    buffer: &mut [u8],
) -> Result<(), VerifyError> {
    if memory.is_verified(chunk) {
        return Ok(());
    }
    read_chunk(memory, chunk, buffer)?;
    if memory.sum(chunk) != Some(chunk_sum(buffer)) {
        return Err(VerifyError::Damaged(DamagedRange {
            guest_address: layout
                .guest_address(chunk * CHUNK_PAGES)
                .unwrap_or(u64::MAX),
            file_offset: chunk_offset(chunk),
            bytes: CHUNK_BYTES,
        }));
    }
    memory.mark_verified(chunk);
    Ok(())
}

/// Reads one chunk from the file.
pub(super) fn read_chunk(
    memory: &MemoryFile,
    chunk: u64,
    buffer: &mut [u8],
) -> Result<(), VerifyError> {
    read(memory.file(), buffer, chunk_offset(chunk))
}

fn read(file: &File, buffer: &mut [u8], file_offset: u64) -> Result<(), VerifyError> {
    file.read_exact_at(buffer, file_offset)
        .map_err(|source| VerifyError::Read {
            file_offset,
            source,
        })
}
