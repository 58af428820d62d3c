//! A spinner for activities of unknown length and a bar for those of known length. Both appear only
//! on a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinHandle;

/// A spinner does not appear for shorter activities.
const SPINNER_DELAY: Duration = Duration::from_millis(500);

/// Time between two frames of a spinner.
const SPINNER_INTERVAL: Duration = Duration::from_millis(120);

/// A spinner. It is removed from the screen when it is dropped.
#[derive(Debug)]
pub(crate) struct Spinner {
    bar: ProgressBar,
    appearing: JoinHandle<()>,
}

impl Spinner {
    pub(super) fn new(activity: String) -> Self {
        let style = ProgressStyle::with_template("{spinner} {msg}  {elapsed}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        bar.set_style(style);
        bar.set_message(activity);
        let shown = bar.clone();
        let appearing = tokio::spawn(async move {
            tokio::time::sleep(SPINNER_DELAY).await;
            shown.set_draw_target(ProgressDrawTarget::stderr());
            shown.enable_steady_tick(SPINNER_INTERVAL);
        });
        Self { bar, appearing }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        self.appearing.abort();
        self.bar.finish_and_clear();
    }
}

/// A progress bar. It is removed from the screen when it is dropped.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    pub(super) fn new(length: u64, unit: &str) -> Self {
        let template = format!("{{bar:32}} {{pos}}/{{len}} {unit}  {{msg}}  {{elapsed}}");
        // The template is constant except for the unit, which is a word.
        let style = ProgressStyle::with_template(&template)
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        Self {
            bar: ProgressBar::new(length).with_style(style),
        }
    }

    pub(super) fn in_bytes(length: u64) -> Self {
        const TEMPLATE: &str = "{bar:32} {binary_bytes}/{binary_total_bytes}  \
                                {binary_bytes_per_sec}  {eta} left";
        let style =
            ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar());
        Self {
            bar: ProgressBar::new(length).with_style(style),
        }
    }

    /// Makes the whole `length` long: work that goes on longer than it was meant to.
    pub(crate) fn lengthen_to(&self, length: u64) {
        self.bar.set_length(length);
    }

    pub(crate) fn advance_to(&self, position: u64, message: &str) {
        self.bar.set_message(message.to_owned());
        self.bar.set_position(position);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
