//! What fuzz targets reach: the ends of connections to guests and VMMs, and what reads bodies.
//!
//! Each function lets the other end say all of `bytes` and close, and returns what came of it. Nothing here
//! is used by the program.

use std::fmt::Debug;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use guest_protocol::backoff::Backoff;
use guest_protocol::{CpuSample, ExecSpec, FileKind, GuestStatus, Reply, Request};
use machine_api::{PortPolicy, VsockDiagnosis};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use vmm_control::RequestBody;

pub use crate::api::bodies::{BODY_KINDS, BodyKind, read as read_body};
use crate::error_chain::error_chain;
use crate::guest::exec::Collected;
use crate::guest::{GuestAddress, GuestError};
use crate::logs::MachineLog;
use crate::machine::session::log_output;
use crate::model::guest_share::LOG_LINES_PER_SECOND;
use crate::model::settings::ReadinessLimits;
use crate::model::view;
use crate::model::vsock_diagnosis::{Evidence, diagnose};
use crate::vmm_process::{Control, ControlError};

/// A conversation whose other end has closed takes no longer.
const LIMIT: Duration = Duration::from_secs(10);
/// How long the other end waits for what we say first.
const PATIENCE: Duration = Duration::from_millis(2);

/// What is asked of a guest.
#[derive(Debug, Clone, Copy)]
pub enum Question {
    /// Whether it is ready.
    Status,
    /// To run a command to its end.
    Exec,
    /// What is in use.
    Resources,
    /// A file.
    File,
    /// Samples of its CPU usage.
    Monitor,
    /// The main process's output.
    Output,
}

/// All questions.
pub const QUESTIONS: [Question; 6] = [
    Question::Status,
    Question::Exec,
    Question::Resources,
    Question::File,
    Question::Monitor,
    Question::Output,
];

thread_local! {
    static RUNTIME: Runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime without threads");
}

/// Asks a guest, and reads what it says: the VMM's line first, then frames.
///
/// # Errors
/// Why the guest is not believed, for people.
pub fn ask_guest(question: Question, bytes: &[u8], folder: &Path) -> Result<String, String> {
    let address = GuestAddress::new(folder.join("guest"), 3);
    let outcome = converse(
        &folder.join("guest"),
        bytes,
        ask(question, &address, folder),
    );
    outcome.map_err(|error| error_chain(&error))
}

/// Connects to a VMM and asks it for counters, and reads the lines that it says.
///
/// # Errors
/// Why the VMM is not believed, for people.
pub fn ask_vmm(bytes: &[u8], folder: &Path) -> Result<String, String> {
    let path = folder.join("vmm");
    let outcome = converse(&path, bytes, async {
        let control = Control::connect(&path, "m1", 3, LIMIT).await?;
        let counters = control.request("count", RequestBody::Counters, LIMIT).await;
        let phases = control.running(LIMIT).await;
        Ok::<_, ControlError>(shown(&(counters, phases, *control.output_gate().borrow())))
    });
    outcome.map_err(|error| error_chain(&error))
}

async fn ask(
    question: Question,
    address: &GuestAddress,
    folder: &Path,
) -> Result<String, GuestError> {
    match question {
        Question::Status => {
            let (reply, _) = address.call(Request::Status, None).await?;
            if let Reply::Status(status) = &reply {
                return Ok(shown(&diagnosed(status)));
            }
            Ok(shown(&reply))
        }
        Question::Exec => {
            let exec = ExecSpec::default();
            let Collected {
                exit,
                stdout,
                stderr,
                truncated,
            } = address.run_to_end(exec, b"input", LIMIT).await?;
            Ok(shown(&(exit, stdout.len(), stderr.len(), truncated)))
        }
        Question::Resources => {
            let (resources, _) = address.resources().await?;
            Ok(shown(&resources))
        }
        Question::File => {
            let path = "/file".to_owned();
            let mut stream = address.open(Request::ReadFile { path }).await?;
            let kind: FileKind = stream.message("a file").await?;
            let mut bytes = 0;
            while let Some(piece) = stream.reader.next_piece().await? {
                bytes += piece.len();
            }
            Ok(shown(&(kind, bytes)))
        }
        Question::Monitor => {
            let mut stream = address
                .open(Request::CpuUsage { interval_ms: 2_000 })
                .await?;
            let sample: CpuSample = stream.message("a CPU sample").await?;
            Ok(shown(&sample))
        }
        Question::Output => {
            let path = folder.join("console.log");
            // A machine's first output.
            let _ = std::fs::remove_file(&path);
            let open = || MachineLog::open(&path, LOG_LINES_PER_SECOND);
            let log = open().expect("a file for the log");
            let mut stream = address.open(Request::Output { from_sequence: 0 }).await?;
            let exit = log_output(&mut stream, &log).await?;
            let again = open().expect("a file for the log");
            assert_eq!(
                again.position(),
                log.position(),
                "a log says how far it has come"
            );
            Ok(shown(&exit))
        }
    }
}

/// What is said of a guest's sockets.
fn diagnosed(status: &GuestStatus) -> VsockDiagnosis {
    let guest = view::guest(status);
    let backoff = Backoff {
        first: Duration::from_millis(25),
        longest: Duration::from_secs(1),
    };
    diagnose(&Evidence {
        guest: Some(&guest),
        readiness: &[],
        last_start: None,
        port_policy: PortPolicy::Fixed,
        eviction: false,
        limits: &ReadinessLimits {
            attempt: LIMIT,
            backoff,
            total: LIMIT,
        },
    })
}

fn shown(outcome: &impl Debug) -> String {
    format!("{outcome:?}")
}

/// Lets `ours` talk to somebody at `path` who says all of `bytes`, closes, and reads whatever comes.
fn converse<T>(path: &Path, bytes: &[u8], ours: impl Future<Output = T>) -> T {
    let talk = async {
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).expect("the path is free");
        let theirs = async {
            let (mut stream, _) = listener.accept().await.expect("it connects");
            let mut read = Vec::new();
            // The rest comes after what the first line leads to, so that it is an answer.
            let first = bytes
                .iter()
                .position(|byte| *byte == b'\n')
                .map_or(0, |end| end + 1);
            // All of this fails where our end has given up.
            let _ = stream.write_all(&bytes[..first]).await;
            let _ = timeout(PATIENCE, stream.read_buf(&mut read)).await;
            let _ = stream.write_all(&bytes[first..]).await;
            let _ = stream.shutdown().await;
            let _ = stream.read_to_end(&mut read).await;
        };
        let (outcome, ()) = tokio::join!(ours, theirs);
        outcome
    };
    let outcome = RUNTIME.with(|runtime| runtime.block_on(async { timeout(LIMIT, talk).await }));
    outcome.expect("a conversation ends when the other end closes")
}
