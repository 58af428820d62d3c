//! Errors as text: one line with all causes.
//!
//! The text of an error does not repeat its source, so whoever shows one adds the causes. This is a
//! crate of its own because programs that know nothing of each other need the same few lines.

#![forbid(unsafe_code)]

use std::error::Error;

/// `error` and all its causes on one line: `cannot open x: permission denied`.
#[must_use]
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::fmt;

    use super::*;

    #[derive(Debug)]
    struct Step(&'static str, Option<Box<Step>>);

    impl fmt::Display for Step {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Step {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|cause| cause as _)
        }
    }

    #[test]
    fn every_cause_follows_what_it_caused() {
        let cause = Step("b", Some(Box::new(Step("c", None))));
        assert_eq!(with_causes(&Step("a", Some(Box::new(cause)))), "a: b: c");
        assert_eq!(with_causes(&Step("a", None)), "a");
    }
}
