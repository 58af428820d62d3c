//! This program once more, as a process where KVM runs Linux guests: a child on this machine, or
//! inside a virtual KVM host. Both get the same arguments, so that both ways measure alike.
//!
//! The virtual host runs in virtual time: figures do not depend on how busy this machine is, and
//! several processes may run at once without disturbing each other.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use kvm_host::host::Interrupter;
use kvm_host::pack::HostFile;
use kvm_host::rerun::{EXPORT, PROGRAMS, Rerun, Running};
use rustix::process::{Pid, Signal, kill_process};

use crate::artifacts::{self, GuestImage};
use crate::kvm_place::KvmPlace;
use crate::{child, host};

/// Folder of the guest images in a virtual host.
const INSIDE_IMAGES: &str = "/images";

/// What to run.
#[derive(Debug)]
pub struct KvmProcess<'a> {
    /// Where it runs.
    pub place: KvmPlace,
    /// Memory of the virtual host, if it runs in one: see [`KvmPlace::memory_for`].
    pub host_memory_mib: u32,
    /// Distinguishes its logs from those of others; a file name.
    pub name: &'a str,
    /// The guest images that it needs; they are built if they are not up to date.
    pub images: &'a [GuestImage],
    /// Further images, by name, which are in its folder's store already.
    pub other_images: &'a [&'a str],
    /// Further programs that it needs.
    pub programs: &'a [PathBuf],
    /// Where images and logs are put, and results.
    pub folder: &'a Path,
}

/// The paths that the arguments name, as the process sees them.
#[derive(Debug)]
pub struct Paths {
    /// The store of guest images.
    pub images: PathBuf,
    /// A folder whose files are in `<folder>/<name>` after the process has ended.
    pub results: PathBuf,
    /// The further programs, in their order.
    pub programs: Vec<PathBuf>,
}

/// The lines of an output that is received in pieces, without their ends; the last one may be
/// unfinished.
pub fn lines(pieces: Receiver<Vec<u8>>) -> impl Iterator<Item = Vec<u8>> {
    let mut pieces = pieces.into_iter();
    let mut unfinished = Vec::new();
    std::iter::from_fn(move || {
        loop {
            if let Some(end) = unfinished.iter().position(|byte| *byte == b'\n') {
                let rest = unfinished.split_off(end + 1);
                unfinished.truncate(end);
                return Some(std::mem::replace(&mut unfinished, rest));
            }
            match pieces.next() {
                Some(piece) => unfinished.extend_from_slice(&piece),
                None if unfinished.is_empty() => return None,
                None => return Some(std::mem::take(&mut unfinished)),
            }
        }
    })
}

/// The process while it runs.
#[derive(Debug)]
pub struct RunningProcess {
    process: Process,
}

#[derive(Debug)]
enum Process {
    Here(Child),
    Virtual(Running),
}

impl KvmProcess<'_> {
    /// Starts it. What it writes to its standard output is received from the second part, until it
    /// ends.
    ///
    /// # Errors
    /// If something is missing, or it cannot be started.
    pub fn start(
        &self,
        arguments: impl FnOnce(&Paths) -> anyhow::Result<Vec<String>>,
    ) -> anyhow::Result<(RunningProcess, Receiver<Vec<u8>>)> {
        let (sender, receiver) = channel();
        let results = self.results()?;
        let process = match self.place {
            KvmPlace::Here => {
                let images = artifacts::image_store(self.folder);
                artifacts::build_images(&images, self.images)?;
                let paths = Paths {
                    images,
                    results,
                    programs: self.programs.to_vec(),
                };
                Process::Here(start_child(&arguments(&paths)?, sender)?)
            }
            KvmPlace::Virtual { emulator, cpus } => {
                let mut files = host::files_for_guests(
                    self.folder,
                    self.images,
                    self.other_images,
                    INSIDE_IMAGES,
                )?;
                let inside = |number: usize| PathBuf::from(format!("{PROGRAMS}/program-{number}"));
                let programs: Vec<PathBuf> = (0..self.programs.len()).map(inside).collect();
                for (path, inside) in self.programs.iter().zip(&programs) {
                    files.push(HostFile::program(path, inside.display().to_string()));
                }
                let paths = Paths {
                    images: INSIDE_IMAGES.into(),
                    results: EXPORT.into(),
                    programs,
                };
                let rerun = Rerun {
                    parts: host::parts()?,
                    emulator,
                    memory_mib: self.host_memory_mib,
                    cpus,
                    clock: self.place.clock(),
                    arguments: arguments(&paths)?,
                    environment: Vec::new(),
                    files,
                    stdout: Some(sender),
                    export: Some((EXPORT, &results)),
                    log_folder: self.folder.join(format!("{}-host", self.name)),
                };
                Process::Virtual(rerun.start()?)
            }
        };
        Ok((RunningProcess { process }, receiver))
    }

    /// An empty folder for its results: those of an earlier run could be mistaken for its own.
    fn results(&self) -> anyhow::Result<PathBuf> {
        let results = self.folder.join(self.name);
        if results.exists() {
            std::fs::remove_dir_all(&results).with_context(|| {
                format!("cannot remove earlier results in {}", results.display())
            })?;
        }
        std::fs::create_dir_all(&results)
            .with_context(|| format!("cannot create {}", results.display()))?;
        Ok(results)
    }
}

impl RunningProcess {
    /// A function that interrupts the process, as Ctrl-C does.
    pub fn interrupter(&self) -> impl FnOnce() + Send + 'static {
        enum Way {
            Signal(Pid),
            Frame(Interrupter),
        }
        let way = match &self.process {
            Process::Here(child) => Way::Signal(Pid::from_child(child)),
            Process::Virtual(running) => Way::Frame(running.interrupter()),
        };
        move || match way {
            // A process that has ended needs no interruption.
            Way::Signal(pid) => drop(kill_process(pid, Signal::INT)),
            Way::Frame(interrupter) => interrupter.interrupt(),
        }
    }

    /// Waits for its end; `deadline` is by this machine's clock. Its standard output must be
    /// received meanwhile.
    ///
    /// # Errors
    /// If it does not end in time, or with another exit code than 0.
    pub fn wait(self, deadline: Duration) -> anyhow::Result<()> {
        let code = match self.process {
            Process::Virtual(running) => running.wait(deadline)?,
            Process::Here(child) => wait_for_child(child, deadline)?,
        };
        ensure!(code == 0, "it failed with exit code {code}; see above");
        Ok(())
    }
}

fn start_child(arguments: &[String], stdout: Sender<Vec<u8>>) -> anyhow::Result<Child> {
    let this = std::env::current_exe().context("cannot find this program's own path")?;
    let mut child = Command::new(&this)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", this.display()))?;
    let mut pipe = child.stdout.take().context("a child without output")?;
    std::thread::Builder::new()
        .name("child-output".to_owned())
        .spawn(move || {
            let mut piece = vec![0; 64 << 10];
            while let Ok(bytes @ 1..) = pipe.read(&mut piece) {
                if stdout.send(piece[..bytes].to_vec()).is_err() {
                    break;
                }
            }
        })
        .context("cannot start a thread")?;
    Ok(child)
}

/// The exit code of a child, -1 if a signal ended it.
fn wait_for_child(mut child: Child, deadline: Duration) -> anyhow::Result<i32> {
    let ended = child::wait(&mut child, deadline).context("cannot wait for the child")?;
    let Some(status) = ended else {
        // It may end in this moment.
        let _ = child.kill();
        let _ = child.wait();
        bail!("it did not end within {} s", deadline.as_secs());
    };
    Ok(status.code().unwrap_or(-1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_wherever_the_pieces_end() {
        for length in 1..12 {
            let (sender, pieces) = channel();
            for piece in b"one\n\ntwo\nend".chunks(length) {
                sender.send(piece.to_vec()).unwrap();
            }
            drop(sender);
            let found: Vec<Vec<u8>> = lines(pieces).collect();
            assert_eq!(found, [&b"one"[..], b"", b"two", b"end"], "{length}");
        }
    }
}
