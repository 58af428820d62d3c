//! Connections from both sides: handshakes, answers, half-close, order, numbers.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::bench::{Bench, GUEST_BUFFER_BYTES, Options, line, rest};
use crate::devices::virtio::device::VirtioDevice;
use crate::devices::virtio::vsock::packet::{
    Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND,
};
use crate::devices::virtio::vsock::queues::RX;
use crate::devices::virtio::vsock::state::Pair;
use crate::devices::virtio::vsock::{Vsock, VsockError};

const GUEST_OPENED: Pair = Pair {
    local: 80,
    peer: 5000,
};

/// A connection that the guest has opened to a service of the host.
fn guest_opened(bench: &mut Bench) -> UnixStream {
    let service = bench.listen(GUEST_OPENED.local);
    bench.send(GUEST_OPENED, Op::Request);
    assert_eq!(bench.expect(Op::Response).pair(), GUEST_OPENED);
    let (stream, _) = service.accept().unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    stream
}

#[test]
fn a_host_program_connects_and_bytes_flow_both_ways() {
    let mut bench = Bench::new(Options::default());
    let (mut client, pair) = bench.established(1024);
    assert_eq!(
        pair,
        Pair {
            local: 1 << 30,
            peer: 1024
        }
    );
    client.write_all(b"ping").unwrap();
    assert_eq!(bench.expect(Op::Data).payload, b"ping");
    bench.send_data(pair, b"pong");
    let mut data = [0; 4];
    client.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"pong");
    let counters = bench.vsock.counters();
    assert_eq!((counters.bytes_to_guest, counters.bytes_from_guest), (4, 4));
    assert_eq!((counters.requests_sent, counters.requests_accepted), (1, 1));
    assert_eq!(counters.live_connections, 1);
    assert_eq!(bench.states(), [("established", 1)]);
}

#[test]
fn what_a_client_sends_along_with_its_line_comes_first() {
    let mut bench = Bench::new(Options::default());
    let mut client = bench.dial();
    client
        .write_all(b"CONNECT 1024\nearly and more than fits into a line of its own")
        .unwrap();
    let pair = bench.expect(Op::Request).pair();
    bench.send(pair, Op::Response);
    let first = bench.expect(Op::Data).payload;
    let second = bench.expect(Op::Data).payload;
    assert_eq!(
        [first, second].concat(),
        b"early and more than fits into a line of its own"
    );
}

#[test]
fn a_line_may_come_in_pieces() {
    let mut bench = Bench::new(Options::default());
    let mut client = bench.dial();
    client.write_all(b"CONN").unwrap();
    bench.serve_until_idle();
    client.write_all(b"ECT 5\r\n").unwrap();
    assert_eq!(bench.expect(Op::Request).pair().peer, 5);
}

#[test]
fn lines_that_are_not_understood_are_refused_with_a_reason() {
    let lines = [
        "CONNECT\n",
        "connect 5\n",
        "CONNECT -1\n",
        "CONNECT 4294967296\n",
        "\n",
    ];
    let endless = "CONNECT 0000000000000000000000000000000000005";
    for text in lines.into_iter().chain([endless]) {
        let mut bench = Bench::new(Options::default());
        let mut client = bench.dial();
        client.write_all(text.as_bytes()).unwrap();
        bench.serve_until_idle();
        let answer = line(&mut client);
        assert_eq!(
            answer, "REFUSED not a line of the form CONNECT <port>",
            "to {text:?}"
        );
        bench.expect_nothing();
    }
}

#[test]
fn a_silent_guest_is_no_reply_counted_from_the_delivery() {
    let timeout = Duration::from_millis(50);
    let mut bench = Bench::without_driver(Options {
        timeout,
        ..Options::default()
    });
    bench.fill_events();
    bench.activate();
    let mut client = bench.connect(1024);
    client.set_nonblocking(true).unwrap();
    let undelivered_until = Instant::now() + 3 * timeout;
    bench.serve_until("the timeout to pass before the delivery", |_| {
        Instant::now() > undelivered_until
    });
    let error = client.read(&mut [0; 1]).unwrap_err();
    assert_eq!(
        error.kind(),
        ErrorKind::WouldBlock,
        "answered before the guest was asked"
    );
    client.set_nonblocking(false).unwrap();
    bench.fill_rx();
    bench.vsock.serve_queue(RX).unwrap();
    let delivered = Instant::now();
    bench.serve_until("the timeout", |bench| {
        bench.vsock.counters().requests_unanswered == 1
    });
    assert!(delivered.elapsed() >= timeout - Duration::from_millis(5));
    assert_eq!(line(&mut client), format!("NOREPLY {}", 1 << 30));
    assert_eq!(rest(&mut client), b"");
    // A late answer gets an RST.
    let pair = bench.expect(Op::Request).pair();
    bench.send(pair, Op::Response);
    assert_eq!(bench.expect(Op::Reset).pair(), pair);
}

#[test]
fn a_client_that_gives_up_leaves_nothing_behind() {
    let mut bench = Bench::new(Options::default());
    let client = bench.connect(1024);
    let pair = bench.expect(Op::Request).pair();
    assert_eq!(bench.states(), [("requested", 1)]);
    drop(client);
    bench.serve_until_idle();
    assert_eq!(bench.vsock.counters().live_connections, 0);
    assert_eq!(bench.states(), []);
    bench.send(pair, Op::Response);
    assert_eq!(bench.expect(Op::Reset).pair(), pair);
}

#[test]
fn the_guest_reaches_a_service_of_the_host() {
    let mut bench = Bench::new(Options::default());
    let mut service = guest_opened(&mut bench);
    bench.send_data(GUEST_OPENED, b"hello");
    let mut data = [0; 5];
    service.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"hello");
    service.write_all(b"welcome").unwrap();
    assert_eq!(bench.expect(Op::Data).payload, b"welcome");
    assert_eq!(bench.vsock.counters().guest_connections_accepted, 1);
}

#[test]
fn a_guest_request_without_a_service_gets_an_rst() {
    let mut bench = Bench::new(Options::default());
    bench.send(GUEST_OPENED, Op::Request);
    assert_eq!(bench.expect(Op::Reset).pair(), GUEST_OPENED);
    assert_eq!(bench.vsock.counters().guest_connections_refused, 1);
}

#[test]
fn packets_on_unknown_pairs_get_an_rst_except_an_rst() {
    let mut bench = Bench::new(Options::default());
    for op in [
        Op::Response,
        Op::Data,
        Op::Shutdown,
        Op::CreditUpdate,
        Op::Unknown(99),
    ] {
        bench.send(GUEST_OPENED, op);
        assert_eq!(bench.expect(Op::Reset).pair(), GUEST_OPENED);
    }
    bench.send(GUEST_OPENED, Op::Reset);
    bench.expect_nothing();
}

#[test]
fn other_socket_types_get_an_rst_of_their_type() {
    let mut bench = Bench::new(Options::default());
    let header = Header {
        socket_type: 2,
        ..bench.packet(GUEST_OPENED, Op::Request)
    };
    bench.send_packet(header, &[]);
    assert_eq!(bench.expect(Op::Reset).header.socket_type, 2);
}

#[test]
fn packets_under_a_false_address_are_dropped() {
    let mut bench = Bench::new(Options::default());
    let header = bench.packet(GUEST_OPENED, Op::Request);
    bench.send_packet(
        Header {
            source_cid: 4,
            ..header
        },
        &[],
    );
    bench.send_packet(
        Header {
            destination_cid: 4,
            ..header
        },
        &[],
    );
    bench.expect_nothing();
    assert_eq!(bench.vsock.counters().guest_packets_dropped, 2);
}

#[test]
fn a_malformed_packet_resets_its_connection() {
    let mut bench = Bench::new(Options::default());
    let (mut client, pair) = bench.established(1024);
    let header = bench.packet(pair, Op::Data);
    bench.send_packet(
        Header {
            payload_bytes: 100,
            ..header
        },
        b"shorter",
    );
    assert_eq!(bench.expect(Op::Reset).pair(), pair);
    assert_eq!(rest(&mut client), b"");
    let (_client, pair) = bench.established(1024);
    let header = bench.packet(pair, Op::Data);
    bench.send_packet(
        Header {
            payload_bytes: u32::MAX,
            ..header
        },
        b"longest",
    );
    assert_eq!(bench.expect(Op::Reset).pair(), pair);
}

#[test]
fn a_guest_that_overruns_its_credit_is_reset() {
    let mut bench = Bench::new(Options::default());
    let (_client, pair) = bench.established(1024);
    // The client reads nothing. Its socket and our buffer take less than 8 MiB.
    for _ in 0..128 {
        bench.send_data(pair, &[0; 65536]);
    }
    bench.serve_until("the reset", |bench| {
        bench.vsock.counters().live_connections == 0
    });
}

#[test]
fn the_host_may_end_its_half_and_still_receive() {
    let mut bench = Bench::new(Options::default());
    let (mut client, pair) = bench.established(1024);
    client.write_all(b"question").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(bench.expect(Op::Data).payload, b"question");
    assert_eq!(bench.expect(Op::Shutdown).header.flags, SHUTDOWN_SEND);
    bench.send_data(pair, b"answer");
    bench.send_shutdown(pair, SHUTDOWN_BOTH);
    assert_eq!(rest(&mut client), b"answer");
    assert_eq!(bench.expect(Op::Reset).pair(), pair);
    assert_eq!(bench.vsock.counters().live_connections, 0);
}

#[test]
fn the_guest_may_end_its_half_and_still_receive() {
    let mut bench = Bench::new(Options::default());
    let (mut client, pair) = bench.established(1024);
    bench.send_data(pair, b"question");
    bench.send_shutdown(pair, SHUTDOWN_SEND);
    assert_eq!(rest(&mut client), b"question");
    client.write_all(b"answer").unwrap();
    assert_eq!(bench.expect(Op::Data).payload, b"answer");
    drop(client);
    // The two halves may end in one packet or in two.
    let mut flags = bench.expect(Op::Shutdown).header.flags;
    if flags != SHUTDOWN_BOTH {
        flags |= bench.expect(Op::Shutdown).header.flags;
    }
    assert_eq!(flags, SHUTDOWN_BOTH);
    bench.send(pair, Op::Reset);
    assert_eq!(bench.vsock.counters().live_connections, 0);
}

#[test]
fn a_guest_that_will_not_receive_stops_the_host_from_sending() {
    let mut bench = Bench::new(Options::default());
    let (mut client, pair) = bench.established(1024);
    bench.send_shutdown(pair, SHUTDOWN_RECEIVE);
    let error = client.write_all(b"into the void").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
    bench.send_data(pair, b"still talking");
    let mut data = [0; 13];
    client.read_exact(&mut data).unwrap();
    assert_eq!(&data, b"still talking");
}

#[test]
fn a_host_program_that_closes_is_shut_down_both_ways_and_forgotten_after_the_rst() {
    let mut bench = Bench::new(Options::default());
    let (client, pair) = bench.established(1024);
    drop(client);
    let mut flags = 0;
    while flags != SHUTDOWN_BOTH {
        flags |= bench.expect(Op::Shutdown).header.flags;
    }
    assert_eq!(bench.vsock.counters().live_connections, 1);
    bench.send(pair, Op::Reset);
    assert_eq!(bench.vsock.counters().live_connections, 0);
    bench.expect_nothing();
}

#[test]
fn a_slow_host_program_gets_all_that_the_guest_sent_before_it_closed() {
    let mut bench = Bench::new(Options::default());
    let (mut client, pair) = bench.established(1024);
    // The client's socket takes a few hundred KiB, and the rest waits in the device. Credit updates,
    // which report how much has been forwarded, stop when the socket is full.
    let (mut sent, mut forwarded) = (0_usize, 0_usize);
    while sent - forwarded < 60 * 1024 {
        bench.send_data(pair, &[7; 4096]);
        sent += 4096;
        while let Some(packet) = bench.packet_if_any() {
            forwarded = packet.header.forwarded as usize;
        }
    }
    bench.send_shutdown(pair, SHUTDOWN_BOTH);
    assert_eq!(bench.expect(Op::Reset).pair(), pair);
    assert_eq!(bench.states(), [("draining", 1)]);
    let reader = std::thread::spawn(move || rest(&mut client).len());
    bench.serve_until("the client to have read everything", |bench| {
        bench.vsock.counters().live_connections == 0
    });
    assert_eq!(reader.join().unwrap(), sent);
}

#[test]
fn no_more_goes_to_the_guest_than_it_has_credit_for() {
    let mut bench = Bench::new(Options::default());
    let (mut client, pair) = bench.established(1024);
    client.set_nonblocking(true).unwrap();
    while client.write(&[1; 4096]).is_ok() {}
    let mut received = 0;
    loop {
        let packet = bench.next_packet();
        if packet.header.op == Op::CreditRequest {
            break;
        }
        received += packet.header.payload_bytes;
        while client.write(&[1; 4096]).is_ok() {}
    }
    assert_eq!(received, GUEST_BUFFER_BYTES);
    bench.expect_nothing();
    let update = Header {
        forwarded: 100,
        ..bench.packet(pair, Op::CreditUpdate)
    };
    bench.send_packet(update, &[]);
    assert_eq!(bench.expect(Op::Data).header.payload_bytes, 100);
}

#[test]
fn the_guest_learns_that_it_may_send_on() {
    let mut bench = Bench::new(Options::default());
    let (mut client, pair) = bench.established(1024);
    for _ in 0..8 {
        bench.send_data(pair, &[0; 8192]);
    }
    client.read_exact(&mut [0; 65536]).unwrap();
    let mut forwarded = 0;
    while forwarded < 49152 {
        forwarded = bench.expect(Op::CreditUpdate).header.forwarded;
    }
    bench.send(pair, Op::CreditRequest);
    assert_eq!(bench.expect(Op::CreditUpdate).header.forwarded, 65536);
}

#[test]
fn connections_with_much_to_send_take_turns() {
    let mut bench = Bench::new(Options::default());
    let (mut first, one) = bench.established(1024);
    let (mut second, two) = bench.established(1024);
    first.write_all(&[1; 65536]).unwrap();
    second.write_all(&[2; 65536]).unwrap();
    bench.serve_until_idle();
    let order: Vec<Pair> = (0..16).map(|_| bench.expect(Op::Data).pair()).collect();
    let turns = order.windows(2).filter(|two| two[0] != two[1]).count();
    assert!(
        turns >= 12,
        "{one:?} and {two:?} came in the order {order:?}"
    );
}

#[test]
fn waiting_answers_are_bounded_and_none_is_lost() {
    let mut bench = Bench::without_driver(Options::default());
    bench.fill_events();
    bench.activate();
    let mut unserved = 0;
    for peer in 0..3000 {
        if bench.tx.room() == 0 {
            break;
        }
        let header = bench.packet(Pair { local: 80, peer }, Op::CreditUpdate);
        bench.queue_packet(header, &[]);
        bench.vsock.serve_queue(1).unwrap();
        while bench.tx.pop_used().is_some() {}
        unserved = peer;
    }
    assert!(
        (1000..2000).contains(&unserved),
        "the device took {unserved} without an answer"
    );
    bench.fill_rx();
    bench.vsock.serve_queue(RX).unwrap();
    let peers: Vec<u32> = (0..=unserved)
        .map(|_| bench.expect(Op::Reset).pair().peer)
        .collect();
    assert!(peers.is_sorted() && peers.len() == unserved as usize + 1);
}

#[test]
fn a_thousand_connections_at_once_keep_their_bytes_apart() {
    raise_file_limit();
    let mut bench = Bench::new(Options::default());
    let mut all: Vec<_> = (0..1000).map(|_| bench.established(1024)).collect();
    assert_eq!(bench.vsock.counters().live_connections, 1000);
    for (client, pair) in &mut all {
        client.write_all(&pair.local.to_le_bytes()).unwrap();
    }
    for _ in 0..1000 {
        let packet = bench.expect(Op::Data);
        assert_eq!(packet.payload, packet.pair().local.to_le_bytes());
        bench.send_data(packet.pair(), &packet.payload);
    }
    for (client, pair) in &mut all {
        let mut back = [0; 4];
        client.read_exact(&mut back).unwrap();
        assert_eq!(u32::from_le_bytes(back), pair.local);
    }
}

#[test]
fn a_connection_of_which_the_guest_closed_one_direction_does_not_keep_the_device_busy() {
    let mut bench = Bench::new(Options::default());
    let (mut client, pair) = bench.established(1024);
    bench.send_shutdown(pair, SHUTDOWN_SEND);
    bench.serve_until_idle();
    assert_eq!(rest(&mut client), b"", "the client sees the end");
    client.write_all(b"still listening?").unwrap();
    bench.serve_until_idle();
    assert_eq!(bench.expect(Op::Data).payload, b"still listening?");
}

#[test]
fn a_request_that_its_client_gave_up_counts_as_unanswered() {
    let mut bench = Bench::new(Options::default());
    let client = bench.connect(1024);
    let pair = bench.expect(Op::Request).pair();
    drop(client);
    bench.serve_until("the client's end to be noticed", |bench| {
        bench.vsock.counters().requests_unanswered == 1
    });
    // A late answer gets an RST.
    bench.send(pair, Op::Response);
    assert_eq!(bench.expect(Op::Reset).pair(), pair);
}

#[test]
fn a_stale_host_socket_is_replaced_but_a_live_one_or_a_file_is_not() {
    let bench = Bench::new(Options::default());
    let folder = tempfile::TempDir::new().unwrap();
    let mut config = super::bench::config(&folder, &bench.options, &bench.observer);
    drop(Vsock::new(config.clone()).unwrap());
    let live = Vsock::new(config.clone()).unwrap();
    assert!(matches!(
        Vsock::new(config.clone()),
        Err(VsockError::Bind { .. })
    ));
    drop(live);
    config.host_socket = folder.path().join("file");
    std::fs::write(&config.host_socket, "precious").unwrap();
    assert!(matches!(Vsock::new(config), Err(VsockError::Bind { .. })));
    assert_eq!(
        std::fs::read(folder.path().join("file")).unwrap(),
        b"precious"
    );
}

#[test]
fn reserved_addresses_are_refused() {
    let bench = Bench::new(Options::default());
    let folder = tempfile::TempDir::new().unwrap();
    for cid in [0, 1, 2, u32::MAX] {
        let options = Options {
            cid,
            ..Options::default()
        };
        let config = super::bench::config(&folder, &options, &bench.observer);
        assert!(matches!(
            Vsock::new(config),
            Err(VsockError::ReservedCid { .. })
        ));
    }
}

/// Two thousand descriptors are more than many systems allow at first.
fn raise_file_limit() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )
    .unwrap();
}
