//! Tests of the entropy device against a fake driver.

use std::sync::Arc;

use proptest::prelude::{any, prop, proptest};

use super::Rng;
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::testing::{
    CountedInterrupt, Descriptor, DriverQueue, activation, memory, saved_queues,
};

fn device() -> (Rng, DriverQueue, Arc<CountedInterrupt>) {
    let memory = memory();
    let queue = DriverQueue::new(&memory, 0, 64);
    let interrupt = Arc::new(CountedInterrupt::default());
    let mut rng = Rng::new();
    rng.activate(activation(&memory, &interrupt, vec![queue.device_end()]))
        .unwrap();
    (rng, queue, interrupt)
}

#[test]
fn buffers_are_filled_and_the_driver_is_told_once() {
    let (mut rng, mut queue, interrupt) = device();
    queue.give_space(64);
    queue.give_space(64);
    rng.serve_queue(0).unwrap();
    let (first, second) = (queue.take().unwrap(), queue.take().unwrap());
    assert_eq!((first.written, second.written), (64, 64));
    assert_ne!(first.bytes, second.bytes);
    assert_ne!(first.bytes, vec![0; 64]);
    assert_eq!(interrupt.take(), 1);
}

#[test]
fn a_request_gets_a_page_at_most() {
    let (mut rng, mut queue, _) = device();
    queue.give_space(200_000);
    rng.serve_queue(0).unwrap();
    assert_eq!(queue.take().unwrap().written, 4096);
}

#[test]
fn a_request_made_before_the_save_is_served_on_resume_and_signalled() {
    let (rng, mut queue, interrupt) = device();
    queue.give_space(16);
    let queues = saved_queues(rng.queues());
    let mut restored = Rng::new();
    restored
        .activate(activation(queue.memory(), &interrupt, queues))
        .unwrap();
    restored.resume().unwrap();
    assert_eq!(queue.take().unwrap().written, 16);
    assert!(interrupt.take() > 0);
}

#[test]
fn a_device_without_a_driver_has_nothing_to_resume() {
    Rng::new().resume().unwrap();
}

proptest! {
    #[test]
    fn hostile_descriptors_do_no_harm(
        descriptors in prop::collection::vec(any::<(u64, u32, u16, u16)>(), 64),
        heads in prop::collection::vec(any::<u16>(), 0..64),
    ) {
        let (mut rng, mut queue, _) = device();
        for (slot, (address, bytes, flags, next)) in (0..).zip(descriptors) {
            queue.store(slot, Descriptor { address: address >> 36, bytes, flags, next: next % 80 });
        }
        for head in heads {
            queue.publish(head % 80);
        }
        // A broken ring is an error to the transport; all that counts here is that it comes back.
        let _ = rng.serve_queue(0);
    }
}
