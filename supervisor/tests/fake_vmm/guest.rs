//! A connection to the guest: the answers of guest-init.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use guest_protocol::{
    Call, CpuSample, Exit, FileKind, GuestResources, GuestStatus, InitUsage, ListeningSocket,
    MainProcess, MainProcessState, OpenVsocks, OutputRecord, OutputSource, ProcessEntry, Refusal,
    RefusalKind, Reply, Request, StreamEnd,
};
use vmm_control::ExitReason;

use crate::connection::Connection;
use crate::hostile;
use crate::vmm::Vmm;

const SIGINT: i32 = 2;

/// Serves one connection, from the handshake of the host socket on.
pub(crate) fn serve(vmm: &Vmm, mut stream: UnixStream) {
    let mut byte = [0];
    while byte[0] != b'\n' {
        if stream.read_exact(&mut byte).is_err() {
            return;
        }
    }
    let port = vmm.next_port.fetch_add(1, Ordering::SeqCst);
    let left = vmm.refusals_left.load(Ordering::SeqCst);
    if left > 0 {
        vmm.refusals_left.store(left - 1, Ordering::SeqCst);
        let _ = writeln!(stream, "RST {port}");
        return;
    }
    if vmm.is_deaf() {
        let _ = stream.read(&mut byte);
        return;
    }
    // A guest is paused while it is saved.
    while vmm.saving.load(Ordering::SeqCst) {
        thread::park_timeout(Duration::from_millis(1));
    }
    let _ = writeln!(stream, "OK {port}");
    let mut connection = Connection::new(stream);
    let Some(payload) = connection.next_json() else {
        return;
    };
    let call: Call = serde_json::from_slice(&payload).expect("a call");
    let protocol = vmm.guest_protocol();
    if !(protocol.saturating_sub(1)..=protocol).contains(&call.version) {
        connection.send(&Reply::Refused(Refusal {
            kind: RefusalKind::Version,
            message: format!("the call is of version {}", call.version),
        }));
        return;
    }
    let request = if vmm.behaves("hostile") {
        hostile::answer(&mut connection, call.request)
    } else {
        Some(call.request)
    };
    if let Some(request) = request {
        answer(vmm, &mut connection, request);
    }
}

fn answer(vmm: &Vmm, connection: &mut Connection, request: Request) {
    match request {
        Request::Status => {
            connection.send(&Reply::Status(status(vmm)));
        }
        Request::Launch { main, files, .. } => {
            for file in files {
                let content = guest_protocol::base64::decode(&file.content).unwrap();
                let mut files = vmm.files.lock().unwrap();
                files.insert(file.path, (file.mode, content));
            }
            let mut state = vmm.guest.lock().unwrap();
            // A new supervisor repeats the request; the main process runs already.
            if state.launched.as_ref() != Some(&main.argv) {
                state.lines.push(format!("{} was started", main.argv[0]));
                state.launched = Some(main.argv);
            }
            drop(state);
            connection.send(&Reply::Done);
        }
        Request::CpuUsage { interval_ms } => {
            connection.send(&Reply::Streaming);
            let begun = Instant::now();
            while connection.send(&CpuSample {
                uptime_ms: u64::try_from(begun.elapsed().as_millis()).unwrap(),
                busy_ms: 1,
                idle_ms: 1,
                load: [0.0; 3],
                memory_total_kib: 1,
                memory_available_kib: 1,
            }) {
                thread::park_timeout(Duration::from_millis(interval_ms.into()));
            }
        }
        Request::Output { from_sequence } => output(vmm, connection, from_sequence),
        Request::Exec { exec, .. } => {
            connection.send(&Reply::Streaming);
            connection.send_stdout(&exec.argv.join(" "));
            if exec.argv[0] == "say" {
                vmm.guest.lock().unwrap().lines.push(exec.argv[1].clone());
            }
            let exit = Exit {
                code: Some(3),
                ..Exit::default()
            };
            connection.send(&StreamEnd::Exited(exit));
            if exec.argv[0] == "poweroff" {
                vmm.end(ExitReason::GuestPowerOff, "the guest powered off");
            }
        }
        Request::PowerOff { signal, .. } => {
            connection.send(&Reply::Done);
            // SIGINT is the default signal.
            if !(vmm.behaves("stubborn") && signal == SIGINT) {
                let message = format!("the guest powered off on signal {signal}");
                vmm.end(ExitReason::GuestPowerOff, &message);
            }
        }
        Request::Forward { .. } => {
            connection.send(&Reply::Streaming);
            let _ = connection.stream.write_all(&connection.buffer);
            let mut reader = connection.stream.try_clone().unwrap();
            let _ = std::io::copy(&mut reader, &mut connection.stream);
            let _ = connection.stream.shutdown(std::net::Shutdown::Write);
        }
        Request::Processes => {
            connection.send(&Reply::Processes {
                processes: vec![process()],
            });
        }
        Request::Resources => {
            connection.send(&resources(vmm));
        }
        Request::Signal { .. } => {
            connection.send(&Reply::Done);
        }
        Request::WriteFile { path, mode } => {
            connection.send(&Reply::Streaming);
            let Some(content) = connection.receive_data() else {
                return;
            };
            let bytes = content.len() as u64;
            vmm.files.lock().unwrap().insert(path, (mode, content));
            connection.send(&StreamEnd::Complete { bytes });
        }
        Request::ReadFile { path } => {
            let file = vmm.files.lock().unwrap().get(&path).cloned();
            let Some((mode, content)) = file else {
                connection.send(&Reply::Refused(Refusal {
                    kind: RefusalKind::NotFound,
                    message: format!("no file {path}"),
                }));
                return;
            };
            let size_bytes = content.len() as u64;
            connection.send(&Reply::Streaming);
            connection.send(&FileKind { size_bytes, mode });
            connection.send_data(&content);
            connection.send(&StreamEnd::Complete { bytes: size_bytes });
        }
    }
}

fn resources(vmm: &Vmm) -> Reply {
    if vmm.behaves("old-init") {
        return Reply::Refused(Refusal {
            kind: RefusalKind::Invalid,
            message: "unknown variant `resources`".to_owned(),
        });
    }
    let state = if vmm.behaves("inventive") {
        "<script>"
    } else {
        "established"
    };
    Reply::Resources(GuestResources {
        init: InitUsage {
            descriptors: Some(11),
            ..InitUsage::default()
        },
        tasks: Some(70),
        vsocks: Some(BTreeMap::from([(state.to_owned(), 2)])),
    })
}

fn process() -> ProcessEntry {
    ProcessEntry {
        pid: 1,
        parent_pid: 0,
        command: "/init".to_owned(),
        state: "S".to_owned(),
        cpu_ms: 2_000,
        rss_kib: 3,
        directory: "/srv".to_owned(),
        started_at_s: 1_800_000_000,
        running_s: 7,
        listening: vec![ListeningSocket {
            protocol: "tcp".to_owned(),
            address: "[::]:80".to_owned(),
        }],
    }
}

fn output(vmm: &Vmm, connection: &mut Connection, from_sequence: u64) {
    connection.send(&Reply::Streaming);
    let mut sequence = from_sequence;
    loop {
        let lines = vmm.guest.lock().unwrap().lines.clone();
        let wanted = usize::try_from(sequence).unwrap_or(usize::MAX);
        for text in lines.into_iter().skip(wanted) {
            let source = OutputSource::Stdout;
            let record = OutputRecord {
                sequence,
                realtime_ns: 1,
                source,
                text,
            };
            if !connection.send(&record) {
                return;
            }
            sequence += 1;
        }
        thread::park_timeout(Duration::from_millis(20));
    }
}

fn status(vmm: &Vmm) -> GuestStatus {
    let guest = vmm.guest.lock().unwrap();
    let launched = guest.launched.is_some();
    GuestStatus {
        boot_id: guest.boot_id.clone(),
        generation: vmm.generation,
        protocol: vmm.guest_protocol(),
        init_version: "fake".to_owned(),
        uptime_ms: 1,
        realtime_ns: 1,
        clock_step_ms: None,
        open_vsocks: OpenVsocks {
            source: "init".to_owned(),
            ..OpenVsocks::default()
        },
        main: MainProcess {
            state: if launched {
                MainProcessState::Running
            } else {
                MainProcessState::Absent
            },
            pid: None,
            exit: None,
            next_output_sequence: guest.lines.len() as u64,
        },
    }
}
