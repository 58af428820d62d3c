//! Reading a log: the last lines, from a time on, and following it as it grows.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::PathBuf;

use machine_api::LogLine;
use tokio::sync::watch;

use super::{Growth, MachineLog, StoredLine, older};

/// Lines handed out at a time.
const BATCH: usize = 1_000;

/// Which lines are wanted.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogFilter {
    /// Only lines from then on, RFC 3339 in UTC.
    pub(crate) since: Option<String>,
    /// Only that many of the last lines.
    pub(crate) tail: Option<usize>,
}

/// A reader's place in a log.
#[derive(Debug)]
pub(crate) struct LogReader {
    path: PathBuf,
    file: BufReader<File>,
    /// A line whose end has not been written yet.
    partial: Vec<u8>,
    rotations: u64,
    grown: watch::Receiver<Growth>,
    since: Option<String>,
}

impl MachineLog {
    /// The lines that are there, and a reader for those to come.
    pub(crate) fn read(&self, filter: &LogFilter) -> io::Result<(Vec<LogLine>, LogReader)> {
        let grown = self.shared.grown.subscribe();
        let path = self.shared.path.clone();
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
        if let Ok(file) = File::open(older(&path)) {
            let mut reader = LogReader::new(self, file, grown.clone(), filter);
            while let Some(line) = reader.next_there()? {
                push(line);
            }
        }
        let file = File::open(&path)?;
        let mut reader = LogReader::new(self, file, grown, filter);
        while let Some(line) = reader.next_there()? {
            push(line);
        }
        Ok((lines.into(), reader))
    }
}

impl LogReader {
    fn new(
        log: &MachineLog,
        file: File,
        grown: watch::Receiver<Growth>,
        filter: &LogFilter,
    ) -> Self {
        let rotations = grown.borrow().rotations;
        Self {
            path: log.shared.path.clone(),
            file: BufReader::new(file),
            partial: Vec::new(),
            rotations,
            grown,
            since: filter.since.clone(),
        }
    }

    /// Waits for further lines; none once the machine is gone.
    pub(crate) async fn more(&mut self) -> io::Result<Option<Vec<LogLine>>> {
        loop {
            let now = *self.grown.borrow_and_update();
            let mut lines = Vec::new();
            while lines.len() < BATCH
                && let Some(line) = self.next_there()?
            {
                lines.push(line);
            }
            if !lines.is_empty() {
                return Ok(Some(lines));
            }
            if now.rotations > self.rotations {
                self.file = BufReader::new(File::open(&self.path)?);
                self.partial.clear();
                self.rotations = now.rotations;
                continue;
            }
            if self.grown.changed().await.is_err() {
                return Ok(None);
            }
        }
    }

    fn next_there(&mut self) -> io::Result<Option<LogLine>> {
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
