//! Test functions as trials whose reason to be ignored is known only when they run.

use libtest_mimic::Trial;

/// Makes a list of trials from test functions, named by their module and their own name.
#[allow(unused_macros, reason = "not every executable uses it")]
macro_rules! trials {
    ($($module:ident: $($name:ident),+ $(,)?;)+) => {
        vec![$($(libtest_mimic::Trial::test(
            concat!(stringify!($module), "::", stringify!($name)),
            || {
                $module::$name();
                Ok(())
            },
        )),+),+]
    };
}
#[allow(unused_imports, reason = "not every executable uses it")]
pub(crate) use trials;

/// Marks trials as ignored where there is a reason, which the report shows beside their names.
pub(crate) fn ignore_if(reason: Option<&str>, trials: Vec<Trial>) -> Vec<Trial> {
    let Some(reason) = reason else {
        return trials;
    };
    trials
        .into_iter()
        .map(|trial| trial.with_kind(reason).with_ignored_flag(true))
        .collect()
}
