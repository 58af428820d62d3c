//! Saves a halted machine into its image directory: the order of steps, its figures, and the clean-up
//! after a failure.
//!
//! `pages` decides which pages are written, and writes them. The caller halts the vCPUs and collects
//! the state, and does not let the machine continue after a successful save.
//!
//! A save writes into the very file that the machine's memory is a private mapping of. The machine
//! does not see that: only changed pages are written, and by definition a changed page is no longer a
//! view of the file. So after any failure the machine can continue, and a later save writes at least
//! the same pages again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use vmm_control::SuspendFigures;

use super::attempt::{Attempt, StepObserver};
use super::digest::{encode_sums, file_digest};
use super::directory::{
    CONSUMED, ImageDirectory, MANIFEST, MEMORY, STATE, SUMS, SUPPLEMENT, TEMPORARY, UNFINISHED,
};
use super::format::{FileFacts, ImageId, MAGIC, MAX_STATE_BYTES, Manifest, MemoryFacts, VERSION};
use super::header::Header;
use super::pages::{self, WritePlan};
use super::request::{DiskFile, SaveError, SaveRequest};
use super::step::Step;
use super::supplement::Supplement;
use crate::clock::monotonic_ns;
use crate::devices::virtio::block::{DiskIdentity, mark};
use crate::memory::Origin;
use crate::memory::file::{HEADER_BYTES, HEADER_LEN};
use crate::phases::Phases;

/// Saves the machine. The phases in the answer begin with `scan`.
pub fn save(request: &SaveRequest<'_>) -> Result<SuspendFigures, SaveError> {
    save_observed(request, &|_| Ok(()))
}

/// As [`save`]; calls `observer` before each step, which it may veto.
pub fn save_observed(
    request: &SaveRequest<'_>,
    observer: &StepObserver<'_>,
) -> Result<SuspendFigures, SaveError> {
    let state_bytes = request.state.len() as u64;
    if state_bytes > MAX_STATE_BYTES {
        return Err(SaveError::StateTooLarge { bytes: state_bytes });
    }
    let (held, _rewriting) = match request.memory.origin() {
        Origin::Anonymous => (None, None),
        Origin::Image(file) => (Some(file.lock()), Some(file.rewriting())),
    };
    let directory = ImageDirectory::lock_or_share(request.directory, held)?;
    let save = Save {
        attempt: Attempt {
            request,
            directory,
            observer,
        },
        image_id: ImageId::random(),
    };
    save.run(Phases::starting_at(monotonic_ns()))
}

/// A save in progress.
struct Save<'a> {
    attempt: Attempt<'a>,
    image_id: ImageId,
}

impl Save<'_> {
    fn run(&self, mut phases: Phases) -> Result<SuspendFigures, SaveError> {
        let plan = WritePlan::make(&self.attempt)?;
        phases.end("scan");
        self.retire()?;
        phases.end("retire");
        self.write(&plan, phases)
            .inspect_err(|_| self.clean_up(&plan))
    }

    fn write(&self, plan: &WritePlan, mut phases: Phases) -> Result<SuspendFigures, SaveError> {
        let attempt = &self.attempt;
        let (memory, is_new) = self.open_memory(plan)?;
        #[cfg(feature = "leaks")]
        if let Err(error) = crate::leaks::grow_image(&memory, attempt.request.generation) {
            crate::log::line(format_args!("cannot leak: {error}"));
        }
        let sums = pages::write(attempt, plan, &memory, &mut phases)?;
        let sums = encode_sums(&sums);
        let sums_file = self.write_file(Step::WriteSums, SUMS, &sums)?;
        let state_file = self.write_file(Step::WriteState, STATE, attempt.request.state)?;
        phases.end("checksum");
        let (supplement_bytes, is_new_supplement) = self.save_supplement()?;
        attempt.step(Step::SyncMemory, MEMORY, || memory.sync_data())?;
        attempt.step(Step::SyncSums, SUMS, || sums_file.sync_all())?;
        attempt.step(Step::SyncState, STATE, || state_file.sync_all())?;
        if is_new || is_new_supplement {
            attempt.step(Step::SyncNames, "", || attempt.directory.sync())?;
        }
        phases.end("sync");
        let manifest = self.manifest(&sums);
        let manifest = manifest.encode().map_err(SaveError::Manifest)?;
        self.commit(&manifest)?;
        phases.end("commit");
        let memory_bytes_written = plan.bytes_to_write();
        let other = HEADER_LEN
            + sums.len()
            + attempt.request.state.len()
            + supplement_bytes
            + manifest.len();
        Ok(SuspendFigures {
            phases: phases.list().to_vec(),
            memory_bytes_written,
            image_bytes_written: memory_bytes_written + other as u64,
            image_bytes_allocated: self.allocated_bytes(),
            pages_changed: plan.pages_changed(),
            dirty_source: plan.source.name().to_owned(),
        })
    }

    /// Returns how many bytes were written, and whether the name of the file is new.
    fn save_supplement(&self) -> Result<(usize, bool), SaveError> {
        let supplement = Supplement {
            image_id: self.image_id,
            disks: self.save_disks()?,
            host_tsc_khz: self.attempt.request.host_tsc_khz,
        };
        if supplement.disks.is_empty() && supplement.host_tsc_khz.is_none() {
            return Ok((0, false));
        }
        let is_new = !self.attempt.directory.has(SUPPLEMENT);
        let bytes = supplement.encode().map_err(SaveError::Manifest)?;
        let file = self.write_file(Step::WriteSupplement, SUPPLEMENT, &bytes)?;
        self.attempt
            .step(Step::SyncSupplement, SUPPLEMENT, || file.sync_all())?;
        Ok((bytes.len(), is_new))
    }

    /// For the guest, a write is complete when it is in the host's page cache, and once resumed the guest
    /// does not repeat it. So the saved memory must not become durable before the guest's writes. Times and
    /// mark of a disk become durable with them, as they are compared after a power failure, too.
    fn save_disks(&self) -> Result<Vec<DiskIdentity>, SaveError> {
        let attempt = &self.attempt;
        let save = |disk: &DiskFile| {
            let DiskFile { path, file, .. } = disk;
            if !disk.read_only {
                attempt.step_on(Step::MarkDisks, path, || mark(file))?;
                attempt.step_on(Step::SyncDisks, path, || file.sync_all())?;
            }
            DiskIdentity::of(file, disk.size_bytes)
                .map_err(|source| SaveError::of_step(Step::MarkDisks, path, source))
        };
        attempt.request.disks.iter().map(save).collect()
    }

    /// Makes sure that there is no image while files change, even after a loss of power.
    fn retire(&self) -> Result<(), SaveError> {
        let directory = &self.attempt.directory;
        self.attempt.step(Step::Retire, "", || {
            if directory.rename_if_exists(MANIFEST, UNFINISHED)? {
                directory.remove(CONSUMED)?;
            } else if !directory.rename_if_exists(CONSUMED, UNFINISHED)? {
                create(&directory.file(UNFINISHED))?;
            }
            directory.remove(TEMPORARY)
        })?;
        self.attempt
            .step(Step::SyncRetirement, "", || directory.sync())
    }

    fn open_memory(&self, plan: &WritePlan) -> Result<(File, bool), SaveError> {
        let Attempt {
            request, directory, ..
        } = &self.attempt;
        let memory_bytes = request.memory.layout().bytes();
        let path = directory.file(MEMORY);
        let memory = self.attempt.step(Step::OpenMemory, MEMORY, || {
            if plan.in_place {
                return OpenOptions::new()
                    .read(true)
                    .write(true)
                    .custom_flags(libc::O_NOFOLLOW)
                    .open(&path);
            }
            // Removed, not truncated, so that a mapping of the old file keeps its contents.
            directory.remove(MEMORY)?;
            let memory = create(&path)?;
            memory.set_len(HEADER_BYTES + memory_bytes)?;
            Ok(memory)
        })?;
        let header = Header {
            image_id: self.image_id,
            generation: request.generation,
            memory_bytes,
        };
        self.attempt.step(Step::WriteHeader, MEMORY, || {
            memory.write_all_at(&header.encode(), 0)
        })?;
        Ok((memory, !plan.in_place))
    }

    fn write_file(&self, step: Step, name: &str, bytes: &[u8]) -> Result<File, SaveError> {
        self.attempt.step(step, name, || {
            let file = create(&self.attempt.directory.file(name))?;
            file.write_all_at(bytes, 0)?;
            Ok(file)
        })
    }

    fn manifest(&self, sums: &[u8]) -> Manifest {
        let request = self.attempt.request;
        let layout = request.memory.layout();
        let facts = |bytes: &[u8]| FileFacts {
            bytes: bytes.len() as u64,
            digest: file_digest(bytes),
        };
        Manifest {
            magic: MAGIC.to_owned(),
            version: VERSION,
            machine_id: request.machine_id.to_owned(),
            generation: request.generation,
            image_id: self.image_id,
            // Nothing depends on this field, so a clock before 1970 is no error.
            created_at_unix_s: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_secs()),
            machine: request.machine.clone(),
            cpu: request.cpu.clone(),
            memory: MemoryFacts {
                memory_mib: layout.memory_mib(),
                file_bytes: HEADER_BYTES + layout.bytes(),
                sums: facts(sums),
            },
            state: facts(request.state),
        }
    }

    fn commit(&self, manifest: &[u8]) -> Result<(), SaveError> {
        let attempt = &self.attempt;
        let directory = &attempt.directory;
        let file = self.write_file(Step::WriteManifest, TEMPORARY, manifest)?;
        attempt.step(Step::SyncManifest, TEMPORARY, || file.sync_all())?;
        attempt.step(Step::Commit, "", || directory.rename(TEMPORARY, MANIFEST))?;
        // The image may be durable from here on, so the save can no longer be cancelled. The mark of an
        // unfinished save has no more meaning, even if it can't be removed.
        let _ = directory.remove(UNFINISHED);
        (attempt.observer)(Step::SyncCommit)
            .and_then(|()| directory.sync())
            .map_err(|source| SaveError::of_step(Step::SyncCommit, directory.path(), source))
    }

    /// Leaves no image behind, and frees disk space. Best effort: the caller reports why the save failed.
    fn clean_up(&self, plan: &WritePlan) {
        let directory = &self.attempt.directory;
        if let Ok(true) = directory.rename_if_exists(MANIFEST, UNFINISHED) {
            let _ = directory.sync();
        }
        let _ = directory.remove(TEMPORARY);
        if !plan.in_place {
            let _ = directory.remove(MEMORY);
        }
    }

    fn allocated_bytes(&self) -> u64 {
        [MEMORY, SUMS, STATE, SUPPLEMENT, MANIFEST]
            .iter()
            .filter_map(|name| std::fs::metadata(self.attempt.directory.file(name)).ok())
            .map(|metadata| metadata.blocks() * 512)
            .sum()
    }
}

/// Creates or truncates a file. Images contain a guest's secrets, so only the owner may read them.
fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
}
