//! Starts a virtual host, follows its progress, and ends it.
//!
//! One thread reads the channel and records the progress; callers wait for it with a deadline.
//! Which programs are inside besides `kvm-host-init` is up to the caller.

use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::clock::Clock;
use crate::export::{Export, ExportError};
use crate::pack::{HostFile, PackError, Parts};
use crate::plan::Plan;
use crate::protocol::{Frame, ProtocolError};
use crate::pulse::{Outbox, Pulse};
use crate::qemu::{self, Console, Machine, Qemu, QemuError};

/// The port of the supervisor inside.
pub const INSIDE_API_PORT: u16 = 8080;
/// Where a supervisor inside keeps its state.
pub const INSIDE_STATE_DIR: &str = "/var/lib/mctl";
const INSIDE_TOKEN_PATH: &str = "/etc/mctl/token";
const POWER_OFF_DEADLINE: Duration = Duration::from_secs(20);

/// What a virtual host runs.
#[derive(Debug, Clone)]
pub enum Run {
    /// `mctl-supervisor`, its API forwarded to a port of 127.0.0.1. The files must include it in
    /// `/usr/bin`, and the programs that it needs.
    Supervisor {
        token: String,
        /// The port of 127.0.0.1; a free one if not given.
        port: Option<u16>,
    },
    /// A program that runs once. Its output becomes the output of this process.
    Command {
        argv: Vec<String>,
        env: Vec<(String, String)>,
        /// Receives its standard output instead, in pieces of any length.
        stdout: Option<Sender<Vec<u8>>>,
        /// A folder inside, and the folder outside that it is copied to at the end.
        export: Option<(String, PathBuf)>,
    },
    /// A shell on this terminal.
    Shell,
}

/// How to start a virtual host.
#[derive(Debug)]
pub struct Config {
    pub parts: Parts,
    pub memory_mib: u32,
    pub cpus: u32,
    pub clock: Clock,
    pub files: Vec<HostFile>,
    pub run: Run,
    /// Where `console.log` and `qemu.log` go.
    pub log_folder: PathBuf,
}

/// Why a virtual host could not be started, or failed.
#[derive(Debug, Error)]
pub enum HostError {
    #[error(transparent)]
    Pack(#[from] PackError),
    #[error(transparent)]
    Qemu(#[from] QemuError),
    #[error("cannot create the log folder {path}")]
    LogFolder { path: PathBuf, source: io::Error },
    #[error("cannot write the API token")]
    Token(#[source] io::Error),
    #[error("no port of 127.0.0.1 is free")]
    NoPort(#[source] io::Error),
    #[error("cannot follow the virtual host")]
    Follow(#[source] io::Error),
    #[error("the virtual host sent an invalid frame")]
    Protocol(#[source] ProtocolError),
    #[error(transparent)]
    Export(#[from] ExportError),
    #[error("the virtual host failed: {reason} (its console is in {console}):\n{last_lines}")]
    Failed {
        reason: String,
        console: PathBuf,
        last_lines: String,
    },
    #[error("the virtual host ended before {event}:\n{last_lines}")]
    Ended {
        event: &'static str,
        last_lines: String,
    },
    #[error("waited {} s until {event} (the console is in {console}):\n{last_lines}", .waited.as_secs())]
    Deadline {
        event: &'static str,
        waited: Duration,
        console: PathBuf,
        last_lines: String,
    },
}

/// What the channel has reported so far.
#[derive(Debug, Default)]
struct Progress {
    ready: bool,
    exit_code: Option<i32>,
    failure: Option<Failure>,
    ended: bool,
}

#[derive(Debug)]
enum Failure {
    Reported(String),
    Protocol(ProtocolError),
    Export(ExportError),
    Pulse(io::Error),
}

#[derive(Debug, Default)]
struct Shared {
    progress: Mutex<Progress>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

/// A running virtual host. It ends when this is dropped, and always with this process.
#[derive(Debug)]
pub struct VirtualHost {
    qemu: Qemu,
    outbox: Outbox,
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
    api_port: Option<u16>,
    log_folder: PathBuf,
}

impl VirtualHost {
    /// Packs the files and starts QEMU; does not wait for the boot.
    pub fn start(config: &Config) -> Result<Self, HostError> {
        let log_folder = config.log_folder.clone();
        std::fs::create_dir_all(&log_folder).map_err(|source| HostError::LogFolder {
            path: log_folder.clone(),
            source,
        })?;
        let mut files = config.files.clone();
        let mut api_port = None;
        // Lives until the files are packed.
        let mut token_file = None;
        if let Run::Supervisor { token, port } = &config.run {
            api_port = Some(port.map_or_else(free_port, Ok)?);
            let file = write_token(token).map_err(HostError::Token)?;
            files.push(HostFile {
                source: file.path().to_owned(),
                inside: INSIDE_TOKEN_PATH.to_owned(),
                permissions: 0o600,
            });
            token_file = Some(file);
        }
        let initramfs = config.parts.pack(&plan_of(&config.run), &files)?;
        drop(token_file);
        let console = match config.run {
            Run::Shell => Console::Terminal,
            Run::Supervisor { .. } | Run::Command { .. } => {
                Console::Log(log_folder.join("console.log"))
            }
        };
        let (qemu, channel) = Qemu::start(&Machine {
            kernel: config.parts.kernel_image(),
            initramfs: &initramfs,
            memory_mib: config.memory_mib,
            cpus: config.cpus,
            clock: config.clock,
            forward: api_port.map(|outside| (outside, INSIDE_API_PORT)),
            console: &console,
            log: &log_folder.join("qemu.log"),
        })?;
        let shared = Arc::new(Shared::default());
        let input = channel.try_clone().map_err(HostError::Follow)?;
        let outbox = Outbox::new(channel).map_err(HostError::Follow)?;
        let follower = Follower {
            shared: Arc::clone(&shared),
            outbox: outbox.clone(),
            clock: config.clock,
            pulse: None,
            stdout: match &config.run {
                Run::Command { stdout, .. } => stdout.clone(),
                Run::Supervisor { .. } | Run::Shell => None,
            },
            export: match &config.run {
                Run::Command {
                    export: Some((_, folder)),
                    ..
                } => Some(Export::into(folder)),
                _ => None,
            },
            initramfs: Some(initramfs),
        };
        let reader = std::thread::Builder::new()
            .name("kvm-host-channel".to_owned())
            .spawn(move || follower.follow(input))
            .map_err(HostError::Follow)?;
        Ok(Self {
            qemu,
            outbox,
            shared,
            reader: Some(reader),
            api_port,
            log_folder,
        })
    }

    /// The address of the supervisor inside, if there is one.
    pub fn api_url(&self) -> Option<String> {
        self.api_port.map(|port| format!("http://127.0.0.1:{port}"))
    }

    /// Waits until the supervisor inside accepts connections.
    pub fn wait_ready(&self, timeout: Duration) -> Result<(), HostError> {
        self.wait("the supervisor answered", timeout, |progress| {
            progress.ready.then_some(())
        })
    }

    /// Waits for the end of the command and returns its exit code.
    pub fn wait_command(&self, timeout: Duration) -> Result<i32, HostError> {
        self.wait("the command ended", timeout, |progress| progress.exit_code)
    }

    /// Interrupts the command inside, as Ctrl-C does; may be used while another thread waits.
    pub fn interrupter(&self) -> Interrupter {
        Interrupter(self.outbox.clone())
    }

    /// Waits for the end of the host, without a deadline.
    pub fn wait_end(mut self) -> Result<(), HostError> {
        if let Some(reader) = self.reader.take() {
            // A panic of the reader has been printed already.
            let _ = reader.join();
        }
        match self.shared.lock().failure.take() {
            Some(failure) => Err(self.failed(failure)),
            None => Ok(()),
        }
    }

    /// Ends the program inside, powers the host off and waits for that; kills it at the deadline.
    pub fn shutdown(self) {
        // A host whose channel is closed has ended.
        let _ = self.outbox.send(&Frame::PowerOff);
        self.qemu.wait_until(Instant::now() + POWER_OFF_DEADLINE);
    }

    fn wait<T>(
        &self,
        event: &'static str,
        timeout: Duration,
        done: impl Fn(&Progress) -> Option<T>,
    ) -> Result<T, HostError> {
        let deadline = Instant::now() + timeout;
        let mut progress = self.shared.lock();
        loop {
            if let Some(value) = done(&progress) {
                return Ok(value);
            }
            if let Some(failure) = progress.failure.take() {
                return Err(self.failed(failure));
            }
            if progress.ended {
                return Err(HostError::Ended {
                    event,
                    last_lines: self.last_lines(),
                });
            }
            let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                return Err(HostError::Deadline {
                    event,
                    waited: timeout,
                    console: self.console(),
                    last_lines: self.last_lines(),
                });
            };
            (progress, _) = self
                .shared
                .changed
                .wait_timeout(progress, left)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn failed(&self, failure: Failure) -> HostError {
        match failure {
            Failure::Reported(reason) => HostError::Failed {
                reason,
                console: self.console(),
                last_lines: self.last_lines(),
            },
            Failure::Protocol(error) => HostError::Protocol(error),
            Failure::Export(error) => error.into(),
            Failure::Pulse(error) => HostError::Follow(error),
        }
    }

    fn console(&self) -> PathBuf {
        self.log_folder.join("console.log")
    }

    /// The end of QEMU's log, or of the console where QEMU has logged nothing.
    fn last_lines(&self) -> String {
        let messages = qemu::last_lines(&self.log_folder.join("qemu.log"), 5);
        if messages.is_empty() {
            qemu::last_lines(&self.console(), 15)
        } else {
            messages
        }
    }
}

/// Interrupts the command inside a virtual host.
#[derive(Debug, Clone)]
pub struct Interrupter(Outbox);

impl Interrupter {
    /// Interrupts it. A host that has ended needs no interruption.
    pub fn interrupt(&self) {
        let _ = self.0.send(&Frame::Interrupt);
    }
}

impl Drop for VirtualHost {
    fn drop(&mut self) {
        self.qemu.kill();
        if let Some(reader) = self.reader.take() {
            // The reader ends with the channel, which ends with QEMU.
            let _ = reader.join();
        }
    }
}

fn plan_of(run: &Run) -> Plan {
    match run {
        Run::Supervisor { .. } => Plan::Service {
            argv: [
                "/usr/bin/mctl-supervisor",
                "--state-dir",
                INSIDE_STATE_DIR,
                "--listen",
                &format!("0.0.0.0:{INSIDE_API_PORT}"),
                "--bootstrap-token-file",
                INSIDE_TOKEN_PATH,
            ]
            .map(str::to_owned)
            .to_vec(),
            ready_port: INSIDE_API_PORT,
        },
        Run::Command {
            argv, env, export, ..
        } => Plan::Command {
            argv: argv.clone(),
            env: env.clone(),
            export: export.as_ref().map(|(inside, _)| inside.clone()),
        },
        Run::Shell => Plan::Shell,
    }
}

fn write_token(token: &str) -> io::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::NamedTempFile::new()?;
    writeln!(file, "{token}")?;
    Ok(file)
}

/// A port that was free a moment ago; if another process takes it meanwhile, QEMU says so.
fn free_port() -> Result<u16, HostError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(HostError::NoPort)
}

/// The thread that reads the channel.
struct Follower {
    shared: Arc<Shared>,
    outbox: Outbox,
    clock: Clock,
    /// Started by the host's first frame, where the host needs one.
    pulse: Option<Pulse>,
    stdout: Option<Sender<Vec<u8>>>,
    export: Option<Export>,
    /// Kept open until the host has booted, as QEMU opens it by our descriptor.
    initramfs: Option<std::fs::File>,
}

impl Follower {
    fn follow(mut self, input: UnixStream) {
        loop {
            match Frame::read_from(&input) {
                Ok(Some(frame)) => {
                    if let Err(error) = self.record(frame) {
                        self.shared
                            .update(|progress| progress.failure = Some(error));
                        break;
                    }
                }
                Ok(None) => break,
                // QEMU may be killed in the middle of a frame, which is a normal end.
                Err(ProtocolError::Read(_) | ProtocolError::CutShort) => break,
                Err(error) => {
                    let failure = Failure::Protocol(error);
                    self.shared
                        .update(|progress| progress.failure = Some(failure));
                    break;
                }
            }
        }
        self.shared.update(|progress| progress.ended = true);
    }

    fn record(&mut self, frame: Frame) -> Result<(), Failure> {
        match frame {
            Frame::Booted => {
                self.initramfs = None;
                // In virtual time QEMU runs timers in the processor's own thread, so none is lost.
                if self.clock == Clock::Real {
                    let pulse = Pulse::start(self.outbox.clone()).map_err(Failure::Pulse)?;
                    self.pulse = Some(pulse);
                }
            }
            Frame::Ready => self.shared.update(|progress| progress.ready = true),
            // Our own output may be a closed pipe; the command inside continues nevertheless.
            Frame::Stdout(bytes) => match &self.stdout {
                // A receiver that is gone wants no more.
                Some(receiver) => drop(receiver.send(bytes)),
                None => drop(write_through(&mut io::stdout(), &bytes)),
            },
            Frame::Stderr(bytes) => drop(write_through(&mut io::stderr(), &bytes)),
            Frame::File { path, permissions } => {
                if let Some(export) = &mut self.export {
                    export.begin(&path, permissions).map_err(Failure::Export)?;
                }
            }
            Frame::FileData(bytes) => {
                if let Some(export) = &mut self.export {
                    export.append(&bytes).map_err(Failure::Export)?;
                }
            }
            Frame::Exited(code) => self
                .shared
                .update(|progress| progress.exit_code = Some(code)),
            Frame::Failed(reason) => return Err(Failure::Reported(reason)),
            // Sent by this end only.
            Frame::PowerOff | Frame::Beat | Frame::Interrupt => (),
        }
        Ok(())
    }
}

fn write_through(out: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    out.flush()
}
