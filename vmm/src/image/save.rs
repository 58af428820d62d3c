//! Saving a halted machine into its image directory: the order of steps, what it costs and how
//! it fails.
//!
//! Which pages are written, and how, is in `pages`. Halting vCPUs and collecting the state is
//! the caller's business, as is not running the machine on after a successful save.
//!
//! A save writes into the very file that the machine's memory is a private mapping of. That
//! never shows in the machine: pages that are written are, by the definition of a changed
//! page, no longer the file's. So whatever goes wrong, the machine can run on, and a later save
//! writes at least the same pages again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use vm_memory::GuestMemoryError;
use vmm_control::{Phase, SuspendFigures};

use super::digest::{encode_sums, file_digest};
use super::directory::{
    CONSUMED, DirectoryError, ImageDirectory, MANIFEST, MEMORY, STATE, SUMS, TEMPORARY, UNFINISHED,
};
use super::format::{
    CpuIdentity, FileFacts, ImageId, MAGIC, MAX_STATE_BYTES, Manifest, MemoryFacts, VERSION,
};
use super::header::Header;
use super::pages::{self, Plan};
use super::step::Step;
use super::verify::VerifyError;
use crate::clock::monotonic_ns;
use crate::memory::dirty::ScanError;
use crate::memory::file::{HEADER_BYTES, HEADER_LEN};
use crate::memory::{MachineMemory, Origin};

/// What to save, and where.
#[derive(Debug, Clone, Copy)]
pub struct SaveRequest<'a> {
    /// The image directory; it must be there.
    pub directory: &'a Path,
    /// Whose image it will be.
    pub machine_id: &'a str,
    /// Generation of the running machine.
    pub generation: u64,
    /// The machine's configuration, for the manifest.
    pub machine: &'a serde_json::Value,
    /// The processor of this host.
    pub cpu: &'a CpuIdentity,
    /// For `state.bin`.
    pub state: &'a [u8],
    /// Disks that the guest can write to.
    pub disks: &'a [DiskFile],
    /// Guest memory; nothing writes to it until the save has ended.
    pub memory: &'a MachineMemory,
    /// Set by another thread to break the save off.
    pub cancel: &'a AtomicBool,
}

/// A disk that the guest can write to. Nobody writes to it until the save has ended.
#[derive(Debug)]
pub struct DiskFile {
    /// For errors.
    pub path: PathBuf,
    /// The very file that the guest's writes go to, or another descriptor of it.
    pub file: File,
}

impl SaveRequest<'_> {
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }
}

/// Why a save did not come about. The machine's memory is as it was, and it may run on.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The cancel flag was set before the image was committed.
    #[error("the save was cancelled")]
    Cancelled,
    /// The directory itself.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The file system is full.
    #[error("no space is left to {step} {path}")]
    NoSpace {
        /// What was attempted.
        step: Step,
        /// On which file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The user's or project's quota is full.
    #[error("the disk quota is too small to {step} {path}")]
    Quota {
        /// What was attempted.
        step: Step,
        /// On which file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file system may not be written, or no longer.
    #[error("the file system is read-only: cannot {step} {path}")]
    ReadOnly {
        /// What was attempted.
        step: Step,
        /// On which file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Anything else that the file system says.
    #[error("cannot {step} {path}")]
    Io {
        /// What was attempted.
        step: Step,
        /// On which file or directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Changed pages can't be found.
    #[error("cannot find the pages that have changed")]
    Scan(#[source] ScanError),
    /// What the save would keep of the old image is damaged or can't be read.
    #[error("the image that this machine was resumed from is not sound")]
    Kept(#[source] VerifyError),
    /// A page lies outside of guest memory.
    #[error("cannot read guest memory")]
    Memory(#[from] GuestMemoryError),
    /// The second thread, for the sums, can't be had.
    #[error("cannot start the thread that sums up guest memory")]
    Thread(#[source] io::Error),
    /// No machine's state is that large.
    #[error(
        "the state of vCPUs and devices has {bytes} bytes, and at most {MAX_STATE_BYTES} are saved"
    )]
    StateTooLarge {
        /// Its length.
        bytes: u64,
    },
    /// The machine's configuration has no JSON form.
    #[error("cannot write the manifest as JSON")]
    Manifest(#[source] serde_json::Error),
}

impl SaveError {
    pub(super) fn at(step: Step, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull => Self::NoSpace { step, path, source },
            io::ErrorKind::QuotaExceeded => Self::Quota { step, path, source },
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { step, path, source },
            _ => Self::Io { step, path, source },
        }
    }
}

impl From<ScanError> for SaveError {
    fn from(error: ScanError) -> Self {
        match error {
            ScanError::Cancelled => Self::Cancelled,
            error => Self::Scan(error),
        }
    }
}

/// Called before each step; an error stands for that step's own failure.
pub type StepObserver<'a> = dyn Fn(Step) -> io::Result<()> + 'a;

/// Saves the machine. The phases in the answer begin with `scan`.
pub fn save(request: &SaveRequest<'_>) -> Result<SuspendFigures, SaveError> {
    save_observed(request, &|_| Ok(()))
}

/// Saves the machine and lets `observer` see each step before it is taken, and veto it.
pub fn save_observed(
    request: &SaveRequest<'_>,
    observer: &StepObserver<'_>,
) -> Result<SuspendFigures, SaveError> {
    let state_bytes = request.state.len() as u64;
    if state_bytes > MAX_STATE_BYTES {
        return Err(SaveError::StateTooLarge { bytes: state_bytes });
    }
    let (held, _unchanging) = match request.memory.origin() {
        Origin::Anonymous => (None, None),
        Origin::Image(file) => (Some(file.lock()), Some(file.rewriting())),
    };
    let directory = ImageDirectory::lock_or_share(request.directory, held)?;
    let save = Save {
        request,
        directory,
        observer,
        image_id: ImageId::random(),
    };
    let mut clock = PhaseClock::start();
    save.run(&mut clock)
}

/// A save under way.
pub(super) struct Save<'a> {
    pub(super) request: &'a SaveRequest<'a>,
    directory: ImageDirectory,
    observer: &'a StepObserver<'a>,
    image_id: ImageId,
}

impl Save<'_> {
    fn run(&self, clock: &mut PhaseClock) -> Result<SuspendFigures, SaveError> {
        let plan = Plan::draw(self, &self.directory)?;
        clock.end("scan");
        self.retire()?;
        clock.end("retire");
        let written = self.write(&plan, clock);
        if let Err(error) = written {
            self.clean_up(&plan);
            return Err(error);
        }
        written
    }

    fn write(&self, plan: &Plan, clock: &mut PhaseClock) -> Result<SuspendFigures, SaveError> {
        let (memory, is_new) = self.open_memory(plan)?;
        let sums = pages::write(self, plan, &memory, clock)?;
        let sums = encode_sums(&sums);
        let sums_file = self.write_file(Step::WriteSums, SUMS, &sums)?;
        let state_file = self.write_file(Step::WriteState, STATE, self.request.state)?;
        clock.end("checksum");
        self.step(Step::SyncMemory, MEMORY, || memory.sync_data())?;
        self.step(Step::SyncSums, SUMS, || sums_file.sync_all())?;
        self.step(Step::SyncState, STATE, || state_file.sync_all())?;
        if is_new {
            self.step(Step::SyncNames, "", || self.directory.sync())?;
        }
        self.sync_disks()?;
        clock.end("sync");
        let manifest = self.manifest(&sums);
        let manifest = manifest.encode().map_err(SaveError::Manifest)?;
        self.commit(&manifest)?;
        clock.end("commit");
        let memory_bytes_written = plan.bytes_to_write();
        let other = HEADER_LEN + sums.len() + self.request.state.len() + manifest.len();
        Ok(SuspendFigures {
            phases: clock.phases.clone(),
            memory_bytes_written,
            image_bytes_written: memory_bytes_written + other as u64,
            image_bytes_allocated: self.allocated_bytes(),
            pages_changed: plan.pages_changed(),
            dirty_source: plan.source.name().to_owned(),
        })
    }

    /// Takes one step, unless the save is cancelled.
    pub(super) fn step<T>(
        &self,
        step: Step,
        name: &str,
        action: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, SaveError> {
        self.step_on(step, &self.place(name), action)
    }

    fn step_on<T>(
        &self,
        step: Step,
        path: &Path,
        action: impl FnOnce() -> io::Result<T>,
    ) -> Result<T, SaveError> {
        if self.request.is_cancelled() {
            return Err(SaveError::Cancelled);
        }
        (self.observer)(step)
            .and_then(|()| action())
            .map_err(|source| SaveError::at(step, path, source))
    }

    /// A guest takes a write for done that is in the host's page cache only, and once resumed never
    /// repeats it. So memory that knows of a write must not outlive it.
    fn sync_disks(&self) -> Result<(), SaveError> {
        for disk in self.request.disks {
            self.step_on(Step::SyncDisks, &disk.path, || disk.file.sync_data())?;
        }
        Ok(())
    }

    /// Path of one of the image's files; without a name, of the directory.
    fn place(&self, name: &str) -> PathBuf {
        match name {
            "" => self.directory.path().to_owned(),
            name => self.directory.file(name),
        }
    }

    /// Makes sure, even against a loss of power, that there is no image while files change.
    fn retire(&self) -> Result<(), SaveError> {
        let directory = &self.directory;
        self.step(Step::Retire, "", || {
            if directory.rename_if_there(MANIFEST, UNFINISHED)? {
                directory.remove(CONSUMED)?;
            } else if !directory.rename_if_there(CONSUMED, UNFINISHED)? {
                create(&directory.file(UNFINISHED))?;
            }
            directory.remove(TEMPORARY)
        })?;
        self.step(Step::SyncRetirement, "", || directory.sync())
    }

    fn open_memory(&self, plan: &Plan) -> Result<(File, bool), SaveError> {
        let file_bytes = HEADER_BYTES + self.request.memory.layout().bytes();
        let path = self.directory.file(MEMORY);
        let memory = self.step(Step::OpenMemory, MEMORY, || {
            if plan.in_place {
                return OpenOptions::new()
                    .read(true)
                    .write(true)
                    .custom_flags(libc::O_NOFOLLOW)
                    .open(&path);
            }
            // Removed, not emptied: should anything map the old file, it keeps what it maps.
            self.directory.remove(MEMORY)?;
            let memory = create(&path)?;
            memory.set_len(file_bytes)?;
            Ok(memory)
        })?;
        let header = Header {
            image_id: self.image_id,
            generation: self.request.generation,
            memory_bytes: self.request.memory.layout().bytes(),
        };
        self.step(Step::WriteHeader, MEMORY, || {
            memory.write_all_at(&header.encode(), 0)
        })?;
        Ok((memory, !plan.in_place))
    }

    fn write_file(&self, step: Step, name: &str, bytes: &[u8]) -> Result<File, SaveError> {
        self.step(step, name, || {
            let file = create(&self.directory.file(name))?;
            file.write_all_at(bytes, 0)?;
            Ok(file)
        })
    }

    fn manifest(&self, sums: &[u8]) -> Manifest {
        let request = self.request;
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
            // A clock before 1970 is wrong anyway; nothing depends on this field.
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
        let directory = &self.directory;
        let file = self.write_file(Step::WriteManifest, TEMPORARY, manifest)?;
        self.step(Step::SyncManifest, TEMPORARY, || file.sync_all())?;
        self.step(Step::Commit, "", || directory.rename(TEMPORARY, MANIFEST))?;
        // From here on the image may survive anything, so cancelling is no longer looked at.
        // What marks the unfinished save is of no more interest, even if it can't be removed.
        let _ = directory.remove(UNFINISHED);
        (self.observer)(Step::SyncCommit)
            .and_then(|()| directory.sync())
            .map_err(|source| SaveError::at(Step::SyncCommit, directory.path(), source))
    }

    /// Leaves no image behind and gives back what disk space can be given back. Best effort:
    /// the save has failed, and that is what is reported.
    fn clean_up(&self, plan: &Plan) {
        if let Ok(true) = self.directory.rename_if_there(MANIFEST, UNFINISHED) {
            let _ = self.directory.sync();
        }
        let _ = self.directory.remove(TEMPORARY);
        if !plan.in_place {
            let _ = self.directory.remove(MEMORY);
        }
    }

    fn allocated_bytes(&self) -> u64 {
        [MEMORY, SUMS, STATE, MANIFEST]
            .iter()
            .filter_map(|name| std::fs::metadata(self.directory.file(name)).ok())
            .map(|metadata| metadata.blocks() * 512)
            .sum()
    }
}

/// Creates or empties a file. Images hold a guest's secrets, so only the owner may read them.
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

/// Phases that follow each other without a gap.
pub(super) struct PhaseClock {
    phases: Vec<Phase>,
    since_ns: u64,
}

impl PhaseClock {
    fn start() -> Self {
        Self {
            phases: Vec::new(),
            since_ns: monotonic_ns(),
        }
    }

    /// Ends the phase that has been going on; the next one begins.
    pub(super) fn end(&mut self, name: &str) {
        let end_ns = monotonic_ns();
        self.phases.push(Phase {
            name: name.to_owned(),
            start_ns: self.since_ns,
            end_ns,
        });
        self.since_ns = end_ns;
    }
}
