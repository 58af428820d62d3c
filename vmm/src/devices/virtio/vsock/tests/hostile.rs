//! Hostile guests and clients: nothing panics, nothing grows without bound, memory that was not
//! offered stays as it is, and the device remains usable.

use std::io::Write;

use proptest::prelude::{Just, Strategy, any, prop, prop_oneof, proptest};
use proptest::test_runner::Config;
use vm_memory::{Bytes, GuestAddress};

use super::bench::{Bench, EVENT_QUEUE_SIZE, Options, PACKET_QUEUE_SIZE};
use crate::devices::virtio::device::{DeviceError, VirtioDevice};
use crate::devices::virtio::testing::{
    Descriptor, MemoryBefore, assert_no_harm, hostile_descriptor, hostile_head,
};
use crate::devices::virtio::vsock::packet::{HEADER_BYTES, Header, Op};
use crate::devices::virtio::vsock::queues::{EVENT, RX, TX};
use crate::devices::virtio::vsock::state::Pair;

/// Headers that are mostly about one of a few pairs, with any operation and any numbers.
fn header() -> impl Strategy<Value = Header> {
    let pair = prop_oneof![
        Just(Pair {
            local: 1 << 30,
            peer: 1024
        }),
        Just(Pair {
            local: 80,
            peer: 5000
        }),
        any::<(u32, u32)>().prop_map(|(local, peer)| Pair { local, peer }),
    ];
    let numbers = (
        0_u16..10,
        0_u16..3,
        0_u32..5,
        any::<u32>(),
        any::<u32>(),
        any::<u32>(),
    );
    let addresses = prop_oneof![9 => Just((3_u64, 2_u64)), 1 => any::<(u64, u64)>()];
    (pair, numbers, addresses).prop_map(|(pair, numbers, (source_cid, destination_cid))| {
        let (op, socket_type, flags, payload_bytes, buffer_bytes, forwarded) = numbers;
        Header {
            source_cid,
            destination_cid,
            source_port: pair.peer,
            destination_port: pair.local,
            payload_bytes: payload_bytes % 200,
            socket_type,
            op: op.into(),
            flags,
            buffer_bytes,
            forwarded,
        }
    })
}

/// How many packets lie in memory, and where: beyond all buffers and rings.
const PACKETS: usize = 8;
const PACKETS_ADDRESS: u64 = (48 << 20) - 4096;

/// Hostile chains for each queue.
#[derive(Debug, Clone)]
struct Chains {
    /// Whole packets in memory, to which some descriptors of the TX queue lead.
    packets: Vec<Header>,
    descriptors: Vec<(Descriptor, Option<usize>)>,
    heads: Vec<(u16, u16)>,
}

fn chains(confined: bool) -> impl Strategy<Value = Chains> {
    let packets = prop::collection::vec(header(), PACKETS);
    let descriptor = (
        hostile_descriptor(PACKET_QUEUE_SIZE, confined),
        prop::option::of(0..PACKETS),
    );
    let descriptors = prop::collection::vec(
        descriptor,
        usize::from(2 * PACKET_QUEUE_SIZE + EVENT_QUEUE_SIZE),
    );
    // As many as the smallest queue holds, so that no ring overflows by their number alone.
    let head = prop_oneof![
        2 => (Just(RX), hostile_head(PACKET_QUEUE_SIZE)),
        3 => (Just(TX), hostile_head(PACKET_QUEUE_SIZE)),
        1 => (Just(EVENT), hostile_head(EVENT_QUEUE_SIZE)),
    ];
    let heads = prop::collection::vec(head, 0..usize::from(EVENT_QUEUE_SIZE));
    (packets, descriptors, heads).prop_map(|(packets, descriptors, heads)| Chains {
        packets,
        descriptors,
        heads,
    })
}

impl Chains {
    fn offer(&self, bench: &mut Bench) {
        let address = |at: usize| PACKETS_ADDRESS + (at * HEADER_BYTES) as u64;
        for (at, packet) in self.packets.iter().enumerate() {
            let place = GuestAddress(address(at));
            let memory = bench.tx.memory();
            memory.write_slice(&packet.to_bytes(), place).unwrap();
        }
        let size = usize::from(PACKET_QUEUE_SIZE);
        let (rx, rest) = self.descriptors.split_at(size);
        let (tx, event) = rest.split_at(size);
        for (slot, (descriptor, packet)) in (0..).zip(tx) {
            let whole = |at| Descriptor {
                address: address(at),
                bytes: u32::try_from(HEADER_BYTES).unwrap(),
                flags: 0,
                ..*descriptor
            };
            bench.tx.store(slot, packet.map_or(*descriptor, whole));
        }
        for (queue, descriptors) in [(&bench.rx, rx), (&bench.event, event)] {
            for (slot, (descriptor, _)) in (0..).zip(descriptors) {
                queue.store(slot, *descriptor);
            }
        }
        for (queue, head) in &self.heads {
            match *queue {
                RX => bench.rx.publish(*head),
                TX => bench.tx.publish(*head),
                _ => bench.event.publish(*head),
            }
        }
    }
}

/// Calls the device as the transport does, which takes it out of service where that fails; whether it
/// did.
fn as_transport(
    bench: &mut Bench,
    call: impl FnOnce(&mut Bench) -> Result<(), DeviceError>,
) -> bool {
    let failed = call(bench).is_err();
    if failed {
        bench.vsock.reset();
    }
    failed
}

proptest! {
    #![proptest_config(Config { cases: 64, ..Config::default() })]

    #[test]
    fn any_packets_in_any_order_do_no_harm(
        packets in prop::collection::vec((header(), prop::collection::vec(any::<u8>(), 0..200)), 1..100),
        restore in any::<bool>(),
    ) {
        let mut bench = Bench::new(Options::default());
        let _service = bench.listen(80);
        let _client = bench.connect(1024);
        bench.serve_until_idle();
        if restore {
            bench.suspend_and_restore();
        }
        for (header, payload) in packets {
            bench.send_packet(header, &payload);
            bench.serve_until_idle();
        }
        let counters = bench.vsock.counters();
        assert!(counters.live_connections <= 64);
        let sum: u64 = bench.states().iter().map(|(_, count)| count).sum();
        assert_eq!(sum, counters.live_connections);
        let _saved = bench.state();
    }

    #[test]
    fn any_descriptors_on_any_queue_do_no_harm(
        (confined, chains) in any::<bool>().prop_flat_map(|confined| (Just(confined), chains(confined))),
        restore in any::<bool>(),
        avail_index in prop::option::of(any::<u16>()),
    ) {
        let mut bench = Bench::without_driver(Options::default());
        bench.activate();
        let _service = bench.listen(80);
        let _client = bench.connect(1024);
        chains.offer(&mut bench);
        let before = confined.then(|| MemoryBefore::of(bench.rx.memory()));

        let mut broken = false;
        if restore {
            broken |= as_transport(&mut bench, Bench::suspend_and_try_restore);
        }
        for queue in [EVENT, TX, RX] {
            broken |= as_transport(&mut bench, |bench| bench.vsock.serve_queue(queue));
        }
        broken |= as_transport(&mut bench, |bench| bench.vsock.serve_backend());
        if let Some(before) = before {
            assert_no_harm(before, &[&bench.rx, &bench.tx, &bench.event]);
        }

        if confined && !broken {
            // It was not thrown off course: the next packet is taken.
            while bench.tx.pop_used().is_some() {}
            let dropped = bench.vsock.counters().guest_packets_dropped;
            let stray = Pair { local: 7, peer: 7 };
            let header = Header { source_cid: 99, ..bench.packet(stray, Op::CreditUpdate) };
            bench.queue_packet(header, &[]);
            broken |= as_transport(&mut bench, |bench| bench.vsock.serve_queue(TX));
            if !broken {
                assert!(bench.tx.pop_used().is_some(), "the packet was not taken");
                assert_eq!(bench.vsock.counters().guest_packets_dropped, dropped + 1);
            }
        }
        if let Some(index) = avail_index {
            bench.tx.set_avail_index(index);
            as_transport(&mut bench, |bench| bench.vsock.serve_queue(TX));
        }
        bench.restart_driver();
        bench.serve_until_idle();
        let _usable = bench.established(1024);
    }

    #[test]
    fn any_handshake_leaves_the_device_usable(
        pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..6),
    ) {
        let mut bench = Bench::new(Options::default());
        let mut hostile = bench.dial();
        for piece in pieces {
            // It may have been refused by now.
            let _ = hostile.write_all(&piece);
            bench.serve_until_idle();
        }
        drop(hostile);
        bench.serve_until_idle();
        let _usable = bench.established(1024);
    }

    #[test]
    fn headers_survive_the_way_to_bytes_and_back(bytes in prop::array::uniform32(any::<u8>())) {
        let mut raw = [0; HEADER_BYTES];
        raw[..32].copy_from_slice(&bytes);
        raw[32..].copy_from_slice(&bytes[..12]);
        assert_eq!(Header::from_bytes(&raw).to_bytes(), raw);
    }
}

#[test]
fn clients_that_say_nothing_are_bounded_and_do_not_keep_others_out_for_long() {
    let mut bench = Bench::new(Options::default());
    let silent: Vec<_> = (0..1100)
        .map(|_| {
            let client = bench.dial();
            bench.serve_until_idle();
            client
        })
        .collect();
    drop(silent);
    bench.serve_until_idle();
    let _usable = bench.established(1024);
}

#[test]
fn rx_buffers_without_room_for_data_are_given_back_and_stop_nothing() {
    let mut bench = Bench::without_driver(Options::default());
    for _ in 0..4 {
        bench.rx.give_space(HEADER_BYTES.try_into().unwrap());
    }
    bench.fill_events();
    bench.activate();
    let mut client = bench.connect(1024);
    let mut request = None;
    bench.serve_until("the request", |bench| {
        request = bench.rx.pop_used();
        request.is_some()
    });
    let request = request.unwrap();
    let header = Header::from_bytes(request.bytes[..HEADER_BYTES].try_into().unwrap());
    let pair = Pair {
        local: header.source_port,
        peer: header.destination_port,
    };
    bench.send(pair, Op::Response);
    bench.serve_until_idle();
    client.write_all(b"data").unwrap();
    // Without a bound this never returns.
    bench.serve_until_idle();
    while let Some(used) = bench.rx.pop_used() {
        assert!(used.bytes.len() <= HEADER_BYTES, "{used:?}");
    }
    bench.fill_rx();
    bench.vsock.serve_queue(RX).unwrap();
    assert_eq!(bench.expect(Op::Data).payload, b"data");
}
