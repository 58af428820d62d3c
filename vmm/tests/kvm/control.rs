//! The control socket: greeting, events, several clients, and clients that misbehave.

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};

use crate::harness::{COUNT, Control, HELLO, Host, dot_and_halt, failure, vmm_command};
use rustix::process::{Pid, Signal, kill_process};
use vmm_control::{Event, ExitReason, Message, Reply, RequestBody, RunState, exit_code};

pub(crate) fn every_client_gets_a_report_of_the_end() {
    let host = Host::with_guest(COUNT);
    let vmm = host.boot();
    let mut first = vmm.control();
    let mut second = vmm.control();
    assert_eq!(first.request(RequestBody::Quit), Reply::Done);
    let ending = |control: &mut Control| {
        std::iter::from_fn(|| control.message())
            .find_map(|message| match message {
                Message::Event {
                    event: Event::Exiting(report),
                    ..
                } => Some(report.reason),
                _ => None,
            })
            .unwrap()
    };
    assert_eq!(ending(&mut first), ExitReason::Quit);
    assert_eq!(ending(&mut second), ExitReason::Quit);
    let (status, _) = vmm.wait();
    assert_eq!(status.code(), Some(exit_code::SUCCESS));
}

pub(crate) fn a_greeting_has_state_and_phases() {
    let host = Host::with_guest(COUNT);
    let vmm = host.boot();
    vmm.wait_for_console('.', 1);
    let mut stream = UnixStream::connect(host.path("control")).unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(&mut stream), &mut line).unwrap();
    let Message::Hello(hello) = serde_json::from_str(&line).unwrap() else {
        panic!("{line}");
    };
    assert_eq!(hello.state, RunState::Running);
    assert_eq!(hello.pid, vmm.pid());
    let names: Vec<&str> = hello
        .phases
        .iter()
        .map(|phase| phase.name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "vmm_start",
            "memory_map",
            "kernel_load",
            "kvm_setup",
            "first_entry"
        ]
    );
    assert!(
        hello
            .phases
            .windows(2)
            .all(|pair| pair[0].end_ns == pair[1].start_ns)
    );
}

pub(crate) fn clients_that_misbehave_lose_their_connection_and_nothing_else() {
    let host = Host::with_guest(&dot_and_halt());
    let vmm = host.boot();
    let mut rude = vmm.control();
    rude.stream
        .write_all(b"{\"id\":9,\"request\":\"dance\"}\n")
        .unwrap();
    assert_eq!(failure(rude.reply(9)).0, "invalid");
    assert!(rude.message().is_none(), "the connection is closed");
    let mut endless = vmm.control();
    // Ends with a broken pipe sooner or later.
    while endless.stream.write_all(&[b'x'; 1 << 16]).is_ok() {}
    let crowd: Vec<_> = (0..40)
        .map(|_| UnixStream::connect(host.path("control")).unwrap())
        .collect();
    drop(crowd);
    assert!(matches!(
        vmm.control().request(RequestBody::Counters),
        Reply::Counters(_)
    ));
}

/// Boots a machine whose control socket is its standard input.
fn boot_with_inherited_socket(host: &Host) -> Command {
    let mut command = vmm_command();
    command
        .args(["boot", "--machine-id", "m1", "--generation", "1"])
        .args(["--vcpus", "1", "--memory-mib", "64", "--control-fd", "0"])
        .arg("--kernel")
        .arg(host.path("kernel"));
    command
}

pub(crate) fn a_supervisor_may_pass_the_listener_as_standard_input() {
    let host = Host::with_guest(COUNT);
    let path = host.path("passed");
    let listener = UnixListener::bind(&path).unwrap();
    let mut child = boot_with_inherited_socket(&host)
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut control = Control::connect(UnixStream::connect(&path).unwrap()).unwrap();
    assert_eq!(control.request(RequestBody::Quit), Reply::Done);
    assert!(child.wait().unwrap().success());
}

pub(crate) fn standard_input_that_is_no_listener_is_refused() {
    let host = Host::with_guest(HELLO);
    let output = boot_with_inherited_socket(&host)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(exit_code::HOST_REFUSED));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--control-fd 0"));
}

pub(crate) fn all_threads_are_confined_and_a_signal_ends_the_machine_in_order() {
    let host = Host::with_guest(COUNT);
    let vmm = host.boot_with("2", "64");
    vmm.wait_for_console('.', 1);
    assert!(matches!(
        vmm.control().request(RequestBody::Counters),
        Reply::Counters(_)
    ));
    let tasks = std::fs::read_dir(format!("/proc/{}/task", vmm.pid())).unwrap();
    let confined = |task: std::io::Result<std::fs::DirEntry>| {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        status.contains("Seccomp:\t2")
    };
    assert!(tasks.into_iter().all(confined));
    let pid = Pid::from_raw(vmm.pid().cast_signed()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let (status, report) = vmm.wait();
    assert_eq!(report.reason, ExitReason::Quit);
    assert_eq!(status.code(), Some(exit_code::SUCCESS));
}
