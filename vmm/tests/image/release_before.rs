//! An image of the release before is resumed, and one of ours has what the release before looks for.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::Value;
use vmm::machine::configuration::MachineConfiguration;
use vmm::machine::suspend::MachineState;

use crate::fixture::{PAGE, PAGES, Subject, assert_memory, open_image, scratch};

/// Where the parts of a memory file are that are not zero: each with its offset before it.
const BLOCK: usize = 8 + 4_096;

/// Puts the image there; its memory is not whole in the tree, which is mostly zeros.
fn place(directory: &Path) {
    for name in ["manifest.json", "memory.sums", "state.bin"] {
        let bytes = release_before::bytes(&format!("image/{name}"));
        fs::write(directory.join(name), bytes).unwrap();
    }
    let manifest = manifest_of(directory);
    let memory = File::create(directory.join("memory")).unwrap();
    memory
        .set_len(manifest["memory"]["file_bytes"].as_u64().unwrap())
        .unwrap();
    for block in release_before::bytes("image/memory.blocks").chunks_exact(BLOCK) {
        let (offset, bytes) = block.split_first_chunk().unwrap();
        memory
            .write_all_at(bytes, u64::from_le_bytes(*offset))
            .unwrap();
    }
}

fn manifest_of(directory: &Path) -> Value {
    serde_json::from_slice(&fs::read(directory.join("manifest.json")).unwrap()).unwrap()
}

/// The same writes as those of the guest that the release before saved.
fn written(directory: &Path) -> Subject {
    let mut subject = Subject::boot(directory);
    subject.fill(0, 1);
    subject.fill(PAGES - 1, 2);
    subject.write(5 * PAGE + 4_095, b"across a page's end");
    subject
}

#[test]
fn an_image_of_the_release_before_is_resumed_bit_by_bit() {
    let directory = scratch();
    place(directory.path());
    let image = open_image(directory.path(), Some(1)).unwrap();
    assert_eq!(image.state, b"state of vCPUs and devices");
    let memory = image.map().unwrap();
    image.consume().unwrap();
    let expected = written(directory.path()).model;
    assert_memory(&memory, &expected);
}

/// It refuses fields that it does not know, so there are none.
#[test]
fn a_manifest_has_the_fields_that_the_release_before_knows_and_no_others() {
    let directory = scratch();
    written(directory.path()).save().unwrap();
    let ours = manifest_of(directory.path());
    let theirs = release_before::bytes("image/manifest.json");
    let theirs: Value = serde_json::from_slice(&theirs).unwrap();
    assert_eq!(names(&ours, ""), names(&theirs, ""));
    for field in ["magic", "version", "cpu"] {
        assert_eq!(ours[field], theirs[field]);
    }
}

/// The paths of all fields.
fn names(value: &Value, path: &str) -> Vec<String> {
    let Value::Object(fields) = value else {
        return vec![path.to_owned()];
    };
    let fields = fields.iter();
    fields
        .flat_map(|(name, value)| names(value, &format!("{path}/{name}")))
        .collect()
}

#[test]
fn a_machine_in_an_image_of_the_release_before_is_understood_and_written_as_it_was() {
    let manifest = release_before::bytes("machine-manifest.json");
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    let machine: MachineConfiguration =
        serde_json::from_value(manifest["machine"].clone()).unwrap();
    assert_eq!(serde_json::to_value(machine).unwrap(), manifest["machine"]);
    let state = release_before::bytes("machine-state.bin");
    let (read, rest) = postcard::take_from_bytes::<MachineState>(&state).unwrap();
    assert!(rest.is_empty(), "{} bytes are left over", rest.len());
    assert_eq!(postcard::to_stdvec(&read).unwrap(), state);
}
