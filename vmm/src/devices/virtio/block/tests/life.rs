//! A disk over suspends: what it serves while it is held, after a restore and after a reset, and when it
//! is refused.

use std::sync::Arc;

use tempfile::TempDir;

use super::{
    DISCARD, DISK_BYTES, Fixture, Host, OK, QUEUE_SIZE, READ, WRITE, WRITE_ZEROES, disk, restore,
    segment,
};
use crate::devices::virtio::block::{
    Block, BlockConfig, BlockError, Difference, DiskIdentity, mark,
};
use crate::devices::virtio::device::{DeviceError, VirtioDevice};

#[test]
fn a_restored_disk_may_have_another_path_but_no_other_size_or_mode() {
    let saved = Fixture::new(false).block.state();
    let folder = TempDir::new().unwrap();
    let path = disk(folder.path(), DISK_BYTES);
    let restore = |read_only| restore(&path, read_only, &saved);
    assert_eq!(restore(false).unwrap().state().id, saved.id);
    assert!(matches!(restore(true), Err(BlockError::ModeChanged { .. })));
    disk(folder.path(), DISK_BYTES + 512);
    assert!(matches!(
        restore(false),
        Err(BlockError::SizeChanged { .. })
    ));
}

#[test]
fn a_disk_that_changed_while_its_machine_was_suspended_is_refused_by_name() {
    let disk = Fixture::new(false);
    let saved = disk.block.state();
    let file = disk.block.file().unwrap();
    mark(&file).unwrap();
    let identity = DiskIdentity::of(&file, DISK_BYTES).unwrap();
    let Fixture {
        block,
        path,
        _folder,
        ..
    } = disk;
    drop((block, file));
    let host = || Arc::new(Host::default());
    let config = BlockConfig {
        path: path.clone(),
        read_only: false,
    };
    drop(Block::restore(&config, &saved, Some(&identity), host()).unwrap());
    // Another machine has it, and writes nothing.
    drop(Block::new(&config, host()).unwrap());
    let error = Block::restore(&config, &saved, Some(&identity), host()).unwrap_err();
    let BlockError::Changed { difference, .. } = &error else {
        panic!("{error}");
    };
    // Where there are no extended attributes nothing has changed but the time of opening.
    assert_eq!(*difference, Difference::Mark);
    assert!(error.to_string().contains(path.to_str().unwrap()));
}

#[test]
fn a_request_made_before_the_save_is_served_on_resume() {
    let mut disk = Fixture::new(false);
    disk.block.hold(1);
    disk.host.wait_for(1);
    disk.give(READ, 0, &[], 512);
    disk.block.serve_now();
    assert!(
        disk.queue.pop_used().is_none(),
        "a held disk takes no request"
    );
    let mut disk = disk.restored();
    disk.block.serve_now();
    assert_eq!(disk.queue.pop_used().unwrap().last, Some(OK));
    assert!(disk.interrupt.take_count() > 0);
}

#[test]
fn a_released_disk_serves_what_came_meanwhile() {
    let mut disk = Fixture::new(false);
    for round in [1, 2] {
        disk.block.hold(round);
        disk.host.wait_for(round);
    }
    disk.give(READ, 0, &[], 512);
    disk.block.release();
    disk.block.serve_now();
    assert_eq!(disk.queue.pop_used().unwrap().last, Some(OK));
    assert_eq!(*disk.host.held.lock().unwrap(), [1, 2]);
}

#[test]
fn what_changes_a_restored_disk_waits_until_it_may_pass() {
    for (kind, data) in [
        (WRITE, vec![9; 512]),
        (DISCARD, segment(0, 1, 0).to_vec()),
        (WRITE_ZEROES, segment(0, 1, 0).to_vec()),
    ] {
        let mut disk = Fixture::new(false);
        assert_eq!(disk.ask(WRITE, 0, &[7; 512], 0).0, OK);
        let mut disk = disk.restored();
        assert_eq!(
            disk.ask(READ, 0, &[], 512),
            (OK, vec![7; 512]),
            "reads pass"
        );
        disk.give(kind, 0, &data, 0);
        disk.give(READ, 1, &[], 512);
        disk.block.serve_now();
        assert!(disk.queue.pop_used().is_none(), "{kind} waits");
        assert_eq!(disk.bytes_at(0, 512), [7; 512]);
        disk.block.hold(1);
        // A write that waits is not in service: it is in the queue, where the next machine finds it.
        disk.block.release();
        disk.block.let_writes_pass();
        disk.block.serve_now();
        assert_eq!(disk.queue.pop_used().unwrap().last, Some(OK));
        assert_eq!(disk.queue.pop_used().unwrap().last, Some(OK));
        assert_ne!(disk.bytes_at(0, 512), [7; 512], "{kind} is done");
    }
}

#[test]
fn a_disk_that_is_reset_serves_nothing_of_its_old_queue() {
    let mut disk = Fixture::new(false);
    disk.block.hold(1);
    disk.give(READ, 0, &[], 512);
    disk.block.reset();
    disk.block.release();
    assert!(disk.block.queues().is_empty());
    disk.block.serve_now();
    assert!(disk.queue.pop_used().is_none());
    disk.start_driver();
    assert_eq!(disk.ask(READ, 0, &[], 512).0, OK);
}

#[test]
fn a_broken_queue_is_reported_to_the_loop() {
    let mut disk = Fixture::new(false);
    assert!(disk.block.serve_backend().is_ok());
    // More requests than the queue can hold.
    disk.queue.set_avail_index(QUEUE_SIZE + 1);
    disk.block.serve_now();
    assert!(matches!(
        disk.block.serve_backend(),
        Err(DeviceError::Queue { .. })
    ));
    assert!(disk.block.serve_backend().is_ok(), "once");
}
