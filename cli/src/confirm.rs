//! Asks the user for a confirmation before something that cannot be undone.

use std::io::{self, IsTerminal};

use crate::error::CommandError;
use crate::session::Session;

/// Succeeds only if the user answers yes.
pub(crate) fn confirm(session: &Session, question: &str) -> Result<(), CommandError> {
    if !io::stdin().is_terminal() {
        return Err(CommandError::CannotConfirm);
    }
    if session.output.confirm(question)? {
        Ok(())
    } else {
        Err(CommandError::NotConfirmed)
    }
}
