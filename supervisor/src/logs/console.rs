//! Copies the console's file into the log, line by line, with the time at which a line was noticed.
//!
//! The VMM appends to a plain file, so that nothing is lost while no supervisor runs. One inotify
//! descriptor serves all machines; an idle console costs nothing.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::logs::MachineLog;

/// Longest line; a longer one becomes several.
const LINE_BYTES: usize = 16 << 10;
/// Wait before lines that could not be copied are tried again.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Copied parts of the file are released in steps of this size.
const RELEASE_BYTES: u64 = 1 << 20;

/// Watches the console files of all machines.
#[derive(Debug, Clone)]
pub(crate) struct ConsoleWatcher {
    watches: Arc<Watches>,
}

#[derive(Debug)]
struct Watches {
    inotify: Arc<OwnedFd>,
    by_descriptor: Mutex<HashMap<i32, Arc<Notify>>>,
}

/// Copies one console into its log until it is dropped.
#[derive(Debug)]
pub(crate) struct Collection {
    watcher: ConsoleWatcher,
    watch: i32,
    task: AbortHandle,
}

impl Drop for Collection {
    fn drop(&mut self) {
        self.task.abort();
        self.watcher.watched().remove(&self.watch);
        // Fails if the file was removed, and the watch with it.
        let _ = inotify::remove_watch(&self.watcher.watches.inotify, self.watch);
    }
}

impl ConsoleWatcher {
    /// Watches no console yet.
    pub(crate) fn new() -> io::Result<Self> {
        let inotify = Arc::new(inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?);
        #[expect(
            deprecated,
            reason = "an OwnedFd in an Arc is and stays the same descriptor"
        )]
        let readable = AsyncFd::new(inotify.clone())?;
        let watcher = Self {
            watches: Arc::new(Watches {
                inotify,
                by_descriptor: Mutex::default(),
            }),
        };
        tokio::spawn(watcher.clone().serve(readable));
        Ok(watcher)
    }

    /// Copies the console at `path` into `log` until the returned value is dropped.
    pub(crate) fn collect(&self, path: &Path, log: &MachineLog) -> io::Result<Collection> {
        OpenOptions::new().create(true).append(true).open(path)?;
        let watch = inotify::add_watch(&self.watches.inotify, path, WatchFlags::MODIFY)?;
        let changed = Arc::new(Notify::new());
        self.watched().insert(watch, changed.clone());
        let task = tokio::spawn(collect(path.to_owned(), log.clone(), changed)).abort_handle();
        Ok(Collection {
            watcher: self.clone(),
            watch,
            task,
        })
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<i32, Arc<Notify>>> {
        self.watches
            .by_descriptor
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    async fn serve(self, readable: AsyncFd<Arc<OwnedFd>>) {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        loop {
            let Ok(mut ready) = readable.readable().await else {
                return;
            };
            let mut events = inotify::Reader::new(readable.get_ref().as_fd(), &mut buffer);
            loop {
                match events.next() {
                    Ok(event) => {
                        if let Some(changed) = self.watched().get(&event.wd()) {
                            changed.notify_one();
                        }
                    }
                    Err(rustix::io::Errno::INTR) => {}
                    Err(rustix::io::Errno::AGAIN) => break,
                    Err(error) => {
                        tracing::error!(%error, "cannot watch consoles any more");
                        return;
                    }
                }
            }
            ready.clear_ready();
        }
    }
}

async fn collect(path: PathBuf, log: MachineLog, changed: Arc<Notify>) {
    loop {
        if let Err(error) = copy_new_lines(&path, &log) {
            // The machine was destroyed, and its console with it.
            if error.kind() == io::ErrorKind::NotFound {
                return;
            }
            tracing::warn!(%error, path = %path.display(), "cannot copy a console into its log");
            // Space or descriptors may become free without a further line of the console.
            let _ = timeout(RETRY_AFTER, changed.notified()).await;
            continue;
        }
        changed.notified().await;
    }
}

/// Copies the complete lines behind the log's position into the log.
fn copy_new_lines(path: &Path, log: &MachineLog) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut offset = log.position().console_offset;
    if file.metadata()?.len() < offset {
        log.restart_console();
        offset = 0;
    }
    let begun = offset;
    file.seek(SeekFrom::Start(offset))?;
    let mut pending = Vec::new();
    let mut chunk = [0; 8192];
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            break;
        }
        pending.extend_from_slice(&chunk[..read]);
        while let Some(length) = line_length(&pending) {
            offset += length as u64;
            let line = String::from_utf8_lossy(&pending[..length]);
            log.add_console(line.trim_end_matches(['\r', '\n']), offset)?;
            pending.drain(..length);
        }
    }
    if offset / RELEASE_BYTES > begun / RELEASE_BYTES {
        release(&file, offset / RELEASE_BYTES * RELEASE_BYTES);
    }
    Ok(())
}

fn line_length(pending: &[u8]) -> Option<usize> {
    let window = &pending[..pending.len().min(LINE_BYTES)];
    match window.iter().position(|byte| *byte == b'\n') {
        Some(end) => Some(end + 1),
        None => (window.len() == LINE_BYTES).then_some(LINE_BYTES),
    }
}

/// Gives the blocks of the file's beginning back to the file system. A truncation would race with the
/// VMM, which goes on appending.
fn release(file: &File, bytes: u64) {
    use rustix::fs::{FallocateFlags, fallocate};
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if let Err(error) = fallocate(file, flags, 0, bytes) {
        tracing::debug!(%error, "cannot release a console's beginning");
    }
}
