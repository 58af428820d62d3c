//! The server as the supervisor sees it, over Unix sockets, in an ordinary process.
//!
//! All tests share one thread and one reaper, because waitpid is for the whole process: two
//! reapers would take each other's children. The leaky init fails some of the tests by design, so
//! they are not compiled for it.

#![cfg(not(feature = "leaky"))]

use std::fmt::Debug;
use std::future::Future;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::pin::Pin;
use std::sync::{OnceLock, mpsc};
use std::thread;

use guest_protocol::{
    CpuSample, Decoded, ENTROPY_BYTES, ExecSpec, Exit, FileKind, Frame, LaunchFile,
    MainProcessState, OutputRecord, OutputSource, StreamEnd, TerminalSize, decode, encode,
};
use nix::sys::time::TimeSpec;
use serde::de::DeserializeOwned;
use tokio::task::LocalSet;

use super::*;
use crate::os::mounts::MountError;
use crate::os::netlink::NetlinkError;
use crate::os::stream::Stream;
use crate::os::vsock_diag::KernelSocket;
use crate::processes::reaper;
use crate::processes::shutdown;

mod calls;
mod execs;
mod file_transfers;
mod forwarding;
mod listening;
mod main_process;

const DEADLINE: Duration = Duration::from_secs(20);

type Test = Box<dyn FnOnce(Rc<Reaper>) -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// The thread on which every test runs its server and its client.
fn guest_thread() -> &'static tokio::sync::mpsc::UnboundedSender<Test> {
    static THREAD: OnceLock<tokio::sync::mpsc::UnboundedSender<Test>> = OnceLock::new();
    THREAD.get_or_init(|| {
        let (sender, mut tests) = tokio::sync::mpsc::unbounded_channel::<Test>();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            LocalSet::new().block_on(&runtime, async {
                let reaper = Reaper::new();
                let child_ended = reaper::child_signals().unwrap();
                tokio::task::spawn_local(Rc::clone(&reaper).run(child_ended));
                while let Some(test) = tests.recv().await {
                    tokio::task::spawn_local(test(Rc::clone(&reaper)));
                }
            });
        });
        sender
    })
}

/// Runs `test` against a server of its own.
fn with_guest<F>(test: impl FnOnce(Guest) -> F + Send + 'static)
where
    F: Future<Output = ()> + 'static,
{
    let (done, result) = mpsc::channel();
    let on_thread: Test = Box::new(move |reaper| {
        Box::pin(async move {
            let guest = Guest::new(reaper);
            let body = tokio::task::spawn_local(tokio::time::timeout(DEADLINE, test(guest)));
            let _gone = done.send(body.await);
        })
    });
    assert!(guest_thread().send(on_thread).is_ok(), "the thread is gone");
    match result.recv().expect("the test was not run") {
        Ok(finished) => finished.expect("the test did not finish in time"),
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

/// A kernel that only records its calls.
#[derive(Debug, Default, Clone)]
struct RecordingKernel {
    calls: Rc<RefCell<Vec<String>>>,
    /// Its list of vsock sockets, if it has one.
    vsocks: Rc<RefCell<Option<Vec<KernelSocket>>>>,
}

impl RecordingKernel {
    fn record(&self, call: String) {
        self.calls.borrow_mut().push(call);
    }
}

impl Kernel for RecordingKernel {
    fn set_realtime(&self, realtime: TimeSpec) -> std::io::Result<()> {
        self.record(format!("clock {}", realtime.tv_sec()));
        Ok(())
    }

    fn reseed(&self, entropy: [u8; ENTROPY_BYTES]) -> std::io::Result<()> {
        self.record(format!("entropy {:02x}", entropy[0]));
        Ok(())
    }

    fn vsocks(&self) -> Result<Vec<KernelSocket>, NetlinkError> {
        self.vsocks.borrow().clone().ok_or(NetlinkError::Malformed)
    }

    fn set_hostname(&self, name: &str) -> std::io::Result<()> {
        self.record(format!("hostname {name}"));
        Ok(())
    }

    fn mount(&self, device: &str, target: &str, read_only: bool) -> Result<(), MountError> {
        self.record(format!("mount {device} {target} {read_only}"));
        Ok(())
    }
}

struct Guest {
    server: Rc<Server>,
    kernel_calls: Rc<RefCell<Vec<String>>>,
    vsocks: Rc<RefCell<Option<Vec<KernelSocket>>>>,
}

impl Guest {
    fn new(reaper: Rc<Reaper>) -> Self {
        let kernel = RecordingKernel::default();
        let (kernel_calls, vsocks) = (Rc::clone(&kernel.calls), Rc::clone(&kernel.vsocks));
        Self {
            server: Server::new(Box::new(kernel), reaper, None),
            kernel_calls,
            vsocks,
        }
    }

    /// Opens a connection and sends nothing.
    fn connect(&self) -> Client {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let stream = Stream::new(theirs.into()).unwrap();
        let ticket = self.server.registry().admit(&stream).unwrap();
        let id = ticket.id();
        let serving = serve(Rc::clone(&self.server), Connection::new(stream, ticket));
        let task = tokio::task::spawn_local(serving);
        self.server.registry().bind_task(id, task.abort_handle());
        Client {
            stream: Stream::new(ours.into()).unwrap(),
            inbox: Vec::new(),
        }
    }

    async fn call(&self, generation: u64, request: Request) -> Client {
        self.call_with_wake(generation, None, request).await
    }

    async fn call_with_wake(
        &self,
        generation: u64,
        wake: Option<Wake>,
        request: Request,
    ) -> Client {
        let client = self.connect();
        client
            .send_json(&Call::new(generation, wake, request))
            .await;
        client
    }

    async fn ask(&self, generation: u64, request: Request) -> Reply {
        self.call(generation, request).await.receive_json().await
    }

    async fn status(&self, generation: u64) -> GuestStatus {
        match self.ask(generation, Request::Status).await {
            Reply::Status(status) => status,
            other => panic!("{other:?} is not a status"),
        }
    }

    /// Starts a stream.
    async fn start(&self, request: Request) -> Client {
        let mut client = self.call(1, request).await;
        assert_eq!(client.receive_json::<Reply>().await, Reply::Streaming);
        client
    }
}

/// The supervisor's end of a connection.
struct Client {
    stream: Stream,
    inbox: Vec<u8>,
}

#[derive(Debug, PartialEq)]
enum Received {
    Json(Vec<u8>),
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
    Data(Vec<u8>),
    End,
}

impl Client {
    async fn send(&self, frame: Frame<'_>) {
        let mut bytes = Vec::new();
        encode(frame, &mut bytes).unwrap();
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn send_json<T: serde::Serialize>(&self, message: &T) {
        self.send(Frame::Json(&serde_json::to_vec(message).unwrap()))
            .await;
    }

    async fn receive(&mut self) -> Received {
        loop {
            if let Decoded::Frame(frame, length) = decode(&self.inbox).unwrap() {
                let received = match frame {
                    Frame::Json(bytes) => Received::Json(bytes.to_vec()),
                    Frame::Stdout(bytes) => Received::Stdout(bytes.to_vec()),
                    Frame::Stderr(bytes) => Received::Stderr(bytes.to_vec()),
                    Frame::Data(bytes) => Received::Data(bytes.to_vec()),
                    Frame::Stdin(_) => panic!("the guest sent input"),
                };
                self.inbox.drain(..length);
                return received;
            }
            match self.stream.read_chunk().await {
                Ok(chunk) if !chunk.is_empty() => self.inbox.extend(chunk),
                _ => return Received::End,
            }
        }
    }

    async fn receive_json<T: DeserializeOwned + Debug>(&mut self) -> T {
        match self.receive().await {
            Received::Json(json) => serde_json::from_slice(&json).unwrap(),
            other => panic!("{other:?} is not JSON"),
        }
    }

    /// All output of a process, and its end.
    async fn collect(&mut self) -> (String, String, StreamEnd) {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.receive().await {
                Received::Stdout(bytes) => stdout.extend(bytes),
                Received::Stderr(bytes) => stderr.extend(bytes),
                Received::Json(json) => {
                    let text = |bytes| String::from_utf8(bytes).unwrap();
                    let end = serde_json::from_slice(&json).unwrap();
                    return (text(stdout), text(stderr), end);
                }
                other => panic!("{other:?} is not output"),
            }
        }
    }
}

fn shell(script: &str) -> ExecSpec {
    ExecSpec {
        argv: ["sh", "-c", script].map(String::from).to_vec(),
        ..ExecSpec::default()
    }
}

fn exec(script: &str) -> Request {
    Request::Exec {
        exec: shell(script),
        timeout_ms: 0,
    }
}

fn launch(script: &str) -> Request {
    Request::Launch {
        main: shell(script),
        mounts: Vec::new(),
        files: Vec::new(),
        hostname: "guest".to_owned(),
    }
}

fn exited(code: i32) -> StreamEnd {
    StreamEnd::Exited(Exit {
        code: Some(code),
        ..Exit::default()
    })
}

fn killed(signal: i32, timed_out: bool) -> StreamEnd {
    StreamEnd::Exited(Exit {
        signal: Some(signal),
        timed_out,
        ..Exit::default()
    })
}

fn kind_of(reply: &Reply) -> Option<RefusalKind> {
    match reply {
        Reply::Refused(refusal) => Some(refusal.kind),
        _ => None,
    }
}

/// Polls until `condition` holds; the deadline is that of the test.
async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn is_running(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| !rest.starts_with('Z'))
}
