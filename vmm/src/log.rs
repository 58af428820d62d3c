//! The log: one line per message on standard error, which the supervisor appends to `vmm.log`.
//!
//! No levels and no filters: a VMM logs only what helps to investigate a failure. Each process has a bounded
//! number of bytes for that, as the supervisor looks at the file's size only before it launches the next one.

use std::fmt::Arguments;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::clock::monotonic_ns;

/// Most bytes of a process's lines.
const MOST_BYTES: usize = 256 << 10;
/// The line after which there are no more.
const FULL: &str = "so much was logged that further lines are dropped";

/// Bytes that a process may still log.
static LEFT: BytesLeft = BytesLeft(AtomicUsize::new(MOST_BYTES));

#[derive(Debug)]
struct BytesLeft(AtomicUsize);

/// Whether a line is logged.
#[derive(Debug, PartialEq, Eq)]
enum Fit {
    /// It is.
    Fits,
    /// It is the first that does not fit.
    First,
    /// It is dropped.
    Dropped,
}

impl BytesLeft {
    fn take(&self, bytes: usize) -> Fit {
        let taken = self
            .0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| match left {
                0 => None,
                left => Some(left.saturating_sub(bytes)),
            });
        match taken {
            Ok(left) if left >= bytes => Fit::Fits,
            Ok(_) => Fit::First,
            Err(_) => Fit::Dropped,
        }
    }
}

/// Writes one line. Ignores failures, since the machine must not stop because of its log.
pub fn line(message: Arguments<'_>) {
    let text = with_time(message);
    match LEFT.take(text.len()) {
        Fit::Fits => write(&text),
        Fit::First => write(&with_time(format_args!("{FULL}"))),
        Fit::Dropped => {}
    }
}

/// Writes one line about the end of the process, however many there were.
pub fn last_line(message: Arguments<'_>) {
    write(&with_time(message));
}

fn with_time(message: Arguments<'_>) -> String {
    let now = monotonic_ns();
    format!(
        "{}.{:06} {message}\n",
        now / 1_000_000_000,
        now / 1_000 % 1_000_000
    )
}

fn write(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_logs_a_bounded_number_of_bytes_and_says_once_that_it_is_full() {
        let left = BytesLeft(AtomicUsize::new(1_000));
        let fits: Vec<Fit> = (0..100).map(|_| left.take(90)).collect();
        assert!(fits[..11].iter().all(|fit| *fit == Fit::Fits));
        assert_eq!(fits[11], Fit::First);
        assert!(fits[12..].iter().all(|fit| *fit == Fit::Dropped));
        // Not even a short one, after that was said.
        assert_eq!(left.take(1), Fit::Dropped);
    }
}
