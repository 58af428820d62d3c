//! Starts a virtual host, follows its progress, and ends it.
//!
//! A thread (`follower`) records the progress; callers wait for it with a deadline.
//! Which programs are inside besides `kvm-host-init` is up to the caller.

use std::fs::File;
use std::io::{self, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::Socket;
use tempfile::TempDir;
use thiserror::Error;

use crate::bochs::{self, BochsError};
use crate::config::{Config, INSIDE_API_PORT, INSIDE_TOKEN_PATH, Run, program_of};
use crate::disk::Loss;
use crate::emulator::Emulator;
use crate::export::{Export, ExportError};
use crate::follower::{Failure, Follower, Progress, Shared};
use crate::keeper::Kept;
use crate::last_lines;
use crate::pack::{HostFile, PackError};
use crate::plan::Plan;
use crate::protocol::{Frame, ProtocolError};
use crate::pulse::Outbox;
use crate::qemu::{self, Console, QemuError};
use crate::storage::{Drives, Storage, StorageError};

/// Longest that a host may take to boot, on a busy machine, too: Bochs needs a minute of a processor.
const BOOT_DEADLINE: Duration = Duration::from_secs(900);
const POWER_OFF_DEADLINE: Duration = Duration::from_secs(20);

/// Why a virtual host could not be started, or failed.
#[derive(Debug, Error)]
pub enum HostError {
    #[error(transparent)]
    Pack(#[from] PackError),
    #[error(transparent)]
    Qemu(#[from] QemuError),
    #[error(transparent)]
    Bochs(#[from] BochsError),
    #[error("a host in Bochs runs single commands only: {what} needs QEMU")]
    NeedsQemu { what: &'static str },
    #[error(transparent)]
    Storage(#[from] StorageError),
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

/// A running virtual host. It ends when this is dropped, and always with this process.
#[derive(Debug)]
pub struct VirtualHost {
    process: Kept,
    /// Files that the process uses.
    files: Option<TempDir>,
    drives: Option<Drives>,
    outbox: Outbox,
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
    api_port: Option<u16>,
    console: PathBuf,
    /// The emulator's own messages.
    log: PathBuf,
}

impl VirtualHost {
    /// Packs the files and starts QEMU; does not wait for the boot.
    pub fn start(config: &Config) -> Result<Self, HostError> {
        check_supported(config)?;
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
        let storage = config.storage.as_ref();
        let plan = Plan {
            storage: storage.map(|storage| storage.plan(paths_inside(&files))),
            program: program_of(&config.run),
        };
        let modules = storage.map(Storage::modules).unwrap_or_default();
        let initramfs = config
            .parts
            .pack(&plan, config.emulator, &modules, &files)?;
        drop(token_file);
        let mut drives = storage.map(Drives::open).transpose()?;
        let console = log_folder.join("console.log");
        let log = log_folder.join(if config.emulator.is_bochs() {
            "bochs.log"
        } else {
            "qemu.log"
        });
        let emulation = Emulation {
            config,
            initramfs: &initramfs,
            api_port,
            console: &console,
            log: &log,
        };
        let (process, channel, emulator_files) = emulation.start(drives.as_mut())?;
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
            .spawn(move || follower.follow(&input))
            .map_err(HostError::Follow)?;
        Ok(Self {
            process,
            files: emulator_files,
            drives,
            outbox,
            shared,
            reader: Some(reader),
            api_port,
            console,
            log,
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
        let failure = self.shared.lock().failure.take();
        if let Some(failure) = failure {
            return Err(self.failed(failure));
        }
        // It powers off right after it has closed the channel.
        self.process.wait_until(Instant::now() + POWER_OFF_DEADLINE);
        self.end(None)
    }

    /// Ends the program inside, powers the host off and waits for that; kills it at the deadline.
    pub fn shutdown(mut self) -> Result<(), HostError> {
        // A host whose channel is closed has ended.
        let _ = self.outbox.send(&Frame::PowerOff);
        self.process.wait_until(Instant::now() + POWER_OFF_DEADLINE);
        self.end(None)
    }

    /// Cuts the power at once: what runs inside is gone, and of what was written to disks, only what
    /// was synced is certain to be there.
    pub fn cut_power(mut self, loss: Loss) -> Result<(), HostError> {
        self.end(Some(loss))
    }

    /// Kills QEMU if it still runs. Without a loss, disks keep all that was written to them.
    fn end(&mut self, loss: Option<Loss>) -> Result<(), HostError> {
        self.process.kill();
        if let Some(reader) = self.reader.take() {
            // The reader ends with the channel, which ends with the process. A panic has been printed.
            let _ = reader.join();
        }
        self.files = None;
        if let Some(drives) = self.drives.take() {
            drives.end(loss)?;
        }
        Ok(())
    }

    fn wait<T>(
        &self,
        event: &'static str,
        timeout: Duration,
        done: impl Fn(&Progress) -> Option<T>,
    ) -> Result<T, HostError> {
        let begin = Instant::now();
        let mut progress = self.shared.lock();
        loop {
            // Whatever is waited for may take hours. The boot does not, and one that hangs is told soon.
            let (event, timeout) = if progress.booted || timeout < BOOT_DEADLINE {
                (event, timeout)
            } else {
                ("the host had booted", BOOT_DEADLINE)
            };
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
            let Some(left) = timeout.checked_sub(begin.elapsed()) else {
                return Err(HostError::Deadline {
                    event,
                    waited: timeout,
                    console: self.console.clone(),
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
                console: self.console.clone(),
                last_lines: self.last_lines(),
            },
            Failure::Protocol(error) => HostError::Protocol(error),
            Failure::Export(error) => error.into(),
            Failure::Pulse(error) => HostError::Follow(error),
        }
    }

    /// The end of the emulator's log, or of the console where that is empty.
    fn last_lines(&self) -> String {
        let messages = last_lines::of_file(&self.log, 5);
        if messages.is_empty() {
            last_lines::of_file(&self.console, 15)
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
        // Whoever wants to know what became of the disks ends the host by one of its methods.
        let _ = self.end(None);
    }
}

/// The emulator's part of a start.
struct Emulation<'a> {
    config: &'a Config,
    initramfs: &'a File,
    api_port: Option<u16>,
    console: &'a Path,
    log: &'a Path,
}

impl Emulation<'_> {
    /// Starts the process, and returns it with the channel and the files that it uses.
    fn start(
        &self,
        mut drives: Option<&mut Drives>,
    ) -> Result<(Kept, Socket, Option<TempDir>), HostError> {
        let config = self.config;
        if config.emulator.is_bochs() {
            let machine = bochs::Machine {
                emulator: config.emulator,
                kernel: config.parts.kernel_image(),
                initramfs: self.initramfs,
                memory_mib: config.memory_mib,
                cpus: config.cpus,
                clock: config.clock,
                console: self.console,
                log: self.log,
            };
            let (process, channel, files) = bochs::start(&machine)?;
            return Ok((process, channel, Some(files)));
        }
        let machine = qemu::Machine {
            kernel: config.parts.kernel_image(),
            initramfs: self.initramfs,
            memory_mib: config.memory_mib,
            cpus: config.cpus,
            clock: config.clock,
            forward: self.api_port.map(|outside| (outside, INSIDE_API_PORT)),
            disks: &drives
                .as_ref()
                .map(|drives| drives.arguments())
                .unwrap_or_default(),
            console: &match config.run {
                Run::Shell => Console::Terminal,
                Run::Supervisor { .. } | Run::Command { .. } => {
                    Console::Log(self.console.to_owned())
                }
            },
            log: self.log,
        };
        let connections = drives.as_mut().map(|drives| drives.take_connections());
        let (process, channel) = qemu::start(&machine, connections.unwrap_or_default())?;
        Ok((process, channel, None))
    }
}

/// Checks that hosts of this kind can be started on this machine.
pub fn check_installed(emulator: Emulator) -> Result<(), HostError> {
    if emulator.is_bochs() {
        bochs::check_installed()?;
    } else {
        qemu::check_installed()?;
    }
    Ok(())
}

/// Bochs has neither a network nor disks nor a terminal here.
fn check_supported(config: &Config) -> Result<(), HostError> {
    let what = match &config.run {
        Run::Supervisor { .. } => "a supervisor for others",
        Run::Shell => "a shell",
        Run::Command { .. } if config.storage.is_some() => "storage",
        Run::Command { .. } => return Ok(()),
    };
    if config.emulator.is_bochs() {
        return Err(HostError::NeedsQemu { what });
    }
    Ok(())
}

fn paths_inside(files: &[HostFile]) -> Vec<String> {
    files.iter().map(|file| file.inside.clone()).collect()
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
