//! Copies the console's file into the log, line by line, with the time at which a line was noticed.
//!
//! The VMM appends to a plain file, so that nothing is lost while no supervisor runs. One inotify
//! descriptor serves all machines; an idle console costs nothing. A guest that prints without a pause has
//! one event in its queue, and is read at its own pace: its file grows up to the VMM's bound meanwhile.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};

use crate::logs::MachineLog;
use crate::model::guest_share::ReadPace;

/// Longest line; a longer one becomes several.
const LINE_BYTES: usize = 16 << 10;
/// Wait before lines that could not be copied are tried again.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Copied parts of the file are released in steps of this size.
const RELEASE_BYTES: u64 = 1 << 20;
/// Most bytes, and most lines, that are copied before other tasks have a turn.
const TURN_BYTES: usize = 256 << 10;
const TURN_LINES: u32 = 2_000;

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
    changed: Arc<Notify>,
    task: AbortHandle,
}

impl Drop for Collection {
    fn drop(&mut self) {
        self.task.abort();
        self.watcher.forget(&self.changed);
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
        let changed = Arc::new(Notify::new());
        self.watch_once(path, &changed)?;
        let collecting = self
            .clone()
            .copy(path.to_owned(), log.clone(), changed.clone());
        let task = tokio::spawn(collecting).abort_handle();
        Ok(Collection {
            watcher: self.clone(),
            changed,
            task,
        })
    }

    /// Notifies `changed` at the next change of the file, and not again: no guest can fill the queue of
    /// events, which all share.
    fn watch_once(&self, path: &Path, changed: &Arc<Notify>) -> io::Result<()> {
        // Locked before it is watched, so that its first event finds it.
        let mut watched = self.watched();
        let flags = WatchFlags::MODIFY | WatchFlags::ONESHOT;
        let watch = inotify::add_watch(&self.watches.inotify, path, flags)?;
        watched.insert(watch, changed.clone());
        Ok(())
    }

    /// Ends the watch that notifies `changed`, if there is one now.
    fn forget(&self, changed: &Arc<Notify>) {
        self.watched().retain(|watch, other| {
            let forgotten = Arc::ptr_eq(changed, other);
            if forgotten {
                // Fails if the file was removed, and the watch with it.
                let _ = inotify::remove_watch(&self.watches.inotify, *watch);
            }
            !forgotten
        });
    }

    fn watched(&self) -> MutexGuard<'_, HashMap<i32, Arc<Notify>>> {
        self.watches
            .by_descriptor
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of an event.
    fn note(&self, watch: i32, events: ReadFlags) {
        let mut watched = self.watched();
        if events.contains(ReadFlags::QUEUE_OVERFLOW) {
            // Nobody knows whose events were lost.
            watched.values().for_each(|changed| changed.notify_one());
        } else if events.contains(ReadFlags::IGNORED) {
            watched.remove(&watch);
        } else if let Some(changed) = watched.get(&watch) {
            changed.notify_one();
        }
    }

    /// Copies the console at `path` until it is gone.
    async fn copy(self, path: PathBuf, log: MachineLog, changed: Arc<Notify>) {
        let mut pace = ReadPace::of_output(Instant::now());
        loop {
            // Watched before it is read, so that nothing is missed in between.
            let copied = self.watch_once(&path, &changed);
            match copied.and_then(|()| copy_new_lines(&path, &log)) {
                Ok(turn) => {
                    let wait = pace.wait_after(turn.lines, turn.bytes, Instant::now());
                    if !wait.is_zero() {
                        sleep(wait).await;
                    }
                    if turn.is_full {
                        tokio::task::yield_now().await;
                    } else {
                        log.await_guest(changed.notified()).await;
                    }
                }
                // The machine was destroyed, and its console with it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => return,
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "cannot copy a console into its log");
                    // Space or descriptors may become free without a further line of the console.
                    let _ = timeout(RETRY_AFTER, changed.notified()).await;
                }
            }
        }
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
                    Ok(event) => self.note(event.wd(), event.events()),
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

/// What was copied in one turn.
#[derive(Debug, Default)]
struct Turn {
    lines: u32,
    bytes: usize,
    /// There may be more.
    is_full: bool,
}

/// Copies complete lines behind the log's position into the log.
fn copy_new_lines(path: &Path, log: &MachineLog) -> io::Result<Turn> {
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
    let mut turn = Turn::default();
    while !turn.is_full {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            break;
        }
        turn.bytes += read;
        pending.extend_from_slice(&chunk[..read]);
        while let Some(length) = line_length(&pending)
            && turn.lines < TURN_LINES
        {
            turn.lines += 1;
            offset += length as u64;
            let line = String::from_utf8_lossy(&pending[..length]);
            log.add_console(line.trim_end_matches(['\r', '\n']), offset)?;
            pending.drain(..length);
        }
        turn.is_full = turn.bytes >= TURN_BYTES || turn.lines >= TURN_LINES;
    }
    if offset / RELEASE_BYTES > begun / RELEASE_BYTES {
        // The log must not look for what is released.
        log.store_position()?;
        release(&file, offset / RELEASE_BYTES * RELEASE_BYTES);
    }
    Ok(turn)
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::num::NonZeroU32;

    use super::*;
    use crate::logs::LogFilter;

    const LIMIT: Duration = Duration::from_secs(20);

    fn lines(log: &MachineLog) -> Vec<String> {
        let (lines, _) = log.read(&LogFilter::default()).unwrap();
        lines.into_iter().map(|line| line.text).collect()
    }

    /// Waits until the log has a line that `is_it`.
    async fn wait_for(log: &MachineLog, what: &str, is_it: impl Fn(&str) -> bool) {
        let (there, mut reader) = log.read(&LogFilter::default()).unwrap();
        let mut found = there.iter().any(|line| is_it(&line.text));
        while !found {
            let more = timeout(LIMIT, reader.more()).await;
            let more = more.unwrap_or_else(|_| panic!("waited for {what}"));
            found = more.unwrap().unwrap().iter().any(|line| is_it(&line.text));
        }
    }

    #[tokio::test]
    async fn a_flood_is_copied_in_turns_and_leaves_other_consoles_theirs() {
        let folder = tempfile::tempdir().unwrap();
        let watcher = ConsoleWatcher::new().unwrap();
        let open = |name: &str| {
            let path = folder.path().join(name);
            let rate = NonZeroU32::new(100).unwrap();
            let log = MachineLog::open(&path.with_extension("log"), rate).unwrap();
            let collection = watcher.collect(&path, &log).unwrap();
            (path, log, collection)
        };
        let (hostile, flooded, _hostile) = open("hostile");
        let (other, log, _other) = open("other");
        // Far more than a turn, and no line of it has more than one byte.
        let mut file = OpenOptions::new().append(true).open(&hostile).unwrap();
        file.write_all("\n".repeat(3 * TURN_BYTES).as_bytes())
            .unwrap();
        fs::write(&other, "hello\n").unwrap();
        wait_for(&log, "the other console", |text| text == "hello").await;
        wait_for(&flooded, "the note", |text| text.contains("were dropped")).await;
        let copied = lines(&flooded);
        assert!(copied.len() < 10_000, "{}", copied.len());
    }

    #[tokio::test]
    async fn a_console_has_one_event_in_the_queue_however_often_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("console");
        let watcher = ConsoleWatcher::new().unwrap();
        let mut file = File::create(&path).unwrap();
        let changed = Arc::new(Notify::new());
        watcher.watch_once(&path, &changed).unwrap();
        file.write_all(b"x").unwrap();
        timeout(LIMIT, changed.notified()).await.unwrap();
        for _ in 0..100 {
            file.write_all(b"x").unwrap();
        }
        let begun = Instant::now();
        while !watcher.watched().is_empty() {
            assert!(begun.elapsed() < LIMIT, "{:?}", watcher.watched());
            tokio::task::yield_now().await;
        }
        // No second event has come, nor can one.
        assert!(timeout(Duration::ZERO, changed.notified()).await.is_err());
        watcher.watch_once(&path, &changed).unwrap();
        file.write_all(b"x").unwrap();
        timeout(LIMIT, changed.notified()).await.unwrap();
    }

    #[tokio::test]
    async fn lost_events_wake_all_consoles() {
        let folder = tempfile::tempdir().unwrap();
        let watcher = ConsoleWatcher::new().unwrap();
        let changed: Vec<_> = (0..3).map(|_| Arc::new(Notify::new())).collect();
        for (number, changed) in changed.iter().enumerate() {
            let path = folder.path().join(number.to_string());
            File::create(&path).unwrap();
            watcher.watch_once(&path, changed).unwrap();
        }
        watcher.note(-1, ReadFlags::QUEUE_OVERFLOW);
        for changed in changed {
            timeout(LIMIT, changed.notified()).await.unwrap();
        }
    }
}
