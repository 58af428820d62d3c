//! Tests of the entropy device against a fake driver.

use std::sync::Arc;

use proptest::prelude::{Just, Strategy, any, prop, proptest};
use proptest::test_runner::Config;

use super::Rng;
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::testing::{
    CountedInterrupt, DriverQueue, MemoryBefore, activation, assert_no_harm, hostile_descriptor,
    hostile_head, memory, saved_queues,
};

const QUEUE_SIZE: u16 = 64;

fn device() -> (Rng, DriverQueue, Arc<CountedInterrupt>) {
    let memory = memory();
    let queue = DriverQueue::new(&memory, 0, QUEUE_SIZE);
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
    let (first, second) = (queue.pop_used().unwrap(), queue.pop_used().unwrap());
    assert_eq!((first.written, second.written), (64, 64));
    assert_ne!(first.bytes, second.bytes);
    assert_ne!(first.bytes, vec![0; 64]);
    assert_eq!(interrupt.take_count(), 1);
}

#[test]
fn a_request_gets_a_page_at_most() {
    let (mut rng, mut queue, _) = device();
    queue.give_space(200_000);
    rng.serve_queue(0).unwrap();
    assert_eq!(queue.pop_used().unwrap().written, 4096);
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
    assert_eq!(queue.pop_used().unwrap().written, 16);
    assert!(interrupt.take_count() > 0);
}

#[test]
fn a_device_without_a_driver_has_nothing_to_resume() {
    Rng::new().resume().unwrap();
}

proptest! {
    #![proptest_config(Config { cases: 64, ..Config::default() })]

    #[test]
    fn hostile_descriptors_do_no_harm(
        (confined, descriptors) in any::<bool>().prop_flat_map(|confined| {
            (Just(confined), prop::collection::vec(hostile_descriptor(QUEUE_SIZE, confined), 64))
        }),
        heads in prop::collection::vec(hostile_head(QUEUE_SIZE), 0..64),
    ) {
        let (mut rng, mut queue, interrupt) = device();
        for (slot, descriptor) in (0..).zip(descriptors) {
            queue.store(slot, descriptor);
        }
        for head in heads {
            queue.publish(head);
        }
        let before = confined.then(|| MemoryBefore::of(queue.memory()));

        let served = rng.serve_queue(0);

        if let Some(before) = before {
            assert_no_harm(before, &[&queue]);
        }
        if served.is_err() || !confined {
            // The transport takes a device out of service whose ring is broken; its driver starts anew.
            rng.reset();
            let memory = queue.memory().clone();
            queue = DriverQueue::new(&memory, 0, QUEUE_SIZE);
            rng.activate(activation(&memory, &interrupt, vec![queue.device_end()])).unwrap();
        }
        while queue.pop_used().is_some() {}
        queue.give_space(64);
        rng.serve_queue(0).unwrap();
        assert_eq!(queue.pop_used().unwrap().written, 64);
    }
}
