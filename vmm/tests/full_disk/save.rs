//! A save that finds no space fails, the machine outlives it, and a later save succeeds.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use vmm::image::SaveError;
use vmm::image::step::Step;

use crate::fixture::{Subject, scratch};
use crate::small_disk::SmallDisk;

/// Gives a tmpfs more room.
fn enlarge(disk: &SmallDisk) {
    let mut remount = Command::new("mount");
    remount.args(["-o", "remount,size=200m"]).arg(disk.path());
    assert!(remount.status().unwrap().success());
}

/// Fills the disk up to less than 200 KiB; the file that fills it.
fn fill_up(disk: &SmallDisk) -> PathBuf {
    let path = disk.path().join("ballast");
    let ballast = File::create(&path).unwrap();
    let room = || {
        let facts = rustix::fs::statvfs(disk.path()).unwrap();
        facts.f_bavail * facts.f_frsize
    };
    let mut written = 0;
    while room() > 200 << 10 {
        ballast.write_all_at(&[1; 64 << 10], written).unwrap();
        // The file system may delay the allocation until then.
        ballast.sync_all().unwrap();
        written += 64 << 10;
    }
    path
}

/// The disk was full while pages were written.
fn assert_no_space(error: &SaveError) {
    let step = Step::WritePages;
    let expected = matches!(error, SaveError::NoSpace { step: found, .. } if *found == step);
    assert!(expected, "{error}");
}

pub(crate) fn a_booted_machine_outlives_a_full_disk() {
    let directory = scratch();
    let disk = SmallDisk::tmpfs(directory.path(), "1m");
    let mut subject = Subject::boot(directory.path());
    for page in 0..1000 {
        subject.fill(page, 1);
    }

    let error = subject.save().unwrap_err();

    assert_no_space(&error);
    subject.assert_intact();
    assert!(
        !directory.path().join("memory").exists(),
        "the disk is still full"
    );
    enlarge(&disk);
    subject.save().unwrap();
    subject.resume().assert_intact();
}

pub(crate) fn a_resumed_machine_outlives_a_full_disk() {
    let directory = scratch();
    let disk = SmallDisk::ext4(directory.path());
    let mut subject = Subject::resumed(directory.path(), 0..200);
    for page in (0..150).chain(1000..1500) {
        subject.fill(page, 2);
    }
    let ballast = fill_up(&disk);

    let error = subject.save().unwrap_err();

    assert_no_space(&error);
    subject.assert_intact();
    std::fs::remove_file(ballast).unwrap();
    subject.save().unwrap();
    subject.resume().assert_intact();
}

pub(crate) fn a_machine_on_a_full_disk_can_be_saved_elsewhere() {
    let (small, large) = (scratch(), scratch());
    let disk = SmallDisk::ext4(small.path());
    let mut subject = Subject::resumed(small.path(), 0..200);
    for page in 100..600 {
        subject.fill(page, 2);
    }
    fill_up(&disk);
    subject.save().unwrap_err();

    subject.save_observed(large.path(), &|_| Ok(())).unwrap();
    subject.image = large.path().to_owned();

    subject.resume().assert_intact();
}

pub(crate) fn summing_up_sparse_chunks_takes_no_room_on_tmpfs() {
    let directory = scratch();
    let disk = SmallDisk::tmpfs(directory.path(), "1m");
    enlarge(&disk);
    let mut subject = Subject::resumed(directory.path(), 0..16);
    for chunk in 1..500 {
        subject.fill(chunk * 16, 2);
    }

    let figures = subject.save().unwrap();

    let most = (16 + 500 + 16) * 4096;
    assert!(
        figures.image_bytes_allocated < most,
        "{} bytes",
        figures.image_bytes_allocated
    );
    subject.resume().assert_intact();
}
