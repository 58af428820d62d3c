//! The console: lines for people, above all what the channel cannot carry.

use std::io::Write;

/// Writes a line to the console.
pub(crate) fn print(text: &str) {
    // There is no other place to report that the console fails.
    let _ = writeln!(std::io::stderr(), "kvm-host-init: {text}");
}
