//! Client of a VMM's control socket: requests with their replies, and what the VMM reports.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use vmm_control::{Event, Hello, MAX_LINE_BYTES, Message, Phase, Reply, Request, RequestBody};

/// Requests that may wait for a VMM which does not read.
const REQUESTS: usize = 64;

/// A request to a VMM failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// Nobody answers at the socket.
    #[error("cannot connect to the VMM's control socket")]
    Connect(#[source] io::Error),
    /// The connection ended, and usually the VMM with it.
    #[error("the VMM closed its control connection")]
    Closed,
    /// The VMM did not report or answer in time.
    #[error("the VMM did not {what} within {} ms", limit.as_millis())]
    Deadline {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        limit: Duration,
    },
    /// A VMM of another machine, generation or protocol version answers.
    #[error(
        "the control socket belongs to machine {machine_id}, generation {generation}, protocol \
         {version}"
    )]
    Stranger {
        /// Its machine.
        machine_id: String,
        /// Its generation.
        generation: u64,
        /// Its protocol version.
        version: u32,
    },
    /// The VMM refused or failed.
    #[error("{message}")]
    Failed {
        /// For programs: `cancelled`, `no_space`, …
        kind: String,
        /// For people.
        message: String,
    },
}

/// What the VMM has reported so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reports {
    /// Its first line.
    pub(crate) hello: Option<Hello>,
    /// Phases of the start, once all vCPUs were entered.
    pub(crate) running: Option<Vec<Phase>>,
    /// When the guest acknowledged the transport reset.
    pub(crate) reset_acknowledged_ns: Option<u64>,
    /// The connection is over.
    pub(crate) closed: bool,
}

/// Requests that wait for their replies; none once the connection is over, as no reply will come.
type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Reply>>>>>;

/// A connection to a VMM; cheap to clone, closed with the last clone.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    connection: Arc<Connection>,
    reports: watch::Receiver<Reports>,
    output_gate: watch::Receiver<bool>,
}

#[derive(Debug)]
struct Connection {
    lines: mpsc::Sender<Vec<u8>>,
    waiting: Waiting,
    next_id: Mutex<u64>,
    reader: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Control {
    /// Connects to the VMM of that machine and generation and waits for its first line.
    pub(crate) async fn connect(
        path: &Path,
        machine_id: &str,
        generation: u64,
        limit: Duration,
    ) -> Result<Self, ControlError> {
        let stream = UnixStream::connect(path)
            .await
            .map_err(ControlError::Connect)?;
        let (read, write) = stream.into_split();
        let (sender, reports) = watch::channel(Reports::default());
        let (gate, output_gate) = watch::channel(false);
        let (lines, queue) = mpsc::channel(REQUESTS);
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let reader =
            tokio::spawn(read_messages(read, sender, gate, waiting.clone())).abort_handle();
        tokio::spawn(write_lines(write, queue));
        let connection = Connection {
            lines,
            waiting,
            next_id: Mutex::new(0),
            reader,
        };
        let control = Self {
            connection: Arc::new(connection),
            reports,
            output_gate,
        };
        let hello = control
            .wait_for("greet", limit, |reports| reports.hello.clone())
            .await?;
        let known = vmm_control::speaks(hello.version);
        if !known || hello.machine_id != machine_id || hello.generation != generation {
            let Hello {
                machine_id,
                generation,
                version,
                ..
            } = hello;
            return Err(ControlError::Stranger {
                machine_id,
                generation,
                version,
            });
        }
        Ok(control)
    }

    /// Waits until `find` finds something in the VMM's reports.
    pub(crate) async fn wait_for<T>(
        &self,
        what: &'static str,
        limit: Duration,
        find: impl Fn(&Reports) -> Option<T>,
    ) -> Result<T, ControlError> {
        let mut reports = self.reports.clone();
        let found = timeout(
            limit,
            reports.wait_for(|reports| reports.closed || find(reports).is_some()),
        )
        .await
        .map_err(|_| ControlError::Deadline { what, limit })?
        .map_err(|_| ControlError::Closed)?;
        find(&found).ok_or(ControlError::Closed)
    }

    /// Waits until all vCPUs have been entered; the phases of the start.
    pub(crate) async fn running(&self, limit: Duration) -> Result<Vec<Phase>, ControlError> {
        self.wait_for("run its vCPUs", limit, |reports| reports.running.clone())
            .await
    }

    /// True once the VMM says that it is durable that the machine's image was used, and after a boot.
    pub(crate) fn output_gate(&self) -> watch::Receiver<bool> {
        self.output_gate.clone()
    }

    /// Asks and waits for the answer; [`Reply::Failed`] becomes an error.
    pub(crate) async fn request(
        &self,
        what: &'static str,
        body: RequestBody,
        limit: Duration,
    ) -> Result<Reply, ControlError> {
        let id = {
            let mut next = lock(&self.connection.next_id);
            *next += 1;
            *next
        };
        let (sender, receiver) = oneshot::channel();
        match &mut *lock(&self.connection.waiting) {
            Some(waiting) => waiting.insert(id, sender),
            None => return Err(ControlError::Closed),
        };
        let mut line = serde_json::to_vec(&Request { id, body }).expect("requests are plain JSON");
        line.push(b'\n');
        let asked = async {
            let sent = self.connection.lines.send(line).await;
            sent.map_err(|_| ControlError::Closed)?;
            receiver.await.map_err(|_| ControlError::Closed)
        };
        let answer = timeout(limit, asked).await;
        if let Some(waiting) = &mut *lock(&self.connection.waiting) {
            waiting.remove(&id);
        }
        match answer {
            Ok(Ok(Reply::Failed { kind, message })) => Err(ControlError::Failed { kind, message }),
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(closed)) => Err(closed),
            Err(_) => Err(ControlError::Deadline { what, limit }),
        }
    }
}

/// Sections under these locks are short and do not panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write_lines(mut stream: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) {
    while let Some(line) = queue.recv().await {
        if stream.write_all(&line).await.is_err() {
            return;
        }
    }
}

async fn read_messages(
    stream: OwnedReadHalf,
    reports: watch::Sender<Reports>,
    output_gate: watch::Sender<bool>,
    waiting: Waiting,
) {
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        let bound = MAX_LINE_BYTES as u64 + 1;
        match (&mut reader).take(bound).read_until(b'\n', &mut line).await {
            Ok(read) if read > 0 && line.ends_with(b"\n") => {}
            _ => break,
        }
        match serde_json::from_slice::<Message>(&line) {
            Ok(message) => publish(message, &reports, &output_gate, &waiting),
            Err(error) => {
                tracing::warn!(%error, "unreadable line on a control socket");
                break;
            }
        }
    }
    // Ends the waits for replies, and refuses further ones.
    *lock(&waiting) = None;
    reports.send_modify(|reports| reports.closed = true);
}

fn publish(
    message: Message,
    reports: &watch::Sender<Reports>,
    output_gate: &watch::Sender<bool>,
    waiting: &Waiting,
) {
    let open_gate = || output_gate.send_if_modified(|is| !std::mem::replace(is, true));
    match message {
        Message::Hello(hello) => reports.send_modify(|reports| {
            if hello.consumption_durable {
                open_gate();
            }
            if matches!(hello.state, vmm_control::RunState::Building) {
                reports.running = None;
            } else {
                reports.running = Some(hello.phases.clone());
            }
            reports.reset_acknowledged_ns = hello.reset_acknowledged_ns;
            reports.hello = Some(hello);
        }),
        Message::Reply { id, reply } => {
            let sender = lock(waiting)
                .as_mut()
                .and_then(|waiting| waiting.remove(&id));
            if let Some(sender) = sender {
                let _ = sender.send(reply);
            }
        }
        Message::Event { at_ns, event } => match event {
            Event::Running { phases } => {
                reports.send_modify(|reports| reports.running = Some(phases));
            }
            Event::ResetAcknowledged => {
                reports.send_modify(|reports| reports.reset_acknowledged_ns = Some(at_ns));
            }
            Event::ConsumptionDurable => {
                open_gate();
            }
            Event::Verified { bytes, ms } => {
                tracing::debug!(bytes, ms, "memory of a resumed machine is verified");
            }
            // The end of the process counts; the report is read from its file.
            Event::Exiting(_) | Event::Unknown => {}
        },
        Message::Unknown => {}
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// A VMM that greets, says `lines` and closes the connection when told so.
    async fn connect(
        lines: &'static str,
    ) -> (Control, oneshot::Sender<()>, tokio::task::JoinHandle<()>) {
        let folder = tempfile::tempdir_in("/tmp").unwrap();
        let path = folder.path().join("c.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let (close, closed) = oneshot::channel();
        let vmm = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let hello = r#"{"message": "hello", "version": 1, "machine_id": "m1", "generation": 3,
                "pid": 4, "state": "running", "phases": [], "consumption_durable": false}"#;
            let text = format!("{}\n{lines}", hello.replace('\n', ""));
            stream.write_all(text.as_bytes()).await.unwrap();
            let _ = closed.await;
        });
        let control = Control::connect(&path, "m1", 3, LIMIT).await.unwrap();
        (control, close, vmm)
    }

    #[tokio::test]
    async fn events_of_a_later_version_are_skipped() {
        let (control, _close, _vmm) = connect(
            "{\"message\": \"event\", \"at_ns\": 1, \"event\": {\"type\": \"danced\"}}\n\
             {\"message\": \"poem\"}\n\
             {\"message\": \"event\", \"at_ns\": 7, \"event\": {\"type\": \"reset_acknowledged\"}}\n",
        )
        .await;
        let reset = control.wait_for("reset", LIMIT, |reports| reports.reset_acknowledged_ns);
        assert_eq!(reset.await.unwrap(), 7);
    }

    #[tokio::test]
    async fn the_gate_for_output_opens_when_the_vmm_says_so() {
        let (control, _close, _vmm) = connect("").await;
        assert!(!*control.output_gate().borrow());
        let (control, _close, _vmm) = connect(
            "{\"message\": \"event\", \"at_ns\": 1, \"event\": {\"type\": \"consumption_durable\"}}\n",
        )
        .await;
        let mut gate = control.output_gate();
        timeout(LIMIT, gate.wait_for(|open| *open))
            .await
            .unwrap()
            .unwrap();
    }

    #[tokio::test]
    async fn requests_to_a_vmm_that_does_not_read_wait_in_a_bounded_queue() {
        let (control, _close, _vmm) = connect("").await;
        let ask = |limit| {
            let control = control.clone();
            async move {
                let asked = control.request("count", RequestBody::Counters, limit);
                assert!(matches!(asked.await, Err(ControlError::Deadline { .. })));
            }
        };
        let mut all = Vec::new();
        // More than fit into the socket's buffer and the queue.
        for _ in 0..20_000 {
            all.push(ask(Duration::from_millis(300)));
        }
        timeout(LIMIT, futures_util::future::join_all(all))
            .await
            .unwrap();
        assert_eq!(control.connection.lines.capacity(), 0);
        assert_eq!(control.connection.lines.max_capacity(), REQUESTS);
    }

    #[tokio::test]
    async fn a_closed_connection_fails_requests_at_once() {
        let (control, close, vmm) = connect("").await;
        let asked = control.clone();
        let waiting = tokio::spawn(async move {
            asked
                .request("count", RequestBody::Counters, Duration::from_secs(3600))
                .await
        });
        tokio::task::yield_now().await;
        close.send(()).unwrap();
        vmm.await.unwrap();
        let ended = timeout(LIMIT, waiting).await.unwrap().unwrap();
        assert!(matches!(ended, Err(ControlError::Closed)), "{ended:?}");
        let limit = Duration::from_secs(3600);
        let later = control.request("count", RequestBody::Counters, limit);
        let later = timeout(LIMIT, later).await.unwrap();
        assert!(matches!(later, Err(ControlError::Closed)), "{later:?}");
    }
}
