//! Errors in full, for a reader: all causes in a row and, if something of the system is used up,
//! what to do about it.

use std::error::Error;

use crate::exhaustion;

/// `error` with all its causes and a hint if there is one: `cannot open x: no space left (free …)`.
pub(crate) fn error_chain(error: &(dyn Error + 'static)) -> String {
    let text = error_text::with_causes(error);
    match exhaustion::hint_in_causes(error) {
        Some(hint) => format!("{text} ({hint})"),
        None => text,
    }
}
