//! Reading a log: the last lines, from a time on, and following it as it grows.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::sync::{Arc, PoisonError, Weak};

use machine_api::LogLine;
use tokio::sync::watch;

use crate::logs::{Growth, MachineLog, Shared, StoredLine, older_path};

/// Most lines, and bytes of their texts, that are returned at a time: a client that does not read holds so
/// much. One line more may come.
const BATCH: usize = 1_000;
const BATCH_BYTES: usize = 256 << 10;

/// Which lines to read.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogFilter {
    /// Only lines from then on: RFC 3339 in UTC with microseconds, as lines have it.
    pub(crate) since: Option<String>,
    /// Only that many of the last lines.
    pub(crate) tail: Option<usize>,
}

/// A reader's place in a log.
#[derive(Debug)]
pub(crate) struct LogReader {
    /// Weak, so that readers end with the log.
    log: Weak<Shared>,
    file: BufReader<File>,
    /// An incomplete line.
    partial: Vec<u8>,
    rotations: u64,
    grown: watch::Receiver<Growth>,
    since: Option<String>,
}

/// The files of a log at one moment.
struct Opened {
    older: Option<File>,
    file: File,
    /// Rotations before `file`.
    rotations: u64,
}

impl Shared {
    /// Opens the files between two rotations. With a wrong count of rotations a reader that follows
    /// would skip a file, or read it twice.
    fn open_to_read(&self) -> io::Result<Opened> {
        let _no_rotation = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Opened {
            older: File::open(older_path(&self.path)).ok(),
            file: File::open(&self.path)?,
            rotations: self.grown.borrow().rotations,
        })
    }
}

impl MachineLog {
    /// The lines so far, and a reader for those to come.
    pub(crate) fn read(&self, filter: &LogFilter) -> io::Result<(Vec<LogLine>, LogReader)> {
        let Opened {
            older,
            file,
            rotations,
        } = self.shared.open_to_read()?;
        let grown = self.shared.grown.subscribe();
        let mut lines = VecDeque::new();
        let keep = filter.tail.unwrap_or(usize::MAX);
        let mut push = |line: LogLine| {
            if keep > 0 {
                if lines.len() == keep {
                    lines.pop_front();
                }
                lines.push_back(line);
            }
        };
        if let Some(older) = older {
            let mut reader = LogReader::new(self, older, rotations, grown.clone(), filter);
            while let Some(line) = reader.next_line()? {
                push(line);
            }
        }
        let mut reader = LogReader::new(self, file, rotations, grown, filter);
        while let Some(line) = reader.next_line()? {
            push(line);
        }
        Ok((lines.into(), reader))
    }
}

impl LogReader {
    fn new(
        log: &MachineLog,
        file: File,
        rotations: u64,
        grown: watch::Receiver<Growth>,
        filter: &LogFilter,
    ) -> Self {
        Self {
            log: Arc::downgrade(&log.shared),
            file: BufReader::new(file),
            partial: Vec::new(),
            rotations,
            grown,
            since: filter.since.clone(),
        }
    }

    /// Waits for further lines; none once the machine is destroyed.
    pub(crate) async fn more(&mut self) -> io::Result<Option<Vec<LogLine>>> {
        loop {
            let now = *self.grown.borrow_and_update();
            let mut lines = Vec::new();
            let mut bytes = 0;
            while lines.len() < BATCH
                && bytes < BATCH_BYTES
                && let Some(line) = self.next_line()?
            {
                bytes += line.text.len();
                lines.push(line);
            }
            if !lines.is_empty() {
                return Ok(Some(lines));
            }
            if now.rotations > self.rotations {
                let Some(log) = self.log.upgrade() else {
                    return Ok(None);
                };
                let opened = log.open_to_read()?;
                self.file = BufReader::new(opened.file);
                self.partial.clear();
                self.rotations = opened.rotations;
                continue;
            }
            if self.grown.changed().await.is_err() {
                return Ok(None);
            }
        }
    }

    fn next_line(&mut self) -> io::Result<Option<LogLine>> {
        loop {
            self.file.read_until(b'\n', &mut self.partial)?;
            if !self.partial.ends_with(b"\n") {
                return Ok(None);
            }
            let stored = serde_json::from_slice::<StoredLine>(&self.partial);
            self.partial.clear();
            let Ok(StoredLine {
                line: Some(line), ..
            }) = stored
            else {
                continue;
            };
            // Times of one format sort as text.
            if self.since.as_ref().is_none_or(|since| line.time >= *since) {
                return Ok(Some(line));
            }
        }
    }
}
