//! Client of a VMM's control socket: requests and their replies, and what the VMM reports.

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

/// The control socket did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControlError {
    /// Nobody answers at the socket.
    #[error("cannot connect to the VMM's control socket")]
    Connect(#[source] io::Error),
    /// The connection ended; usually so did the VMM.
    #[error("the VMM closed its control connection")]
    Closed,
    /// The VMM is there and silent.
    #[error("the VMM did not {what} within {} ms", limit.as_millis())]
    Deadline {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        limit: Duration,
    },
    /// Another program, machine, generation or protocol version answers.
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
    /// The VMM says no.
    #[error("{message}")]
    Failed {
        /// For programs: `cancelled`, `no_space`, …
        kind: String,
        /// For people.
        message: String,
    },
}

/// What the VMM has told so far.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    /// Its first line.
    pub(crate) hello: Option<Hello>,
    /// Phases of the start, once all vCPUs were entered.
    pub(crate) running: Option<Vec<Phase>>,
    /// When the guest acknowledged the transport reset.
    pub(crate) reset_acknowledged_ns: Option<u64>,
    /// The connection is over.
    pub(crate) closed: bool,
}

type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<Reply>>>>;

/// A connection to a VMM; cheap to clone, closed with the last clone.
#[derive(Debug, Clone)]
pub(crate) struct Control {
    inner: Arc<Inner>,
    told: watch::Receiver<Told>,
}

#[derive(Debug)]
struct Inner {
    lines: mpsc::UnboundedSender<Vec<u8>>,
    waiting: Waiting,
    next_id: Mutex<u64>,
    reader: AbortHandle,
}

impl Drop for Inner {
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
        let (sender, told) = watch::channel(Told::default());
        let (lines, queue) = mpsc::unbounded_channel();
        let waiting = Waiting::default();
        let reader = tokio::spawn(read_messages(read, sender, waiting.clone())).abort_handle();
        tokio::spawn(write_lines(write, queue));
        let inner = Inner {
            lines,
            waiting,
            next_id: Mutex::new(0),
            reader,
        };
        let control = Self {
            inner: Arc::new(inner),
            told,
        };
        let hello = control
            .until("greet", limit, |told| told.hello.clone())
            .await?;
        let known = hello.version == vmm_control::VERSION;
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

    /// Waits until the VMM has told what `find` looks for.
    pub(crate) async fn until<T>(
        &self,
        what: &'static str,
        limit: Duration,
        find: impl Fn(&Told) -> Option<T>,
    ) -> Result<T, ControlError> {
        let mut told = self.told.clone();
        let found = timeout(
            limit,
            told.wait_for(|told| told.closed || find(told).is_some()),
        )
        .await
        .map_err(|_| ControlError::Deadline { what, limit })?
        .map_err(|_| ControlError::Closed)?;
        find(&found).ok_or(ControlError::Closed)
    }

    /// Waits until all vCPUs have been entered; the phases of the start.
    pub(crate) async fn running(&self, limit: Duration) -> Result<Vec<Phase>, ControlError> {
        self.until("run its vCPUs", limit, |told| told.running.clone())
            .await
    }

    /// Asks and waits for the answer; [`Reply::Failed`] becomes an error.
    pub(crate) async fn request(
        &self,
        what: &'static str,
        body: RequestBody,
        limit: Duration,
    ) -> Result<Reply, ControlError> {
        let id = {
            let mut next = lock(&self.inner.next_id);
            *next += 1;
            *next
        };
        let (sender, receiver) = oneshot::channel();
        lock(&self.inner.waiting).insert(id, sender);
        let mut line = serde_json::to_vec(&Request { id, body }).expect("requests are plain JSON");
        line.push(b'\n');
        self.inner
            .lines
            .send(line)
            .map_err(|_| ControlError::Closed)?;
        let answer = timeout(limit, receiver).await;
        lock(&self.inner.waiting).remove(&id);
        match answer {
            Ok(Ok(Reply::Failed { kind, message })) => Err(ControlError::Failed { kind, message }),
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(ControlError::Closed),
            Err(_) => Err(ControlError::Deadline { what, limit }),
        }
    }
}

/// The short sections under these locks don't panic.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn write_lines(mut stream: OwnedWriteHalf, mut queue: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(line) = queue.recv().await {
        if stream.write_all(&line).await.is_err() {
            return;
        }
    }
}

async fn read_messages(stream: OwnedReadHalf, told: watch::Sender<Told>, waiting: Waiting) {
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
            Ok(message) => note(message, &told, &waiting),
            Err(error) => {
                tracing::warn!(%error, "unreadable line on a control socket");
                break;
            }
        }
    }
    // Whoever waits for a reply learns that none will come.
    lock(&waiting).clear();
    told.send_modify(|told| told.closed = true);
}

fn note(message: Message, told: &watch::Sender<Told>, waiting: &Waiting) {
    match message {
        Message::Hello(hello) => told.send_modify(|told| {
            if matches!(hello.state, vmm_control::RunState::Building) {
                told.running = None;
            } else {
                told.running = Some(hello.phases.clone());
            }
            told.reset_acknowledged_ns = hello.reset_acknowledged_ns;
            told.hello = Some(hello);
        }),
        Message::Reply { id, reply } => {
            if let Some(sender) = lock(waiting).remove(&id) {
                let _ = sender.send(reply);
            }
        }
        Message::Event { at_ns, event } => match event {
            Event::Running { phases } => told.send_modify(|told| told.running = Some(phases)),
            Event::ResetAcknowledged => {
                told.send_modify(|told| told.reset_acknowledged_ns = Some(at_ns));
            }
            Event::Verified { bytes, ms } => {
                tracing::debug!(bytes, ms, "memory of a resumed machine is verified");
            }
            // The exit itself is what counts; its report is read from the file.
            Event::Exiting(_) => {}
        },
    }
}
