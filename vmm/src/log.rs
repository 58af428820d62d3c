//! The log: one line per message on standard error, which the supervisor appends to `vmm.log`.
//!
//! No levels and no filters: a VMM logs only what helps to investigate a failure. Callers must bound
//! messages that a guest can trigger.

use std::fmt::Arguments;
use std::io::Write;

use crate::clock::monotonic_ns;

/// Writes one line. Ignores failures, since the machine must not stop because of its log.
pub fn line(message: Arguments<'_>) {
    let now = monotonic_ns();
    let text = format!(
        "{}.{:06} {message}\n",
        now / 1_000_000_000,
        now / 1_000 % 1_000_000
    );
    let _ = std::io::stderr().write_all(text.as_bytes());
}
