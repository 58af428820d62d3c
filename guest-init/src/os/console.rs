//! The guest's console: guest-init's messages, for people. Output of the main process goes to the
//! supervisor instead.

use std::fmt::Display;
use std::fs::OpenOptions;
use std::io::{self, Write};

use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

/// Makes `/dev/console` the standard streams.
///
/// The kernel does so itself only where the initramfs contains the device node.
pub(crate) fn attach() -> Result<(), io::Error> {
    let console = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/console")?;
    dup2_stdin(&console)?;
    dup2_stdout(&console)?;
    dup2_stderr(&console)?;
    Ok(())
}

/// Prints one line. An unwritable console is no reason to stop.
pub(crate) fn say(message: impl Display) {
    let line = format!("guest-init: {message}\n");
    let _unwritable = io::stderr().write_all(line.as_bytes());
}
