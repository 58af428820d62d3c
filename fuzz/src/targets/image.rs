//! The reader of images: what a resume does with one before it has KVM.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};
use vm_memory::{Bytes, GuestAddress};
use vmm::image::digest::file_digest;
use vmm::image::directory::{CONSUMED, MANIFEST, MEMORY, STATE, SUMS, SUPPLEMENT};
use vmm::image::header::Header;
use vmm::image::{
    CpuIdentity, DiskFile, Expectation, Manifest, OpenError, OpenImage, SaveRequest, Supplement,
    open, save,
};
use vmm::machine::configuration::MachineConfiguration;
use vmm::machine::suspend::MachineState;
use vmm::memory::MachineMemory;
use vmm::page::{PAGE_BYTES, PAGE_LEN};
use vmm::vcpu::registers::VcpuState;
use vmm::vm::VmState;

use crate::changed::{Change, changed};
use crate::targets::buses;
use crate::{scratch, steps};

const MACHINE: &str = "m1";
const GENERATION: u64 = 7;
const MEMORY_MIB: u32 = 64;
/// Pages that the guest has written: alone, as neighbours, across two sums, and the last one.
const PAGES: [u64; 6] = [0, 1, 15, 16, 5000, 16383];
/// Files of an image that a step may change.
const FILES: [&str; 5] = [MANIFEST, STATE, SUMS, SUPPLEMENT, MEMORY];

/// What happens to an image between its suspend and its resume.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum ImageStep {
    /// Bytes of a file are others.
    Edit {
        file: u8,
        offset: u32,
        bytes: Vec<u8>,
    },
    /// A file is shorter or longer.
    Resize { file: u8, bytes: u32 },
    /// A file is missing.
    Remove { file: u8 },
    /// The manifest says something else, and is intact.
    Manifest { change: Change },
    /// The supplement says something else, and is intact.
    Supplement { change: Change },
    /// The first page of the memory file says something else, and is intact.
    Header { generation: u64, memory_bytes: u64 },
    /// The state is another one, and the manifest knows it.
    State { bytes: Vec<u8> },
    /// The state has other bytes, and the manifest knows it.
    EditState { offset: u16, bytes: Vec<u8> },
    /// It is resumed by something else than what suspended it.
    Expect {
        other_machine: bool,
        generation: Option<u64>,
        other_vendor: bool,
    },
}

/// An image as it was saved.
struct Saved {
    folder: PathBuf,
    /// A copy of the memory file.
    memory: File,
    memory_bytes: u64,
    manifest: Manifest,
    supplement: Supplement,
    header: Header,
    /// The files that are small enough to be written anew for each input.
    small: Vec<(&'static str, Vec<u8>)>,
}

thread_local! {
    static SAVED: Rc<Saved> = Rc::new(Saved::new());
}

fn cpu(vendor: &str) -> CpuIdentity {
    CpuIdentity {
        vendor: vendor.to_owned(),
        family: 25,
        model: 17,
        stepping: 1,
        feature_digest: "8f3c".to_owned(),
    }
}

impl Saved {
    fn new() -> Self {
        let folder = scratch::path("image");
        fs::create_dir_all(&folder).expect("a folder");
        let memory = MachineMemory::anonymous(MEMORY_MIB).expect("host memory");
        for page in PAGES {
            memory
                .guest
                .write_slice(&page_content(page), GuestAddress(page * PAGE_BYTES))
                .expect("in memory");
        }
        let disk = scratch::path("image-disk");
        File::create(&disk)
            .and_then(|file| file.set_len(PAGE_BYTES))
            .expect("a disk");
        let disks = [DiskFile {
            file: File::open(&disk).expect("a disk"),
            path: disk,
            size_bytes: PAGE_BYTES,
            read_only: false,
        }];
        let machine = MachineConfiguration {
            vcpus: 1,
            memory_mib: MEMORY_MIB,
            disks: Vec::new(),
            vsock_cid: Some(3),
        };
        save(&SaveRequest {
            directory: &folder,
            machine_id: MACHINE,
            generation: GENERATION,
            machine: &serde_json::to_value(machine).expect("plain data"),
            cpu: &cpu("AuthenticAMD"),
            state: &state(),
            disks: &disks,
            host_tsc_khz: Some(2_600_000),
            memory: &memory,
            cancel: &AtomicBool::new(false),
        })
        .expect("an image is saved");
        let small = |name| {
            (
                name,
                fs::read(folder.join(name)).expect("a file of the image"),
            )
        };
        let small: Vec<_> = [MANIFEST, STATE, SUMS, SUPPLEMENT].map(small).into();
        let copy = scratch::path("image-memory");
        fs::copy(folder.join(MEMORY), &copy).expect("a copy");
        let memory = File::open(&copy).expect("a copy");
        let mut page = [0; PAGE_LEN];
        memory.read_exact_at(&mut page, 0).expect("a header");
        Self {
            memory_bytes: memory.metadata().expect("a file").len(),
            manifest: Manifest::decode(&small[0].1).expect("what was saved is read"),
            supplement: Supplement::decode(&small[3].1).expect("what was saved is read"),
            header: Header::decode(&page).expect("what was saved is read"),
            folder,
            memory,
            small,
        }
    }

    fn small(&self, name: &str) -> &[u8] {
        &self
            .small
            .iter()
            .find(|(known, _)| *known == name)
            .expect("one of the small files")
            .1
    }

    /// Puts the image back as it was saved, after these ranges of its memory file were changed.
    fn put_back(&self, changed: &[(u64, u64)]) {
        for (name, bytes) in &self.small {
            fs::write(self.folder.join(name), bytes).expect("a file");
        }
        let _ = fs::remove_file(self.folder.join(CONSUMED));
        let path = self.folder.join(MEMORY);
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)
            .expect("a file");
        // Holes again, where the file ended early or went on.
        file.set_len(self.memory_bytes).expect("room");
        for (offset, bytes) in changed {
            let end = (offset + bytes).min(self.memory_bytes);
            if end > *offset {
                let mut known = vec![0; usize::try_from(end - offset).expect("a short range")];
                self.memory
                    .read_exact_at(&mut known, *offset)
                    .expect("in the file");
                file.write_all_at(&known, *offset).expect("room");
            }
        }
    }
}

fn page_content(page: u64) -> Vec<u8> {
    let mut bytes = vec![0x11; PAGE_LEN];
    bytes[..8].copy_from_slice(&page.to_le_bytes());
    bytes
}

/// The state of a machine with one vCPU whose registers are zero, and with real devices.
fn state() -> Vec<u8> {
    let zeroes = vec![0; 64 << 10];
    let (vcpu, _): (VcpuState, _) =
        postcard::take_from_bytes(&zeroes).expect("all zeroes are a state");
    let (vm, _): (VmState, _) = postcard::take_from_bytes(&zeroes).expect("all zeroes are a state");
    let state = MachineState {
        host_tsc: 1 << 40,
        vcpus: vec![Box::new(vcpu)],
        vm,
        devices: buses::booted_state(),
    };
    postcard::to_stdvec(&state).expect("plain data")
}

/// An image to which things happen.
struct Subject<'s> {
    saved: &'s Saved,
    manifest: Manifest,
    /// Ranges of the memory file that are to be put back.
    changed: Vec<(u64, u64)>,
    /// Somebody made the image say something else, and not by damage.
    forged: bool,
    machine: &'static str,
    generation: Option<u64>,
    vendor: &'static str,
}

impl Subject<'_> {
    fn path(&self, name: &str) -> PathBuf {
        self.saved.folder.join(name)
    }

    fn take(&mut self, step: ImageStep) {
        match step {
            ImageStep::Edit {
                file,
                offset,
                bytes,
            } => self.edit(FILES[usize::from(file) % FILES.len()], offset, &bytes),
            ImageStep::Resize { file, bytes } => {
                let name = FILES[usize::from(file) % FILES.len()];
                let most = if name == MEMORY {
                    self.saved.memory_bytes + PAGE_BYTES
                } else {
                    64 << 10
                };
                let bytes = u64::from(bytes) % most;
                let file = File::options().write(true).open(self.path(name));
                // Fails where it was removed before.
                if file.and_then(|file| file.set_len(bytes)).is_ok() && name == MEMORY {
                    // What is cut off may have been data.
                    let pages = PAGES.map(|page| ((page + 1) * PAGE_BYTES, PAGE_BYTES));
                    self.changed.extend(pages);
                    self.changed.push((0, PAGE_BYTES));
                }
            }
            ImageStep::Remove { file } => {
                let name = FILES[usize::from(file) % (FILES.len() - 1)];
                let _ = fs::remove_file(self.path(name));
            }
            ImageStep::Manifest { change } => {
                if let Some(manifest) = changed(&self.manifest, &change) {
                    self.forge(manifest);
                }
            }
            ImageStep::Supplement { change } => {
                if let Some(supplement) = changed(&self.saved.supplement, &change) {
                    self.forged = true;
                    let bytes = supplement.encode().expect("plain data");
                    assert_eq!(
                        Supplement::decode(&bytes).expect("what was encoded is decoded"),
                        supplement
                    );
                    fs::write(self.path(SUPPLEMENT), bytes).expect("room");
                }
            }
            ImageStep::Header {
                generation,
                memory_bytes,
            } => {
                self.forged = true;
                let header = Header {
                    generation,
                    memory_bytes,
                    ..self.saved.header
                };
                assert_eq!(Header::decode(&header.encode()), Ok(header));
                self.edit(MEMORY, 0, &header.encode());
            }
            ImageStep::State { bytes } => self.forge_state(&bytes),
            ImageStep::EditState { offset, bytes } => {
                let mut state = self.saved.small(STATE).to_vec();
                let start = usize::from(offset) % state.len();
                let end = (start + bytes.len()).min(state.len());
                state[start..end].copy_from_slice(&bytes[..end - start]);
                self.forge_state(&state);
            }
            ImageStep::Expect {
                other_machine,
                generation,
                other_vendor,
            } => {
                self.machine = if other_machine { "m2" } else { MACHINE };
                self.vendor = if other_vendor {
                    "GenuineIntel"
                } else {
                    "AuthenticAMD"
                };
                self.generation = generation;
            }
        }
    }

    fn edit(&mut self, name: &str, offset: u32, bytes: &[u8]) {
        let path = self.path(name);
        let Ok(file) = File::options().write(true).open(path) else {
            return;
        };
        let offset = u64::from(offset) % (file.metadata().expect("a file").len() + 1);
        file.write_all_at(bytes, offset).expect("room");
        if name == MEMORY {
            self.changed.push((offset, bytes.len() as u64));
        }
    }

    fn forge(&mut self, manifest: Manifest) {
        self.forged = true;
        let bytes = manifest.encode().expect("plain data");
        fs::write(self.path(MANIFEST), bytes).expect("room");
        self.manifest = manifest;
    }

    fn forge_state(&mut self, bytes: &[u8]) {
        fs::write(self.path(STATE), bytes).expect("room");
        let mut manifest = self.manifest.clone();
        manifest.state.bytes = bytes.len() as u64;
        manifest.state.digest = file_digest(bytes);
        self.forge(manifest);
    }

    fn open(&self) -> Result<OpenImage, OpenError> {
        let cpu = cpu(self.vendor);
        let expect = Expectation {
            machine_id: self.machine,
            generation: self.generation,
            cpu: &cpu,
        };
        open(&self.saved.folder, &expect)
    }

    /// What a resume does.
    fn resume(&self) {
        let image = match self.open() {
            Ok(image) => image,
            Err(error) => return assert!(!error.to_string().is_empty(), "a refusal says why"),
        };
        assert_eq!(
            image.manifest.machine_id, self.machine,
            "another machine's image is refused"
        );
        if let Some(generation) = self.generation {
            assert_eq!(
                image.manifest.generation, generation,
                "another generation's image is refused"
            );
        }
        let bytes = image.manifest.encode().expect("plain data");
        let again = Manifest::decode(&bytes).expect("what was encoded is decoded");
        assert_eq!(again, image.manifest, "a manifest survives its file");
        if !self.forged {
            assert_eq!(
                image.manifest, self.saved.manifest,
                "a damaged manifest is refused"
            );
            assert_eq!(
                image.state,
                self.saved.small(STATE),
                "a damaged state is refused"
            );
        }
        let memory = image.map().expect("the memory file is mapped");
        let verified = image.verify_full();
        if verified.is_ok() && !self.forged {
            for page in self.touched_pages() {
                let mut found = vec![0; PAGE_LEN];
                let address = GuestAddress(page * PAGE_BYTES);
                memory
                    .guest
                    .read_slice(&mut found, address)
                    .expect("in memory");
                let saved = if PAGES.contains(&page) {
                    page_content(page)
                } else {
                    vec![0; found.len()]
                };
                assert!(
                    found == saved,
                    "page {page} is damaged, and that is not found"
                );
            }
        }
        drop(memory);
        let configuration: Result<MachineConfiguration, _> =
            serde_json::from_value(image.manifest.machine.clone());
        if let (Ok(_), Ok(state)) = (
            configuration,
            postcard::from_bytes::<MachineState>(&image.state),
        ) {
            let bytes = postcard::to_stdvec(&state).expect("plain data");
            postcard::from_bytes::<MachineState>(&bytes).expect("what was encoded is decoded");
            buses::restore_state(&state.devices);
        }
        image.consume().expect("an image that is whole is consumed");
        drop(image);
        let again = self.open();
        assert!(
            matches!(again, Err(OpenError::Consumed { .. })),
            "no image is resumed twice"
        );
    }

    fn touched_pages(&self) -> BTreeSet<u64> {
        let last = u64::from(MEMORY_MIB) * 256 - 1;
        let pages = self.changed.iter().flat_map(|(offset, bytes)| {
            let first = offset.saturating_sub(PAGE_BYTES) / PAGE_BYTES;
            first..=(first + bytes / PAGE_BYTES + 1).min(last)
        });
        pages.chain(PAGES).filter(|page| *page <= last).collect()
    }
}

/// See [`crate::TARGETS`].
pub(crate) fn target(input: &[u8]) {
    let saved = SAVED.with(Rc::clone);
    let mut subject = Subject {
        saved: &saved,
        manifest: saved.manifest.clone(),
        changed: Vec::new(),
        forged: false,
        machine: MACHINE,
        generation: Some(GENERATION),
        vendor: "AuthenticAMD",
    };
    for step in steps::decode::<ImageStep>(input) {
        subject.take(step);
    }
    subject.resume();
    saved.put_back(&subject.changed);
}

/// See [`crate::TARGETS`].
#[rustfmt::skip]
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    use ImageStep::{Edit, EditState, Expect, Header, Remove, Resize, State, Supplement};
    let number = |place, value| ImageStep::Manifest { change: Change::Number { place, value } };
    let mut all = vec![
        ("whole", vec![Expect { other_machine: false, generation: None, other_vendor: false }]),
        ("manifest", vec![Edit { file: 0, offset: 40, bytes: vec![b'x'] }]),
        ("state", vec![Edit { file: 1, offset: 5, bytes: vec![9] }]),
        ("sums", vec![Edit { file: 2, offset: 16, bytes: vec![1, 2, 3] }]),
        ("supplement", vec![Edit { file: 3, offset: 60, bytes: vec![b'9'] }]),
        ("header", vec![Edit { file: 4, offset: 9, bytes: vec![2] }]),
        ("memory", vec![Edit { file: 4, offset: 4096 * 17, bytes: vec![7; 5000] }]),
        ("hole", vec![Edit { file: 4, offset: 4096 * 900, bytes: vec![0; 30] }]),
        ("short", vec![Resize { file: 4, bytes: 4096 * 3 }]),
        ("long_state", vec![Resize { file: 1, bytes: 60_000 }]),
        ("no_supplement", vec![Remove { file: 3 }]),
        ("no_manifest", vec![Remove { file: 0 }]),
        ("other", vec![Expect { other_machine: true, generation: Some(8), other_vendor: true }]),
        ("generation", vec![Header { generation: 8, memory_bytes: 64 << 20 }, number(1, 8)]),
        ("larger", vec![number(2, 128), number(5, (128 << 20) + 4096)]),
        ("forged_supplement", vec![Supplement { change: Change::Empty { place: 0 } }]),
        ("forged_state", vec![State { bytes: vec![0; 300] }]),
        ("empty_state", vec![State { bytes: Vec::new() }]),
    ];
    for (name, offset) in [("state_begin", 0), ("state_middle", 400), ("state_devices", 65_000)] {
        all.push((name, vec![EditState { offset, bytes: vec![0xff, 0x03] }]));
    }
    all.into_iter().map(|(name, steps)| (name, steps::encode(&steps))).collect()
}
