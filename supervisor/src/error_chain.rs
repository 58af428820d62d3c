//! Errors in full, for a reader: all causes in a row and, if something of the system is used up,
//! what to do about it.

use std::error::Error;

use crate::exhaustion;

/// `error` with all its causes and a hint if there is one: `cannot open x: no space left (free …)`.
pub(crate) fn error_chain(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut hint = None;
    let mut next = Some(error);
    while let Some(cause) = next {
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause.to_string());
        hint = hint.or_else(|| cause.downcast_ref().and_then(exhaustion::hint));
        next = cause.source();
    }
    if let Some(hint) = hint {
        text.push_str(&format!(" ({hint})"));
    }
    text
}
