//! Whether a program is installed.

use std::io;
use std::process::{Command, Stdio};

/// Runs a program with a flag that lets it end at once, whatever it says. An error means that it cannot
/// be run.
pub(crate) fn try_program(program: &str, flag: &str) -> io::Result<()> {
    Command::new(program)
        .arg(flag)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map(drop)
}
