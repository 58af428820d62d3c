//! A machine without vCPUs: memory that tests write to, and a copy of its expected contents.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;

use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};
use vmm::image::save::save_observed;
use vmm::image::step::Step;
use vmm::image::{
    Consumption, CpuIdentity, DiskFile, Expectation, OpenError, OpenImage, SaveError, SaveRequest,
    open,
};
use vmm::memory::MachineMemory;
use vmm::page::PAGE_LEN;
use vmm_control::SuspendFigures;

/// Smallest machine there is, so that whole-memory comparisons stay quick.
pub(crate) const MEMORY_MIB: u32 = 64;
pub(crate) const PAGE: usize = PAGE_LEN;
pub(crate) const PAGES: usize = (MEMORY_MIB as usize) << 8;
pub(crate) const MACHINE: &str = "m-test";

/// One disk, as a machine may have it.
fn disks() -> &'static [DiskFile] {
    static DISKS: LazyLock<[DiskFile; 1]> = LazyLock::new(|| {
        [DiskFile {
            path: PathBuf::from("disk.img"),
            file: tempfile::tempfile().unwrap(),
            size_bytes: 0,
            read_only: false,
        }]
    });
    &*DISKS
}

/// A machine, the place of its image, and the expected contents of its memory.
pub(crate) struct Subject {
    pub(crate) image: PathBuf,
    pub(crate) memory: MachineMemory,
    pub(crate) model: Vec<u8>,
    pub(crate) generation: u64,
}

impl Subject {
    pub(crate) fn boot(image: &Path) -> Self {
        Self {
            image: image.to_owned(),
            memory: MachineMemory::anonymous(MEMORY_MIB).unwrap(),
            model: vec![0; PAGES * PAGE],
            generation: 1,
        }
    }

    /// A machine that was booted, wrote `pages` and was suspended and resumed once.
    pub(crate) fn resumed(image: &Path, pages: impl IntoIterator<Item = usize>) -> Self {
        let mut subject = Self::boot(image);
        for page in pages {
            subject.fill(page, 0x11);
        }
        subject.save().unwrap();
        subject.resume()
    }

    /// Writes a page: `fill` and the page's number, so that no two pages are alike.
    pub(crate) fn fill(&mut self, page: usize, fill: u8) {
        let mut bytes = vec![fill; PAGE];
        bytes[..8].copy_from_slice(&page.to_le_bytes());
        self.write(page * PAGE, &bytes);
    }

    pub(crate) fn zero(&mut self, page: usize) {
        self.write(page * PAGE, &[0; PAGE]);
    }

    pub(crate) fn write(&mut self, at: usize, bytes: &[u8]) {
        self.memory
            .guest
            .write_slice(bytes, GuestAddress(at as u64))
            .unwrap();
        self.model[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn save(&self) -> Result<SuspendFigures, SaveError> {
        self.save_observed(&self.image, &|_| Ok(()))
    }

    pub(crate) fn save_observed(
        &self,
        directory: &Path,
        observer: &dyn Fn(Step) -> io::Result<()>,
    ) -> Result<SuspendFigures, SaveError> {
        let cancel = AtomicBool::new(false);
        save_observed(&self.request(directory, &cancel), observer)
    }

    pub(crate) fn request<'a>(
        &'a self,
        directory: &'a Path,
        cancel: &'a AtomicBool,
    ) -> SaveRequest<'a> {
        SaveRequest {
            directory,
            machine_id: MACHINE,
            generation: self.generation,
            machine: &CONFIGURATION,
            cpu: cpu(),
            state: b"state of vCPUs and devices",
            disks: disks(),
            host_tsc_khz: None,
            memory: &self.memory,
            cancel,
        }
    }

    /// Ends this VMM and starts the next on the image.
    pub(crate) fn resume(self) -> Self {
        self.resume_consuming().0
    }

    /// The same, with the consumption that is not durable yet.
    pub(crate) fn resume_consuming(self) -> (Self, Consumption) {
        let Self {
            image,
            memory,
            model,
            generation,
        } = self;
        drop(memory);
        let opened = open_image(&image, Some(generation)).unwrap();
        let memory = opened.map().unwrap();
        let consumption = opened.consume().unwrap();
        let resumed = Self {
            image,
            memory,
            model,
            generation: generation + 1,
        };
        (resumed, consumption)
    }

    /// Compares all of memory with what was written.
    pub(crate) fn assert_intact(&self) {
        assert_memory(&self.memory, &self.model);
    }
}

const CONFIGURATION: serde_json::Value = serde_json::Value::Null;

pub(crate) fn cpu() -> &'static CpuIdentity {
    static CPU: std::sync::LazyLock<CpuIdentity> = std::sync::LazyLock::new(|| CpuIdentity {
        vendor: "AuthenticAMD".to_owned(),
        family: 25,
        model: 17,
        stepping: 1,
        feature_digest: "8f3c".to_owned(),
    });
    &CPU
}

pub(crate) fn open_image(
    directory: &Path,
    generation: Option<u64>,
) -> Result<OpenImage, OpenError> {
    open(
        directory,
        &Expectation {
            machine_id: MACHINE,
            generation,
            cpu: cpu(),
        },
    )
}

pub(crate) fn assert_memory(memory: &MachineMemory, model: &[u8]) {
    let mut bytes = vec![0; 256 * PAGE];
    for (index, expected) in model.chunks(bytes.len()).enumerate() {
        let at = index * expected.len();
        memory
            .guest
            .read_slice(&mut bytes, GuestAddress(at as u64))
            .unwrap();
        let differing = (bytes != expected)
            .then(|| {
                bytes
                    .iter()
                    .zip(expected)
                    .position(|(found, expected)| found != expected)
            })
            .flatten();
        assert_eq!(
            differing.map(|offset| at + offset),
            None,
            "first differing guest address"
        );
    }
}

/// A directory on a real disk, whose file system has holes.
pub(crate) fn scratch() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Changes one byte of a file.
pub(crate) fn damage(path: &Path, offset: u64) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x40], offset).unwrap();
}
