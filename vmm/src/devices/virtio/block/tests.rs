//! Tests of the block device against a fake driver, on files.

use std::error::Error;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use proptest::prelude::{any, prop, proptest};
use proptest::test_runner::Config;
use tempfile::TempDir;

use super::{Block, BlockConfig, BlockError, BlockHost, BlockState};
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::testing::{
    CountedInterrupt, Descriptor, DriverQueue, MemoryBefore, activation, assert_no_harm,
    hostile_descriptor, hostile_head, memory, saved_queues,
};

mod life;

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

const DISK_BYTES: u64 = 1 << 20;
const QUEUE_SIZE: u16 = 64;
/// Headers that hostile requests may have.
const HEADERS_OFFERED: usize = 16;

/// Notes in which rounds the disk was held.
#[derive(Debug, Default)]
struct Host {
    held: Mutex<Vec<u64>>,
    changed: Condvar,
}

impl BlockHost for Host {
    fn prepare_thread(&self) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(())
    }

    fn held(&self, round: u64) {
        self.held.lock().unwrap().push(round);
        self.changed.notify_all();
    }
}

impl Host {
    fn wait_for(&self, round: u64) {
        let held = self.held.lock().unwrap();
        let missing = |held: &mut Vec<u64>| !held.contains(&round);
        let limit = Duration::from_secs(10);
        let (held, waited) = self
            .changed
            .wait_timeout_while(held, limit, missing)
            .unwrap();
        assert!(!waited.timed_out(), "not held in round {round}: {held:?}");
    }
}

fn open(path: &Path, read_only: bool) -> Result<Block, BlockError> {
    let path = path.to_owned();
    Block::new(&BlockConfig { path, read_only }, Arc::new(Host::default()))
}

fn restore(path: &Path, read_only: bool, saved: &BlockState) -> Result<Block, BlockError> {
    let path = path.to_owned();
    let host = Arc::new(Host::default());
    Block::restore(&BlockConfig { path, read_only }, saved, None, host)
}

struct Fixture {
    block: Block,
    host: Arc<Host>,
    interrupt: Arc<CountedInterrupt>,
    queue: DriverQueue,
    path: PathBuf,
    _folder: TempDir,
}

impl Fixture {
    fn new(read_only: bool) -> Self {
        let folder = TempDir::new().unwrap();
        let path = disk(folder.path(), DISK_BYTES);
        let host = Arc::new(Host::default());
        let config = BlockConfig {
            path: path.clone(),
            read_only,
        };
        let block = Block::new(&config, host.clone()).unwrap();
        let mut fixture = Self {
            block,
            host,
            interrupt: Arc::default(),
            queue: DriverQueue::new(&memory(), 0, QUEUE_SIZE),
            path,
            _folder: folder,
        };
        fixture.start_driver();
        fixture
    }

    /// A driver sets up its queue and takes the device into service.
    fn start_driver(&mut self) {
        let memory = self.queue.memory().clone();
        self.queue = DriverQueue::new(&memory, 0, QUEUE_SIZE);
        let queues = vec![self.queue.device_end()];
        self.block
            .activate(activation(&memory, &self.interrupt, queues))
            .unwrap();
    }

    /// Ends the machine of this disk and restores another one with its queue; nothing may come out yet.
    fn restored(self) -> Self {
        let queues = saved_queues(self.block.queues());
        let saved = self.block.state();
        let Self {
            block,
            interrupt,
            queue,
            path,
            ..
        } = self;
        // The file is locked as long as it is open.
        drop(block);
        let host = Arc::new(Host::default());
        let config = BlockConfig {
            path: path.clone(),
            read_only: false,
        };
        let mut block = Block::restore(&config, &saved, None, host.clone()).unwrap();
        block
            .activate(activation(queue.memory(), &interrupt, queues))
            .unwrap();
        block.resume().unwrap();
        Self {
            block,
            host,
            interrupt,
            queue,
            path,
            _folder: self._folder,
        }
    }

    fn give(&mut self, kind: u32, sector: u64, data: &[u8], space: u32) {
        let header = header(kind, sector);
        let readable = [header.as_slice(), data];
        let readable = if data.is_empty() {
            &readable[..1]
        } else {
            &readable
        };
        let writable = [space, 1];
        let writable = if space == 0 {
            &writable[1..]
        } else {
            &writable
        };
        self.queue.give(readable, writable).unwrap();
    }

    /// Makes a request with `data` to read and `space` bytes to write to; returns status and data.
    fn ask(&mut self, kind: u32, sector: u64, data: &[u8], space: u32) -> (u8, Vec<u8>) {
        self.give(kind, sector, data, space);
        self.block.serve_now();
        let used = self.queue.pop_used().unwrap();
        (
            used.last.unwrap(),
            used.bytes[..used.bytes.len() - 1].to_vec(),
        )
    }

    fn bytes_at(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        std::fs::File::open(&self.path)
            .unwrap()
            .read_exact_at(&mut bytes, offset)
            .unwrap();
        bytes
    }
}

fn disk(folder: &Path, bytes: u64) -> PathBuf {
    let path = folder.join("disk");
    std::fs::File::create(&path)
        .unwrap()
        .set_len(bytes)
        .unwrap();
    path
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

#[test]
fn what_is_written_is_read_back_and_is_in_the_file() {
    let mut disk = Fixture::new(false);
    let data: Vec<u8> = (0..2048_u32).map(|at| (at % 251) as u8).collect();
    assert_eq!(disk.ask(WRITE, 7, &data, 0).0, OK);
    assert_eq!(disk.ask(FLUSH, 0, &[], 0).0, OK);
    let (status, read) = disk.ask(READ, 7, &[], 2048);
    assert_eq!(status, OK);
    assert!(read == data, "the data read differ from the data written");
    assert!(
        disk.bytes_at(7 * 512, 2048) == data,
        "the file differs from the data written"
    );
}

#[test]
fn a_read_only_disk_says_so_and_refuses_writes() {
    let mut disk = Fixture::new(true);
    assert_ne!(disk.block.features() & (1 << 5), 0);
    assert_eq!(disk.block.features() & (1 << 13 | 1 << 14), 0);
    assert_eq!(disk.ask(WRITE, 0, &[1; 512], 0).0, IO_ERROR);
    assert_eq!(disk.ask(DISCARD, 0, &segment(0, 8, 0), 0).0, IO_ERROR);
    assert_eq!(disk.ask(READ, 0, &[], 512), (OK, vec![0; 512]));
}

#[test]
fn requests_beyond_the_end_are_io_errors() {
    let mut disk = Fixture::new(false);
    let sectors = DISK_BYTES / 512;
    assert_eq!(disk.ask(READ, sectors - 1, &[], 512).0, OK);
    assert_eq!(disk.ask(READ, sectors - 1, &[], 1024).0, IO_ERROR);
    assert_eq!(disk.ask(READ, u64::MAX, &[], 512).0, IO_ERROR);
    assert_eq!(disk.ask(WRITE, sectors, &[1; 512], 0).0, IO_ERROR);
    assert_eq!(
        disk.ask(WRITE_ZEROES, sectors - 1, &segment(sectors - 1, 2, 0), 0)
            .0,
        IO_ERROR
    );
}

#[test]
fn requests_that_are_no_whole_sectors_are_io_errors() {
    let mut disk = Fixture::new(false);
    assert_eq!(disk.ask(READ, 0, &[], 100).0, IO_ERROR);
    assert_eq!(disk.ask(WRITE, 0, &[1; 511], 0).0, IO_ERROR);
}

#[test]
fn unknown_requests_are_unsupported() {
    let mut disk = Fixture::new(false);
    assert_eq!(disk.ask(4711, 0, &[], 0).0, UNSUPPORTED);
    assert_eq!(
        disk.ask(WRITE_ZEROES, 0, &segment(0, 8, 2), 0).0,
        UNSUPPORTED
    );
    assert_eq!(disk.ask(DISCARD, 0, &segment(0, 8, 1), 0).0, UNSUPPORTED);
}

#[test]
fn write_zeroes_and_discard_clear_their_range_only() {
    let mut disk = Fixture::new(false);
    assert_eq!(disk.ask(WRITE, 0, &[7; 32768], 0).0, OK);
    assert_eq!(disk.ask(WRITE_ZEROES, 0, &segment(8, 8, 0), 0).0, OK);
    assert_eq!(disk.ask(WRITE_ZEROES, 0, &segment(24, 8, 1), 0).0, OK);
    assert_eq!(disk.ask(DISCARD, 0, &segment(40, 8, 0), 0).0, OK);
    assert!(disk.bytes_at(0, 4096) == [7; 4096] && disk.bytes_at(8192, 4096) == [7; 4096]);
    assert!(disk.bytes_at(4096, 4096) == [0; 4096] && disk.bytes_at(12288, 4096) == [0; 4096]);
}

#[test]
fn the_serial_number_is_padded_to_20_bytes() {
    let mut disk = Fixture::new(false);
    let (status, id) = disk.ask(GET_ID, 0, &[], 20);
    assert_eq!(status, OK);
    assert_eq!(id.len(), 20);
    assert!(id.starts_with(disk.block.state().id.as_bytes()), "{id:?}");
}

#[test]
fn the_configuration_holds_the_capacity_in_sectors() {
    let disk = Fixture::new(false);
    let mut capacity = [0; 8];
    disk.block.read_config(0, &mut capacity);
    assert_eq!(u64::from_le_bytes(capacity), DISK_BYTES / 512);
    let mut beyond = [0xff; 4];
    disk.block.read_config(u64::MAX - 1, &mut beyond);
    assert_eq!(beyond, [0; 4]);
}

#[test]
fn a_writable_disk_has_one_user() {
    let disk = Fixture::new(false);
    let again = |read_only| open(&disk.path, read_only);
    assert!(matches!(again(false), Err(BlockError::InUse { .. })));
    assert!(matches!(again(true), Err(BlockError::InUse { .. })));
}

#[test]
fn a_read_only_disk_has_many_users() {
    let disk = Fixture::new(true);
    open(&disk.path, true).unwrap();
}

#[test]
fn what_is_no_disk_is_refused() {
    let folder = TempDir::new().unwrap();
    let open = |path: PathBuf| open(&path, true);
    assert!(matches!(
        open(folder.path().into()),
        Err(BlockError::NotADisk { .. })
    ));
    assert!(matches!(
        open(folder.path().join("none")),
        Err(BlockError::Open { .. })
    ));
    assert!(matches!(
        open(disk(folder.path(), 0)),
        Err(BlockError::OddSize { .. })
    ));
    assert!(matches!(
        open(disk(folder.path(), 513)),
        Err(BlockError::OddSize { .. })
    ));
}

fn segment(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut segment = [0; 16];
    segment[..8].copy_from_slice(&sector.to_le_bytes());
    segment[8..12].copy_from_slice(&sectors.to_le_bytes());
    segment[12..].copy_from_slice(&flags.to_le_bytes());
    segment
}

/// Where the headers of hostile requests lie; their chains begin with one or lead anywhere.
const HEADERS: u64 = 32 << 20;

proptest! {
    #![proptest_config(Config { cases: 64, ..Config::default() })]

    #[test]
    fn hostile_chains_do_no_harm(
        descriptors in prop::collection::vec(
            (hostile_descriptor(QUEUE_SIZE, true), prop::option::of(0..HEADERS_OFFERED)), 64),
        headers in prop::collection::vec((0_u32..16, any::<u64>()), HEADERS_OFFERED),
        heads in prop::collection::vec(hostile_head(QUEUE_SIZE), 0..64),
    ) {
        let mut disk = Fixture::new(false);
        for (at, (kind, sector)) in (0_u64..).zip(headers) {
            let header = header(kind, sector >> 52);
            let address = vm_memory::GuestAddress(HEADERS + 64 * at);
            vm_memory::Bytes::write_slice(disk.queue.memory(), &header, address).unwrap();
        }
        for (slot, (descriptor, header)) in (0..).zip(descriptors) {
            let descriptor = match header {
                Some(at) => Descriptor { address: HEADERS + 64 * at as u64, bytes: 16, ..descriptor },
                None => descriptor,
            };
            disk.queue.store(slot, descriptor);
        }
        for head in heads {
            disk.queue.publish(head);
        }
        let before = MemoryBefore::of(disk.queue.memory());

        disk.block.serve_now();
        let served = disk.block.serve_backend();

        assert_no_harm(before, &[&disk.queue]);
        assert_eq!(std::fs::metadata(&disk.path).unwrap().len(), DISK_BYTES);
        if served.is_err() {
            // The transport takes a device out of service whose ring is broken; its driver starts anew.
            disk.block.reset();
            disk.start_driver();
        }
        while disk.queue.pop_used().is_some() {}
        assert_eq!(disk.ask(WRITE, 3, &[7; 512], 0).0, OK);
        assert_eq!(disk.ask(READ, 3, &[], 512), (OK, vec![7; 512]));
    }
}
