//! A connection to the control socket: the greeting, requests, and suspends.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vmm_control::{
    ConnectionCounts, Event, ExitReason, Hello, Message, Phase, Reply, Request, RequestBody,
    RunState, SuspendFigures, VsockCounters,
};

use crate::image;
use crate::vmm::{Vmm, now_ns};

/// Time that a slow suspend takes.
const SLOW: Duration = Duration::from_secs(20);

/// Serves one connection.
pub(crate) fn serve(vmm: &Arc<Vmm>, stream: &UnixStream) {
    let writer = Arc::new(Mutex::new(stream.try_clone().unwrap()));
    let acknowledged_ns = vmm.resumed.then(now_ns);
    let hello = Message::Hello(Hello {
        version: vmm_control::VERSION,
        machine_id: vmm.machine_id.clone(),
        generation: vmm.generation,
        pid: std::process::id(),
        state: RunState::Running,
        phases: vmm.phases.clone(),
        reset_acknowledged_ns: acknowledged_ns,
        consumption_durable: vmm.is_consumption_durable(),
    });
    send(&writer, &hello);
    if !vmm.is_consumption_durable() {
        let (vmm, writer) = (vmm.clone(), writer.clone());
        thread::spawn(move || {
            while !vmm.is_consumption_durable() {
                thread::park_timeout(Duration::from_millis(5));
            }
            let (at_ns, event) = (now_ns(), Event::ConsumptionDurable);
            send(&writer, &Message::Event { at_ns, event });
        });
    }
    if let Some(at_ns) = acknowledged_ns {
        let event = Event::ResetAcknowledged;
        send(&writer, &Message::Event { at_ns, event });
    }
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let Ok(Request { id, body }) = serde_json::from_str(&line) else {
            return;
        };
        // Each request has a thread of its own. So that they take effect in their order, this is set
        // before the next one is read.
        if matches!(body, RequestBody::Suspend { .. }) && vmm.behaves("slow-suspend") {
            vmm.saving.store(true, Ordering::SeqCst);
        }
        let (vmm, writer) = (vmm.clone(), writer.clone());
        thread::spawn(move || {
            let reply = reply(&vmm, body);
            let suspended = matches!(reply, Reply::Suspended(_));
            send(&writer, &Message::Reply { id, reply });
            if suspended {
                vmm.end(ExitReason::Suspended, "suspended");
            }
        });
    }
}

/// Sends a message as a line. The other end may be gone.
fn send(writer: &Mutex<UnixStream>, message: &Message) {
    let mut line = serde_json::to_vec(message).unwrap();
    line.push(b'\n');
    let _ = writer.lock().unwrap().write_all(&line);
}

fn reply(vmm: &Vmm, body: RequestBody) -> Reply {
    match body {
        RequestBody::Suspend { image } => suspend(vmm, &image),
        RequestBody::CancelSuspend => {
            vmm.cancelled.store(true, Ordering::SeqCst);
            while vmm.saving.load(Ordering::SeqCst) {
                thread::park_timeout(Duration::from_millis(1));
            }
            vmm.cancelled.store(false, Ordering::SeqCst);
            Reply::Done
        }
        RequestBody::Counters => Reply::Counters(VsockCounters {
            port_policy: "random".to_owned(),
            connections: Some(ConnectionCounts {
                established: 3,
                ..ConnectionCounts::default()
            }),
            ..VsockCounters::default()
        }),
        RequestBody::Pause | RequestBody::Unpause | RequestBody::Quit => Reply::Done,
    }
}

fn failed(kind: &str, message: &str) -> Reply {
    Reply::Failed {
        kind: kind.into(),
        message: message.into(),
    }
}

fn suspend(vmm: &Vmm, image: &Path) -> Reply {
    if vmm.behaves("fail-suspend") {
        return failed("no_space", "no space left for the image");
    }
    let start_ns = now_ns();
    if vmm.behaves("slow-suspend")
        && let Some(failure) = save_slowly(vmm)
    {
        return failure;
    }
    let mut guest = vmm.guest.lock().unwrap();
    guest.generation = vmm.generation;
    guest.machine_id.clone_from(&vmm.machine_id);
    if let Err(error) = image::save(&guest, image) {
        return match error.kind() {
            io::ErrorKind::StorageFull => failed("no_space", "no space left for the image"),
            _ => failed("io", &format!("cannot write the image: {error}")),
        };
    }
    Reply::Suspended(SuspendFigures {
        phases: vec![Phase {
            name: "memory_write".to_owned(),
            start_ns,
            end_ns: now_ns(),
        }],
        memory_bytes_written: 4096,
        image_bytes_written: 8192,
        image_bytes_allocated: 8192,
        pages_changed: 1,
        dirty_source: "content".to_owned(),
    })
}

/// Waits as long as a slow suspend takes, or until it is cancelled. Returns the reply if the
/// cancellation makes the suspend fail.
fn save_slowly(vmm: &Vmm) -> Option<Reply> {
    let deadline = Instant::now() + SLOW;
    while Instant::now() < deadline {
        if vmm.cancelled.swap(false, Ordering::SeqCst) {
            vmm.saving.store(false, Ordering::SeqCst);
            if vmm.behaves("commit-late") {
                return None;
            }
            if vmm.behaves("fail-cancel") {
                return Some(failed("io", "the image broke during the cancellation"));
            }
            return Some(failed("cancelled", "the suspend was cancelled"));
        }
        thread::park_timeout(Duration::from_millis(5));
    }
    None
}
