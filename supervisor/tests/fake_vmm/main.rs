//! A VMM without a machine: takes mctl-vmm's command line, speaks its control protocol, and is
//! its own guest-init behind the vsock socket. For tests of the whole supervisor.
//!
//! The guest's state (boot id, counter) lives in the image, so that a resume can be told from a
//! boot. What it should do wrong it is told by words in the kernel's command line, which a boot
//! gets and an image keeps: `fail-suspend`, `slow-suspend` (and with it `break-badly` or `commit-late`),
//! `refuse-image`, `rst=N`, `deaf`, `stubborn` (its main process does not end for SIGINT).

#![expect(clippy::unwrap_used, reason = "a double for tests: it may fail loudly")]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use guest_protocol::{
    Call, CpuSample, Decoded, Exit, FileKind, Frame, GuestStatus, ListeningSocket, MainProcess,
    MainProcessState, OpenVsocks, OutputRecord, OutputSource, ProcessEntry, Refusal, RefusalKind,
    Reply as GuestReply, Request as GuestRequest, StreamEnd,
};
use serde::{Deserialize, Serialize};
use vmm_control::{
    Event, ExitReason, ExitReport, Hello, Message, Phase, Reply, Request, RequestBody, RunState,
    SuspendFigures, VsockCounters,
};

/// What the image keeps of the guest.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
struct Guest {
    boot_id: String,
    behaviour: String,
    launched: Option<Vec<String>>,
    lines: Vec<String>,
    generation: u64,
}

struct Vmm {
    machine_id: String,
    generation: u64,
    exit_file: PathBuf,
    guest: Mutex<Guest>,
    /// By path: permission bits and content. Not part of the image.
    files: Mutex<HashMap<String, (u32, Vec<u8>)>>,
    resumed: bool,
    phases: Vec<Phase>,
    next_port: AtomicU32,
    refusals_left: AtomicU32,
    cancelled: AtomicBool,
    saving: AtomicBool,
}

fn now_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}

fn main() {
    let start_ns = now_ns();
    let mut words = std::env::args().skip(1);
    let verb = words.next().expect("boot or restore");
    let mut flags = HashMap::new();
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        flags.insert(name, value);
    }
    let flag = |name: &str| flags.get(name).cloned().unwrap_or_default();
    let generation: u64 = flag("--generation").parse().expect("a generation");
    let machine_id = flag("--machine-id");
    let exit_file = PathBuf::from(flag("--exit-file"));
    let guest = match verb.as_str() {
        "boot" => Guest {
            boot_id: format!("boot-{generation}"),
            behaviour: flag("--cmdline"),
            ..Guest::default()
        },
        _ => match restored(Path::new(&flag("--image")), &flag("--expect-generation")) {
            Ok(guest) => guest,
            Err(message) => {
                let report = ExitReport {
                    machine_id,
                    generation,
                    reason: ExitReason::ImageRefused,
                    message,
                };
                let _ = fs::write(exit_file, serde_json::to_vec(&report).unwrap());
                std::process::exit(vmm_control::exit_code::IMAGE_REFUSED);
            }
        },
    };
    let refusals = guest
        .behaviour
        .split(' ')
        .find_map(|word| word.strip_prefix("rst=")?.parse().ok())
        .unwrap_or(0);
    let socket = PathBuf::from(flag("--vsock-socket"));
    let host_side = UnixListener::bind(&socket).expect("the vsock socket");
    let mut console = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(flag("--console"));
    if let Ok(console) = &mut console {
        // A full disk does not keep a guest from running.
        let _ = writeln!(console, "generation {generation} runs");
    }
    let entered_ns = now_ns();
    let vmm = Arc::new(Vmm {
        machine_id,
        generation,
        exit_file,
        guest: Mutex::new(guest),
        files: Mutex::default(),
        resumed: verb == "restore",
        phases: vec![
            Phase {
                name: "vmm_start".to_owned(),
                start_ns,
                end_ns: start_ns + 1_000,
            },
            Phase {
                name: "first_entry".to_owned(),
                start_ns: start_ns + 1_000,
                end_ns: entered_ns,
            },
        ],
        next_port: AtomicU32::new(1 << 30),
        refusals_left: AtomicU32::new(refusals),
        cancelled: AtomicBool::new(false),
        saving: AtomicBool::new(false),
    });
    let listening = vmm.clone();
    thread::spawn(move || {
        for stream in host_side.incoming().flatten() {
            let vmm = listening.clone();
            thread::spawn(move || serve_guest(&vmm, stream));
        }
    });
    let stdin = std::io::stdin();
    let control = UnixListener::from(stdin.as_fd().try_clone_to_owned().expect("descriptor 0"));
    for stream in control.incoming().flatten() {
        let vmm = vmm.clone();
        thread::spawn(move || serve_control(&vmm, &stream));
    }
}

fn restored(image: &Path, expected: &str) -> Result<Guest, String> {
    let manifest = image.join("manifest.json");
    let text = fs::read(&manifest).map_err(|error| format!("image missing: {error}"))?;
    let guest: Guest = serde_json::from_slice(&text).map_err(|_| "checksum mismatch".to_owned())?;
    if guest.behaviour.contains("refuse-image") {
        return Err("checksum mismatch".to_owned());
    }
    if guest.generation.to_string() != expected {
        return Err(format!("generation {} is not {expected}", guest.generation));
    }
    fs::rename(&manifest, image.join("manifest.consumed")).map_err(|error| error.to_string())?;
    Ok(guest)
}

impl Vmm {
    fn end(&self, reason: ExitReason, message: &str) -> ! {
        let report = ExitReport {
            machine_id: self.machine_id.clone(),
            generation: self.generation,
            reason,
            message: message.to_owned(),
        };
        let part = self.exit_file.with_extension("part");
        // Where it can't be written, on a full disk, the end is seen all the same.
        let _ = fs::write(&part, serde_json::to_vec(&report).unwrap())
            .and_then(|()| fs::rename(part, &self.exit_file));
        std::process::exit(0);
    }

    fn behaves(&self, word: &str) -> bool {
        self.guest
            .lock()
            .unwrap()
            .behaviour
            .split(' ')
            .any(|one| one == word)
    }

    /// It answers nobody: from the beginning, or for as long as a file beside its sockets says.
    fn is_deaf(&self) -> bool {
        self.behaves("deaf") || self.exit_file.with_file_name("deaf").exists()
    }

    fn suspend(&self, image: &Path) -> Reply {
        let failed = |kind: &str, message: &str| Reply::Failed {
            kind: kind.into(),
            message: message.into(),
        };
        if self.behaves("fail-suspend") {
            return failed("no_space", "no space left for the image");
        }
        let start_ns = now_ns();
        if self.behaves("slow-suspend") {
            let deadline = Instant::now() + Duration::from_secs(20);
            while Instant::now() < deadline {
                if self.cancelled.swap(false, Ordering::SeqCst) {
                    self.saving.store(false, Ordering::SeqCst);
                    if self.behaves("commit-late") {
                        break;
                    }
                    if self.behaves("break-badly") {
                        return failed("io", "the image broke while it was broken off");
                    }
                    return failed("cancelled", "the suspend was cancelled");
                }
                thread::park_timeout(Duration::from_millis(5));
            }
        }
        let mut guest = self.guest.lock().unwrap();
        guest.generation = self.generation;
        let part = image.join("manifest.tmp");
        let written = fs::create_dir_all(image)
            .and_then(|()| fs::write(&part, serde_json::to_vec(&*guest).unwrap()))
            .and_then(|()| fs::rename(&part, image.join("manifest.json")));
        if let Err(error) = written {
            return match error.kind() {
                std::io::ErrorKind::StorageFull => {
                    failed("no_space", "no space left for the image")
                }
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
}

fn serve_control(vmm: &Arc<Vmm>, stream: &UnixStream) {
    let writer = Arc::new(Mutex::new(stream.try_clone().unwrap()));
    let say = |message: &Message| {
        let mut line = serde_json::to_vec(message).unwrap();
        line.push(b'\n');
        let _ = writer.lock().unwrap().write_all(&line);
    };
    let acknowledged = vmm.resumed.then(now_ns);
    say(&Message::Hello(Hello {
        version: vmm_control::VERSION,
        machine_id: vmm.machine_id.clone(),
        generation: vmm.generation,
        pid: std::process::id(),
        state: RunState::Running,
        phases: vmm.phases.clone(),
        reset_acknowledged_ns: acknowledged,
    }));
    if let Some(at_ns) = acknowledged {
        say(&Message::Event {
            at_ns,
            event: Event::ResetAcknowledged,
        });
    }
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let Ok(Request { id, body }) = serde_json::from_str(&line) else {
            return;
        };
        // Requests take effect in their order, though each is served by a thread of its own.
        if matches!(body, RequestBody::Suspend { .. }) && vmm.behaves("slow-suspend") {
            vmm.saving.store(true, Ordering::SeqCst);
        }
        let (vmm, writer) = (vmm.clone(), writer.clone());
        thread::spawn(move || {
            let reply = match body {
                RequestBody::Suspend { image } => vmm.suspend(&image),
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
                    ..VsockCounters::default()
                }),
                RequestBody::Pause | RequestBody::Unpause | RequestBody::Quit => Reply::Done,
            };
            let suspended = matches!(reply, Reply::Suspended(_));
            let mut line = serde_json::to_vec(&Message::Reply { id, reply }).unwrap();
            line.push(b'\n');
            let _ = writer.lock().unwrap().write_all(&line);
            if suspended {
                vmm.end(ExitReason::Suspended, "suspended");
            }
        });
    }
}

struct Conversation {
    stream: UnixStream,
    buffer: Vec<u8>,
}

impl Conversation {
    fn send(&mut self, message: &impl Serialize) -> bool {
        let mut bytes = Vec::new();
        let payload = serde_json::to_vec(message).unwrap();
        guest_protocol::encode(Frame::Json(&payload), &mut bytes).unwrap();
        self.stream.write_all(&bytes).is_ok()
    }

    fn send_stdout(&mut self, text: &str) {
        let mut bytes = Vec::new();
        guest_protocol::encode(Frame::Stdout(text.as_bytes()), &mut bytes).unwrap();
        let _ = self.stream.write_all(&bytes);
    }

    /// A file and its end.
    fn send_data(&mut self, content: &[u8]) {
        for piece in content.chunks(64 << 10).chain([&[][..]]) {
            let mut bytes = Vec::new();
            guest_protocol::encode(Frame::Data(piece), &mut bytes).unwrap();
            let _ = self.stream.write_all(&bytes);
        }
    }

    /// A file up to its end.
    fn receive_data(&mut self) -> Option<Vec<u8>> {
        let mut content = Vec::new();
        loop {
            if let Ok(Decoded::Frame(Frame::Data(piece), taken)) =
                guest_protocol::decode(&self.buffer)
            {
                let ended = piece.is_empty();
                content.extend_from_slice(piece);
                self.buffer.drain(..taken);
                if ended {
                    return Some(content);
                }
                continue;
            }
            self.read_more()?;
        }
    }

    fn read_more(&mut self) -> Option<()> {
        let mut chunk = [0; 4096];
        let read = self.stream.read(&mut chunk).ok().filter(|read| *read > 0)?;
        self.buffer.extend_from_slice(&chunk[..read]);
        Some(())
    }

    fn next_json(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Ok(Decoded::Frame(Frame::Json(payload), taken)) =
                guest_protocol::decode(&self.buffer)
            {
                let payload = payload.to_vec();
                self.buffer.drain(..taken);
                return Some(payload);
            }
            self.read_more()?;
        }
    }
}

fn serve_guest(vmm: &Arc<Vmm>, mut stream: UnixStream) {
    let mut byte = [0];
    while byte[0] != b'\n' {
        if stream.read_exact(&mut byte).is_err() {
            return;
        }
    }
    let port = vmm.next_port.fetch_add(1, Ordering::SeqCst);
    let left = vmm.refusals_left.load(Ordering::SeqCst);
    if vmm.resumed && left > 0 {
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
    let mut guest = Conversation {
        stream,
        buffer: Vec::new(),
    };
    let Some(payload) = guest.next_json() else {
        return;
    };
    let call: Call = serde_json::from_slice(&payload).expect("a call");
    answer(vmm, &mut guest, call.request);
}

fn answer(vmm: &Arc<Vmm>, guest: &mut Conversation, request: GuestRequest) {
    match request {
        GuestRequest::Status => {
            guest.send(&GuestReply::Status(status(vmm)));
        }
        GuestRequest::Launch { main, files, .. } => {
            for file in files {
                let content = guest_protocol::base64::decode(&file.content).unwrap();
                let mut known = vmm.files.lock().unwrap();
                known.insert(file.path, (file.mode, content));
            }
            let mut state = vmm.guest.lock().unwrap();
            // The same order again, from a new supervisor, finds it running.
            if state.launched.as_ref() != Some(&main.argv) {
                state.lines.push(format!("{} was started", main.argv[0]));
                state.launched = Some(main.argv);
            }
            drop(state);
            guest.send(&GuestReply::Done);
        }
        GuestRequest::CpuUsage { interval_ms } => {
            guest.send(&GuestReply::Streaming);
            let begun = Instant::now();
            while guest.send(&CpuSample {
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
        GuestRequest::Output { from_sequence } => output(vmm, guest, from_sequence),
        GuestRequest::Exec { exec, .. } => {
            guest.send(&GuestReply::Streaming);
            guest.send_stdout(&exec.argv.join(" "));
            if exec.argv[0] == "say" {
                vmm.guest.lock().unwrap().lines.push(exec.argv[1].clone());
            }
            let exit = Exit {
                code: Some(3),
                ..Exit::default()
            };
            guest.send(&StreamEnd::Exited(exit));
            if exec.argv[0] == "poweroff" {
                vmm.end(ExitReason::GuestPowerOff, "the guest powered off");
            }
        }
        GuestRequest::PowerOff { signal, .. } => {
            guest.send(&GuestReply::Done);
            // SIGINT is what a main process is sent unless something else is wanted.
            if !(vmm.behaves("stubborn") && signal == 2) {
                let message = format!("the guest powered off, told so by signal {signal}");
                vmm.end(ExitReason::GuestPowerOff, &message);
            }
        }
        GuestRequest::Forward { .. } => {
            guest.send(&GuestReply::Streaming);
            let _ = guest.stream.write_all(&guest.buffer);
            let mut reader = guest.stream.try_clone().unwrap();
            let _ = std::io::copy(&mut reader, &mut guest.stream);
            let _ = guest.stream.shutdown(std::net::Shutdown::Write);
        }
        GuestRequest::Processes => {
            guest.send(&GuestReply::Processes {
                processes: vec![process()],
            });
        }
        GuestRequest::Signal { .. } => {
            guest.send(&GuestReply::Done);
        }
        GuestRequest::WriteFile { path, mode } => {
            guest.send(&GuestReply::Streaming);
            let Some(content) = guest.receive_data() else {
                return;
            };
            let bytes = content.len() as u64;
            vmm.files.lock().unwrap().insert(path, (mode, content));
            guest.send(&StreamEnd::Complete { bytes });
        }
        GuestRequest::ReadFile { path } => {
            let known = vmm.files.lock().unwrap().get(&path).cloned();
            let Some((mode, content)) = known else {
                guest.send(&GuestReply::Refused(Refusal {
                    kind: RefusalKind::NotFound,
                    message: format!("no file {path}"),
                }));
                return;
            };
            let size_bytes = content.len() as u64;
            guest.send(&GuestReply::Streaming);
            guest.send(&FileKind { size_bytes, mode });
            guest.send_data(&content);
            guest.send(&StreamEnd::Complete { bytes: size_bytes });
        }
    }
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

fn output(vmm: &Arc<Vmm>, guest: &mut Conversation, from_sequence: u64) {
    guest.send(&GuestReply::Streaming);
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
            if !guest.send(&record) {
                return;
            }
            sequence += 1;
        }
        thread::park_timeout(Duration::from_millis(20));
    }
}

fn status(vmm: &Arc<Vmm>) -> GuestStatus {
    let guest = vmm.guest.lock().unwrap();
    let launched = guest.launched.is_some();
    GuestStatus {
        boot_id: guest.boot_id.clone(),
        generation: vmm.generation,
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
