//! A VMM that is killed at any step of a save, or of a resume, leaves no image or a whole one.
//!
//! The VMM is this test program itself, started once more with the step to die at.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use vmm::image::OpenError;
use vmm::image::step::Step;

use crate::fixture::{Subject, assert_memory, open_image, scratch};

const DIRECTORY: &str = "CRASH_DIRECTORY";
const STEP: &str = "CRASH_STEP";
const ORIGIN: &str = "CRASH_ORIGIN";

/// The machine that the child builds; the parent knows the contents of its memory.
fn machine(origin: &str, image: &Path) -> Subject {
    let mut subject = match origin {
        "boot" => Subject::boot(image),
        _ => Subject::resumed(image, 0..300),
    };
    for page in (0..200).step_by(3) {
        subject.fill(page, 0x77);
    }
    for page in 250..260 {
        subject.zero(page);
    }
    subject
}

fn die() -> io::Result<()> {
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL)?;
    Ok(())
}

#[test]
#[ignore = "the VMM that dies; started by the tests below"]
fn child() {
    let directory = PathBuf::from(std::env::var_os(DIRECTORY).unwrap());
    let step = std::env::var(STEP).unwrap();
    let subject = machine(&std::env::var(ORIGIN).unwrap(), &directory);

    let die_there = |at| {
        if format!("{at:?}") == step {
            die()
        } else {
            Ok(())
        }
    };
    subject.save_observed(&directory, &die_there).unwrap();
}

/// Runs a child that dies at `step`; returns whether it died.
fn crash(origin: &str, step: &str, directory: &Path) -> bool {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "crash::child"])
        .env(DIRECTORY, directory)
        .env(STEP, step)
        .env(ORIGIN, origin)
        .output()
        .unwrap();
    std::os::unix::process::ExitStatusExt::signal(&output.status) == Some(libc::SIGKILL)
}

/// The image is whole and holds what the machine held.
fn assert_whole(directory: &Path, expected: &[u8]) {
    let opened = open_image(directory, None).unwrap();
    opened.verify_full().unwrap();
    assert_memory(&opened.map().unwrap(), expected);
}

fn crash_at_each_step(origin: &str, steps: &[Step]) {
    let unused = scratch();
    let expected = machine(origin, unused.path()).model;
    for step in steps {
        let directory = scratch();

        assert!(
            crash(origin, &format!("{step:?}"), directory.path()),
            "{step:?} was not reached"
        );

        match step {
            Step::SyncCommit => assert_whole(directory.path(), &expected),
            _ => {
                let error = open_image(directory.path(), None).unwrap_err();
                assert!(is_absent(&error), "{step:?}: {error}");
            }
        }
    }
}

pub(crate) fn is_absent(error: &OpenError) -> bool {
    use OpenError::{Consumed, Missing, Unfinished};
    matches!(error, Consumed { .. } | Missing { .. } | Unfinished { .. })
}

#[test]
fn a_crash_while_a_resumed_machine_is_saved_leaves_no_image_or_a_whole_one() {
    let steps: Vec<_> = Step::ALL
        .into_iter()
        .filter(|step| *step != Step::SyncNames)
        .collect();

    crash_at_each_step("resume", &steps);
}

#[test]
fn a_crash_while_a_booted_machine_is_saved_leaves_no_image_or_a_whole_one() {
    let steps: Vec<_> = Step::ALL
        .into_iter()
        .filter(|step| *step != Step::PunchPages)
        .collect();

    crash_at_each_step("boot", &steps);
}

#[test]
fn a_vmm_that_is_not_killed_leaves_the_image_that_a_crash_is_compared_with() {
    let directory = scratch();
    let expected = machine("boot", scratch().path()).model;

    assert!(!crash("boot", "never", directory.path()));

    assert_whole(directory.path(), &expected);
}

#[test]
fn a_crash_before_the_first_entry_leaves_the_image_to_be_resumed_again() {
    let directory = scratch();
    let mut subject = Subject::boot(directory.path());
    subject.fill(1, 1);
    subject.save().unwrap();

    // All that a resume does up to there, and the end of its process.
    let opened = open_image(directory.path(), None).unwrap();
    let memory = opened.map().unwrap();
    opened.verify_full().unwrap();
    drop((opened, memory));

    assert_whole(directory.path(), &subject.model);
}
