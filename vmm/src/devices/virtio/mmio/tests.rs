//! The transport in front of a device that only records what reaches it.

use std::sync::{Arc, Mutex};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::Queue;
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::*;
use crate::devices::virtio::device::{Activation, DeviceError, SavedQueue, VirtioDevice};
use crate::devices::virtio::saved_device::{DeviceState, SavedDevice};

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const FEATURES_OK: u32 = 8;
const DRIVER_OK: u32 = 4;
const NEEDS_RESET: u32 = 64;
const EXTRA_FEATURE: u64 = 1 << 5;

#[derive(Debug, Default)]
struct Seen {
    activations: usize,
    resets: usize,
    served: Vec<u16>,
    backend_served: usize,
    features: u64,
    broken: bool,
}

#[derive(Debug)]
struct Recorder {
    seen: Arc<Mutex<Seen>>,
    queues: Vec<Queue>,
}

impl VirtioDevice for Recorder {
    fn name(&self) -> &'static str {
        "recorder"
    }
    fn device_type(&self) -> u32 {
        77
    }
    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | EXTRA_FEATURE
    }
    fn queue_max_sizes(&self) -> &'static [u16] {
        &[128, 64]
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(u8::try_from(offset % 251).unwrap());
    }
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let mut seen = self.seen.lock().unwrap();
        seen.activations += 1;
        seen.features = activation.features;
        self.queues = activation.queues;
        Ok(())
    }
    fn queues(&self) -> Vec<SavedQueue> {
        self.queues.iter().map(SavedQueue::from).collect()
    }
    fn serve_queue(&mut self, index: u16) -> Result<(), DeviceError> {
        let mut seen = self.seen.lock().unwrap();
        seen.served.push(index);
        if seen.broken {
            Err(DeviceError::QueueNotReady { index })
        } else {
            Ok(())
        }
    }
    fn serve_backend(&mut self) -> Result<(), DeviceError> {
        self.seen.lock().unwrap().backend_served += 1;
        Ok(())
    }
    fn reset(&mut self) {
        self.seen.lock().unwrap().resets += 1;
        self.queues.clear();
    }
}

impl SavedDevice for Recorder {
    fn save(&self) -> DeviceState {
        DeviceState::Rng
    }
}

fn recorder() -> (Box<Recorder>, Arc<Mutex<Seen>>) {
    let seen = Arc::new(Mutex::new(Seen::default()));
    (
        Box::new(Recorder {
            seen: Arc::clone(&seen),
            queues: Vec::new(),
        }),
        seen,
    )
}

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap()
}

fn transport() -> (MmioTransport, Arc<Mutex<Seen>>) {
    let (device, seen) = recorder();
    (MmioTransport::new(device, memory()).unwrap(), seen)
}

fn read(transport: &MmioTransport, offset: u64) -> u32 {
    let mut data = [0; 4];
    transport.read(offset, &mut data);
    u32::from_le_bytes(data)
}

fn write(transport: &MmioTransport, offset: u64, value: u32) {
    transport.write(offset, &value.to_le_bytes());
}

/// Negotiates and sets up queue 0, as a guest driver does.
fn drive(transport: &MmioTransport, features: u64) {
    let mut status = ACKNOWLEDGE;
    write(transport, 0x70, status);
    status |= DRIVER;
    write(transport, 0x70, status);
    for (page, word) in [(0, features & 0xffff_ffff), (1, features >> 32)] {
        write(transport, 0x24, page);
        write(transport, 0x20, u32::try_from(word).unwrap());
    }
    status |= FEATURES_OK;
    write(transport, 0x70, status);
    write(transport, 0x30, 0);
    for (offset, value) in [
        (0x38, 32),
        (0x80, 0x1000),
        (0x90, 0x2000),
        (0xa0, 0x3000),
        (0x44, 1),
    ] {
        write(transport, offset, value);
    }
    write(transport, 0x70, status | DRIVER_OK);
}

#[test]
fn identification_is_that_of_version_2() {
    let (transport, _) = transport();
    assert_eq!(
        [0x0, 0x4, 0x8].map(|offset| read(&transport, offset)),
        [0x7472_6976, 2, 77]
    );
    write(&transport, 0x14, 1);
    assert_eq!(read(&transport, 0x10), 1, "VIRTIO_F_VERSION_1 is bit 32");
    write(&transport, 0x14, 2);
    assert_eq!(read(&transport, 0x10), 0, "there are no features beyond 64");
}

#[test]
fn queues_have_their_sizes_and_unknown_ones_do_not_exist() {
    let (transport, _) = transport();
    let sizes = [0, 1, 2, u32::MAX].map(|queue| {
        write(&transport, 0x30, queue);
        read(&transport, 0x34)
    });
    assert_eq!(sizes, [128, 64, 0, 0]);
}

#[test]
fn a_driver_that_follows_the_steps_activates_the_device_once() {
    let (transport, seen) = transport();
    drive(&transport, 1 << 32 | 1 << 29);
    write(
        &transport,
        0x70,
        ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
    );
    let seen = seen.lock().unwrap();
    assert_eq!((seen.activations, seen.features), (1, 1 << 32 | 1 << 29));
    assert_eq!(read(&transport, 0x44), 1, "queue 0 is ready");
}

#[test]
fn features_that_were_not_offered_are_not_agreed_to() {
    let (transport, seen) = transport();
    drive(&transport, 1 << 32 | 1 << 7);
    assert_eq!(read(&transport, 0x70), ACKNOWLEDGE | DRIVER);
    assert_eq!(seen.lock().unwrap().activations, 0);
}

#[test]
fn a_legacy_driver_is_not_served() {
    let (transport, seen) = transport();
    drive(&transport, EXTRA_FEATURE);
    assert_eq!(read(&transport, 0x70), ACKNOWLEDGE | DRIVER);
    assert_eq!(seen.lock().unwrap().activations, 0);
}

#[test]
fn steps_out_of_order_are_ignored() {
    let (transport, seen) = transport();
    write(&transport, 0x70, DRIVER_OK);
    write(&transport, 0x70, ACKNOWLEDGE | DRIVER_OK);
    assert_eq!(read(&transport, 0x70), 0);
    assert_eq!(seen.lock().unwrap().activations, 0);
}

#[test]
fn a_queue_is_not_moved_under_a_running_device() {
    let (transport, _) = transport();
    drive(&transport, 1 << 32);
    let before = transport.save().queues;
    write(&transport, 0x80, 0x7000);
    write(&transport, 0x44, 0);
    assert_eq!(transport.save().queues, before);
}

#[test]
fn writing_zero_resets_everything() {
    let (transport, seen) = transport();
    drive(&transport, 1 << 32);
    transport.interrupt.signal_used();
    write(&transport, 0x70, 0);
    assert_eq!(seen.lock().unwrap().resets, 1);
    assert_eq!(
        [0x44, 0x60, 0x70].map(|offset| read(&transport, offset)),
        [0; 3]
    );
    drive(&transport, 1 << 32);
    assert_eq!(seen.lock().unwrap().activations, 2);
}

#[test]
fn interrupts_set_a_bit_and_pulse_the_line_until_acknowledged() {
    let (transport, _) = transport();
    transport.interrupt.signal_used();
    transport.interrupt.signal_config();
    assert_eq!(read(&transport, 0x60), 3);
    assert_eq!(transport.interrupt_line().read().unwrap(), 2);
    assert_eq!(
        read(&transport, 0xfc),
        1,
        "the configuration has another generation"
    );
    write(&transport, 0x64, 1);
    assert_eq!(read(&transport, 0x60), 2);
}

#[test]
fn a_doorbell_serves_its_queue_once_per_ring() {
    let (transport, seen) = transport();
    drive(&transport, 1 << 32);
    write(&transport, 0x50, 1);
    write(&transport, 0x50, 7);
    for index in 0..2 {
        transport.serve_queue(index);
        transport.serve_queue(index);
    }
    assert_eq!(seen.lock().unwrap().served, [1]);
}

#[test]
fn a_device_that_its_guest_broke_asks_for_a_reset_and_is_not_served() {
    let (transport, seen) = transport();
    drive(&transport, 1 << 32);
    seen.lock().unwrap().broken = true;
    for _ in 0..2 {
        write(&transport, 0x50, 0);
        transport.serve_queue(0);
    }
    assert_eq!(seen.lock().unwrap().served, [0]);
    assert_eq!(read(&transport, 0x70) & NEEDS_RESET, NEEDS_RESET);
    assert_eq!(
        read(&transport, 0x60),
        2,
        "the guest gets a configuration interrupt"
    );
    // Its backend is still served, or pending work there would keep the event loop busy.
    transport.serve_backend();
    assert_eq!(seen.lock().unwrap().backend_served, 1);
    seen.lock().unwrap().broken = false;
    write(&transport, 0x70, 0);
    drive(&transport, 1 << 32);
    write(&transport, 0x50, 0);
    transport.serve_queue(0);
    assert_eq!(seen.lock().unwrap().served, [0, 0]);
}

#[test]
fn a_machine_whose_guest_broke_a_device_is_restored_with_that_device_broken() {
    let (before, seen) = transport();
    drive(&before, 1 << 32);
    seen.lock().unwrap().broken = true;
    write(&before, 0x50, 0);
    before.serve_queue(0);
    let (device, seen) = recorder();
    let after = MmioTransport::restore(device, memory(), &before.save()).unwrap();
    after.resume();
    assert_eq!(seen.lock().unwrap().activations, 0);
    assert_eq!(read(&after, 0x70) & NEEDS_RESET, NEEDS_RESET);
    write(&after, 0x70, 0);
    drive(&after, 1 << 32);
    assert_eq!(seen.lock().unwrap().activations, 1);
}

#[test]
fn a_restored_transport_continues_and_repeats_notifications_that_may_be_lost() {
    let (before, _) = transport();
    drive(&before, 1 << 32 | 1 << 29);
    before.interrupt.signal_used();
    let saved = before.save();
    let (device, seen) = recorder();
    let after = MmioTransport::restore(device, memory(), &saved).unwrap();
    after.resume();
    assert_eq!(seen.lock().unwrap().activations, 1);
    assert_eq!(after.save().queues, saved.queues);
    assert_eq!([0x60, 0x70].map(|offset| read(&after, offset)), [1, 15]);
    assert_eq!(after.interrupt_line().read().unwrap(), 1);
    after.serve_queue(0);
    assert_eq!(
        seen.lock().unwrap().served,
        [0],
        "a ring before the save is served"
    );
}

#[test]
fn states_that_do_not_fit_the_device_are_refused() {
    let (before, _) = transport();
    drive(&before, 1 << 32);
    let good = before.save();
    let mut features = good.clone();
    features.driver_features |= 1 << 9;
    let mut queues = good.clone();
    queues.queues.pop();
    for saved in [features, queues] {
        let (device, _) = recorder();
        assert!(MmioTransport::restore(device, memory(), &saved).is_err());
    }
}

#[test]
fn odd_accesses_do_no_harm() {
    let (transport, _) = transport();
    let mut eight = [1; 8];
    transport.read(0, &mut eight);
    transport.read(0xffe, &mut eight[..2]);
    transport.write(0x70, &[1]);
    transport.write(0x70, &[1; 8]);
    write(&transport, 0xff0 - 0x100, 1);
    let mut four = [1; 4];
    transport.read(0x71, &mut four);
    assert_eq!((four, read(&transport, 0x70)), ([0; 4], 0));
}

#[test]
fn a_read_of_no_register_returns_nothing_of_earlier_accesses() {
    let (transport, _) = transport();
    for (offset, bytes) in [(0x70, 1), (0x70, 2), (0x70, 8), (0x71, 4), (0xf8, 3)] {
        let mut data = [0x55; 8];
        transport.read(offset, &mut data[..bytes]);
        assert_eq!(data[..bytes], [0; 8][..bytes], "{bytes} at {offset:#x}");
    }
}

#[test]
fn a_guest_that_asks_for_features_that_are_not_offered_is_restored() {
    let (before, _) = transport();
    for (offset, value) in [
        (0x70, 1),
        (0x70, 3),
        (0x24, 1),
        (0x20, u32::MAX),
        (0x70, 11),
    ] {
        write(&before, offset, value);
    }
    assert_eq!(read(&before, 0x70), 3, "they are not agreed on");
    let (device, seen) = recorder();
    let after = MmioTransport::restore(device, memory(), &before.save()).unwrap();
    after.resume();
    assert_eq!(read(&after, 0x70), 3);
    drive(&after, 1 << 32);
    assert_eq!(seen.lock().unwrap().features, 1 << 32);
}
