//! The entropy device behind its queue.

use vmm::devices::virtio::rng::Rng;
use vmm::devices::virtio::saved_device::{DeviceState, SavedDevice};

use crate::guest::step::{Address, AnyDescriptor, Meanwhile, Step};
use crate::guest::subject::{Host, Subject};
use crate::steps;

#[derive(Debug)]
struct RngHost;

impl Host for RngHost {
    fn boot(&mut self) -> Box<dyn SavedDevice> {
        Box::new(Rng::new())
    }

    fn restore(&mut self, state: &DeviceState) -> Option<Box<dyn SavedDevice>> {
        match state {
            DeviceState::Rng => Some(Box::new(Rng::new())),
            DeviceState::Vsock(_) | DeviceState::Block(_) => None,
        }
    }
}

/// See [`crate::TARGETS`].
pub(crate) fn target(input: &[u8]) {
    let Some((first, rest)) = input.split_first() else {
        return;
    };
    let mut subject = Subject::new(RngHost, first % 4 != 0);
    for step in steps::decode::<Step>(rest) {
        subject.take(&step);
    }
    subject.finish();
}

/// See [`crate::TARGETS`].
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let establish = || Step::Establish {
        sizes: [6; 3],
        features: 0xff,
    };
    let offer = |bytes| Step::Offer {
        queue: 0,
        readable: Vec::new(),
        writable: vec![bytes],
    };
    let kick = || Step::Kick { queue: 0 };
    let driver = vec![
        establish(),
        offer(64),
        offer(4096),
        offer(9000),
        kick(),
        Step::Restore,
        offer(1),
        kick(),
    ];
    let descriptor = AnyDescriptor {
        address: Address::Buffer(100),
        bytes: 200,
        flags: 2,
        next: 0,
    };
    let racing = vec![
        establish(),
        offer(64),
        offer(128),
        Step::KickWhile {
            queue: 0,
            changes: vec![
                Meanwhile::Store {
                    queue: 0,
                    slot: 0,
                    descriptor,
                },
                Meanwhile::Refill { queue: 0, head: 0 },
                Meanwhile::Write {
                    address: Address::Buffer(10),
                    bytes: vec![7; 40],
                },
            ],
        },
        Step::Restore,
        kick(),
    ];
    let hostile = vec![
        establish(),
        Step::Store {
            queue: 0,
            slot: 0,
            descriptor: AnyDescriptor {
                flags: 3,
                ..descriptor
            },
        },
        Step::Publish { queue: 0, head: 0 },
        kick(),
        Step::Jump { queue: 0, by: 500 },
        kick(),
        Step::Read {
            offset: 0x70,
            bytes: 4,
        },
    ];
    [("driver", driver), ("racing", racing), ("hostile", hostile)]
        .map(|(name, steps)| (name, [vec![1], steps::encode(&steps)].concat()))
        .into()
}
