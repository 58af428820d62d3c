//! The main process: launch, output, end.

use super::*;

async fn records(guest: &Guest, from_sequence: u64) -> (Vec<OutputRecord>, StreamEnd) {
    let mut client = guest.start(Request::Output { from_sequence }).await;
    let mut records = Vec::new();
    loop {
        let Received::Json(json) = client.receive().await else {
            panic!("no output")
        };
        match serde_json::from_slice(&json) {
            Ok(record) => records.push(record),
            Err(_) => return (records, serde_json::from_slice(&json).unwrap()),
        }
    }
}

#[test]
fn launching_the_same_twice_is_one_launch_and_another_is_a_conflict() {
    with_guest(async |guest: Guest| {
        let script = "read forever; exec sleep 1000";
        assert_eq!(guest.ask(1, launch(script)).await, Reply::Done);
        let pid = guest.status(1).await.main.pid;
        assert_eq!(guest.ask(1, launch(script)).await, Reply::Done);

        let other = guest.ask(1, launch("true")).await;

        assert_eq!(kind_of(&other), Some(RefusalKind::Conflict));
        assert_eq!(guest.status(1).await.main.pid, pid);
        assert_eq!(
            guest.ask(1, Request::Signal { signal: 9 }).await,
            Reply::Done
        );
        guest.server.main().ended().await;
    });
}

#[test]
fn disks_are_mounted_before_it_starts() {
    with_guest(async |guest: Guest| {
        let request = Request::Launch {
            main: shell("true"),
            mounts: vec![("/dev/null".into(), "/data".into(), true)],
            files: Vec::new(),
            hostname: "web".into(),
        };
        assert_eq!(guest.ask(1, request).await, Reply::Done);
        assert_eq!(
            *guest.kernel_calls.borrow(),
            ["hostname web", "mount /dev/null /data true"]
        );
        guest.server.main().ended().await;
    });
}

#[test]
fn files_are_written_before_it_starts() {
    with_guest(async |guest: Guest| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("etc/motd").to_str().unwrap().to_owned();
        let file = |content: &str| LaunchFile {
            path: path.clone(),
            mode: 0o600,
            content: content.into(),
        };
        let request = |content| Request::Launch {
            main: shell(&format!("cat {path}")),
            mounts: Vec::new(),
            files: vec![file(content)],
            hostname: "web".into(),
        };
        let refused = guest.ask(1, request("no base64")).await;
        assert_eq!(kind_of(&refused), Some(RefusalKind::Invalid));

        assert_eq!(guest.ask(1, request("aGVsbG8=")).await, Reply::Done);

        guest.server.main().ended().await;
        let (records, _) = records(&guest, 0).await;
        assert_eq!(records[0].text, "hello");
    });
}

#[test]
fn its_output_is_buffered_and_reported_with_its_end() {
    with_guest(async |guest: Guest| {
        guest
            .ask(1, launch("echo one; echo two >&2; printf three; exit 4"))
            .await;
        guest.server.main().ended().await;

        let (records, end) = records(&guest, 0).await;

        let mut lines: Vec<_> = records
            .iter()
            .map(|record| (record.source, record.text.as_str()))
            .collect();
        lines.sort_by_key(|(_, text)| *text);
        let expected = [
            (OutputSource::Stdout, "one"),
            (OutputSource::Stdout, "three"),
            (OutputSource::Stderr, "two"),
        ];
        assert_eq!(lines, expected);
        assert_eq!(end, exited(4));
        guest.server.main().end_reported().await;
        let status = guest.status(1).await.main;
        assert_eq!(status.state, MainProcessState::Exited);
        assert_eq!(
            (status.exit.and_then(|exit| exit.code), status.pid),
            (Some(4), None)
        );
    });
}

#[test]
fn a_reader_gets_buffered_records_and_then_new_ones() {
    with_guest(async |guest: Guest| {
        let directory = tempfile::tempdir().unwrap();
        let go_on = directory.path().join("go-on");
        let script = format!(
            "echo a; echo b; until test -e {0}; do sleep 0.01; done; echo c",
            go_on.display()
        );
        guest.ask(1, launch(&script)).await;
        until(|| guest.server.main().output().next_sequence() == 2).await;
        let mut client = guest.start(Request::Output { from_sequence: 1 }).await;
        let buffered: OutputRecord = client.receive_json().await;
        std::fs::write(&go_on, "").unwrap();
        let live: OutputRecord = client.receive_json().await;
        let end: StreamEnd = client.receive_json().await;

        assert_eq!((buffered.sequence, buffered.text.as_str()), (1, "b"));
        assert_eq!((live.sequence, live.text.as_str()), (2, "c"));
        assert_eq!(end, exited(0));
    });
}

#[test]
fn without_one_there_is_nothing_to_signal() {
    with_guest(async |guest: Guest| {
        let reply = guest.ask(1, Request::Signal { signal: 15 }).await;
        assert_eq!(kind_of(&reply), Some(RefusalKind::NotFound));
        assert_eq!(guest.status(1).await.main.state, MainProcessState::Absent);
    });
}

#[test]
fn it_is_killed_when_its_timeout_passes_or_a_newer_request_shortens_it() {
    with_guest(async |guest: Guest| {
        let stubborn = "trap '' TERM; echo ready; while :; do sleep 0.01; done";
        guest.ask(1, launch(stubborn)).await;
        until(|| guest.server.main().output().next_sequence() == 1).await;
        let patient = PowerOffRequest {
            signal: 15,
            timeout: Duration::from_secs(3600),
        };
        let impatient = Request::PowerOff {
            signal: 15,
            timeout_ms: 1,
        };

        let server = &guest.server;
        let requests = server.power_off_requests();
        let ending = shutdown::end_main_process(server.main(), requests, patient);
        let (reply, ()) = tokio::join!(guest.ask(1, impatient), ending);

        assert_eq!(reply, Reply::Done);
        let exit = guest.server.main().exit().unwrap();
        assert_eq!(exit.signal, Some(9));
    });
}
