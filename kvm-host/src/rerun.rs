//! Runs the calling program once more, inside a virtual KVM host.
//!
//! For tests and measurements that need a KVM where this host has none, or none that runs Linux:
//! the same binary, the same arguments. The caller decides whether that is necessary, and names
//! the files that the program needs there.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::time::Duration;

use thiserror::Error;

use crate::clock::Clock;
use crate::config::{Config, Run};
use crate::emulator::Emulator;
use crate::host::{HostError, Interrupter, VirtualHost};
use crate::pack::{HostFile, Parts};

/// Memory of a virtual host, if nothing is known of its guests; they and their images (on tmpfs) share
/// it.
pub const MEMORY_MIB: u32 = 8192;
/// A folder inside for results, to be named in [`Rerun::export`].
pub const EXPORT: &str = "/export";
/// The folder of programs inside.
pub const PROGRAMS: &str = "/usr/bin";

/// Why the program could not be run inside to its end.
#[derive(Debug, Error)]
pub enum RerunError {
    #[error("cannot find this program's own path")]
    OwnPath(#[source] io::Error),
    #[error("this program has no name")]
    NoName,
    #[error(transparent)]
    Host(#[from] HostError),
}

/// What to run inside.
#[derive(Debug)]
pub struct Rerun<'a> {
    pub parts: Parts,
    pub emulator: Emulator,
    pub memory_mib: u32,
    /// Processors of the virtual host. QEMU runs them by turns (`qemu.rs` says why), so a second one
    /// would only slow down the first.
    pub cpus: u32,
    pub clock: Clock,
    /// Arguments of this program, without its name.
    pub arguments: Vec<String>,
    /// Added to its environment.
    pub environment: Vec<(String, String)>,
    /// The files that it needs inside.
    pub files: Vec<HostFile>,
    /// Receives its standard output; that of this process if not given.
    pub stdout: Option<Sender<Vec<u8>>>,
    /// A folder inside, such as [`EXPORT`], and the folder outside that it is copied to at the end.
    pub export: Option<(&'a str, &'a Path)>,
    /// Where the host's logs go.
    pub log_folder: PathBuf,
}

impl Rerun<'_> {
    /// Runs the program to its end and returns its exit code. `deadline` is the longest that this
    /// may take, by this machine's clock.
    pub fn run(self, deadline: Duration) -> Result<i32, RerunError> {
        self.start()?.wait(deadline)
    }

    /// Starts the program.
    pub fn start(self) -> Result<Running, RerunError> {
        let this = std::env::current_exe().map_err(RerunError::OwnPath)?;
        let name = this.file_name().ok_or(RerunError::NoName)?;
        let program = format!("{PROGRAMS}/{}", name.to_string_lossy());
        let mut files = self.files;
        files.push(HostFile::program(this, program.clone()));
        let argv = std::iter::once(program).chain(self.arguments).collect();
        let host = VirtualHost::start(&Config {
            parts: self.parts,
            memory_mib: self.memory_mib,
            cpus: self.cpus,
            emulator: self.emulator,
            clock: self.clock,
            files,
            storage: None,
            run: Run::Command {
                argv,
                env: self.environment,
                stdout: self.stdout,
                export: self
                    .export
                    .map(|(inside, outside)| (inside.to_owned(), outside.to_owned())),
            },
            log_folder: self.log_folder,
        })?;
        Ok(Running { host })
    }
}

/// The program while it runs inside.
#[derive(Debug)]
pub struct Running {
    host: VirtualHost,
}

impl Running {
    /// Interrupts the program, as Ctrl-C does.
    pub fn interrupter(&self) -> Interrupter {
        self.host.interrupter()
    }

    /// Waits for the program's end and returns its exit code. `deadline` is the longest that this
    /// may take, by this machine's clock.
    pub fn wait(self, deadline: Duration) -> Result<i32, RerunError> {
        let code = self.host.wait_command(deadline)?;
        // The exported files came before the exit code, so a host that does not power off may be
        // killed.
        self.host.shutdown()?;
        Ok(code)
    }
}
