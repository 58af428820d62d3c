//! Power failures at every step of suspends and resumes: what is left is no image, or a whole one whose
//! disk is as it was when the guest was saved. Nothing that the guest did after its resume is durable
//! before it is durable that the image was used.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use rand::SeedableRng;
use rand::rngs::StdRng;
use vm_memory::{Bytes, GuestAddress};
use vmm::image::save::save_observed;
use vmm::image::step::Step;
use vmm::image::{DiskFile, SaveRequest};

use crate::crash::is_absent;
use crate::crash_states::{Cache, Content, Event, Recorder, Synced};
use crate::fixture::{PAGE, Subject, open_image, scratch};

const DISK_BYTES: u64 = 64 << 10;
/// Power failures at each step.
const FAILURES: u64 = 16;

/// What holds from an event on.
#[derive(Clone)]
struct Truth {
    /// The images that may be there: generation, first page of memory, disk.
    saved: Vec<(u64, Vec<u8>, Content)>,
    /// That one must be there: its suspend was reported.
    suspended: Option<u64>,
    /// Images of no later generation than this may be there: what came out of the guest since cannot be
    /// taken back.
    consumed: Option<u64>,
}

/// A life of a machine: its steps, and what holds after each.
struct Life {
    recorder: RefCell<Recorder>,
    truths: RefCell<Vec<Truth>>,
    directory: tempfile::TempDir,
    disk: [DiskFile; 1],
}

impl Life {
    fn begin() -> Self {
        let file = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        file.set_len(DISK_BYTES).unwrap();
        let life = Self {
            recorder: RefCell::default(),
            truths: RefCell::new(vec![Truth {
                saved: Vec::new(),
                suspended: None,
                consumed: None,
            }]),
            directory: scratch(),
            disk: [DiskFile {
                path: "disk".into(),
                file,
                size_bytes: DISK_BYTES,
                read_only: false,
            }],
        };
        life.note("begin", Synced::Nothing, |_| {});
        life
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn file(&self) -> &File {
        &self.disk[0].file
    }

    /// Notes a step, after which `change` holds.
    fn note(&self, name: &str, synced: Synced, change: impl FnOnce(&mut Truth)) {
        let mut recorder = self.recorder.borrow_mut();
        recorder.note(name, synced, self.path(), self.file());
        let mut truths = self.truths.borrow_mut();
        let mut truth = truths.last().unwrap().clone();
        change(&mut truth);
        truths.push(truth);
    }

    fn write_disk(&self, fill: u8, change: impl FnOnce(&mut Truth)) {
        for sector in [0, 3, 60] {
            self.file()
                .write_all_at(&[fill; 512], sector * 512)
                .unwrap();
        }
        self.note("disk write", Synced::Nothing, change);
    }

    fn save(&self, subject: &Subject) {
        let last = self.try_to_save(subject, None);
        self.note(&format!("{last:?}"), what_is_synced(last), |truth| {
            truth.suspended = Some(subject.generation);
        });
    }

    /// A save that fails at `step`; the clean-up ends with a sync of the names.
    fn fail_to_save(&self, subject: &Subject, step: Step) {
        self.try_to_save(subject, Some(step));
        self.note("clean-up", Synced::Names, |_| {});
    }

    /// Saves up to its end or to `failing`, and returns the last step, which is not noted: the snapshot
    /// before a step shows what the step before it did.
    fn try_to_save(&self, subject: &Subject, failing: Option<Step>) -> Step {
        let disk = Content::read(self.file(), None);
        let saved = (subject.generation, subject.model[..PAGE].to_vec(), disk);
        self.note("save begins", Synced::Nothing, |truth| {
            truth.saved.push(saved);
        });
        let previous = RefCell::new(None);
        let observer = |step: Step| {
            if let Some(step) = previous.replace(Some(step)) {
                self.note(&format!("{step:?}"), what_is_synced(step), |_| {});
            }
            match failing == Some(step) {
                true => Err(std::io::ErrorKind::Other.into()),
                false => Ok(()),
            }
        };
        let cancel = AtomicBool::new(false);
        let state = format!("state of generation {}", subject.generation);
        let request = SaveRequest {
            state: state.as_bytes(),
            disks: &self.disk,
            ..subject.request(self.path(), &cancel)
        };
        let saved = save_observed(&request, &observer);
        assert_eq!(saved.is_err(), failing.is_some());
        previous.into_inner().unwrap()
    }

    /// Resumes as the VMM does.
    fn resume(&self, subject: Subject, then: AfterConsumption) -> Subject {
        let generation = subject.generation;
        let (resumed, consumption) = subject.resume_consuming();
        self.note("consume", Synced::Nothing, |truth| truth.suspended = None);
        let leaves = |truth: &mut Truth| truth.consumed = Some(generation);
        match then {
            AfterConsumption::Suspend => {}
            AfterConsumption::WriteLate => {
                consumption.make_durable().unwrap();
                self.note("consumption durable", Synced::Names, |_| {});
                self.write_disk(generation.to_le_bytes()[0], leaves);
            }
            AfterConsumption::WriteEarly => {
                self.write_disk(generation.to_le_bytes()[0], leaves);
                consumption.make_durable().unwrap();
                self.note("consumption durable", Synced::Names, |_| {});
            }
        }
        resumed
    }

    /// The first violation that is found among many power failures after each step.
    fn violation(&self, events: &[Event]) -> Option<String> {
        let mut cache = Cache::default();
        for (event, truth) in events.iter().zip(&self.truths.borrow()[1..]) {
            cache.apply(event);
            for failure in 0..FAILURES {
                let mut random = StdRng::seed_from_u64(failure);
                let left = scratch();
                let disk = cache.leave(left.path(), &mut random);
                if let Err(why) = judge(left.path(), &disk, truth) {
                    return Some(format!("after {}: {why}", event.name));
                }
            }
        }
        None
    }
}

/// What a resumed machine does first.
#[derive(Clone, Copy)]
enum AfterConsumption {
    /// It writes once it is durable that its image was used.
    WriteLate,
    /// It does not wait for that: a fault.
    WriteEarly,
    /// It is suspended before that is durable.
    Suspend,
}

fn what_is_synced(step: Step) -> Synced {
    match step {
        Step::SyncRetirement | Step::SyncNames | Step::SyncCommit => Synced::Names,
        Step::SyncMemory => Synced::File("memory"),
        Step::SyncSums => Synced::File("memory.sums"),
        Step::SyncState => Synced::File("state.bin"),
        Step::SyncSupplement => Synced::File("supplement.json"),
        Step::SyncManifest => Synced::File("manifest.tmp"),
        Step::SyncDisks => Synced::Disk,
        _ => Synced::Nothing,
    }
}

/// Whether what was left may be.
fn judge(directory: &Path, disk: &Content, truth: &Truth) -> Result<(), String> {
    let opened = match open_image(directory, None) {
        Ok(opened) => opened,
        Err(error) if !is_absent(&error) => return Err(format!("a part is left: {error}")),
        Err(error) if truth.suspended.is_some() => return Err(format!("it is lost: {error}")),
        Err(_) => return Ok(()),
    };
    let generation = opened.manifest.generation;
    if let Err(error) = opened.verify_full() {
        return Err(format!("the image opens, and is damaged: {error}"));
    }
    if truth
        .consumed
        .is_some_and(|consumed| generation <= consumed)
    {
        return Err(format!(
            "the image of generation {generation} is back, and its guest has gone on"
        ));
    }
    let saved = truth.saved.iter().find(|(saved, ..)| *saved == generation);
    let (_, memory, saved_disk) = saved.expect("a generation that was saved");
    // All else of memory is compared with its sums.
    let mut page = vec![0; PAGE];
    let guest = opened.map().unwrap().guest;
    guest.read_slice(&mut page, GuestAddress(0)).unwrap();
    assert_eq!(page, memory[..PAGE]);
    if opened.supplement.is_none() {
        return Err("the image opens, and does not know its disk".to_owned());
    }
    if disk != saved_disk {
        return Err("the image opens, and its disk is another one".to_owned());
    }
    Ok(())
}

/// Boots, and is suspended and resumed several times, with writes to memory and disk in between.
fn a_life(first: AfterConsumption) -> Life {
    let life = Life::begin();
    let mut subject = Subject::boot(life.path());
    for page in (0..40).step_by(3) {
        subject.fill(page, 0x11);
    }
    life.write_disk(0xaa, |_| {});
    life.save(&subject);
    for then in [
        first,
        AfterConsumption::Suspend,
        AfterConsumption::WriteLate,
    ] {
        subject = life.resume(subject, then);
        for page in (0..40).step_by(4) {
            subject.fill(page, subject.generation.to_le_bytes()[0]);
        }
        subject.zero(3);
        life.save(&subject);
    }
    life
}

#[test]
fn no_power_failure_loses_a_suspended_machine_or_runs_one_twice() {
    let life = a_life(AfterConsumption::WriteLate);
    let events = life.recorder.borrow().events.clone();
    assert_eq!(life.violation(&events), None);
}

#[test]
fn the_image_of_a_suspend_that_fails_at_its_end_is_gone_before_the_guest_goes_on() {
    let life = Life::begin();
    let mut subject = Subject::boot(life.path());
    subject.fill(0, 0x11);
    life.fail_to_save(&subject, Step::SyncCommit);
    life.write_disk(0xaa, |truth| truth.consumed = Some(subject.generation));
    let events = life.recorder.borrow().events.clone();
    assert_eq!(life.violation(&events), None);
}

#[test]
fn a_disk_write_before_the_consumption_is_durable_would_be_found() {
    let life = a_life(AfterConsumption::WriteEarly);
    let events = life.recorder.borrow().events.clone();
    let found = life.violation(&events).unwrap();
    assert!(found.ends_with("its guest has gone on"), "{found}");
}

#[test]
fn each_kind_of_sync_is_needed() {
    let life = a_life(AfterConsumption::WriteLate);
    let recorded = life.recorder.borrow().events.clone();
    let mut needed = BTreeMap::new();
    for (at, event) in recorded.iter().enumerate() {
        let is_needed: &mut bool = needed.entry(&event.name).or_default();
        if event.synced != Synced::Nothing && !*is_needed {
            let mut events = recorded.clone();
            events[at].synced = Synced::Nothing;
            *is_needed = life.violation(&events).is_some();
        }
    }
    needed.retain(|name, is_needed| {
        !*is_needed
            && recorded
                .iter()
                .any(|event| event.name == **name && event.synced != Synced::Nothing)
    });
    assert_eq!(needed, BTreeMap::new(), "syncs that nothing depends on");
}
