//! A save that fails leaves the machine's memory as it was, leaves no image, and can be repeated.
//!
//! Failures are injected here; `tests/full_disk` has real ones.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

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
