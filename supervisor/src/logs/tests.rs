//! The log on real files.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::num::NonZeroU32;
use std::path::Path;

use guest_protocol::{OutputRecord, OutputSource};

use super::{LogFilter, MachineLog, Position};

fn record(sequence: u64, text: &str) -> OutputRecord {
    let source = OutputSource::Stdout;
    OutputRecord {
        sequence,
        realtime_ns: 1_000_000_000,
        source,
        text: text.to_owned(),
    }
}

/// A log whose guest may print as much as it likes.
fn open(path: &Path) -> io::Result<MachineLog> {
    MachineLog::open(path, NonZeroU32::MAX)
}

fn texts(log: &MachineLog, filter: &LogFilter) -> Vec<String> {
    log.read(filter)
        .unwrap()
        .0
        .into_iter()
        .map(|line| line.text)
        .collect()
}

#[test]
fn a_reopened_log_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let log = open(&path).unwrap();
    log.begin_boot(1);
    log.add_output(&record(0, "a")).unwrap();
    log.add_output(&record(1, "b")).unwrap();
    log.add_console("c", 17).unwrap();
    drop(log);
    OpenOptions::new()
        .append(true)
        .open(&path)
        .unwrap()
        .write_all(b"{\"time\":\"cut")
        .unwrap();

    let log = open(&path).unwrap();
    assert_eq!(
        log.position(),
        Position {
            next_output: 2,
            console_offset: 17
        }
    );
    log.add_output(&record(1, "b")).unwrap();
    log.add_output(&record(2, "d")).unwrap();
    let filter = LogFilter {
        tail: Some(4),
        ..LogFilter::default()
    };
    assert_eq!(texts(&log, &filter), ["a", "b", "c", "d"]);
}

#[test]
fn lines_lost_in_the_guest_are_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(&folder.path().join("log")).unwrap();
    log.add_output(&record(0, "a")).unwrap();
    log.add_output(&record(5, "f")).unwrap();
    let all = texts(&log, &LogFilter::default());
    assert_eq!(
        all,
        [
            "a",
            "4 lines of output were lost in the guest's buffer",
            "f"
        ]
    );
}

#[test]
fn a_log_is_bounded_and_keeps_its_position_over_a_rotation() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let log = open(&path).unwrap();
    let text = "x".repeat(40_000);
    for sequence in 0..700 {
        log.add_output(&record(sequence, &text)).unwrap();
    }
    let total: u64 = fs::read_dir(folder.path())
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().len())
        .sum();
    assert!(total < 17 << 20, "{total}");
    drop(log);
    assert_eq!(open(&path).unwrap().position().next_output, 700);
}

#[tokio::test]
async fn a_follower_sees_every_line_across_a_rotation() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(&folder.path().join("log")).unwrap();
    let (there, mut reader) = log.read(&LogFilter::default()).unwrap();
    assert!(there.is_empty());
    let text = "x".repeat(10_000);
    let mut seen = 0;
    for sequence in 0..1_000 {
        log.add_output(&record(sequence, &text)).unwrap();
        seen += reader.more().await.unwrap().unwrap().len();
    }
    assert_eq!(seen, 1_000);
}

#[tokio::test]
async fn a_reader_that_comes_during_a_rotation_neither_skips_nor_doubles() {
    for _ in 0..8 {
        let folder = tempfile::tempdir().unwrap();
        let log = open(&folder.path().join("log")).unwrap();
        let text = "x".repeat(16_000);
        let full = 520;
        for sequence in 0..full {
            log.add_output(&record(sequence, &text)).unwrap();
        }
        let writing = log.clone();
        let writer = std::thread::spawn(move || {
            for sequence in full..full + 40 {
                writing.add_output(&record(sequence, "after")).unwrap();
                writing.add_output(&record(sequence, "again")).unwrap();
            }
        });
        let (there, mut reader) = log.read(&LogFilter::default()).unwrap();
        let mut seen = there.len();
        while seen < 560 {
            seen += reader.more().await.unwrap().unwrap().len();
        }
        writer.join().unwrap();
        assert_eq!(seen, 560);
    }
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_output_fills_no_log_and_says_what_was_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let rate = NonZeroU32::new(100).unwrap();
    let log = MachineLog::open(&path, rate).unwrap();
    for sequence in 0..50_000 {
        log.add_output(&record(sequence, "x")).unwrap();
    }
    // What was dropped is not asked for again.
    assert_eq!(log.position().next_output, 50_000);
    assert_eq!(texts(&log, &LogFilter::default()).len(), 1_000);
    log.tell_of_silence();
    assert!(log.has_dropped(), "it may go on at once");
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    log.tell_of_silence();
    log.add_output(&record(50_000, "after")).unwrap();
    let all = texts(&log, &LogFilter::default());
    assert_eq!(all[1_000], format!("49000 lines were dropped: {LIMIT}"));
    assert_eq!(all[1_001], "after");
}

const LIMIT: &str = "the machine printed more than 100 lines of 512 bytes a second";

#[test]
fn a_record_with_the_last_sequence_number_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(&folder.path().join("log")).unwrap();
    log.add_output(&record(u64::MAX, "a")).unwrap();
    log.add_output(&record(u64::MAX, "a")).unwrap();
    assert_eq!(log.position().next_output, u64::MAX);
}

#[tokio::test]
async fn a_batch_for_a_follower_has_a_bounded_size() {
    let folder = tempfile::tempdir().unwrap();
    let log = open(&folder.path().join("log")).unwrap();
    let (_, mut reader) = log.read(&LogFilter::default()).unwrap();
    let text = "x".repeat(16_000);
    for sequence in 0..400 {
        log.add_output(&record(sequence, &text)).unwrap();
    }
    let mut seen = 0;
    while seen < 400 {
        let batch = reader.more().await.unwrap().unwrap();
        assert!(batch.len() <= 17, "{}", batch.len());
        seen += batch.len();
    }
}
