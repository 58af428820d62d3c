//! A save that fails leaves the machine's memory as it was, leaves no image, and can be repeated.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use tempfile::NamedTempFile;
use vmm::image::save::save_observed;
use vmm::image::step::Step;
use vmm::image::{OpenError, SaveError};
use vmm_control::SuspendFigures;

use crate::fixture::{Subject, open_image, scratch};

/// Fails a step with an error number.
fn veto(fails: Step, errno: i32) -> impl Fn(Step) -> io::Result<()> {
    move |step| match step == fails {
        true => Err(io::Error::from_raw_os_error(errno)),
        false => Ok(()),
    }
}

/// A resumed machine that has new pages, changed ones and ones that have become zero, so that a
/// save takes every step. `SyncNames` is only taken for new files, that is, after a boot.
fn a_changed_machine(image: &Path) -> Subject {
    let mut subject = Subject::resumed(image, 0..300);
    for page in (0..100).step_by(3) {
        subject.fill(page, 2);
    }
    for page in 200..210 {
        subject.zero(page);
    }
    subject.fill(5000, 3);
    subject
}

fn a_booted_machine(image: &Path) -> Subject {
    let mut subject = Subject::boot(image);
    for page in 0..300 {
        subject.fill(page, 2);
    }
    subject
}

/// Fails each of `steps`, and after each failure compares memory, and saves and resumes for good.
fn fail_each(steps: &[Step], machine: fn(&Path) -> Subject) {
    for step in steps {
        let directory = scratch();
        let subject = machine(directory.path());

        let error = subject
            .save_observed(directory.path(), &veto(*step, libc::EIO))
            .unwrap_err();

        assert!(
            matches!(&error, SaveError::Io { step: at, .. } if at == step),
            "{step:?}: {error}"
        );
        subject.assert_intact();
        subject.save().unwrap();
        subject.resume().assert_intact();
    }
}

#[test]
fn a_resumed_machine_outlives_a_failure_of_any_step() {
    let steps: Vec<_> = Step::ALL
        .into_iter()
        .filter(|step| *step != Step::SyncNames)
        .collect();

    fail_each(&steps, a_changed_machine);
}

#[test]
fn a_booted_machine_outlives_a_failure_of_any_step() {
    let steps: Vec<_> = Step::ALL
        .into_iter()
        .filter(|step| *step != Step::PunchPages)
        .collect();

    fail_each(&steps, a_booted_machine);
}

#[test]
fn no_image_is_left_by_a_failure_of_any_step() {
    for step in Step::ALL
        .into_iter()
        .filter(|step| *step != Step::SyncNames)
    {
        let directory = scratch();
        let subject = a_changed_machine(directory.path());

        subject
            .save_observed(directory.path(), &veto(step, libc::EIO))
            .unwrap_err();
        drop(subject.memory);

        let error = open_image(directory.path(), None).unwrap_err();
        let gone = matches!(
            error,
            OpenError::Consumed { .. } | OpenError::Unfinished { .. }
        );
        assert!(gone, "{step:?}: {error}");
    }
}

#[test]
fn failures_of_the_disk_are_told_apart() {
    let directory = scratch();
    let subject = a_changed_machine(directory.path());
    let fail = |errno| {
        subject
            .save_observed(directory.path(), &veto(Step::WritePages, errno))
            .unwrap_err()
    };

    assert!(matches!(fail(libc::ENOSPC), SaveError::NoSpace { .. }));
    assert!(matches!(fail(libc::EDQUOT), SaveError::Quota { .. }));
    assert!(matches!(fail(libc::EROFS), SaveError::ReadOnly { .. }));
    assert!(matches!(fail(libc::EIO), SaveError::Io { .. }));
    assert!(
        fail(libc::ENOSPC)
            .to_string()
            .contains("write guest memory to")
    );
}

#[test]
fn a_save_can_be_cancelled_at_each_step_before_the_commit() {
    let steps = Step::ALL[..15]
        .iter()
        .filter(|step| **step != Step::PunchPages);
    for step in steps {
        let directory = scratch();
        let subject = a_booted_machine(directory.path());

        let outcome = cancel_during(*step, &subject);

        assert!(
            matches!(outcome, Err(SaveError::Cancelled)),
            "{step:?}: {outcome:?}"
        );
        assert!(!directory.path().join("manifest.json").exists(), "{step:?}");
        subject.assert_intact();
        subject.save().unwrap();
        subject.resume().assert_intact();
    }
}

#[test]
fn cancelling_comes_too_late_once_the_image_is_committed() {
    let directory = scratch();
    let subject = a_booted_machine(directory.path());

    cancel_during(Step::Commit, &subject).unwrap();

    subject.resume().assert_intact();
}

/// Sets the cancel flag while a step is being taken.
fn cancel_during(step: Step, subject: &Subject) -> Result<SuspendFigures, SaveError> {
    let cancel = AtomicBool::new(false);
    save_observed(&subject.request(&subject.image, &cancel), &|taken| {
        cancel.fetch_or(taken == step, Ordering::Relaxed);
        Ok(())
    })
}

#[test]
fn the_old_manifest_is_durably_gone_before_anything_is_written() {
    let directory = scratch();
    let subject = a_changed_machine(directory.path());
    let steps = std::cell::RefCell::new(Vec::new());

    let record = |step| {
        steps.borrow_mut().push(step);
        Ok(())
    };
    subject.save_observed(directory.path(), &record).unwrap();

    let mut steps = steps.into_inner();
    steps.dedup();
    let expected: Vec<_> = Step::ALL
        .into_iter()
        .filter(|step| *step != Step::SyncNames)
        .collect();
    assert_eq!(steps, expected);
}

/// Says so past the test harness, which swallows what a passing test prints.
fn skip(reason: &str) {
    let line = format!("SKIPPED: {reason}\n");
    io::stderr().write_all(line.as_bytes()).unwrap();
}

/// A small file system, mounted on a directory. Unmounted on drop.
struct SmallDisk {
    path: PathBuf,
    _backing: Option<NamedTempFile>,
}

impl SmallDisk {
    /// `None`, with a line on stderr, where mounting is not permitted.
    fn tmpfs(path: &Path) -> Option<Self> {
        Self::mount(path, &["-t", "tmpfs", "-o", "size=1m", "none"], None)
    }

    /// As above; ext4, of 16 MiB.
    fn ext4(path: &Path) -> Option<Self> {
        let backing = NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        backing.as_file().set_len(16 << 20).unwrap();
        let made = Command::new("mke2fs")
            .args(["-q", "-t", "ext4"])
            .arg(backing.path())
            .status();
        if !made.is_ok_and(|status| status.success()) {
            skip("a full ext4 can't be tried, since there is no mke2fs");
            return None;
        }
        let device = backing.path().to_str().unwrap().to_owned();
        Self::mount(path, &["-t", "ext4", "-o", "loop", &device], Some(backing))
    }

    fn mount(path: &Path, arguments: &[&str], backing: Option<NamedTempFile>) -> Option<Self> {
        let mounted = Command::new("mount").args(arguments).arg(path).status();
        if !mounted.is_ok_and(|status| status.success()) {
            skip("a full disk can't be tried, since mounting is not permitted");
            return None;
        }
        Some(Self {
            path: path.to_owned(),
            _backing: backing,
        })
    }

    /// Gives a tmpfs more room.
    fn grow(&self) {
        let mut remount = Command::new("mount");
        remount.args(["-o", "remount,size=200m"]).arg(&self.path);
        assert!(remount.status().unwrap().success());
    }

    /// Fills the disk up to less than 200 KiB.
    fn fill_up(&self) -> PathBuf {
        let path = self.path.join("ballast");
        let ballast = File::create(&path).unwrap();
        let room = || {
            let facts = rustix::fs::statvfs(&self.path).unwrap();
            facts.f_bavail * facts.f_frsize
        };
        let mut written = 0;
        while room() > 200 << 10 {
            ballast.write_all_at(&[1; 64 << 10], written).unwrap();
            // Until it is allocated, the room for it is only promised.
            ballast.sync_all().unwrap();
            written += 64 << 10;
        }
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, since a failing test may still have files of it mapped.
        let _ = Command::new("umount").arg("-l").arg(&self.path).status();
    }
}

#[test]
fn a_booted_machine_outlives_a_full_disk() {
    let directory = scratch();
    let Some(disk) = SmallDisk::tmpfs(directory.path()) else {
        return;
    };
    let mut subject = Subject::boot(directory.path());
    for page in 0..1000 {
        subject.fill(page, 1);
    }

    let error = subject.save().unwrap_err();

    assert!(
        matches!(
            error,
            SaveError::NoSpace {
                step: Step::WritePages,
                ..
            }
        ),
        "{error}"
    );
    subject.assert_intact();
    assert!(
        !directory.path().join("memory").exists(),
        "the disk is still full"
    );
    disk.grow();
    subject.save().unwrap();
    subject.resume().assert_intact();
}

#[test]
fn a_resumed_machine_outlives_a_full_disk() {
    let directory = scratch();
    let Some(disk) = SmallDisk::ext4(directory.path()) else {
        return;
    };
    let mut subject = Subject::resumed(directory.path(), 0..200);
    for page in (0..150).chain(1000..1500) {
        subject.fill(page, 2);
    }
    let ballast = disk.fill_up();

    let error = subject.save().unwrap_err();

    assert!(
        matches!(
            error,
            SaveError::NoSpace {
                step: Step::WritePages,
                ..
            }
        ),
        "{error}"
    );
    subject.assert_intact();
    std::fs::remove_file(ballast).unwrap();
    subject.save().unwrap();
    subject.resume().assert_intact();
}

#[test]
fn a_machine_on_a_full_disk_can_be_saved_elsewhere() {
    let (small, large) = (scratch(), scratch());
    let Some(disk) = SmallDisk::ext4(small.path()) else {
        return;
    };
    let mut subject = Subject::resumed(small.path(), 0..200);
    for page in 100..600 {
        subject.fill(page, 2);
    }
    disk.fill_up();
    subject.save().unwrap_err();

    subject.save_observed(large.path(), &|_| Ok(())).unwrap();
    subject.image = large.path().to_owned();

    subject.resume().assert_intact();
}

#[test]
fn summing_up_sparse_chunks_takes_no_room_on_tmpfs() {
    let directory = scratch();
    let Some(disk) = SmallDisk::tmpfs(directory.path()) else {
        return;
    };
    disk.grow();
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
