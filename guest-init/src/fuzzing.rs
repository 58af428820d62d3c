//! What fuzz targets reach: a server as it serves a connection. Nothing here is used by the program.
//!
//! The process that runs this is no guest, so what a call asks for is confined: files are in one folder,
//! commands are `cat`, and the kernel refuses everything.

use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use guest_protocol::{
    Call, Decoded, ENTROPY_BYTES, ExecSpec, Frame, Reply, Request, StreamEnd, decode, encode,
};
use nix::sys::time::TimeSpec;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::task::LocalSet;
use tokio::time::timeout;

use crate::connection::Connection;
use crate::os::kernel::Kernel;
use crate::os::mounts::MountError;
use crate::os::netlink::NetlinkError;
use crate::os::stream::Stream;
use crate::os::vsock_diag::KernelSocket;
use crate::processes::reaper::{self, Reaper};
use crate::server::{Server, serve};

/// A connection whose other end has closed is served for no longer.
const LIMIT: Duration = Duration::from_secs(10);
/// How long an answer is read that has no end.
const PATIENCE: Duration = Duration::from_millis(20);

/// How an answer ends, unless the call is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// When all is said, or when the other end is closed.
    Closed,
    /// With the command, or its deadline. The other end must stay open until then.
    Command,
    /// Never: when the other end goes away.
    Gone,
}

/// A kernel that refuses everything.
#[derive(Debug)]
struct Refusing;

impl Kernel for Refusing {
    fn set_realtime(&self, _: TimeSpec) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn reseed(&self, _: [u8; ENTROPY_BYTES]) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn vsocks(&self) -> Result<Vec<KernelSocket>, NetlinkError> {
        Err(NetlinkError::Malformed)
    }

    fn set_hostname(&self, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::PermissionDenied.into())
    }

    fn mount(&self, _: &str, target: &str, _: bool) -> Result<(), MountError> {
        Err(MountError::NotAbsolute(target.into()))
    }
}

struct Guest {
    runtime: Runtime,
    tasks: LocalSet,
    reaper: Rc<Reaper>,
}

thread_local! {
    static GUEST: Guest = Guest::new();
}

impl Guest {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .expect("a runtime without threads");
        let tasks = LocalSet::new();
        let reaper = Reaper::new();
        let ended = runtime.block_on(async { reaper::child_signals() });
        tasks.spawn_local(Rc::clone(&reaper).run(ended.expect("signals")));
        Self {
            runtime,
            tasks,
            reaper,
        }
    }
}

/// Serves a connection on which the supervisor sends these frames, the first of them with a call, and
/// returns the kinds of the answers. `folder` is for the files that calls name.
///
/// # Panics
/// Where an answer is no frame, or the connection is served on after its end.
#[must_use]
pub fn serve_frames(bytes: &[u8], folder: &Path) -> Vec<&'static str> {
    let (bytes, end) = confined(bytes, folder);
    let answer = GUEST.with(|guest| {
        let conversation = converse(&guest.reaper, &bytes, end);
        guest.tasks.block_on(&guest.runtime, conversation)
    });
    kinds(&answer)
}

async fn converse(reaper: &Rc<Reaper>, bytes: &[u8], end: End) -> Vec<u8> {
    let server = Server::new(Box::new(Refusing), Rc::clone(reaper), None);
    let (ours, theirs) = UnixStream::pair().expect("sockets");
    let stream = Stream::new(theirs.into()).expect("a socket");
    let ticket = server
        .registry()
        .admit(&stream)
        .expect("the first connection");
    let serving = serve(Rc::clone(&server), Connection::new(stream, ticket));
    let serving = tokio::task::spawn_local(serving);
    ours.set_nonblocking(true).expect("a socket");
    let ours = tokio::net::UnixStream::from_std(ours).expect("a socket");
    let (mut reader, mut writer) = ours.into_split();
    let send = async {
        // Fails where the server has given up.
        let _ = writer.write_all(bytes).await;
        if end == End::Closed {
            let _ = writer.shutdown().await;
        }
    };
    let mut answer = Vec::new();
    let exchange = async {
        tokio::join!(send, async {
            while let Ok(1..) = reader.read_buf(&mut answer).await {
                if end == End::Command && has_ended(&answer) {
                    break;
                }
            }
        })
    };
    let limit = if end == End::Gone { PATIENCE } else { LIMIT };
    let exchanged = timeout(limit, exchange).await;
    assert!(
        exchanged.is_ok() || end == End::Gone,
        "an answer ends when its command or the other end does"
    );
    drop((reader, writer));
    let ended = timeout(LIMIT, serving).await;
    ended
        .expect("a connection is served no longer than it lasts")
        .expect("the server does not panic");
    assert!(
        server.registry().open_sockets().is_empty(),
        "no connection is left over"
    );
    answer
}

/// The frames with the call in the first of them confined, and how its answer ends.
fn confined(bytes: &[u8], folder: &Path) -> (Vec<u8>, End) {
    let mut all = Vec::new();
    let mut end = End::Closed;
    if let Ok(Decoded::Frame(Frame::Json(json), length)) = decode(bytes)
        && let Ok(mut call) = serde_json::from_slice::<Call>(json)
    {
        confine(&mut call.request, folder);
        end = match call.request {
            Request::Exec { .. } => End::Command,
            Request::CpuUsage { .. } | Request::Output { .. } => End::Gone,
            _ => End::Closed,
        };
        let json = serde_json::to_vec(&call).expect("messages are plain JSON");
        encode(Frame::Json(&json), &mut all).expect("a call is short");
        all.extend_from_slice(&bytes[length..]);
    } else {
        all.extend_from_slice(bytes);
    }
    (all, end)
}

fn confine(request: &mut Request, folder: &Path) {
    let within = |path: &str, name: &str| match path.starts_with('/') {
        true => folder.join(name).display().to_string(),
        false => path.to_owned(),
    };
    match request {
        Request::Exec { exec, timeout_ms } => {
            confine_command(exec);
            *timeout_ms = 1 + *timeout_ms % 50;
        }
        Request::Launch {
            main,
            mounts,
            files,
            ..
        } => {
            confine_command(main);
            for (device, _, _) in mounts {
                "/dev/null".clone_into(device);
            }
            for file in files {
                file.path = within(&file.path, "launched");
            }
        }
        Request::ReadFile { path } => {
            let name = if path.len() % 2 == 0 {
                "file"
            } else {
                "absent"
            };
            *path = within(path, name);
        }
        Request::WriteFile { path, .. } => *path = within(path, "written"),
        // Nobody listens there.
        Request::Forward { port } => *port = 1,
        Request::Status
        | Request::CpuUsage { .. }
        | Request::Output { .. }
        | Request::Signal { .. }
        | Request::PowerOff { .. }
        | Request::Processes
        | Request::Resources => {}
    }
}

/// A command that is none is one still.
fn confine_command(command: &mut ExecSpec) {
    if let Some(program) = command.argv.first_mut() {
        "cat".clone_into(program);
        command.argv.truncate(1);
    }
    command
        .env
        .retain(|name, _| !name.starts_with("LD_") && name != "PATH");
}

/// Whether an answer has the message that is its last one.
fn has_ended(mut answer: &[u8]) -> bool {
    while let Ok(Decoded::Frame(frame, length)) = decode(answer) {
        if let Frame::Json(json) = frame
            && serde_json::from_slice::<StreamEnd>(json).is_ok()
        {
            return true;
        }
        answer = &answer[length..];
    }
    false
}

/// The kinds of the frames in an answer, of which the last may be incomplete.
fn kinds(mut answer: &[u8]) -> Vec<&'static str> {
    let mut kinds = Vec::new();
    while !answer.is_empty() {
        let (kind, length) = match decode(answer) {
            Ok(Decoded::Frame(frame, length)) => {
                let kind = match frame {
                    Frame::Json(json) => {
                        let is_reply = serde_json::from_slice::<Reply>(json).is_ok();
                        assert!(is_reply || !kinds.is_empty(), "the first answer is a reply");
                        "json"
                    }
                    Frame::Stdout(_) => "stdout",
                    Frame::Stderr(_) => "stderr",
                    Frame::Data(_) => "data",
                    Frame::Stdin(_) => panic!("a guest sends no input"),
                };
                (kind, length)
            }
            Ok(Decoded::Incomplete(_)) => break,
            Err(error) => panic!("an answer is no frame: {error}"),
        };
        kinds.push(kind);
        answer = &answer[length..];
    }
    kinds
}
