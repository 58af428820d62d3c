//! The output of the main process, split into lines, in a buffer of bounded size.
//!
//! Each record has a sequence number. New records replace the oldest; a reader who asks for lost
//! records notices it by the first number that it gets. Reading the process's streams is
//! `output_streams.rs`.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use guest_protocol::{OutputRecord, OutputSource};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

use crate::os::clock::realtime_ns;

/// Size of the buffer: text, and a fixed part for each record.
const CAPACITY_BYTES: usize = 1 << 20;

/// The fixed part that counts for a record besides its text.
const RECORD_BYTES: usize = 64;

/// A longer line is cut into several records.
const LINE_BYTES: usize = 8 * 1024;

/// The records, oldest first.
#[derive(Debug)]
pub(crate) struct OutputBuffer {
    records: RefCell<VecDeque<OutputRecord>>,
    size_bytes: Cell<usize>,
    capacity_bytes: usize,
    next_sequence: Cell<u64>,
    changed: Notify,
}

impl OutputBuffer {
    pub(crate) fn new() -> Rc<Self> {
        Rc::new(Self::with_capacity(CAPACITY_BYTES))
    }

    fn with_capacity(capacity_bytes: usize) -> Self {
        Self {
            records: RefCell::default(),
            size_bytes: Cell::new(0),
            capacity_bytes,
            next_sequence: Cell::new(0),
            changed: Notify::new(),
        }
    }

    /// The number that the next record will carry.
    pub(crate) fn next_sequence(&self) -> u64 {
        self.next_sequence.get()
    }

    pub(crate) fn push(&self, source: OutputSource, realtime_ns: u64, text: String) {
        let sequence = self.next_sequence.get();
        self.next_sequence.set(sequence + 1);
        let mut size_bytes = self.size_bytes.get() + text.len() + RECORD_BYTES;
        let mut records = self.records.borrow_mut();
        records.push_back(OutputRecord {
            sequence,
            realtime_ns,
            source,
            text,
        });
        while size_bytes > self.capacity_bytes
            && let Some(oldest) = records.pop_front()
        {
            size_bytes -= oldest.text.len() + RECORD_BYTES;
        }
        self.size_bytes.set(size_bytes);
        self.changed.notify_waiters();
    }

    /// Up to `limit` records from number `sequence` on, or from the oldest in the buffer.
    pub(crate) fn read_from(&self, sequence: u64, limit: usize) -> Vec<OutputRecord> {
        let records = self.records.borrow();
        let start = records.partition_point(|record| record.sequence < sequence);
        records.iter().skip(start).take(limit).cloned().collect()
    }

    /// Resolves at the next change after this call.
    pub(crate) fn change(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Wakes all readers although there is no new record: the main process has ended.
    pub(crate) fn wake_readers(&self) {
        self.changed.notify_waiters();
    }
}

/// Splits both streams into lines.
#[derive(Debug)]
pub(crate) struct OutputLines {
    stdout: LineSplitter,
    stderr: LineSplitter,
}

impl OutputLines {
    pub(crate) fn new() -> Self {
        Self {
            stdout: LineSplitter::new(OutputSource::Stdout),
            stderr: LineSplitter::new(OutputSource::Stderr),
        }
    }

    /// Publishes the lines of `source` that `bytes` complete.
    pub(crate) fn push(&mut self, source: OutputSource, bytes: &[u8], buffer: &OutputBuffer) {
        let lines = match source {
            OutputSource::Stdout => &mut self.stdout,
            OutputSource::Stderr => &mut self.stderr,
        };
        lines.push(bytes, buffer);
    }

    /// Publishes last lines that have no line end.
    pub(crate) fn finish(&mut self, buffer: &OutputBuffer) {
        self.stdout.finish(buffer);
        self.stderr.finish(buffer);
    }
}

/// Splits one stream into lines.
#[derive(Debug)]
struct LineSplitter {
    source: OutputSource,
    partial: Vec<u8>,
}

impl LineSplitter {
    fn new(source: OutputSource) -> Self {
        Self {
            source,
            partial: Vec::new(),
        }
    }

    fn push(&mut self, bytes: &[u8], buffer: &OutputBuffer) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                self.partial.pop();
                if self.partial.last() == Some(&b'\r') {
                    self.partial.pop();
                }
                self.publish_all(buffer);
            }
        }
        while self.partial.len() > LINE_BYTES {
            self.publish_part(buffer);
        }
    }

    fn finish(&mut self, buffer: &OutputBuffer) {
        if !self.partial.is_empty() {
            self.publish_all(buffer);
        }
    }

    fn publish_all(&mut self, buffer: &OutputBuffer) {
        while self.partial.len() > LINE_BYTES {
            self.publish_part(buffer);
        }
        let line = std::mem::take(&mut self.partial);
        buffer.push(self.source, realtime_ns(), to_text(&line));
    }

    fn publish_part(&mut self, buffer: &OutputBuffer) {
        let rest = self.partial.split_off(part_length(&self.partial));
        let part = std::mem::replace(&mut self.partial, rest);
        buffer.push(self.source, realtime_ns(), to_text(&part));
    }
}

/// Where to cut a line that is too long: between characters.
fn part_length(line: &[u8]) -> usize {
    let is_inside = |at: &usize| line.get(*at).is_some_and(|byte| byte & 0xc0 == 0x80);
    let cut = (LINE_BYTES - 3..=LINE_BYTES)
        .rev()
        .find(|at| !is_inside(at));
    cut.unwrap_or(LINE_BYTES)
}

fn to_text(line: &[u8]) -> String {
    String::from_utf8_lossy(line).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn texts(buffer: &OutputBuffer) -> Vec<String> {
        let records = buffer.read_from(0, usize::MAX);
        records.into_iter().map(|record| record.text).collect()
    }

    #[test]
    fn a_line_is_published_once_it_is_complete() {
        let buffer = OutputBuffer::with_capacity(CAPACITY_BYTES);
        let mut lines = LineSplitter::new(OutputSource::Stdout);

        lines.push(b"one\r\n\ntw", &buffer);
        assert_eq!(texts(&buffer), ["one", ""]);
        lines.push(b"o", &buffer);
        lines.finish(&buffer);

        assert_eq!(texts(&buffer), ["one", "", "two"]);
    }

    #[test]
    fn a_long_line_is_cut_between_characters() {
        let buffer = OutputBuffer::with_capacity(CAPACITY_BYTES);
        let mut lines = LineSplitter::new(OutputSource::Stdout);
        let line = "é".repeat(LINE_BYTES);

        lines.push(b"x", &buffer);
        lines.push(line.as_bytes(), &buffer);
        lines.finish(&buffer);

        assert_eq!(texts(&buffer).concat(), format!("x{line}"));
        assert!(texts(&buffer).iter().all(|part| part.len() <= LINE_BYTES));
    }

    #[test]
    fn lost_records_leave_a_gap_in_the_numbers() {
        let buffer = OutputBuffer::with_capacity(3 * (RECORD_BYTES + 1));
        for text in ["a", "b", "c", "d", "e"] {
            buffer.push(OutputSource::Stderr, 0, text.to_owned());
        }

        let records = buffer.read_from(1, 2);

        let numbers: Vec<_> = records.iter().map(|record| record.sequence).collect();
        assert_eq!(numbers, [2, 3]);
        assert_eq!(buffer.next_sequence(), 5);
        assert!(buffer.read_from(5, 10).is_empty());
    }

    proptest! {
        #[test]
        fn the_buffer_never_exceeds_its_capacity(lengths in proptest::collection::vec(0..500usize, 0..60)) {
            let buffer = OutputBuffer::with_capacity(1000);
            for length in lengths {
                buffer.push(OutputSource::Stdout, 0, "x".repeat(length));
                let size: usize = texts(&buffer).iter().map(|text| text.len() + RECORD_BYTES).sum();
                prop_assert_eq!(size, buffer.size_bytes.get());
                prop_assert!(size <= 1000);
            }
        }
    }
}
