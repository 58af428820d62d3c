//! Calls: generations, wake-ups, refusals, and requests with a single reply.

use proptest::prelude::*;

use super::*;

#[test]
fn a_new_generation_closes_older_connections_before_it_is_answered() {
    with_guest(async |guest: Guest| {
        let interval_ms = 60_000;
        let mut old = guest.start(Request::CpuUsage { interval_ms }).await;
        let _first: CpuSample = old.receive_json().await;
        let before = guest.status(1).await.open_vsocks;

        let after = guest.status(2).await.open_vsocks;

        assert_eq!((before.total, before.older_generations), (1, 0));
        assert_eq!((after.total, after.older_generations), (0, 0));
        assert_eq!(old.receive().await, Received::End);
    });
}

#[test]
fn a_socket_that_a_users_program_left_over_counts_as_of_the_generation_that_ended() {
    with_guest(async |guest: Guest| {
        let socket = |state| KernelSocket { state, inode: 77 };
        *guest.vsocks.borrow_mut() = Some(vec![socket(1)]);
        let before = guest.status(3).await.open_vsocks;
        // The resume has reset it, and nobody closes it.
        *guest.vsocks.borrow_mut() = Some(vec![socket(7)]);

        let after = guest.status(4).await.open_vsocks;

        assert_eq!((before.total, before.older_generations), (1, 0));
        assert_eq!((after.total, after.older_generations), (1, 1));
        assert_eq!(after.counts[0].generation, Some(3));
    });
}

#[test]
fn what_is_there_at_the_first_call_of_all_is_of_no_older_generation() {
    with_guest(async |guest: Guest| {
        let inode = 77;
        *guest.vsocks.borrow_mut() = Some(vec![KernelSocket { state: 7, inode }]);
        assert_eq!(guest.status(1).await.open_vsocks.older_generations, 0);
    });
}

#[test]
fn resources_are_those_of_init_and_the_kernels_list_of_sockets() {
    with_guest(async |guest: Guest| {
        let inode = 77;
        *guest.vsocks.borrow_mut() = Some(vec![KernelSocket { state: 1, inode }]);
        let Reply::Resources(found) = guest.ask(1, Request::Resources).await else {
            panic!("no resources")
        };
        assert!(found.init.descriptors > Some(2) && found.init.threads > Some(0));
        assert!(found.init.resident_bytes >= found.init.anonymous_bytes);
        assert!(found.init.epoll_entries > Some(0) && found.tasks > Some(0));
        assert_eq!(
            found.vsocks.unwrap().into_iter().collect::<Vec<_>>(),
            [("established".to_owned(), 1)]
        );

        *guest.vsocks.borrow_mut() = None;
        let Reply::Resources(found) = guest.ask(1, Request::Resources).await else {
            panic!("no resources")
        };
        assert_eq!(found.vsocks, None);
    });
}

#[test]
fn a_call_of_an_older_generation_is_refused() {
    with_guest(async |guest: Guest| {
        assert_eq!(guest.status(7).await.generation, 7);
        let reply = guest.ask(6, Request::Status).await;
        assert_eq!(kind_of(&reply), Some(RefusalKind::StaleGeneration));
    });
}

#[test]
fn a_wake_up_is_applied_once_per_generation() {
    with_guest(async |guest: Guest| {
        let wake = Wake {
            realtime_ns: 4_000_000_000_000_000_000,
            entropy_hex: "ab".repeat(ENTROPY_BYTES),
        };
        for generation in [1, 1, 2] {
            let request = Request::Status;
            let mut client = guest
                .call_with_wake(generation, Some(wake.clone()), request)
                .await;
            let Reply::Status(status) = client.receive_json().await else {
                panic!("no status")
            };
            assert!(status.clock_step_ms.is_some_and(|step| step > 0));
        }

        let calls_per_generation = ["entropy ab", "clock 4000000000"];
        assert_eq!(
            *guest.kernel_calls.borrow(),
            [calls_per_generation, calls_per_generation].concat()
        );
    });
}

#[test]
fn a_broken_wake_up_is_no_reason_to_refuse_a_status() {
    with_guest(async |guest: Guest| {
        let wake = Wake {
            realtime_ns: u64::MAX,
            entropy_hex: "secret".to_owned(),
        };
        let mut client = guest.call_with_wake(1, Some(wake), Request::Status).await;
        let Reply::Status(status) = client.receive_json().await else {
            panic!("no status")
        };
        assert_eq!(status.clock_step_ms, None);
        assert!(guest.kernel_calls.borrow().is_empty());
    });
}

#[test]
fn calls_that_make_no_sense_are_refused() {
    with_guest(async |guest: Guest| {
        let cases: [(&[u8], RefusalKind); 4] = [
            (b"{", RefusalKind::Invalid),
            (br#"{"version":1}"#, RefusalKind::Invalid),
            (
                br#"{"version":1,"generation":1,"request":{"type":"dance"}}"#,
                RefusalKind::Invalid,
            ),
            (br#"{"version":99,"riddle":1}"#, RefusalKind::Version),
        ];
        for (json, kind) in cases {
            let mut client = guest.connect();
            client.send(Frame::Json(json)).await;
            let reply: Reply = client.receive_json().await;
            assert_eq!(kind_of(&reply), Some(kind), "{reply:?}");
        }
        let mut client = guest.connect();
        client.send(Frame::Data(b"data")).await;
        let reply: Reply = client.receive_json().await;
        assert_eq!(kind_of(&reply), Some(RefusalKind::Invalid));
    });
}

#[test]
fn numbers_out_of_range_are_refused() {
    with_guest(async |guest: Guest| {
        let requests = [
            Request::CpuUsage { interval_ms: 9 },
            Request::Signal { signal: 0 },
            Request::PowerOff {
                signal: 65,
                timeout_ms: 0,
            },
            exec("true\0"),
        ];
        for request in requests {
            let reply = guest.ask(1, request).await;
            assert_eq!(kind_of(&reply), Some(RefusalKind::Invalid), "{reply:?}");
        }
    });
}

#[test]
fn what_is_no_frame_closes_the_connection() {
    with_guest(async |guest: Guest| {
        let mut client = guest.connect();
        client
            .stream
            .write_all(b"GET / HTTP/1.1\r\n\r\n")
            .await
            .unwrap();
        assert_eq!(client.receive().await, Received::End);
    });
}

#[test]
fn cpu_usage_goes_on_until_the_supervisor_closes() {
    with_guest(async |guest: Guest| {
        let mut client = guest.start(Request::CpuUsage { interval_ms: 10 }).await;
        let first: CpuSample = client.receive_json().await;
        let second: CpuSample = client.receive_json().await;
        assert!(second.uptime_ms > first.uptime_ms);

        drop(client);

        until(|| guest.server.registry().open_sockets().is_empty()).await;
    });
}

#[test]
fn processes_are_listed() {
    with_guest(async |guest: Guest| {
        let Reply::Processes { processes } = guest.ask(1, Request::Processes).await else {
            panic!("no processes")
        };
        let own_pid = std::process::id().cast_signed();
        assert!(processes.iter().any(|process| process.pid == own_pid));
    });
}

#[test]
fn a_power_off_is_acknowledged_and_requested() {
    with_guest(async |guest: Guest| {
        let request = Request::PowerOff {
            signal: 15,
            timeout_ms: 500,
        };
        assert_eq!(guest.ask(1, request).await, Reply::Done);
        let request = guest.server.power_off_requests().next().await;
        assert_eq!((request.signal, request.timeout.as_millis()), (15, 500));
    });
}

proptest! {
    #[test]
    fn arbitrary_json_never_panics(json in ".{0,200}") {
        let _any = read_call(&Message::Json(json.into_bytes()));
    }

    #[test]
    fn a_call_cut_short_is_invalid(length in 0..60usize) {
        let json = br#"{"version":1,"generation":1,"request":{"type":"processes"}}"#;
        let whole = length >= json.len();
        let call = read_call(&Message::Json(json[..length.min(json.len())].to_vec()));
        prop_assert_eq!(call.is_ok(), whole);
    }
}
