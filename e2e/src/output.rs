//! The only module that prints: results to stdout, progress to stderr, with a progress bar if stderr
//! is a terminal.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the only module that prints"
)]

use std::collections::VecDeque;
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use cycles::{Cycle, FailedCheck, Observer, SubjectDescription, median};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Without a terminal, progress is one line in at least this interval.
const LINE_EVERY: Duration = Duration::from_secs(20);

/// How many of the last cycles the shown median covers.
const RECENT_CYCLES: usize = 10;

/// Prints what is being done.
pub fn say(text: &str) {
    eprintln!("{text}");
}

/// Prints a result.
pub fn print(text: &str) {
    println!("{}", text.trim_end());
}

/// Prints an error with all of its causes.
pub fn error(error: &anyhow::Error) {
    eprintln!("error: {error:#}");
}

/// Shows how runs go: on a terminal, a bar for each run that goes on.
#[derive(Debug, Clone)]
pub struct Bars(MultiProgress);

impl Bars {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self(MultiProgress::new())
    }

    /// The progress of a run called `title`.
    pub fn progress(&self, title: &str) -> Progress {
        Progress {
            title: title.to_owned(),
            bars: self.clone(),
            bar: ProgressBar::hidden(),
            recent: VecDeque::new(),
            last_line: Instant::now(),
            terminal: std::io::stderr().is_terminal(),
        }
    }
}

impl Default for Bars {
    fn default() -> Self {
        Self::new()
    }
}

/// Shows how a run goes.
pub struct Progress {
    title: String,
    bars: Bars,
    bar: ProgressBar,
    recent: VecDeque<f64>,
    last_line: Instant,
    terminal: bool,
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress")
            .field("title", &self.title)
            .finish_non_exhaustive()
    }
}

impl Progress {
    fn say_line(&mut self, cycle: &Cycle, cycles: u32, recent_ms: f64) {
        let last = cycle.cycle == cycles;
        if last || cycle.cycle == 1 || self.last_line.elapsed() >= LINE_EVERY {
            say(&format!(
                "{}: cycle {} of {cycles}, resume {recent_ms:.0} ms, suspend {:.0} ms, {} attempt{}",
                self.title,
                cycle.cycle,
                cycle.suspend_ms,
                cycle.attempts(),
                if cycle.attempts() == 1 { "" } else { "s" },
            ));
            self.last_line = Instant::now();
        }
    }
}

impl Observer for Progress {
    fn run_started(&mut self, _subject: &SubjectDescription, cycles: u32) {
        if self.terminal {
            let style = ProgressStyle::with_template(
                "{prefix} {bar:32} {pos}/{len} cycles  {msg}  {elapsed} of about {duration}",
            );
            self.bar = self.bars.0.add(ProgressBar::new(u64::from(cycles)));
            self.bar
                .set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            self.bar.set_prefix(self.title.clone());
            self.bar.enable_steady_tick(Duration::from_millis(250));
        }
    }

    fn cycle_done(&mut self, cycle: &Cycle, cycles: u32) -> ControlFlow<()> {
        if self.recent.len() == RECENT_CYCLES {
            self.recent.pop_front();
        }
        self.recent.push_back(cycle.resume_ms);
        let recent: Vec<f64> = self.recent.iter().copied().collect();
        let recent_ms = median(&recent).unwrap_or(cycle.resume_ms);
        if self.terminal {
            self.bar.set_message(format!("resume {recent_ms:.0} ms"));
            // It grows while the run is undecided.
            self.bar.set_length(u64::from(cycles));
            self.bar.set_position(u64::from(cycle.cycle));
        } else {
            self.say_line(cycle, cycles, recent_ms);
        }
        ControlFlow::Continue(())
    }

    fn check_failed(&mut self, failed: &FailedCheck) {
        self.bar.abandon();
        say(&format!(
            "{}: cycle {}: {}",
            self.title, failed.cycle, failed.message
        ));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish();
    }
}
