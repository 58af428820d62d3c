//! Bounds on what a record holds. Programs that make records and those that read them from a file
//! keep the same ones.

/// The longest series. Judging one of this length takes about a second. Programs that make reports
/// refuse longer runs, too: they could not show what they had measured.
pub const MAX_CYCLES: u32 = 10_000;

/// The longest duration that is believed (eleven days). It also keeps every sum finite.
pub(crate) const MAX_DURATION_MS: f64 = 1e9;

/// Whether `ms` is a number, not negative, and within [`MAX_DURATION_MS`].
pub(crate) fn is_usable_duration(ms: f64) -> bool {
    (0.0..=MAX_DURATION_MS).contains(&ms)
}
