//! Opens an image for a resume: checks everything except guest memory itself, and says what is wrong.
//!
//! Guest memory is mapped lazily; `verify` checks it, before the guest runs or while it runs.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::consume::{ConsumeError, Consumption};
use super::digest::{Hex128, decode_sums, file_digest};
use super::directory::{
    CONSUMED, DirectoryError, ImageDirectory, MANIFEST, MEMORY, STATE, SUMS, SUPPLEMENT, TEMPORARY,
    UNFINISHED,
};
use super::format::{
    CpuIdentity, FileFacts, ImageId, MAX_MANIFEST_BYTES, MAX_STATE_BYTES, Manifest, ManifestError,
};
use super::header::{Header, HeaderError};
use super::supplement::{MAX_SUPPLEMENT_BYTES, Supplement, SupplementError};
use super::verify::{self, BackgroundVerifier, Verified, VerifyError};
use crate::memory::file::{CHUNK_BYTES, HEADER_BYTES, HEADER_LEN, MemoryFile};
use crate::memory::regions::Layout;
use crate::memory::{MachineMemory, MemoryError};

/// What an image must match to be resumed here.
#[derive(Debug, Clone, Copy)]
pub struct Expectation<'a> {
    /// Whose image it must be.
    pub machine_id: &'a str,
    /// Which generation must have been suspended into it; `None` accepts any.
    pub generation: Option<u64>,
    /// The processor of this host.
    pub cpu: &'a CpuIdentity,
}

/// Why an image is refused.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory can't be used.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// No suspend has ever begun here.
    #[error("there is no image in {directory}: it has no {MANIFEST}")]
    Missing {
        /// The directory.
        directory: PathBuf,
    },
    /// A machine was resumed from it, so it is out of date.
    #[error("the image in {directory} is consumed: a machine has already been resumed from it")]
    Consumed {
        /// The directory.
        directory: PathBuf,
    },
    /// A suspend was interrupted.
    #[error("the image in {directory} is unfinished: the suspend that wrote it did not end")]
    Unfinished {
        /// The directory.
        directory: PathBuf,
    },
    /// A file can't be opened or read.
    #[error("cannot read {file}")]
    Read {
        /// Which.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file is larger than any that a save writes.
    #[error("{file} has {bytes} bytes, and at most {limit} are read")]
    TooLarge {
        /// Which.
        file: PathBuf,
        /// Its length.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The manifest is damaged or not for this program.
    #[error("the manifest {file} is refused")]
    Manifest {
        /// Which.
        file: PathBuf,
        /// What is wrong with it.
        source: ManifestError,
    },
    /// It is intact, but a value is impossible.
    #[error("the manifest {file} contradicts itself: {field} can't be {found}")]
    Contradiction {
        /// Which.
        file: PathBuf,
        /// The field.
        field: &'static str,
        /// Its value.
        found: u64,
    },
    /// Another machine's image.
    #[error("the image is of machine {found}, not of {expected}")]
    Machine {
        /// In the manifest.
        found: String,
        /// Wanted.
        expected: String,
    },
    /// An image of another generation.
    #[error("the image is of generation {found}, and generation {expected} is expected")]
    Generation {
        /// In the manifest.
        found: u64,
        /// Wanted.
        expected: u64,
    },
    /// It was saved on a processor of another vendor.
    #[error("the image was saved on {found}, and this host has {host}, of another vendor")]
    Cpu {
        /// In the manifest.
        found: Box<CpuIdentity>,
        /// This host's.
        host: Box<CpuIdentity>,
    },
    /// The supplement is damaged.
    #[error("the supplement {file} is refused")]
    Supplement {
        /// Which.
        file: PathBuf,
        /// What is wrong with it.
        source: SupplementError,
    },
    /// A file has grown or shrunk.
    #[error("{file} has {found} bytes, and the manifest says {expected}")]
    FileSize {
        /// Which.
        file: PathBuf,
        /// Its length.
        found: u64,
        /// As in the manifest.
        expected: u64,
    },
    /// A file's bytes have changed.
    #[error("{file} is damaged: its digest is {found}, and the manifest says {expected}")]
    FileDamaged {
        /// Which.
        file: PathBuf,
        /// Over its bytes.
        found: Hex128,
        /// As in the manifest.
        expected: Hex128,
    },
    /// The memory file's first page is not usable.
    #[error("the memory file {file} is refused")]
    Header {
        /// Which.
        file: PathBuf,
        /// What is wrong with it.
        source: HeaderError,
    },
    /// The memory file was written by another suspend than the manifest.
    #[error("{file} is of image {found}, and the manifest is of image {expected}")]
    OtherImage {
        /// Which.
        file: PathBuf,
        /// In the header page.
        found: Hex128,
        /// In the manifest.
        expected: Hex128,
    },
    /// The memory file was written by another generation than the manifest.
    #[error("{file} is of generation {found}, and the manifest is of generation {expected}")]
    OtherGeneration {
        /// Which.
        file: PathBuf,
        /// In the header page.
        found: u64,
        /// In the manifest.
        expected: u64,
    },
    /// The memory file holds another amount of memory.
    #[error("{file} holds {found} bytes of guest memory, and the manifest says {expected}")]
    OtherSize {
        /// Which.
        file: PathBuf,
        /// In the header page.
        found: u64,
        /// In the manifest.
        expected: u64,
    },
}

/// An image that may be resumed, open and locked.
#[derive(Debug)]
pub struct OpenImage {
    /// `manifest.json`.
    pub manifest: Manifest,
    /// `state.bin`.
    pub state: Vec<u8>,
    /// What it says beyond the manifest.
    pub supplement: Option<Supplement>,
    directory: ImageDirectory,
    layout: Layout,
    memory: Arc<MemoryFile>,
}

/// Opens the image in `directory` and checks all of it except the contents of memory.
pub fn open(directory: &Path, expect: &Expectation<'_>) -> Result<OpenImage, OpenError> {
    let directory = ImageDirectory::lock(directory)?;
    let manifest = read_manifest(&directory)?;
    check_expectation(&manifest, expect)?;
    let layout = check_sizes(&directory, &manifest)?;
    let state = read_file(&directory, STATE, &manifest.state)?;
    let sums = decode_sums(&read_file(&directory, SUMS, &manifest.memory.sums)?);
    let supplement = read_supplement(&directory, manifest.image_id)?;
    let file = open_memory(&directory, &manifest, &layout)?;
    let memory = Arc::new(MemoryFile::new(
        file,
        sums,
        Arc::clone(directory.lock_file()),
    ));
    Ok(OpenImage {
        manifest,
        state,
        supplement,
        directory,
        layout,
        memory,
    })
}

impl OpenImage {
    /// Maps guest memory privately, without reading it.
    pub fn map(&self) -> Result<MachineMemory, MemoryError> {
        MachineMemory::from_image(self.layout.clone(), Arc::clone(&self.memory))
    }

    /// Checks all of guest memory now.
    pub fn verify_full(&self) -> Result<Verified, VerifyError> {
        verify::verify_all(&self.memory, &self.layout, &|| false)
    }

    /// Checks guest memory in a thread of low priority and reports the outcome, unless it is stopped
    /// before.
    pub fn verify_in_background(
        &self,
        on_end: impl FnOnce(Result<Verified, VerifyError>) + Send + 'static,
    ) -> io::Result<BackgroundVerifier> {
        BackgroundVerifier::start(Arc::clone(&self.memory), self.layout.clone(), on_end)
    }

    /// Marks the image as used, so that its memory never runs twice. To be called right before the first
    /// entry of a vCPU.
    ///
    /// # Errors
    /// [`ConsumeError::Rename`].
    pub fn consume(&self) -> Result<Consumption, ConsumeError> {
        Consumption::begin(&self.directory)
    }
}

fn read_manifest(directory: &ImageDirectory) -> Result<Manifest, OpenError> {
    let path = directory.file(MANIFEST);
    let file = match open_regular(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(missing_reason(directory));
        }
        Err(source) => return Err(OpenError::Read { file: path, source }),
    };
    let bytes = read_at_most(file, &path, MAX_MANIFEST_BYTES)?;
    Manifest::decode(&bytes).map_err(|source| OpenError::Manifest { file: path, source })
}

fn read_supplement(
    directory: &ImageDirectory,
    image_id: ImageId,
) -> Result<Option<Supplement>, OpenError> {
    let path = directory.file(SUPPLEMENT);
    let file = match open_regular(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(OpenError::Read { file: path, source }),
    };
    let bytes = read_at_most(file, &path, MAX_SUPPLEMENT_BYTES)?;
    let supplement = Supplement::decode(&bytes)
        .map_err(|source| OpenError::Supplement { file: path, source })?;
    Ok((supplement.image_id == image_id).then_some(supplement))
}

fn missing_reason(directory: &ImageDirectory) -> OpenError {
    let path = directory.path().to_owned();
    if directory.has(UNFINISHED) || directory.has(TEMPORARY) {
        OpenError::Unfinished { directory: path }
    } else if directory.has(CONSUMED) {
        OpenError::Consumed { directory: path }
    } else {
        OpenError::Missing { directory: path }
    }
}

fn check_expectation(manifest: &Manifest, expect: &Expectation<'_>) -> Result<(), OpenError> {
    if manifest.machine_id != expect.machine_id {
        return Err(OpenError::Machine {
            found: manifest.machine_id.clone(),
            expected: expect.machine_id.to_owned(),
        });
    }
    if let Some(expected) = expect.generation
        && manifest.generation != expected
    {
        return Err(OpenError::Generation {
            found: manifest.generation,
            expected,
        });
    }
    // Which features the guest needs is in its state, which is read later.
    if manifest.cpu.vendor != expect.cpu.vendor {
        return Err(OpenError::Cpu {
            found: Box::new(manifest.cpu.clone()),
            host: Box::new(expect.cpu.clone()),
        });
    }
    Ok(())
}

/// Checks that the sizes in the manifest agree, before any of them is used.
fn check_sizes(directory: &ImageDirectory, manifest: &Manifest) -> Result<Layout, OpenError> {
    let impossible = |field, found| OpenError::Contradiction {
        file: directory.file(MANIFEST),
        field,
        found,
    };
    let memory = &manifest.memory;
    let layout = Layout::new(memory.memory_mib)
        .ok_or_else(|| impossible("memory_mib", u64::from(memory.memory_mib)))?;
    if memory.file_bytes != HEADER_BYTES + layout.bytes() {
        return Err(impossible("the length of memory", memory.file_bytes));
    }
    if memory.sums.bytes != layout.bytes() / CHUNK_BYTES * 8 {
        return Err(impossible("the length of memory.sums", memory.sums.bytes));
    }
    if manifest.state.bytes > MAX_STATE_BYTES {
        return Err(impossible("the length of state.bin", manifest.state.bytes));
    }
    Ok(layout)
}

fn read_file(
    directory: &ImageDirectory,
    name: &str,
    facts: &FileFacts,
) -> Result<Vec<u8>, OpenError> {
    let path = directory.file(name);
    let file = open_sized(&path, facts.bytes)?;
    let bytes = read_at_most(file, &path, facts.bytes)?;
    let found = file_digest(&bytes);
    if found != facts.digest {
        return Err(OpenError::FileDamaged {
            file: path,
            found,
            expected: facts.digest,
        });
    }
    Ok(bytes)
}

fn open_memory(
    directory: &ImageDirectory,
    manifest: &Manifest,
    layout: &Layout,
) -> Result<File, OpenError> {
    let path = directory.file(MEMORY);
    let file = open_sized(&path, manifest.memory.file_bytes)?;
    let mut page = [0; HEADER_LEN];
    file.read_exact_at(&mut page, 0)
        .map_err(|source| OpenError::Read {
            file: path.clone(),
            source,
        })?;
    let header = Header::decode(&page).map_err(|source| OpenError::Header {
        file: path.clone(),
        source,
    })?;
    if header.image_id != manifest.image_id {
        let ImageId(found) = header.image_id;
        let ImageId(expected) = manifest.image_id;
        return Err(OpenError::OtherImage {
            file: path,
            found,
            expected,
        });
    }
    if header.generation != manifest.generation {
        return Err(OpenError::OtherGeneration {
            file: path,
            found: header.generation,
            expected: manifest.generation,
        });
    }
    if header.memory_bytes != layout.bytes() {
        return Err(OpenError::OtherSize {
            file: path,
            found: header.memory_bytes,
            expected: layout.bytes(),
        });
    }
    Ok(file)
}

fn open_sized(path: &Path, expected: u64) -> Result<File, OpenError> {
    let read = |source| OpenError::Read {
        file: path.to_owned(),
        source,
    };
    let file = open_regular(path).map_err(read)?;
    let found = file.metadata().map_err(read)?.size();
    if found != expected {
        return Err(OpenError::FileSize {
            file: path.to_owned(),
            found,
            expected,
        });
    }
    Ok(file)
}

/// Opens a regular file: not a link, and not a pipe, on which opening would block.
fn open_regular(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        )),
    }
}

fn read_at_most(file: File, path: &Path, limit: u64) -> Result<Vec<u8>, OpenError> {
    let read = |source| OpenError::Read {
        file: path.to_owned(),
        source,
    };
    let bytes = file.metadata().map_err(read)?.size();
    if bytes > limit {
        return Err(OpenError::TooLarge {
            file: path.to_owned(),
            bytes,
            limit,
        });
    }
    let mut contents = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
    file.take(limit).read_to_end(&mut contents).map_err(read)?;
    Ok(contents)
}
