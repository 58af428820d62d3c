//! Further processes: streams, ends, deadlines, terminals.

use super::*;

#[test]
fn both_outputs_and_the_exit_code_arrive() {
    with_guest(async |guest: Guest| {
        let mut client = guest.start(exec("echo out; echo err >&2; exit 7")).await;
        let (stdout, stderr, end) = client.collect().await;
        assert_eq!((stdout.as_str(), stderr.as_str()), ("out\n", "err\n"));
        assert_eq!(end, exited(7));
    });
}

#[test]
fn input_reaches_the_process_and_its_end_too() {
    with_guest(async |guest: Guest| {
        let mut client = guest.start(exec("wc -c")).await;
        for _ in 0..3 {
            client.send(Frame::Stdin(&[b'x'; 300_000])).await;
        }
        client.send(Frame::Stdin(b"")).await;
        let (stdout, _, end) = client.collect().await;
        assert_eq!((stdout.as_str(), end), ("900000\n", exited(0)));
    });
}

#[test]
fn a_process_that_reads_no_input_still_ends() {
    with_guest(async |guest: Guest| {
        let mut client = guest.start(exec("exec <&-; read x; exit 3")).await;
        client.send(Frame::Stdin(&[b'x'; 200_000])).await;
        assert_eq!(client.collect().await.2, exited(3));
    });
}

#[test]
fn the_signal_that_ended_a_process_is_reported() {
    with_guest(async |guest: Guest| {
        let mut client = guest.start(exec("kill -TERM $$")).await;
        assert_eq!(client.collect().await.2, killed(15, false));
        let mut client = guest.start(exec("kill -40 $$")).await;
        assert_eq!(client.collect().await.2, killed(40, false));
    });
}

#[test]
fn a_timeout_kills_the_whole_group() {
    with_guest(async |guest: Guest| {
        let request = Request::Exec {
            exec: shell("sleep 1000 & echo $!; wait"),
            timeout_ms: 300,
        };
        let mut client = guest.start(request).await;
        let (stdout, _, end) = client.collect().await;
        assert_eq!(end, killed(9, true));
        until(|| !is_running(stdout.trim())).await;
    });
}

#[test]
fn a_lost_connection_kills_the_whole_group() {
    with_guest(async |guest: Guest| {
        let script = "sleep 1000 & echo $!; wait";
        let mut client = guest.start(exec(script)).await;
        let Received::Stdout(pid) = client.receive().await else {
            panic!("no pid")
        };
        let pid = String::from_utf8(pid).unwrap();
        assert!(is_running(pid.trim()));

        drop(client);

        until(|| !is_running(pid.trim())).await;
        until(|| guest.server.registry().open_sockets().is_empty()).await;
    });
}

#[test]
fn a_lost_connection_is_noticed_behind_input_that_nobody_reads() {
    with_guest(async |guest: Guest| {
        let mut client = guest.start(exec("echo $$; exec sleep 1000")).await;
        let Received::Stdout(pid) = client.receive().await else {
            panic!("no pid")
        };
        let pid = String::from_utf8(pid).unwrap();
        let block = vec![b'x'; 500_000];
        let stuck = client.send(Frame::Stdin(&block));
        let _still = tokio::time::timeout(Duration::from_millis(100), stuck).await;

        drop(client);

        until(|| !is_running(pid.trim())).await;
    });
}

#[test]
fn processes_left_running_do_not_delay_the_end_of_their_parent() {
    with_guest(async |guest: Guest| {
        let mut client = guest.start(exec("sleep 1000 & echo $!")).await;
        let (stdout, _, end) = client.collect().await;
        assert_eq!(end, exited(0));
        let pid = stdout.trim().parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL).unwrap();
    });
}

#[test]
fn environment_and_directory_are_those_of_the_request() {
    with_guest(async |guest: Guest| {
        let mut spec = shell("echo $GREETING; pwd; echo $HOME; env | wc -l");
        spec.env.insert("GREETING".into(), "hello".into());
        spec.cwd = Some("/usr".into());
        let request = Request::Exec {
            exec: spec,
            timeout_ms: 0,
        };
        let (stdout, _, _) = guest.start(request).await.collect().await;
        assert!(stdout.starts_with("hello\n/usr\n/root\n"), "{stdout}");
    });
}

#[test]
fn programs_and_directories_that_do_not_exist_are_not_found() {
    with_guest(async |guest: Guest| {
        let mut nowhere = shell("true");
        nowhere.cwd = Some("/nowhere".into());
        let unknown = ExecSpec {
            argv: vec!["no-such-program".into()],
            ..ExecSpec::default()
        };
        let cases = [
            (nowhere, RefusalKind::NotFound),
            (unknown, RefusalKind::NotFound),
            (ExecSpec::default(), RefusalKind::Invalid),
        ];
        for (exec, kind) in cases {
            let timeout_ms = 0;
            let reply = guest.ask(1, Request::Exec { exec, timeout_ms }).await;
            assert_eq!(kind_of(&reply), Some(kind), "{reply:?}");
        }
    });
}

#[test]
fn a_terminal_controls_its_process_and_changes_its_size() {
    with_guest(async |guest: Guest| {
        let script = "tty >/dev/null && stty size; echo first; read x; stty size; \
                      echo tty >/dev/tty; read y; echo end=$?";
        let mut spec = shell(script);
        spec.terminal = Some(TerminalSize {
            columns: 80,
            rows: 24,
        });
        let mut client = guest
            .start(Request::Exec {
                exec: spec,
                timeout_ms: 0,
            })
            .await;
        client
            .send_json(&TerminalSize {
                columns: 100,
                rows: 30,
            })
            .await;
        client.send(Frame::Stdin(b"\n")).await;
        client.send(Frame::Stdin(b"")).await;
        let (stdout, stderr, end) = client.collect().await;
        assert!(stdout.contains("first"), "{stdout}");
        assert!(stdout.contains("30 100\r\n"), "{stdout}");
        assert!(stdout.contains("tty\r\n"), "{stdout}");
        assert!(stdout.contains("end=1\r\n"), "{stdout}");
        assert_eq!((stderr.as_str(), end), ("", exited(0)));
    });
}

#[test]
fn a_hundred_at_once_each_get_their_own_end() {
    with_guest(async |guest: Guest| {
        let mut clients = Vec::new();
        for code in 0..100 {
            clients.push((code, guest.start(exec(&format!("exit {code}"))).await));
        }
        for (code, mut client) in clients {
            assert_eq!(client.collect().await.2, exited(code));
        }
    });
}
