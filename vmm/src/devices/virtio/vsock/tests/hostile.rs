//! Guests and clients that lie: nothing panics, nothing grows without bound, others are not harmed.

use std::io::Write;

use proptest::prelude::{Just, Strategy, any, prop, prop_oneof, proptest};
use proptest::test_runner::Config;

use super::bench::{Bench, Options};
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::testing::Descriptor;
use crate::devices::virtio::vsock::packet::{HEADER_BYTES, Header};
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
        bench.settle();
        if restore {
            bench.suspend_and_restore();
        }
        for (header, payload) in packets {
            bench.send_packet(header, &payload);
            bench.settle();
        }
        assert!(bench.vsock.counters().live_connections <= 64);
        let _saved = bench.state();
    }

    #[test]
    fn any_descriptors_on_any_queue_do_no_harm(
        descriptors in prop::collection::vec(any::<(u64, u32, u16, u16)>(), 128),
        heads in prop::collection::vec((0_u16..160, 0_u8..3), 0..128),
        index in any::<u16>(),
    ) {
        let mut bench = Bench::new(Options::default());
        let _client = bench.connect(1024);
        for (slot, (address, bytes, flags, next)) in (0..).zip(descriptors) {
            let bytes = if slot % 2 == 0 { bytes % 100 } else { bytes };
            let descriptor = Descriptor { address: address >> 37, bytes, flags, next: next % 160 };
            bench.tx.store(slot, descriptor);
            bench.rx.store(slot, descriptor);
            bench.event.store(slot % 16, descriptor);
        }
        for (head, queue) in heads {
            match queue {
                0 => bench.rx.publish(head),
                1 => bench.tx.publish(head),
                _ => bench.event.publish(head),
            }
        }
        // Broken rings are errors to the transport; all that counts here is that it comes back.
        for queue in 0..3 {
            let _ = bench.vsock.serve_queue(queue);
        }
        let _ = bench.vsock.serve_backend();
        bench.tx.set_avail_index(index);
        let _ = bench.vsock.serve_queue(1);
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
            bench.settle();
        }
        drop(hostile);
        bench.settle();
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
            bench.settle();
            client
        })
        .collect();
    drop(silent);
    bench.settle();
    let _usable = bench.established(1024);
}
