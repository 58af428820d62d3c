//! An image that is incomplete, damaged or another one than expected is refused, with the reason.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;
use vmm::image::directory::DirectoryError;
use vmm::image::{CpuIdentity, Expectation, OpenError, open};

use crate::fixture::{MACHINE, Subject, cpu, damage, open_image, scratch};

fn an_image() -> TempDir {
    let directory = scratch();
    let mut subject = Subject::boot(directory.path());
    subject.fill(3, 1);
    subject.save().unwrap();
    directory
}

fn refusal(directory: &Path) -> OpenError {
    open_image(directory, Some(1)).expect_err("the image must be refused")
}

fn names(error: &OpenError, name: &str) -> bool {
    error.to_string().contains(name)
}

#[test]
fn a_whole_image_is_accepted() {
    let directory = an_image();

    let opened = open_image(directory.path(), Some(1)).unwrap();

    assert_eq!(opened.manifest.generation, 1);
    assert_eq!(opened.state, b"state of vCPUs and devices");
}

#[test]
fn every_flipped_byte_of_manifest_state_and_sums_is_refused() {
    let directory = an_image();

    for name in ["manifest.json", "state.bin", "memory.sums"] {
        let path = directory.path().join(name);
        let length = fs::metadata(&path).unwrap().len();
        for offset in 0..length {
            damage(&path, offset);
            let error = refusal(directory.path());
            assert!(names(&error, name), "{name} at {offset}: {error}");
            damage(&path, offset);
        }
    }
    open_image(directory.path(), Some(1)).expect("each byte was put back");
}

#[test]
fn every_flipped_byte_of_the_memory_header_is_refused() {
    let directory = an_image();
    let path = directory.path().join("memory");

    for offset in 0..4096 {
        damage(&path, offset);
        let error = refusal(directory.path());
        assert!(
            matches!(error, OpenError::Header { .. }),
            "at {offset}: {error}"
        );
        damage(&path, offset);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn files_of_another_length_are_refused(
        name in prop::sample::select(vec!["manifest.json", "state.bin", "memory.sums", "memory"]),
        permille in 0u64..1000,
        longer in any::<bool>(),
    ) {
        let directory = an_image();
        let path = directory.path().join(name);
        let length = fs::metadata(&path).unwrap().len();
        let other = if longer { length + 1 } else { length * permille / 1000 };
        fs::File::options().write(true).open(&path).unwrap().set_len(other).unwrap();

        let error = refusal(directory.path());

        prop_assert!(names(&error, name), "{name} of {other} bytes: {error}");
    }
}

#[test]
fn a_manifest_too_long_to_be_one_is_not_read() {
    let directory = an_image();
    let path = directory.path().join("manifest.json");
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1 << 40)
        .unwrap();

    let error = refusal(directory.path());

    assert!(matches!(error, OpenError::TooLarge { .. }), "{error}");
}

#[test]
fn each_missing_file_is_named() {
    for name in ["state.bin", "memory.sums", "memory"] {
        let directory = an_image();
        fs::remove_file(directory.path().join(name)).unwrap();

        let error = refusal(directory.path());

        assert!(
            matches!(error, OpenError::Read { .. }) && names(&error, name),
            "{error}"
        );
    }
}

#[test]
fn a_pipe_in_a_files_place_is_refused_without_waiting() {
    for name in ["manifest.json", "state.bin", "memory.sums", "memory"] {
        let directory = an_image();
        let path = directory.path().join(name);
        fs::remove_file(&path).unwrap();
        let (fifo, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
        rustix::fs::mknodat(rustix::fs::CWD, &path, fifo, mode, 0).unwrap();

        let error = refusal(directory.path());

        assert!(
            matches!(error, OpenError::Read { .. }) && names(&error, name),
            "{error}"
        );
    }
}

#[test]
fn no_image_at_all_is_missing() {
    let directory = scratch();

    assert!(matches!(
        refusal(directory.path()),
        OpenError::Missing { .. }
    ));
}

#[test]
fn no_directory_at_all_is_named() {
    let directory = scratch();

    let error = refusal(&directory.path().join("absent"));

    assert!(
        matches!(error, OpenError::Directory(DirectoryError::Open { .. })),
        "{error}"
    );
}

#[test]
fn a_consumed_image_is_refused() {
    let directory = an_image();
    open_image(directory.path(), None)
        .unwrap()
        .consume()
        .unwrap();

    assert!(matches!(
        refusal(directory.path()),
        OpenError::Consumed { .. }
    ));
}

#[test]
fn another_machines_image_is_refused() {
    let directory = an_image();

    let error = open(
        directory.path(),
        &Expectation {
            machine_id: "m-other",
            generation: None,
            cpu: cpu(),
        },
    )
    .unwrap_err();

    assert!(matches!(error, OpenError::Machine { .. }), "{error}");
}

#[test]
fn a_stale_generation_is_refused() {
    let directory = an_image();

    let error = open_image(directory.path(), Some(2)).unwrap_err();

    assert!(
        matches!(
            error,
            OpenError::Generation {
                found: 1,
                expected: 2
            }
        ),
        "{error}"
    );
}

#[test]
fn a_processor_of_another_vendor_is_refused() {
    let directory = an_image();
    let here = CpuIdentity {
        vendor: "AnotherVendor".to_owned(),
        ..cpu().clone()
    };

    let error = open(
        directory.path(),
        &Expectation {
            machine_id: MACHINE,
            generation: None,
            cpu: &here,
        },
    )
    .unwrap_err();

    assert!(matches!(error, OpenError::Cpu { .. }), "{error}");
}

#[test]
fn the_memory_of_another_suspend_is_refused() {
    let (directory, other) = (an_image(), an_image());
    fs::copy(other.path().join("memory"), directory.path().join("memory")).unwrap();

    let error = refusal(directory.path());

    assert!(matches!(error, OpenError::OtherImage { .. }), "{error}");
}

#[test]
fn a_second_vmm_is_refused_until_the_first_has_ended() {
    let directory = an_image();
    let first = open_image(directory.path(), Some(1)).unwrap();
    let memory = first.map().unwrap();
    drop(first);

    let error = refusal(directory.path());
    drop(memory);

    let in_use = matches!(error, OpenError::Directory(DirectoryError::InUse { .. }));
    assert!(in_use, "{error}");
    open_image(directory.path(), Some(1)).unwrap();
}
