//! A guest that takes from its supervisor whatever it can get: output, console and samples without a pause,
//! answers without an end, and none at all where somebody waits for one.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use guest_protocol::{
    CpuSample, Exit, FileKind, Frame, MAX_PAYLOAD_BYTES, OutputRecord, OutputSource, Refusal,
    RefusalKind, Reply, Request, StreamEnd,
};

use crate::connection::Connection;

/// Bytes of the console that nobody has read, at which a VMM drops more.
const UNREAD_BYTES: u64 = 64 << 20;

/// Prints short lines to the console for ever.
pub(crate) fn flood_console(path: PathBuf) {
    thread::spawn(move || {
        let mut console = OpenOptions::new().append(true).open(path).unwrap();
        let lines = "all work and no play\n".repeat(3_000);
        loop {
            let unread = console.metadata().map_or(0, |file| file.blocks() * 512);
            if unread >= UNREAD_BYTES {
                thread::park_timeout(Duration::from_millis(1));
            } else if console.write_all(lines.as_bytes()).is_err() {
                return;
            }
        }
    });
}

/// Answers a request, unless that needs no hostility: then it is returned.
pub(crate) fn answer(connection: &mut Connection, request: Request) -> Option<Request> {
    match request {
        Request::CpuUsage { .. } => {
            connection.send(&Reply::Streaming);
            while connection.send(&sample()) {}
        }
        Request::Output { from_sequence } => {
            connection.send(&Reply::Streaming);
            let mut records = from_sequence..;
            while connection.send(&record(records.next()?)) {}
        }
        Request::Exec { ref exec, .. } => match exec.argv[0].as_str() {
            "flip" => {
                static FAILS: AtomicBool = AtomicBool::new(false);
                connection.send(&Reply::Streaming);
                connection.send_stdout(&"\x1b[31m".repeat(1_000));
                let fails = FAILS.fetch_xor(true, Ordering::SeqCst);
                connection.send(&StreamEnd::Exited(Exit {
                    code: Some(fails.into()),
                    ..Exit::default()
                }));
            }
            "endless" => {
                connection.send(&Reply::Streaming);
                // A large frame first, so that as many small ones as possible are read at once.
                connection.send_stdout(&"x".repeat(MAX_PAYLOAD_BYTES));
                send_without_end(connection, &[0; 10_000]);
            }
            "huge" => {
                connection.send(&Reply::Streaming);
                send_without_end(connection, &[MAX_PAYLOAD_BYTES]);
            }
            _ => wait_for_end(connection),
        },
        Request::ReadFile { .. } => {
            connection.send(&Reply::Streaming);
            let (size_bytes, mode) = (1, 0o644);
            connection.send(&FileKind { size_bytes, mode });
            while connection.send_piece(&[b'x'; 256 << 10]) {}
        }
        Request::Forward { .. } => {
            connection.send(&Reply::Streaming);
            while connection.stream.write_all(&[b'x'; 64 << 10]).is_ok() {}
        }
        Request::Processes => {
            connection.send(&Reply::Refused(Refusal {
                kind: RefusalKind::Failed,
                message: "no ".repeat(100_000),
            }));
        }
        other => return Some(other),
    }
    None
}

/// Sends output in frames of those lengths, again and again.
fn send_without_end(connection: &mut Connection, lengths: &[usize]) {
    let mut bytes = Vec::new();
    for length in lengths {
        guest_protocol::encode(Frame::Stdout(&vec![b'x'; *length]), &mut bytes).unwrap();
    }
    while connection.stream.write_all(&bytes).is_ok() {}
}

/// Answers nothing for as long as somebody waits.
fn wait_for_end(connection: &mut Connection) {
    while matches!(connection.stream.read(&mut [0; 4_096]), Ok(1..)) {}
}

fn sample() -> CpuSample {
    CpuSample {
        uptime_ms: u64::MAX,
        busy_ms: u64::MAX,
        idle_ms: 0,
        load: [f32::MAX; 3],
        memory_total_kib: 0,
        memory_available_kib: u64::MAX,
    }
}

fn record(sequence: u64) -> OutputRecord {
    OutputRecord {
        sequence,
        realtime_ns: u64::MAX,
        source: OutputSource::Stderr,
        text: "Jack is a dull boy".to_owned(),
    }
}
