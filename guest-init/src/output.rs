//! What the main process printed, line by line, in a buffer of bounded size.
//!
//! Each record has a sequence number. Old records give way to new ones; a reader who asks for
//! lost ones sees that from the first number it gets.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use guest_protocol::{OutputRecord, OutputSource};
use nix::time::{ClockId, clock_gettime};
use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Text that is kept, counting a fixed part for each record.
const CAPACITY_BYTES: usize = 1 << 20;

/// What a record costs besides its text.
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

    /// Up to `limit` records from number `sequence` on, or from the oldest that is kept.
    pub(crate) fn read_from(&self, sequence: u64, limit: usize) -> Vec<OutputRecord> {
        let records = self.records.borrow();
        let start = records.partition_point(|record| record.sequence < sequence);
        records.iter().skip(start).take(limit).cloned().collect()
    }

    /// Resolves at the next change after this call.
    pub(crate) fn change(&self) -> Notified<'_> {
        self.changed.notified()
    }

    /// Wakes all readers although no record came: the main process has ended.
    pub(crate) fn wake_readers(&self) {
        self.changed.notify_waiters();
    }
}

/// Cuts one stream into lines.
#[derive(Debug)]
pub(crate) struct LineSplitter {
    source: OutputSource,
    partial: Vec<u8>,
}

impl LineSplitter {
    pub(crate) fn new(source: OutputSource) -> Self {
        Self {
            source,
            partial: Vec::new(),
        }
    }

    /// Puts the lines that `bytes` complete into `buffer`.
    pub(crate) fn push(&mut self, bytes: &[u8], buffer: &OutputBuffer) {
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

    /// Puts out what is left without a line end.
    pub(crate) fn finish(&mut self, buffer: &OutputBuffer) {
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

/// Where to cut a line that is too long: not within a character.
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

/// Time of day in nanoseconds since 1970; zero if the clock stands before that.
pub(crate) fn realtime_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_REALTIME);
    now.map_or(0, |now| {
        let seconds = u64::try_from(now.tv_sec()).unwrap_or(0);
        let nanoseconds = u64::try_from(now.tv_nsec()).unwrap_or(0);
        seconds.saturating_mul(1_000_000_000) + nanoseconds
    })
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
                let kept: usize = texts(&buffer).iter().map(|text| text.len() + RECORD_BYTES).sum();
                prop_assert_eq!(kept, buffer.size_bytes.get());
                prop_assert!(kept <= 1000);
            }
        }
    }
}
