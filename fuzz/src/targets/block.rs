//! A disk behind its queue, whose requests a thread of its own serves.

use std::error::Error;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmm::devices::virtio::block::{Block, BlockConfig, BlockHost};
use vmm::devices::virtio::saved_device::{DeviceState, SavedDevice};

use crate::guest::step::{Address, AnyDescriptor, Meanwhile, Step};
use crate::guest::subject::{Host, Subject};
use crate::{scratch, steps};

const DISK_BYTES: u64 = 256 << 10;
const SECTOR_BYTES: u64 = 512;
/// How long the thread may take to come to rest.
const LIMIT: Duration = Duration::from_secs(10);
/// How long a step waits for requests that may never be served.
const SETTLE: Duration = Duration::from_micros(300);

/// A step of a guest with a disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
enum DiskStep {
    /// What any guest does.
    Any(Step),
    /// Offers a request: kind, first sector, data to write, room to read into.
    Request {
        kind: u8,
        sector: u32,
        data: Vec<u8>,
        room: u16,
    },
}

#[derive(Debug, Default)]
struct Machine {
    held: Mutex<bool>,
    changed: Condvar,
}

impl BlockHost for Machine {
    fn prepare_thread(&self) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(())
    }

    fn held(&self, _round: u64) {
        *self.held.lock().expect("nobody panics with it") = true;
        self.changed.notify_all();
    }
}

#[derive(Debug)]
struct DiskHost {
    path: PathBuf,
    read_only: bool,
    machine: Arc<Machine>,
}

impl DiskHost {
    fn new(read_only: bool) -> Self {
        let path = scratch::path("disk");
        let file = File::create(&path).expect("a file for the disk");
        file.set_len(DISK_BYTES).expect("a file for the disk");
        file.write_all_at(b"the first sector", 0)
            .expect("a file for the disk");
        Self {
            path,
            read_only,
            machine: Arc::default(),
        }
    }

    fn config(&self) -> BlockConfig {
        BlockConfig {
            path: self.path.clone(),
            read_only: self.read_only,
        }
    }
}

impl Host for DiskHost {
    fn boot(&mut self) -> Box<dyn SavedDevice> {
        Box::new(Block::new(&self.config(), self.machine.clone()).expect("the disk is usable"))
    }

    fn restore(&mut self, state: &DeviceState) -> Option<Box<dyn SavedDevice>> {
        let DeviceState::Block(state) = state else {
            return None;
        };
        let block = Block::restore(&self.config(), state, None, self.machine.clone());
        block
            .ok()
            .map(|block| Box::new(block) as Box<dyn SavedDevice>)
    }

    fn settle(&mut self, is_idle: &dyn Fn() -> bool) {
        let end = Instant::now() + SETTLE;
        while !is_idle() && Instant::now() < end {
            std::thread::yield_now();
        }
    }

    fn wait_for_hold(&mut self) {
        let held = self.machine.held.lock().expect("nobody panics with it");
        let (mut held, waited) = self
            .machine
            .changed
            .wait_timeout_while(held, LIMIT, |held| !*held)
            .expect("nobody panics with it");
        assert!(
            !waited.timed_out(),
            "the disk is not held within {} s",
            LIMIT.as_secs()
        );
        *held = false;
    }
}

/// See [`crate::TARGETS`].
pub(crate) fn target(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else {
        return;
    };
    let mut subject = Subject::new(DiskHost::new(first % 8 == 7), first % 4 != 0);
    for step in steps::decode::<DiskStep>(rest) {
        match step {
            DiskStep::Any(step) => subject.take(&step),
            DiskStep::Request {
                kind,
                sector,
                data,
                room,
            } => {
                let mut header = [0; 16];
                header[0] = kind;
                header[8..12].copy_from_slice(&sector.to_le_bytes());
                subject.offer(0, &[&header, &data], &[room.into(), 1]);
            }
        }
    }
    let host = subject.finish();
    let size = std::fs::metadata(&host.path)
        .expect("the disk is there")
        .len();
    assert_eq!(size, DISK_BYTES, "a disk keeps its size");
    if host.read_only {
        let mut first = [0; 16];
        let file = File::open(&host.path).expect("the disk is there");
        file.read_exact_at(&mut first, 0)
            .expect("the disk is there");
        assert_eq!(
            &first, b"the first sector",
            "a guest does not change a disk that it may only read"
        );
    }
}

/// See [`crate::TARGETS`].
#[rustfmt::skip]
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    use DiskStep::{Any, Request};
    let last = u32::try_from(DISK_BYTES / SECTOR_BYTES).expect("a small disk") - 1;
    let establish = || Any(Step::Establish { sizes: [8; 3], features: 0xff });
    let kick = || Any(Step::Kick { queue: 0 });
    let request = |kind, room| Request { kind, sector: 0, data: Vec::new(), room };
    let read = |sector| Request { kind: 0, sector, data: Vec::new(), room: 1024 };
    let write = |sector| Request { kind: 1, sector, data: vec![9; 512], room: 0 };
    let zero = |kind, sector: u8, sectors: u8, flags: u8| {
        let data = vec![sector, 0, 0, 0, 0, 0, 0, 0, sectors, 0, 0, 0, flags, 0, 0, 0];
        Request { kind, sector: 0, data, room: 0 }
    };
    let driver = vec![
        establish(), write(3), read(2), kick(),
        zero(11, 0, 8, 0), zero(13, 8, 8, 1), zero(13, 16, 8, 0), request(4, 0), request(8, 20), request(99, 20), kick(),
        Any(Step::Restore), write(last), read(last + 1), kick(), Any(Step::LetWritesPass),
    ];
    let descriptor = AnyDescriptor { address: Address::Buffer(0), bytes: 4096, flags: 3, next: 3 };
    let changes = vec![
        Meanwhile::Write { address: Address::Buffer(0), bytes: vec![1] },
        Meanwhile::Store { queue: 0, slot: 1, descriptor },
        Meanwhile::Refill { queue: 0, head: 4 },
        Meanwhile::Refill { queue: 0, head: 0 },
    ];
    let racing = vec![
        establish(), read(0), write(1), read(7), Any(Step::KickWhile { queue: 0, changes }),
        Any(Step::Hold), write(2), kick(), Any(Step::Release), Any(Step::Reset),
    ];
    let ranged = vec![
        establish(), read(u32::MAX), write(u32::MAX), read(last + 1), write(last + 1), zero(11, 255, 255, 0), zero(13, 0, 0, 3), kick(),
    ];
    [("driver", 1, driver), ("racing", 1, racing), ("ranged", 2, ranged.clone()), ("read_only", 7, ranged)]
        .map(|(name, first, steps)| (name, [vec![first], steps::encode(&steps)].concat()))
        .into()
}
