//! The part of a save that concerns guest memory: decides which pages are written, writes them, and
//! updates the sums.
//!
//! `save` opens and syncs the files.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;

use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::attempt::Attempt;
use super::digest::{chunk_sum, zero_chunk_sum};
use super::directory::MEMORY;
use super::request::{SaveError, SaveRequest};
use super::step::Step;
use super::verify;
use crate::memory::dirty::DirtySource;
use crate::memory::file::{
    CHUNK_BYTES, CHUNK_LEN, CHUNK_PAGES, HEADER_BYTES, MemoryFile, page_offset,
};
use crate::memory::pages::PageSet;
use crate::memory::{MachineMemory, Origin};
use crate::page::PAGE_BYTES;
use crate::phases::Phases;
use crate::sys::guest_write;

/// Most pages in one write, so that a save is soon cancelled.
const BATCH_PAGES: u64 = 1024;

/// Which pages a save writes, and where.
pub(super) struct WritePlan {
    /// The pages go into the file that the machine runs on; otherwise into a new file of holes.
    pub(super) in_place: bool,
    /// How changed pages were found.
    pub(super) source: DirtySource,
    /// Pages to write.
    data: PageSet,
    /// Pages that become holes; none for a new file.
    punch: PageSet,
    /// Pages whose chunks get new sums.
    changed: PageSet,
}

impl WritePlan {
    pub(super) fn make(attempt: &Attempt<'_>) -> Result<Self, SaveError> {
        let memory = attempt.request.memory;
        let is_cancelled = || attempt.request.is_cancelled();
        let (changed, source) = memory.private_pages()?;
        let Origin::Image(old_file) = memory.origin() else {
            let sorted = memory.sort_by_content(&changed, &is_cancelled)?;
            return Ok(Self {
                in_place: false,
                source,
                changed: sorted.data.clone(),
                data: sorted.data,
                punch: PageSet::new(memory.layout().pages()),
            });
        };
        check_reused_chunks(attempt.request, old_file, &changed)?;
        let path = attempt.directory.file(MEMORY);
        if is_same_file(old_file, &path) {
            let sorted = memory.sort_by_content(&changed, &is_cancelled)?;
            return Ok(Self {
                in_place: true,
                source,
                data: sorted.data,
                punch: sorted.zero,
                changed,
            });
        }
        let mut all = data_pages(old_file, memory)
            .map_err(|error| SaveError::of_step(Step::OpenMemory, &path, error))?;
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

/// Checks the chunks of the old image that get a new sum although some of their pages stay: the new
/// sum would cover up damage that the old one still shows. Then marks all chunks that will change.
fn check_reused_chunks(
    request: &SaveRequest<'_>,
    old_file: &MemoryFile,
    changed: &PageSet,
) -> Result<(), SaveError> {
    let layout = request.memory.layout();
    let mut buffer = vec![0; CHUNK_LEN];
    for chunk in 0..old_file.chunks() {
        let count = changed.count_in_chunk(chunk);
        if count == 0 || old_file.is_verified(chunk) {
            continue;
        }
        if request.is_cancelled() {
            return Err(SaveError::Cancelled);
        }
        if count < CHUNK_PAGES {
            verify::check_chunk(old_file, layout, chunk, &mut buffer)
                .map_err(SaveError::OldImage)?;
        }
        old_file.mark_verified(chunk);
    }
    Ok(())
}

fn is_same_file(old_file: &MemoryFile, path: &Path) -> bool {
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    match (old_file.file().metadata(), std::fs::symlink_metadata(path)) {
        (Ok(ours), Ok(theirs)) => identity(ours) == identity(theirs),
        _ => false,
    }
}

/// Pages of a memory file that are not holes.
fn data_pages(file: &MemoryFile, memory: &MachineMemory) -> io::Result<PageSet> {
    let mut pages = PageSet::new(memory.layout().pages());
    let mut offset = HEADER_BYTES;
    loop {
        let start = match rustix::fs::seek(file.file(), SeekFrom::Data(offset)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(pages),
            Err(error) => return Err(error.into()),
        };
        let end = rustix::fs::seek(file.file(), SeekFrom::Hole(start))?;
        let page = |offset: u64| offset.saturating_sub(HEADER_BYTES) / PAGE_BYTES;
        pages.insert(page(start)..page(end + PAGE_BYTES - 1));
        offset = end;
    }
}

/// Writes the pages and returns the new sums, which a second thread computes meanwhile.
pub(super) fn write(
    attempt: &Attempt<'_>,
    plan: &WritePlan,
    file: &File,
    phases: &mut Phases,
) -> Result<Vec<u64>, SaveError> {
    let request = attempt.request;
    thread::scope(|scope| {
        let summing = thread::Builder::new()
            .name("sums".to_owned())
            .spawn_scoped(scope, || update_sums(request, plan))
            .map_err(SaveError::Thread)?;
        let written =
            write_pages(attempt, plan, file).and_then(|()| punch_pages(attempt, plan, file));
        phases.end("memory_write");
        let sums = match summing.join() {
            Ok(sums) => sums,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        written.and(sums)
    })
}

fn write_pages(attempt: &Attempt<'_>, plan: &WritePlan, file: &File) -> Result<(), SaveError> {
    let memory = attempt.request.memory;
    for run in memory.pieces(&plan.data, BATCH_PAGES) {
        let slice = memory.slice(&run)?;
        attempt.step(Step::WritePages, MEMORY, || {
            guest_write::write_all_at(file, &slice, page_offset(run.start))
        })?;
    }
    Ok(())
}

fn punch_pages(attempt: &Attempt<'_>, plan: &WritePlan, file: &File) -> Result<(), SaveError> {
    let memory = attempt.request.memory;
    for run in memory.pieces(&plan.punch, BATCH_PAGES) {
        attempt.step(Step::PunchPages, MEMORY, || punch(memory, file, &run))?;
    }
    Ok(())
}

fn punch(memory: &MachineMemory, file: &File, run: &Range<u64>) -> io::Result<()> {
    let bytes = (run.end - run.start) * PAGE_BYTES;
    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    match rustix::fs::fallocate(file, mode, page_offset(run.start), bytes) {
        // Not every file system has holes. These pages are zeros, so they can be written instead.
        Err(Errno::OPNOTSUPP) => {
            let zeros = memory.slice(run).map_err(io::Error::other)?;
            guest_write::write_all_at(file, &zeros, page_offset(run.start))
        }
        outcome => Ok(outcome?),
    }
}

fn update_sums(request: &SaveRequest<'_>, plan: &WritePlan) -> Result<Vec<u64>, SaveError> {
    let memory = request.memory;
    let mut sums = match memory.origin() {
        Origin::Image(old_file) => old_file.sums().to_vec(),
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
/// Unchanged pages are read from the file, not through the mapping: touching a mapped hole of a tmpfs
/// takes room there, and kills this process if there is none.
fn read_chunk(
    memory: &MachineMemory,
    changed: &PageSet,
    chunk: u64,
    buffer: &mut [u8],
) -> Result<(), SaveError> {
    match memory.origin() {
        Origin::Image(old_file) if changed.count_in_chunk(chunk) < CHUNK_PAGES => {
            verify::read_chunk(old_file, chunk, buffer).map_err(SaveError::OldImage)?;
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
