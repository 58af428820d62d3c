//! Tests that may not be able to run where they are, as an executable that says so.
//!
//! Rust's own test harness knows only *passed* and *failed* at run time. With libtest-mimic a test that
//! cannot run is *ignored*, with the reason beside its name. This is a crate of its own because tests
//! of crates that know nothing of each other share it; it is used by tests only.

#![forbid(unsafe_code)]

pub use libtest_mimic::{Arguments, Trial, run};

/// Makes a list of trials from paths of test functions; a path is the trial's name.
#[macro_export]
macro_rules! trials {
    ($($test:path),* $(,)?) => {
        vec![$($crate::Trial::test(stringify!($test), || {
            $test();
            Ok(())
        })),*]
    };
}

/// Marks trials as ignored if there is a reason, which is shown beside their names.
#[must_use]
pub fn ignore_if(reason: Option<&str>, trials: Vec<Trial>) -> Vec<Trial> {
    let Some(reason) = reason else {
        return trials;
    };
    trials
        .into_iter()
        .map(|trial| trial.with_kind(reason).with_ignored_flag(true))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing() {}

    #[test]
    fn only_a_reason_ignores_and_names_are_paths() {
        let trials = ignore_if(None, trials![self::nothing]);
        assert_eq!(trials[0].name(), "self::nothing");
        assert!(!trials[0].has_ignored_flag());
        let ignored = ignore_if(Some("no disk"), trials);
        assert_eq!(ignored[0].kind(), "no disk");
        assert!(ignored[0].has_ignored_flag());
    }
}
