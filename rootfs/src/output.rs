//! All printing of `mctl-rootfs`: data to stdout, messages to stderr.
//!
//! On a terminal the current step is a line with a spinner; elsewhere each step is a line.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "printing is this file's job"
)]

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use rootfs::image::Image;
use serde::Serialize;

#[derive(Debug)]
pub(crate) struct Output {
    /// Only on a terminal.
    spinner: Option<ProgressBar>,
}

impl Output {
    pub(crate) fn new() -> Self {
        let spinner = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
            let spinner = ProgressBar::new_spinner();
            if let Ok(style) = style {
                spinner.set_style(style);
            }
            spinner
        });
        Self { spinner }
    }

    /// Shows the current step.
    pub(crate) fn step(&self, text: &str) {
        match &self.spinner {
            Some(spinner) => {
                spinner.set_message(text.to_owned());
                spinner.enable_steady_tick(Duration::from_millis(100));
            }
            None => eprintln!("{text}"),
        }
    }

    /// Prints the last line.
    pub(crate) fn done(&self, text: &str) {
        self.clear();
        eprintln!("{text}");
    }

    pub(crate) fn error(&self, error: &anyhow::Error) {
        self.clear();
        eprintln!("error: {error:#}");
    }

    pub(crate) fn json(&self, value: &impl Serialize) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(value).context("cannot print JSON")?;
        println!("{text}");
        Ok(())
    }

    pub(crate) fn table(&self, images: &[Image]) {
        for image in images {
            println!("{}", row(image));
        }
        if images.is_empty() {
            eprintln!("no images; `mctl-rootfs build` makes one");
        }
    }

    fn clear(&self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}

/// One line of `list`.
fn row(image: &Image) -> String {
    format!(
        "{:<16} {:<28} {:>4} MiB  {}",
        image.name,
        image.kernel_version,
        (image.kernel_bytes + image.initramfs_bytes) >> 20,
        image.created_at
    )
}
