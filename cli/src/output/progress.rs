//! A spinner that appears only when something takes longer than half a second, and only on a
//! terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinHandle;

/// Shorter things are not announced.
const PATIENCE: Duration = Duration::from_millis(500);

/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(120);

/// Turns until dropped; leaves nothing on the screen.
#[derive(Debug)]
pub(crate) struct Spinner {
    bar: ProgressBar,
    appearing: JoinHandle<()>,
}

impl Spinner {
    pub(super) fn new(doing: String) -> Self {
        let style = ProgressStyle::with_template("{spinner} {msg}  {elapsed}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        bar.set_style(style);
        bar.set_message(doing);
        let shown = bar.clone();
        let appearing = tokio::spawn(async move {
            tokio::time::sleep(PATIENCE).await;
            shown.set_draw_target(ProgressDrawTarget::stderr());
            shown.enable_steady_tick(TICK);
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

/// A bar for something whose length is known. Only on a terminal.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
}

impl Progress {
    pub(super) fn new(length: u64, unit: &str) -> Self {
        let template = format!("{{bar:32}} {{pos}}/{{len}} {unit}  {{msg}}  {{elapsed}}");
        // The template is a constant but for the unit, which is a word.
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
