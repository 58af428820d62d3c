//! A machine's log: main process, console and supervisor in one bounded file, a JSON object per
//! line.
//!
//! The file holds its own position: lines from guest-init carry their sequence number, lines of the
//! console the offset behind them. After a crash the last of them says which line is next, so that
//! none is lost and none is added twice.

mod console;
mod read;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guest_protocol::{OutputRecord, OutputSource};
use machine_api::{LogLine, LogSource};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

pub(crate) use console::{Collection, ConsoleWatcher};
pub(crate) use read::{LogFilter, LogReader};

use crate::clock;
use crate::disk_usage;
use crate::model::guest_share::{LOG_LINES_PER_SECOND, LineAdmission, LogShare};
use crate::paths::MachineDir;

/// After so much silence the log tells of lines that were dropped.
const SILENCE: Duration = Duration::from_secs(2);
/// Size at which a log is rotated; one older file is kept.
const ROTATE_BYTES: u64 = 8 << 20;
/// Longest text of a line; a longer one becomes several lines.
const TEXT_BYTES: usize = 16 << 10;
/// Position lines are at most this far apart, so that the tail of a file always has one.
const POSITION_EVERY_BYTES: u64 = 64 << 10;
/// How much of the end of a file is read to find the position.
const TAIL_BYTES: u64 = 256 << 10;

/// Which lines come next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Position {
    /// First output record that is not in the log yet.
    pub(crate) next_output: u64,
    /// First byte of the console's file that is not in the log yet.
    pub(crate) console_offset: u64,
}

/// A line of the file. Lines without a text only hold the position.
#[derive(Debug, Serialize, Deserialize)]
struct StoredLine {
    #[serde(flatten, default, skip_serializing_if = "Option::is_none")]
    line: Option<LogLine>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next_output: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    console_offset: Option<u64>,
}

/// Appends to a machine's log; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct MachineLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    open: Mutex<OpenLog>,
    /// Counts appends, for readers that follow.
    grown: watch::Sender<Growth>,
}

/// The size of a log, and how often it was rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Growth {
    /// Counts rotations.
    pub(super) rotations: u64,
    /// Size of the file.
    pub(super) bytes: u64,
}

#[derive(Debug)]
struct OpenLog {
    /// None once the machine is destroyed.
    file: Option<File>,
    bytes: u64,
    bytes_at_position: u64,
    position: Position,
    /// What the guest may add, by output and console together.
    share: LogShare,
}

impl MachineLog {
    /// The log of a machine that is destroyed, or whose file cannot be used: lines are dropped.
    pub(crate) fn unwritten(path: &Path) -> Self {
        let share = LogShare::new(LOG_LINES_PER_SECOND, Instant::now());
        Self::with_file(path, None, Position::default(), 0, share)
    }

    /// Closes the file of a machine that is being destroyed. Later lines are dropped.
    pub(crate) fn close(&self) {
        self.open_log().file = None;
    }

    /// Opens the log at `path`; creates it if it does not exist. Removes a line that a crash left
    /// incomplete. Its guest may add so many lines per second.
    pub(crate) fn open(path: &Path, lines_per_second: NonZeroU32) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .open(path)?;
        let (position, bytes) = recover(&mut file)?;
        let share = LogShare::new(lines_per_second, Instant::now());
        Ok(Self::with_file(path, Some(file), position, bytes, share))
    }

    fn with_file(
        path: &Path,
        file: Option<File>,
        position: Position,
        bytes: u64,
        share: LogShare,
    ) -> Self {
        let (grown, _) = watch::channel(Growth {
            rotations: 0,
            bytes,
        });
        let open = OpenLog {
            file,
            bytes,
            bytes_at_position: bytes,
            position,
            share,
        };
        let shared = Shared {
            path: path.to_owned(),
            open: Mutex::new(open),
            grown,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Which lines come next.
    pub(crate) fn position(&self) -> Position {
        self.open_log().position
    }

    /// A new boot: output records count from zero again.
    pub(crate) fn begin_boot(&self, generation: u64) {
        let text = format!("booting, generation {generation}");
        let written = self.write(LogSource::Supervisor, &text, |p| p.next_output = 0);
        if written.is_err() {
            self.open_log().position.next_output = 0;
        }
    }

    /// Adds a line of the supervisor's own. It is lost if the log cannot be written.
    pub(crate) fn add_note(&self, text: &str) {
        let _ = self.write(LogSource::Supervisor, text, |_| {});
    }

    /// Adds a record of the main process, unless the log has it already or the guest has used up its share.
    /// After an error the record is still the next one; the guest keeps it and can be asked again.
    pub(crate) fn add_output(&self, record: &OutputRecord) -> io::Result<()> {
        let expected = self.position().next_output;
        if record.sequence < expected {
            return Ok(());
        }
        let next = record.sequence.saturating_add(1);
        if !self.admit(record.text.len(), |position| position.next_output = next) {
            return Ok(());
        }
        if record.sequence > expected {
            let lost = record.sequence - expected;
            self.add_note(&format!(
                "{lost} lines of output were lost in the guest's buffer"
            ));
        }
        let source = match record.source {
            OutputSource::Stdout => LogSource::Stdout,
            OutputSource::Stderr => LogSource::Stderr,
        };
        self.write_at(record.realtime_ns, source, &record.text, |position| {
            position.next_output = next;
        })
    }

    /// Adds a line of the console that ends before `offset` of its file, unless the guest has used up its
    /// share.
    pub(super) fn add_console(&self, text: &str, offset: u64) -> io::Result<()> {
        if !self.admit(text.len(), |position| position.console_offset = offset) {
            return Ok(());
        }
        self.write(LogSource::Console, text, |position| {
            position.console_offset = offset;
        })
    }

    /// Whether the guest may add a line. If not, the line is counted and the position is behind it.
    fn admit(&self, bytes: usize, advance: impl FnOnce(&mut Position)) -> bool {
        let mut open = self.open_log();
        match open.share.admit(bytes, Instant::now()) {
            LineAdmission::Dropped => {
                advance(&mut open.position);
                false
            }
            LineAdmission::Logged { dropped } => {
                drop(open);
                self.tell_dropped(dropped);
                true
            }
        }
    }

    /// Waits for what the guest does next. If lines were dropped before, and it falls silent instead, the log
    /// tells of them; else its next line does.
    pub(crate) async fn await_guest<T>(&self, next: impl Future<Output = T>) -> T {
        let mut next = std::pin::pin!(next);
        while self.has_dropped() {
            match timeout(SILENCE, &mut next).await {
                Ok(next) => return next,
                Err(_) => self.tell_of_silence(),
            }
        }
        next.await
    }

    /// Whether lines were dropped that the log does not tell of yet.
    fn has_dropped(&self) -> bool {
        self.open_log().share.has_dropped()
    }

    /// Tells of lines that were dropped, if the guest has fallen silent since.
    fn tell_of_silence(&self) {
        let dropped = self.open_log().share.dropped_before_silence(Instant::now());
        self.tell_dropped(dropped);
    }

    /// Tells of lines that were dropped: the guest prints no more.
    pub(crate) fn tell_at_end(&self) {
        let dropped = self.open_log().share.take_dropped();
        self.tell_dropped(dropped);
    }

    fn tell_dropped(&self, dropped: u64) {
        if dropped > 0 {
            let text = self.open_log().share.in_words(dropped);
            self.add_note(&text);
        }
    }

    /// Stores the position if lines were dropped, which a new supervisor would else take again.
    pub(super) fn store_position(&self) -> io::Result<()> {
        let mut open = self.open_log();
        let position = open.position;
        if open.share.has_dropped() {
            open.append_position(position)?;
        }
        Ok(())
    }

    /// The console's file begins from zero again.
    pub(super) fn restart_console(&self) {
        self.open_log().position.console_offset = 0;
    }

    fn write(
        &self,
        source: LogSource,
        text: &str,
        advance: impl FnOnce(&mut Position),
    ) -> io::Result<()> {
        self.write_at(clock::realtime_ns(), source, text, advance)
    }

    fn write_at(
        &self,
        realtime_ns: u64,
        source: LogSource,
        text: &str,
        advance: impl FnOnce(&mut Position),
    ) -> io::Result<()> {
        let mut open = self.open_log();
        let mut next = open.position;
        advance(&mut next);
        let written = open.append(realtime_ns, source, text, next);
        // The line is written even if the rotation failed, which the next line tries again.
        let rotated = self.rotate_if_large(&mut open);
        if let Some(error) = written.as_ref().err().or(rotated.as_ref().err()) {
            tracing::warn!(%error, path = %self.shared.path.display(), "cannot write a log");
        }
        let bytes = open.bytes;
        drop(open);
        self.shared.grown.send_modify(|growth| growth.bytes = bytes);
        written
    }

    fn rotate_if_large(&self, open: &mut OpenLog) -> io::Result<()> {
        if open.bytes < ROTATE_BYTES || open.file.is_none() {
            return Ok(());
        }
        let path = &self.shared.path;
        match fs::rename(path, older_path(path)) {
            // An earlier attempt renamed it and could not open the new file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        let file = OpenOptions::new()
            .create(true)
            .read(true)
            .append(true)
            .open(path)?;
        open.file = Some(file);
        open.bytes = 0;
        let position = open.position;
        open.append_position(position)?;
        self.shared
            .grown
            .send_modify(|growth| growth.rotations += 1);
        Ok(())
    }

    /// Sections under this lock are short and do not panic.
    fn open_log(&self) -> MutexGuard<'_, OpenLog> {
        self.shared
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenLog {
    fn append(
        &mut self,
        realtime_ns: u64,
        source: LogSource,
        text: &str,
        next: Position,
    ) -> io::Result<()> {
        let time = clock::rfc3339(realtime_ns);
        let mut rest = text;
        loop {
            let (part, tail) = rest.split_at(part_length(rest));
            let last = tail.is_empty();
            let changed = |now: u64, before: u64| (last && now != before).then_some(now);
            self.put(&StoredLine {
                line: Some(LogLine {
                    time: time.clone(),
                    source,
                    text: part.to_owned(),
                }),
                next_output: changed(next.next_output, self.position.next_output),
                console_offset: changed(next.console_offset, self.position.console_offset),
            })?;
            if last {
                break;
            }
            rest = tail;
        }
        self.position = next;
        if self.bytes - self.bytes_at_position >= POSITION_EVERY_BYTES {
            self.append_position(next)?;
        }
        Ok(())
    }

    fn append_position(&mut self, position: Position) -> io::Result<()> {
        self.put(&StoredLine {
            line: None,
            next_output: Some(position.next_output),
            console_offset: Some(position.console_offset),
        })?;
        self.bytes_at_position = self.bytes;
        Ok(())
    }

    fn put(&mut self, line: &StoredLine) -> io::Result<()> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        if let Err(error) = file.write_all(&bytes) {
            // On a full disk a part of the line may be written; the next line must not continue it.
            file.set_len(self.bytes)?;
            return Err(error);
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }
}

/// Bytes in all logs of a machine: its log, the older file of that, the console, the VMMs'.
pub(crate) fn bytes(dir: &MachineDir) -> io::Result<u64> {
    let log = dir.log();
    let files = [
        older_path(&log),
        log,
        dir.console(),
        dir.vmm_log(),
        dir.older_vmm_log(),
    ];
    files.iter().map(|file| disk_usage::of_file(file)).sum()
}

/// Length of the first part of a text that is cut into lines.
fn part_length(text: &str) -> usize {
    let mut end = text.len().min(TEXT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    end
}

/// Path of the older file of a log.
pub(super) fn older_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

/// Finds position and size of a log, and removes an incomplete line.
fn recover(file: &mut File) -> io::Result<(Position, u64)> {
    let size = file.metadata()?.len();
    let from = size.saturating_sub(TAIL_BYTES);
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail)?;
    let whole = tail
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |end| end + 1);
    let bytes = from + whole as u64;
    if bytes < size {
        file.set_len(bytes)?;
    }
    let mut position = Position::default();
    for line in tail[..whole].split(|byte| *byte == b'\n') {
        if let Ok(stored) = serde_json::from_slice::<StoredLine>(line) {
            position.next_output = stored.next_output.unwrap_or(position.next_output);
            position.console_offset = stored.console_offset.unwrap_or(position.console_offset);
        }
    }
    Ok((position, bytes))
}

#[cfg(test)]
mod tests;
