//! Damage of guest memory is found, located, and never covered up by the next suspend.

use std::cell::RefCell;
use std::error::Error;
use std::fs::File;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use vmm::image::step::Step;
use vmm::image::{DamagedRange, OpenImage, SaveError, Verified, VerifyError};

use crate::fixture::{PAGE, Subject, damage, open_image, scratch};

const CHUNK: u64 = 64 << 10;
const DEADLINE: Duration = Duration::from_secs(20);

/// Suspends a machine whose first 8 MiB are data.
fn suspend(image: &Path) -> Vec<u8> {
    let mut subject = Subject::boot(image);
    for page in 0..2048 {
        subject.fill(page, 7);
    }
    subject.save().unwrap();
    subject.model
}

fn memory_offset(guest_address: u64) -> u64 {
    4096 + guest_address
}

fn background(opened: &OpenImage) -> Result<Verified, VerifyError> {
    let (sender, receiver) = mpsc::channel();
    let verifier = opened.verify_in_background(move |outcome| sender.send(outcome).unwrap());
    let outcome = receiver
        .recv_timeout(DEADLINE)
        .expect("the verifier reports in time");
    verifier.unwrap().stop();
    outcome
}

#[test]
fn sound_memory_is_found_sound_and_holes_are_not_read() {
    let directory = scratch();
    suspend(directory.path());
    let opened = open_image(directory.path(), None).unwrap();

    let full = opened.verify_full().unwrap();

    // The last read may extend into the hole by a batch.
    assert!(
        (8 << 20..10 << 20).contains(&full.bytes_read),
        "{} bytes",
        full.bytes_read
    );
}

#[test]
fn the_background_check_finds_sound_memory_sound() {
    let directory = scratch();
    suspend(directory.path());

    background(&open_image(directory.path(), None).unwrap()).unwrap();
}

#[test]
fn a_flipped_bit_is_reported_with_its_range() {
    let directory = scratch();
    suspend(directory.path());
    damage(
        &directory.path().join("memory"),
        memory_offset(3 * CHUNK + 100),
    );
    let opened = open_image(directory.path(), None).unwrap();
    let range = DamagedRange {
        guest_address: 3 * CHUNK,
        file_offset: memory_offset(3 * CHUNK),
        bytes: CHUNK,
    };

    let full = opened.verify_full().unwrap_err();
    let behind = background(&opened).unwrap_err();

    assert!(
        matches!(full, VerifyError::Damaged(found) if found == range),
        "{full}"
    );
    assert!(
        matches!(behind, VerifyError::Damaged(found) if found == range),
        "{behind}"
    );
}

#[test]
fn a_hole_where_data_was_is_damage() {
    let directory = scratch();
    suspend(directory.path());
    let memory = File::options()
        .write(true)
        .open(directory.path().join("memory"))
        .unwrap();
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&memory, punch, memory_offset(16 * CHUNK), 4 * CHUNK).unwrap();

    let error = open_image(directory.path(), None)
        .unwrap()
        .verify_full()
        .unwrap_err();

    let address = 16 * CHUNK;
    assert!(
        matches!(error, VerifyError::Damaged(found) if found.guest_address == address),
        "{error}"
    );
}

#[test]
fn data_where_a_hole_was_is_damage() {
    let directory = scratch();
    suspend(directory.path());
    damage(&directory.path().join("memory"), memory_offset(40 << 20));

    let error = open_image(directory.path(), None)
        .unwrap()
        .verify_full()
        .unwrap_err();

    assert!(
        matches!(error, VerifyError::Damaged(found) if found.guest_address == 40 << 20),
        "{error}"
    );
}

/// A machine resumed, without any check, from an image with one damaged byte in chunk 5.
fn resumed_from_damage(image: &Path) -> Subject {
    let model = suspend(image);
    damage(&image.join("memory"), memory_offset(5 * CHUNK));
    let opened = open_image(image, None).unwrap();
    let memory = opened.map().unwrap();
    opened.consume().unwrap();
    Subject {
        image: image.to_owned(),
        memory,
        model,
        generation: 2,
    }
}

#[test]
fn a_save_refuses_to_cover_up_a_damaged_chunk() {
    let directory = scratch();
    let mut subject = resumed_from_damage(directory.path());
    subject.fill(5 * 16 + 1, 9);

    let error = subject.save().unwrap_err();

    assert!(
        matches!(error, SaveError::OldImage(VerifyError::Damaged(_))),
        "{error}"
    );
    let cause = error.source().unwrap().to_string();
    assert!(cause.contains("0x50000 to 0x60000"), "{cause}");
}

#[test]
fn damage_in_an_untouched_chunk_still_shows_after_the_next_save() {
    let directory = scratch();
    let mut subject = resumed_from_damage(directory.path());
    subject.fill(0, 9);

    subject.save().unwrap();
    drop(subject.memory);

    let error = open_image(directory.path(), None)
        .unwrap()
        .verify_full()
        .unwrap_err();
    assert!(
        matches!(error, VerifyError::Damaged(found) if found.guest_address == 5 * CHUNK),
        "{error}"
    );
}

#[test]
fn a_damaged_chunk_that_is_replaced_as_a_whole_is_repaired() {
    let directory = scratch();
    let mut subject = resumed_from_damage(directory.path());
    for page in 5 * 16..6 * 16 {
        subject.fill(page, 9);
    }

    subject.save().unwrap();
    drop(subject.memory);

    open_image(directory.path(), None)
        .unwrap()
        .verify_full()
        .unwrap();
}

#[test]
fn a_background_check_raises_no_alarm_over_a_save_in_between() {
    for round in 0..8 {
        let directory = scratch();
        let model = suspend(directory.path());
        let opened = open_image(directory.path(), None).unwrap();
        let memory = opened.map().unwrap();
        opened.consume().unwrap();
        let image = directory.path().to_owned();
        let mut subject = Subject {
            image,
            memory,
            model,
            generation: 2,
        };
        for page in (0..2048).step_by(7).chain(512..768) {
            subject.write(page * PAGE, &[round + 1]);
        }
        let (sender, receiver) = mpsc::channel();
        let verifier = opened.verify_in_background(move |outcome| sender.send(outcome).unwrap());

        subject.save().unwrap();

        let outcome = receiver
            .recv_timeout(DEADLINE)
            .expect("the verifier reports in time");
        outcome.unwrap();
        verifier.unwrap().stop();
    }
}

#[test]
fn a_background_check_leaves_the_disk_to_a_save() {
    let directory = scratch();
    let mut subject = Subject::boot(directory.path());
    subject.fill(1, 1);
    subject.save().unwrap();
    let opened = open_image(directory.path(), None).unwrap();
    subject.memory = opened.map().unwrap();
    opened.consume().unwrap();
    let (sender, receiver) = mpsc::channel();
    let verifier = RefCell::new(None);

    let check_meanwhile = |step| {
        if step == Step::WriteSums {
            let sender = sender.clone();
            let on_end = move |outcome| sender.send(outcome).unwrap();
            *verifier.borrow_mut() = Some(opened.verify_in_background(on_end)?);
        }
        // Checking one page takes far less than this, and a save that is held up takes longer.
        let report = receiver.recv_timeout(Duration::from_millis(30));
        assert!(report.is_err(), "the check went on during {step:?}");
        Ok(())
    };
    subject
        .save_observed(directory.path(), &check_meanwhile)
        .unwrap();

    receiver.recv_timeout(DEADLINE).unwrap().unwrap();
}

#[test]
fn a_stopped_check_reports_nothing() {
    let directory = scratch();
    let model = suspend(directory.path());
    let opened = open_image(directory.path(), None).unwrap();
    let (sender, receiver) = mpsc::channel();

    opened
        .verify_in_background(move |outcome| sender.send(outcome).unwrap())
        .unwrap()
        .stop();

    // Either it was through before it was stopped, or its end of the channel is gone.
    let reports = receiver.iter().filter(Result::is_err).count();
    assert_eq!((reports, model.len()), (0, 64 << 20));
}
