//! The private pages of a resumed machine, as a source reports them.

use std::io;

use proptest::prelude::{any, prop};
use proptest::test_runner::{Config, TestRunner};
use tempfile::TempDir;
use vm_memory::{Bytes, GuestAddress};
use vmm::memory::MachineMemory;
use vmm::memory::pages::PageSet;
use vmm::page::{PAGE_BYTES, PAGE_LEN};

use crate::fixture::{MEMORY_MIB, PAGES, Subject, open_image, scratch};

/// How the private pages are found.
pub(crate) type Source = fn(&MachineMemory) -> io::Result<PageSet>;

/// An image of a machine of which every 16th page is data; the others are holes.
fn image() -> TempDir {
    let directory = scratch();
    let mut subject = Subject::boot(directory.path());
    for page in (0..PAGES).step_by(16) {
        subject.fill(page, 1);
    }
    subject.save().unwrap();
    directory
}

fn resumed(image: &TempDir) -> MachineMemory {
    open_image(image.path(), None).unwrap().map().unwrap()
}

fn address(page: u64) -> GuestAddress {
    GuestAddress(page * PAGE_BYTES)
}

fn assert_private(source: Source, memory: &MachineMemory, expected: &[u64]) {
    let mut set = PageSet::new(u64::from(MEMORY_MIB) << 8);
    for page in expected {
        set.insert(*page..page + 1);
    }
    let found = source(memory).unwrap();
    assert!(found == set, "{:?}", found.runs().collect::<Vec<_>>());
}

pub(crate) fn an_untouched_mapping_has_no_private_pages(source: Source) {
    assert_private(source, &resumed(&image()), &[]);
}

pub(crate) fn pages_that_were_only_read_are_not_private(source: Source) {
    let memory = resumed(&image());
    let mut bytes = vec![0; PAGES * PAGE_LEN];

    memory.guest.read_slice(&mut bytes, address(0)).unwrap();

    assert_private(source, &memory, &[]);
}

pub(crate) fn written_pages_are_private_whether_they_were_data_or_holes(source: Source) {
    let memory = resumed(&image());

    memory.guest.write_obj(7u8, address(0)).unwrap();
    memory.guest.write_obj(7u8, address(1)).unwrap();
    memory.guest.write_obj(7u8, address(16_383)).unwrap();

    assert_private(source, &memory, &[0, 1, 16_383]);
}

pub(crate) fn a_page_written_with_what_it_held_counts_as_changed(source: Source) {
    let memory = resumed(&image());
    let mut bytes = [0; PAGE_LEN];
    memory.guest.read_slice(&mut bytes, address(16)).unwrap();

    memory.guest.write_slice(&bytes, address(16)).unwrap();

    assert_private(source, &memory, &[16]);
}

pub(crate) fn more_runs_than_one_answer_holds_are_all_found(source: Source) {
    let memory = resumed(&image());
    let pages: Vec<u64> = (0..16_384).step_by(2).collect();

    for page in &pages {
        memory.guest.write_obj(7u8, address(*page)).unwrap();
    }

    assert_private(source, &memory, &pages);
}

pub(crate) fn it_finds_what_was_written_and_nothing_that_was_read(source: Source) {
    let image = image();
    let page = || prop::collection::vec(0u64..16_384, 0..200);
    let config = Config {
        cases: 32,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new(config)
        .run(&(page(), page(), any::<u8>()), |(reads, writes, byte)| {
            let memory = resumed(&image);
            for page in &reads {
                memory.guest.read_obj::<u8>(address(*page)).unwrap();
            }
            for page in &writes {
                memory.guest.write_obj(byte, address(*page)).unwrap();
            }
            assert_private(source, &memory, &writes);
            Ok(())
        })
        .unwrap();
}
