//! A resume restores memory as it was, and a suspend writes only what has changed.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};
use vmm::image::save;
use vmm::image::step::Step;
use vmm::memory::MachineMemory;

use crate::fixture::{PAGE, PAGES, Subject, open_image, scratch};

#[test]
fn a_booted_machine_is_restored_bit_by_bit() {
    let directory = scratch();
    let mut subject = Subject::boot(directory.path());
    subject.fill(0, 1);
    subject.fill(PAGES - 1, 2);
    subject.write(5 * PAGE + 4095, b"across a page's end");

    let figures = subject.save().unwrap();
    let subject = subject.resume();

    subject.assert_intact();
    assert_eq!(figures.dirty_source, "content");
    assert_eq!(figures.pages_changed, 4);
    assert_eq!(figures.memory_bytes_written, 4 * PAGE as u64);
}

#[test]
fn a_second_suspend_writes_only_what_changed() {
    let directory = scratch();
    let mut subject = Subject::resumed(directory.path(), 0..2000);
    let inode = std::fs::metadata(directory.path().join("memory"))
        .unwrap()
        .ino();
    subject.assert_intact();
    subject.fill(7, 9);
    subject.fill(3000, 9);

    let figures = subject.save().unwrap();

    assert_eq!(
        figures.pages_changed, 2,
        "reading all of memory changed nothing"
    );
    assert_eq!(figures.memory_bytes_written, 2 * PAGE as u64);
    assert!(
        figures.dirty_source.starts_with("pagemap"),
        "{}",
        figures.dirty_source
    );
    assert_eq!(
        std::fs::metadata(directory.path().join("memory"))
            .unwrap()
            .ino(),
        inode
    );
    subject.resume().assert_intact();
}

#[test]
fn pages_that_became_zero_give_their_disk_space_back() {
    let directory = scratch();
    let mut subject = Subject::resumed(directory.path(), 0..4000);
    for page in 0..3900 {
        subject.zero(page);
    }

    let figures = subject.save().unwrap();

    assert_eq!(figures.memory_bytes_written, 0);
    assert_eq!(figures.pages_changed, 3900);
    let most = (100 + 100) * PAGE as u64;
    assert!(
        figures.image_bytes_allocated < most,
        "{} bytes",
        figures.image_bytes_allocated
    );
    subject.resume().assert_intact();
}

#[test]
fn phases_are_named_in_order_and_leave_no_gap() {
    let directory = scratch();
    let mut subject = Subject::boot(directory.path());
    subject.fill(1, 1);

    let phases = subject.save().unwrap().phases;

    let names: Vec<_> = phases.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "scan",
            "retire",
            "memory_write",
            "checksum",
            "sync",
            "commit"
        ]
    );
    assert!(
        phases
            .windows(2)
            .all(|pair| pair[0].end_ns == pair[1].start_ns)
    );
}

#[test]
fn a_resumed_machine_can_be_saved_into_another_directory() {
    let (first, second) = (scratch(), scratch());
    let mut subject = Subject::resumed(first.path(), (0..500).step_by(3));
    subject.fill(1, 5);
    subject.zero(3);

    subject.save_observed(second.path(), &|_| Ok(())).unwrap();
    subject.assert_intact();
    subject.image = second.path().to_owned();

    subject.resume().assert_intact();
}

#[test]
fn a_copied_save_keeps_the_sums_of_unchanged_chunks() {
    let (first, second) = (scratch(), scratch());
    let mut subject = Subject::resumed(first.path(), 0..64);
    subject.fill(0, 5);

    subject.save_observed(second.path(), &|_| Ok(())).unwrap();

    open_image(second.path(), None)
        .unwrap()
        .verify_full()
        .unwrap();
}

#[test]
fn memory_beyond_the_gap_is_restored_where_it_was() {
    let directory = scratch();
    let cancel = AtomicBool::new(false);
    let mut subject = Subject::boot(directory.path());
    subject.memory = MachineMemory::anonymous((3 << 10) + 64).unwrap();
    let (below, above) = (GuestAddress((3 << 30) - 8), GuestAddress((4 << 30) + 8));
    subject.memory.guest.write_obj(0x1111u64, below).unwrap();
    subject.memory.guest.write_obj(0x2222u64, above).unwrap();

    save(&subject.request(directory.path(), &cancel)).unwrap();
    let opened = open_image(directory.path(), None).unwrap();
    let memory = opened.map().unwrap();

    assert_eq!(memory.guest.read_obj::<u64>(below).unwrap(), 0x1111);
    assert_eq!(memory.guest.read_obj::<u64>(above).unwrap(), 0x2222);
    opened.verify_full().unwrap();
}

/// A guest's write to one page between a resume and the next suspend.
#[derive(Debug, Clone)]
enum Write {
    Fill(usize, u8),
    Zero(usize),
    Patch(usize, Vec<u8>),
    Same(usize),
}

fn a_write() -> impl Strategy<Value = Write> {
    // Few enough pages that generations meet on the same ones, in clusters and at the end.
    let page = prop_oneof![0usize..40, 1000usize..1100, PAGES - 3..PAGES];
    let at = page
        .clone()
        .prop_map(|page| (page * PAGE + 17).min(PAGES * PAGE - 64));
    prop_oneof![
        (page.clone(), any::<u8>()).prop_map(|(page, fill)| Write::Fill(page, fill)),
        page.clone().prop_map(Write::Zero),
        (at, prop::collection::vec(any::<u8>(), 1..64)).prop_map(|(at, b)| Write::Patch(at, b)),
        page.prop_map(Write::Same),
    ]
}

/// One generation: writes, and perhaps a save that fails at a step before the one that succeeds.
fn a_generation() -> impl Strategy<Value = (Vec<Write>, Option<usize>, Vec<Write>)> {
    let writes = || prop::collection::vec(a_write(), 0..30);
    (writes(), prop::option::of(0..Step::ALL.len()), writes())
}

fn apply(subject: &mut Subject, writes: &[Write]) {
    for write in writes {
        match write {
            Write::Fill(page, fill) => subject.fill(*page, *fill),
            Write::Zero(page) => subject.zero(*page),
            Write::Patch(at, bytes) => subject.write(*at, bytes),
            Write::Same(page) => {
                let bytes = subject.model[page * PAGE..(page + 1) * PAGE].to_vec();
                subject.write(page * PAGE, &bytes);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_writes_survive_chained_and_failing_suspends(
        generations in prop::collection::vec(a_generation(), 1..6),
    ) {
        let directory = scratch();
        let mut subject = Subject::boot(directory.path());
        for (before, failing_step, after) in generations {
            apply(&mut subject, &before);
            if let Some(index) = failing_step {
                let fails = Step::ALL[index];
                let veto = |step| if step == fails { Err(io::Error::other("veto")) } else { Ok(()) };
                let outcome = subject.save_observed(directory.path(), &veto);
                prop_assert_eq!(outcome.is_ok(), directory.path().join("manifest.json").exists());
                subject.assert_intact();
            }
            apply(&mut subject, &after);
            subject.save().unwrap();
            subject = subject.resume();
            subject.assert_intact();
        }
        subject.save().unwrap();
        drop(subject.memory);
        open_image(directory.path(), None).unwrap().verify_full().unwrap();
    }
}
