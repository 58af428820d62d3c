//! The part of a save that concerns guest memory: which pages it writes, writing them, and
//! bringing the sums up to date.
//!
//! Opens and syncs nothing.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::digest::{chunk_sum, zero_chunk_sum};
use super::directory::{ImageDirectory, MEMORY};
use super::save::{PhaseClock, Save, SaveError, SaveRequest};
use super::step::Step;
use super::verify;
use crate::memory::dirty::DirtySource;
use crate::memory::file::{
    CHUNK_BYTES, CHUNK_LEN, CHUNK_PAGES, HEADER_BYTES, MemoryFile, page_offset,
};
use crate::memory::pages::PageSet;
use crate::memory::regions::PAGE_BYTES;
use crate::memory::{MachineMemory, Origin};
use crate::sys::guest_write;

/// Most pages in one write, so that cancelling doesn't wait long.
const BATCH_PAGES: u64 = 1024;

/// What is going to be written.
pub(super) struct Plan {
    /// Into the file that the machine runs on; otherwise into a new one, from holes.
    pub(super) in_place: bool,
    /// How changed pages were found.
    pub(super) source: DirtySource,
    /// Pages to write.
    data: PageSet,
    /// Pages to punch out; none for a new file.
    punch: PageSet,
    /// Pages whose chunks get new sums.
    changed: PageSet,
}

impl Plan {
    pub(super) fn draw(save: &Save<'_>, directory: &ImageDirectory) -> Result<Self, SaveError> {
        let memory = save.request.memory;
        let is_cancelled = || save.request.is_cancelled();
        let (changed, source) = memory.private_pages()?;
        let Origin::Image(kept) = memory.origin() else {
            let sorted = memory.sort_by_content(&changed, &is_cancelled)?;
            return Ok(Self {
                in_place: false,
                source,
                changed: sorted.data.clone(),
                data: sorted.data,
                punch: PageSet::new(memory.layout().pages()),
            });
        };
        check_kept_chunks(save, kept, &changed)?;
        let path = directory.file(MEMORY);
        if is_same_file(kept, &path) {
            let sorted = memory.sort_by_content(&changed, &is_cancelled)?;
            return Ok(Self {
                in_place: true,
                source,
                data: sorted.data,
                punch: sorted.zero,
                changed,
            });
        }
        let mut all = file_pages(kept, memory)
            .map_err(|error| SaveError::at(Step::OpenMemory, &path, error))?;
        all.insert_all(&changed);
        let sorted = memory.sort_by_content(&all, &is_cancelled)?;
        let punch = PageSet::new(memory.layout().pages());
        Ok(Self {
            in_place: false,
            source,
            data: sorted.data,
            punch,
            changed,
        })
    }

    pub(super) fn pages_changed(&self) -> u64 {
        self.changed.count()
    }

    pub(super) fn bytes_to_write(&self) -> u64 {
        self.data.count() * PAGE_BYTES
    }
}

/// Checks, in the old image, the chunks that will get a new sum and keep some of their pages:
/// the new sum would vouch for damage that the old one still shows. Then marks all chunks that
/// will change.
fn check_kept_chunks(
    save: &Save<'_>,
    kept: &MemoryFile,
    changed: &PageSet,
) -> Result<(), SaveError> {
    let layout = save.request.memory.layout();
    let mut buffer = vec![0; CHUNK_LEN];
    for chunk in 0..kept.chunks() {
        let count = changed.count_in_chunk(chunk);
        if count == 0 || kept.is_verified(chunk) {
            continue;
        }
        if save.request.is_cancelled() {
            return Err(SaveError::Cancelled);
        }
        if count < CHUNK_PAGES {
            verify::check_chunk(kept, layout, chunk, &mut buffer).map_err(SaveError::Kept)?;
        }
        kept.mark_verified(chunk);
    }
    Ok(())
}

fn is_same_file(kept: &MemoryFile, path: &Path) -> bool {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    match (kept.file().metadata(), std::fs::symlink_metadata(path)) {
        (Ok(ours), Ok(theirs)) => identity(ours) == identity(theirs),
        _ => false,
    }
}

/// Pages that the machine's own file has data for.
fn file_pages(kept: &MemoryFile, memory: &MachineMemory) -> io::Result<PageSet> {
    let mut pages = PageSet::new(memory.layout().pages());
    let mut offset = HEADER_BYTES;
    loop {
        let start = match rustix::fs::seek(kept.file(), SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(pages),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(kept.file(), SeekFrom::Hole(start))?;
        let page = |offset: u64| offset.saturating_sub(HEADER_BYTES) / PAGE_BYTES;
        pages.insert(page(start)..page(end + PAGE_BYTES - 1));
        offset = end;
    }
}

/// Writes the pages and answers the sums, which a second thread takes meanwhile.
pub(super) fn write(
    save: &Save<'_>,
    plan: &Plan,
    file: &File,
    clock: &mut PhaseClock,
) -> Result<Vec<u64>, SaveError> {
    let request = save.request;
    thread::scope(|scope| {
        let summing = thread::Builder::new()
            .name("summer".to_owned())
            .spawn_scoped(scope, || update_sums(request, plan))
            .map_err(SaveError::Thread)?;
        let written = write_pages(save, plan, file).and_then(|()| punch_pages(save, plan, file));
        clock.end("memory_write");
        let sums = match summing.join() {
            Ok(sums) => sums,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        written.and(sums)
    })
}

fn write_pages(save: &Save<'_>, plan: &Plan, file: &File) -> Result<(), SaveError> {
    let memory = save.request.memory;
    for run in memory.pieces(&plan.data, BATCH_PAGES) {
        let slice = memory.slice(&run)?;
        save.step(Step::WritePages, MEMORY, || {
            guest_write::write_all_at(file, &slice, page_offset(run.start))
        })?;
    }
    Ok(())
}

fn punch_pages(save: &Save<'_>, plan: &Plan, file: &File) -> Result<(), SaveError> {
    let memory = save.request.memory;
    for run in memory.pieces(&plan.punch, BATCH_PAGES) {
        save.step(Step::PunchPages, MEMORY, || punch(memory, file, &run))?;
    }
    Ok(())
}

fn punch(memory: &MachineMemory, file: &File, run: &Range<u64>) -> io::Result<()> {
    let bytes = (run.end - run.start) * PAGE_BYTES;
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, mode, page_offset(run.start), bytes) {
        // Not every file system has holes; these pages are zeros, so writing them does as well.
        Err(Errno::OPNOTSUPP) => {
            let zeros = memory.slice(run).map_err(io::Error::other)?;
            guest_write::write_all_at(file, &zeros, page_offset(run.start))
        }
        outcome => Ok(outcome?),
    }
}

fn update_sums(request: &SaveRequest<'_>, plan: &Plan) -> Result<Vec<u64>, SaveError> {
    let memory = request.memory;
    let mut sums = match memory.origin() {
        Origin::Image(kept) => kept.sums().to_vec(),
        Origin::Anonymous => {
            let chunks = usize::try_from(memory.layout().bytes() / CHUNK_BYTES).unwrap_or(0);
            vec![zero_chunk_sum(); chunks]
        }
    };
    let mut buffer = vec![0; CHUNK_LEN];
    for (chunk, sum) in (0..).zip(&mut sums) {
        if plan.changed.count_in_chunk(chunk) == 0 {
            continue;
        }
        if request.is_cancelled() {
            return Err(SaveError::Cancelled);
        }
        read_chunk(memory, &plan.changed, chunk, &mut buffer)?;
        *sum = chunk_sum(&buffer);
    }
    Ok(sums)
}

/// Reads a chunk as it will be in the image.
///
/// Pages that haven't changed come from the file by a read, not through the mapping: where that
/// maps a hole of a tmpfs, touching it would take room there, and kill this process if there
/// is none.
fn read_chunk(
    memory: &MachineMemory,
    changed: &PageSet,
    chunk: u64,
    buffer: &mut [u8],
) -> Result<(), SaveError> {
    match memory.origin() {
        Origin::Image(kept) if changed.count_in_chunk(chunk) < CHUNK_PAGES => {
            verify::read_chunk(kept, chunk, buffer).map_err(SaveError::Kept)?;
        }
        _ => buffer.fill(0),
    }
    let first = chunk * CHUNK_PAGES;
    for run in changed.runs_in(first..first + CHUNK_PAGES) {
        let start = usize::try_from((run.start - first) * PAGE_BYTES).unwrap_or(usize::MAX);
        let slice = memory.slice(&run)?;
        slice.copy_to(&mut buffer[start..start + slice.len()]);
    }
    Ok(())
}
