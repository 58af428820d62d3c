//! The user's terminal: raw mode for a program in a guest, and its size.

use std::io::{self, IsTerminal};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Raw mode. Dropping it restores the previous mode.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    previous: Termios,
}

impl RawTerminal {
    /// Puts the terminal at standard input into raw mode. None if standard input is not a terminal.
    pub(crate) fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let previous = tcgetattr(&stdin)?;
        let mut raw = previous.clone();
        raw.make_raw();
        tcsetattr(&stdin, OptionalActions::Flush, &raw)?;
        Ok(Some(Self { previous }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // It fails if the terminal is gone; then there is nothing to restore.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.previous);
    }
}

/// Columns and rows of the user's terminal, or the usual 80 by 24.
pub(crate) fn size() -> (u16, u16) {
    match tcgetwinsize(io::stdin()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
        Ok(_) | Err(_) => (80, 24),
    }
}
