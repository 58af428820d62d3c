//! What a restored device tells the guest, and what waits until the guest has acknowledged it.

use std::io::{ErrorKind, Read};

use super::bench::{Bench, Options, line};
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::vsock::packet::{Header, Op, SHUTDOWN_BOTH};
use crate::devices::virtio::vsock::ports::FIRST_LOCAL_PORT;
use crate::devices::virtio::vsock::queues::EVENT;
use crate::devices::virtio::vsock::state::Pair;
use crate::devices::virtio::vsock::{PortPolicy, Vsock, VsockError};

fn without_eviction() -> Options {
    Options {
        eviction: false,
        ..Options::default()
    }
}

/// Answers the packets of an eviction as Linux does; returns the pairs, in order.
fn answer_eviction(bench: &mut Bench) -> Vec<Pair> {
    let mut pairs = Vec::new();
    loop {
        let packet = bench.next_packet();
        bench.send(packet.pair(), Op::Reset);
        if packet.header.op == Op::CreditRequest {
            return pairs;
        }
        assert_eq!(
            (packet.header.op, packet.header.flags),
            (Op::Shutdown, SHUTDOWN_BOTH)
        );
        pairs.push(packet.pair());
    }
}

#[test]
fn a_restore_publishes_a_transport_reset_and_signals_it() {
    let mut bench = Bench::new(without_eviction());
    bench.suspend_and_restore();
    assert!(
        bench.interrupt.take_count() > 0,
        "published, but not signalled"
    );
    assert_eq!(bench.take_events(), vec![vec![0; 4]]);
    assert!(bench.gate_is_closed());
}

#[test]
fn each_of_many_chained_restores_resets_the_guest_once() {
    let mut bench = Bench::new(without_eviction());
    for cycle in 1..=20 {
        let _client = bench.established(1024);
        bench.suspend_and_restore();
        assert!(
            bench.interrupt.take_count() > 0,
            "cycle {cycle} did not signal"
        );
        bench.acknowledge_reset();
        assert_eq!(bench.acknowledged(), cycle);
        assert!(!bench.gate_is_closed());
    }
}

#[test]
fn host_requests_wait_until_the_guest_has_acknowledged_the_reset() {
    let mut bench = Bench::new(without_eviction());
    bench.suspend_and_restore();
    let mut client = bench.connect(1024);
    bench.expect_nothing();
    assert_eq!(bench.vsock.counters().gate_held_packets, 1);
    bench.acknowledge_reset();
    let pair = bench.expect(Op::Request).pair();
    bench.send(pair, Op::Response);
    assert_eq!(line(&mut client), format!("OK {}", pair.local));
}

#[test]
fn other_activity_of_the_guest_is_no_acknowledgement() {
    let mut bench = Bench::new(without_eviction());
    bench.suspend_and_restore();
    let _client = bench.connect(1024);
    bench.vsock.serve_queue(EVENT).unwrap();
    bench.send(Pair { local: 1, peer: 2 }, Op::CreditUpdate);
    bench.expect_nothing();
    assert!(bench.gate_is_closed());
}

#[test]
fn a_pause_or_a_suspend_that_fails_closes_no_gate_and_keeps_connections() {
    let mut bench = Bench::new(Options::default());
    let (mut client, pair) = bench.established(1024);
    let _unused = bench.state();
    assert!(!bench.gate_is_closed());
    assert_eq!(bench.take_events(), Vec::<Vec<u8>>::new());
    bench.send_data(pair, b"still here");
    let mut data = [0; 10];
    client.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"still here");
    let _second = bench.established(1024);
}

#[test]
fn packets_in_the_tx_queue_at_the_save_are_served_without_a_notification() {
    let mut bench = Bench::new(without_eviction());
    let service = bench.listen(80);
    let request = bench.packet(
        Pair {
            local: 80,
            peer: 5000,
        },
        Op::Request,
    );
    bench.queue_packet(request, &[]);
    bench.suspend_and_restore();
    assert!(
        bench.tx.pop_used().is_some(),
        "the packet in flight was not served"
    );
    let _accepted = service.accept().unwrap();
    bench.acknowledge_reset();
    assert_eq!(
        bench.expect(Op::Response).pair(),
        Pair {
            local: 80,
            peer: 5000
        }
    );
    // And TX continues as before.
    bench.send(
        Pair {
            local: 81,
            peer: 5001,
        },
        Op::Request,
    );
    assert_eq!(
        bench.expect(Op::Reset).pair(),
        Pair {
            local: 81,
            peer: 5001
        }
    );
}

#[test]
fn event_idx_is_not_offered_so_that_no_saved_ring_can_suppress_notifications() {
    let bench = Bench::new(Options::default());
    assert_eq!(bench.vsock.features() & (1 << 29), 0);
}

#[test]
fn a_guest_without_driver_gets_no_reset_and_no_gate() {
    let mut bench = Bench::without_driver(Options::default());
    bench.suspend_and_restore();
    assert!(!bench.gate_is_closed());
    bench.fill_rx();
    bench.fill_events();
    bench.activate();
    let _client = bench.established(1024);
    assert_eq!(bench.take_events(), Vec::<Vec<u8>>::new());
}

#[test]
fn a_reset_waits_for_an_event_buffer() {
    let mut bench = Bench::without_driver(without_eviction());
    bench.fill_rx();
    bench.activate();
    bench.suspend_and_restore();
    assert!(bench.gate_is_closed());
    let _client = bench.connect(1024);
    bench.expect_nothing();
    bench.event.give_space(4);
    bench.vsock.serve_queue(EVENT).unwrap();
    assert!(
        bench.gate_is_closed(),
        "the buffer for the event is no acknowledgement"
    );
    bench.acknowledge_reset();
    bench.expect(Op::Request);
}

#[test]
fn event_buffers_that_are_too_short_or_not_writable_are_given_back_unused() {
    let mut bench = Bench::without_driver(without_eviction());
    bench.fill_rx();
    bench.event.give_space(3);
    bench.event.give_bytes(&[0; 4]);
    bench.event.give_space(8);
    bench.activate();
    bench.suspend_and_restore();
    assert_eq!(bench.take_events(), vec![vec![], vec![], vec![0; 4]]);
}

#[test]
fn a_suspend_before_the_acknowledgement_signals_again_but_publishes_once() {
    let mut bench = Bench::new(without_eviction());
    bench.suspend_and_restore();
    bench.suspend_and_restore();
    assert!(bench.interrupt.take_count() > 0);
    assert!(bench.gate_is_closed());
    bench.acknowledge_reset();
    assert_eq!(bench.acknowledged(), 1);
    let _client = bench.established(1024);
}

#[test]
fn an_acknowledgement_made_right_before_the_save_opens_the_gate_on_restore() {
    let mut bench = Bench::new(without_eviction());
    bench.suspend_and_restore();
    assert_eq!(bench.take_events().len(), 1);
    bench.event.give_space(4);
    bench.suspend_and_restore();
    assert!(!bench.gate_is_closed());
    assert_eq!(bench.acknowledged(), 1);
}

#[test]
fn eviction_shuts_down_each_saved_pair_before_the_reset() {
    let mut bench = Bench::new(Options::default());
    let live: Vec<_> = (0..300).map(|_| bench.established(1024)).collect();
    let mut pairs: Vec<Pair> = live.iter().map(|(_, pair)| *pair).collect();
    bench.suspend_and_restore();
    assert_eq!(
        bench.take_events(),
        Vec::<Vec<u8>>::new(),
        "the reset came too early"
    );
    let mut evicted = answer_eviction(&mut bench);
    evicted.sort_unstable();
    pairs.sort_unstable();
    assert_eq!(evicted, pairs);
    assert_eq!(bench.vsock.counters().pairs_evicted, 300);
    bench.acknowledge_reset();
    assert!(!bench.gate_is_closed());
}

#[test]
fn an_evicted_pair_is_reserved_so_that_its_owners_late_close_ends_no_connection() {
    let mut bench = Bench::new(Options::default());
    let evicted = bench.established(1024).1;
    bench.suspend_and_restore();
    assert_eq!(answer_eviction(&mut bench), vec![evicted]);
    bench.acknowledge_reset();
    let mut client = bench.connect(1024);
    let pair = bench.expect(Op::Request).pair();
    assert_ne!(pair, evicted);
    // Linux sends it when the owner closes the evicted socket.
    bench.send(evicted, Op::Reset);
    bench.send(pair, Op::Response);
    assert_eq!(line(&mut client), format!("OK {}", pair.local));
    assert_eq!(bench.vsock.counters().requests_reset, 0);
}

#[test]
fn a_reserved_pair_is_used_again_by_the_next_vmm() {
    let mut bench = Bench::new(Options::default());
    let first = bench.established(1024).1;
    bench.suspend_and_restore();
    answer_eviction(&mut bench);
    bench.acknowledge_reset();
    let second = bench.established(1024).1;
    bench.suspend_and_restore();
    assert_eq!(answer_eviction(&mut bench), vec![second]);
    bench.acknowledge_reset();
    assert_eq!(bench.established(1024).1, first);
}

#[test]
fn eviction_covers_requests_that_the_guest_may_have_accepted_meanwhile() {
    let mut bench = Bench::new(Options::default());
    let _client = bench.connect(1024);
    let pair = bench.expect(Op::Request).pair();
    bench.suspend_and_restore();
    assert_eq!(answer_eviction(&mut bench), vec![pair]);
}

#[test]
fn the_fence_ends_an_eviction_that_the_guest_answers_only_in_part() {
    let mut bench = Bench::new(Options::default());
    let _clients = [bench.established(1024), bench.established(1024)];
    bench.suspend_and_restore();
    bench.expect(Op::Shutdown);
    bench.expect(Op::Shutdown);
    let fence = bench.expect(Op::CreditRequest).pair();
    bench.send(fence, Op::Reset);
    bench.acknowledge_reset();
    assert_eq!(bench.vsock.counters().pairs_evicted, 0);
}

#[test]
fn a_guest_that_answers_nothing_is_reset_all_the_same() {
    let mut bench = Bench::new(Options::default());
    let _client = bench.established(1024);
    bench.suspend_and_restore();
    bench.serve_until("the reset of a silent guest", |bench| {
        bench.vsock.counters().gate_closed && !bench.take_events().is_empty()
    });
    bench.event.give_space(4);
    bench.vsock.serve_queue(EVENT).unwrap();
    assert!(!bench.gate_is_closed());
}

#[test]
fn without_eviction_the_reset_is_published_at_once() {
    let mut bench = Bench::new(without_eviction());
    let _client = bench.established(1024);
    bench.suspend_and_restore();
    bench.acknowledge_reset();
    bench.expect_nothing();
}

#[test]
fn a_suspend_amid_an_eviction_leaves_the_rest_to_the_next_restore() {
    let mut bench = Bench::new(Options::default());
    let first = bench.established(1024).1;
    let second = bench.established(1024).1;
    // Their clients are gone, so the guest hears of that first.
    bench.suspend_and_restore();
    let answered = bench.expect(Op::Shutdown).pair();
    bench.send(answered, Op::Reset);
    bench.suspend_and_restore();
    let left = if answered == first { second } else { first };
    let evicted = {
        // What the first restore had put into the queue is still there.
        let mut seen = answer_eviction(&mut bench);
        seen.retain(|pair| *pair != answered);
        seen.dedup();
        seen
    };
    assert_eq!(evicted, vec![left]);
}

#[test]
fn a_guest_request_that_was_not_answered_at_the_save_is_refused_on_restore() {
    let mut bench = Bench::without_driver(without_eviction());
    bench.fill_events();
    bench.activate();
    let _service = bench.listen(80);
    // There is no RX buffer for the RESPONSE.
    bench.send(
        Pair {
            local: 80,
            peer: 5000,
        },
        Op::Request,
    );
    bench.suspend_and_restore();
    bench.fill_rx();
    bench.vsock.serve_queue(0).unwrap();
    assert_eq!(
        bench.expect(Op::Reset).pair(),
        Pair {
            local: 80,
            peer: 5000
        }
    );
}

#[test]
fn what_the_guest_sends_on_dead_pairs_before_it_knows_is_dropped_quietly() {
    let mut bench = Bench::new(without_eviction());
    let (_client, pair) = bench.established(1024);
    bench.suspend_and_restore();
    bench.send_data(pair, b"into the void");
    bench.send(pair, Op::CreditUpdate);
    bench.expect_nothing();
    assert_eq!(bench.vsock.counters().gate_dropped_packets, 2);
    bench.acknowledge_reset();
    bench.send_data(pair, b"it should know by now");
    assert_eq!(bench.expect(Op::Reset).pair(), pair);
}

#[test]
fn a_guest_that_closes_a_dead_pair_is_answered_so_that_the_pair_is_free() {
    let mut bench = Bench::new(without_eviction());
    let (_client, pair) = bench.established(1024);
    bench.suspend_and_restore();
    bench.send_shutdown(pair, SHUTDOWN_BOTH);
    assert_eq!(bench.expect(Op::Reset).pair(), pair);
}

#[test]
fn a_dead_pair_does_no_harm_to_a_new_request_on_the_same_pair() {
    let mut bench = Bench::new(without_eviction());
    let (_old, pair) = bench.established(1024);
    bench.suspend_and_restore();
    let mut client = bench.connect(1024);
    bench.serve_until_idle();
    bench.send_data(pair, b"from the dead");
    bench.acknowledge_reset();
    assert_eq!(
        bench.expect(Op::Request).pair(),
        pair,
        "policy fixed repeats the pair"
    );
    bench.send(pair, Op::Response);
    assert_eq!(line(&mut client), format!("OK {}", pair.local));
    client.set_nonblocking(true).unwrap();
    let error = client.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
}

#[test]
fn connections_end_with_the_vmm_that_saved() {
    let mut bench = Bench::new(Options::default());
    let (mut client, _pair) = bench.established(1024);
    bench.suspend_and_restore();
    assert_eq!(client.read(&mut [0; 16]).unwrap(), 0);
}

#[test]
fn each_policy_begins_where_it_should_after_a_restore() {
    let begin = |policy| {
        let mut bench = Bench::new(Options {
            policy,
            ..without_eviction()
        });
        let first = bench.established(1024).1.local;
        bench.suspend_and_restore();
        bench.acknowledge_reset();
        (first, bench.established(1024).1.local)
    };
    assert_eq!(
        begin(PortPolicy::Fixed),
        (FIRST_LOCAL_PORT, FIRST_LOCAL_PORT)
    );
    assert_eq!(
        begin(PortPolicy::Continue),
        (FIRST_LOCAL_PORT, FIRST_LOCAL_PORT + 1)
    );
    let (first, second) = begin(PortPolicy::Random);
    assert!(
        first.abs_diff(second) > 1,
        "{first} and {second} are not drawn anew"
    );
}

#[test]
fn a_leaked_pair_costs_policy_fixed_an_attempt_and_shows_in_the_counters() {
    let mut bench = Bench::new(without_eviction());
    let leaked = bench.established(1024).1;
    bench.suspend_and_restore();
    bench.acknowledge_reset();
    let mut client = bench.connect(1024);
    assert_eq!(bench.expect(Op::Request).pair(), leaked);
    bench.send(leaked, Op::Reset);
    assert_eq!(line(&mut client), format!("RST {}", leaked.local));
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    let counters = bench.vsock.counters();
    assert_eq!(counters.requests_reset, 1);
    assert_eq!(counters.last_collided[0].local_port, leaked.local);
    assert_eq!(bench.established(1024).1.local, leaked.local + 1);
}

#[test]
fn a_driver_that_resets_the_device_ends_connections_but_not_the_order_of_ports() {
    let mut bench = Bench::new(without_eviction());
    let (mut live, pair) = bench.established(1024);
    let mut asking = bench.connect(1024);
    bench.expect(Op::Request);
    bench.vsock.reset();
    assert_eq!(live.read(&mut [0; 1]).unwrap(), 0);
    assert_eq!(line(&mut asking), format!("GONE {}", pair.local + 1));
    assert!(bench.vsock.queues().is_empty());
    let mut again = Bench::without_driver(without_eviction());
    std::mem::swap(&mut again.vsock, &mut bench.vsock);
    again.fill_rx();
    again.fill_events();
    again.activate();
    assert!(!again.gate_is_closed());
    let mut client = std::os::unix::net::UnixStream::connect(bench.socket()).unwrap();
    std::io::Write::write_all(&mut client, b"CONNECT 1024\n").unwrap();
    assert_eq!(again.expect(Op::Request).pair().local, pair.local + 2);
}

#[test]
fn a_changed_cid_counts_once_the_guest_has_read_it() {
    let mut bench = Bench::new(Options::default());
    let (_client, pair) = bench.established(1024);
    let old = bench.options.cid;
    bench.options.cid = 77;
    bench.suspend_and_restore();
    let shutdown = bench.expect(Op::Shutdown);
    assert_eq!(shutdown.header.destination_cid, u64::from(old));
    let fence = bench.expect(Op::CreditRequest).pair();
    for pair in [pair, fence] {
        let header = Header {
            source_cid: u64::from(old),
            ..bench.packet(pair, Op::Reset)
        };
        bench.send_packet(header, &[]);
    }
    bench.acknowledge_reset();
    let mut config = [0; 8];
    bench.vsock.read_config(0, &mut config);
    assert_eq!(u64::from_le_bytes(config), 77);
    assert_eq!(bench.vsock.counters().pairs_evicted, 1);
    let _client = bench.connect(1024);
    assert_eq!(bench.expect(Op::Request).header.destination_cid, 77);
    let late = Header {
        source_cid: u64::from(old),
        ..bench.packet(pair, Op::Request)
    };
    bench.send_packet(late, &[]);
    bench.expect_nothing();
}

#[test]
fn a_state_that_contradicts_itself_is_refused() {
    let bench = Bench::new(Options::default());
    let mut state = bench.state();
    state.next_local_port = 17;
    let config = super::bench::config(
        &tempfile::TempDir::new().unwrap(),
        &bench.options,
        &bench.observer,
    );
    assert!(matches!(
        Vsock::restore(config, &state),
        Err(VsockError::State { .. })
    ));
}
