//! The only module that prints: data to standard output, messages to standard error.
//!
//! People get tables and sentences, programs get JSON. Colour only repeats what a word says; it goes
//! to terminals only, unless the user asks for it. Control characters in text from a guest are made
//! visible before a terminal gets them.

mod progress;
mod style;
mod table;
mod visible;

use std::error::Error;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

pub(crate) use progress::{Progress, Spinner};
use style::painted;
pub(crate) use style::{ColorChoice, Style};
pub(crate) use table::{Cell, Table};
pub(crate) use visible::visible;

/// Prints data and messages in one format, with or without colour.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    json: bool,
    colour_out: bool,
    colour_err: bool,
}

impl Output {
    pub(crate) fn new(json: bool, color: ColorChoice) -> Self {
        let colour = |terminal: bool| match color {
            ColorChoice::Auto => terminal,
            ColorChoice::Always => true,
            ColorChoice::Never => false,
        };
        Self {
            json,
            colour_out: colour(io::stdout().is_terminal()),
            colour_err: colour(io::stderr().is_terminal()),
        }
    }

    /// Whether the output is JSON, for programs.
    pub(crate) const fn is_json(&self) -> bool {
        self.json
    }

    /// One line of data.
    pub(crate) fn line(&self, text: &str) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.write_all(b"\n")?;
        stdout.flush()
    }

    /// A heading above a table.
    pub(crate) fn heading(&self, text: &str) -> io::Result<()> {
        self.line(&painted(text, Style::Strong, self.colour_out))
    }

    /// A table for people.
    pub(crate) fn table(&self, table: &Table) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(table.render(self.colour_out).as_bytes())?;
        stdout.flush()
    }

    /// A document for programs.
    pub(crate) fn json(&self, value: &impl Serialize) -> io::Result<()> {
        self.line(&serde_json::to_string_pretty(value)?)
    }

    /// One element of a stream for programs.
    pub(crate) fn json_line(&self, value: &impl Serialize) -> io::Result<()> {
        self.line(&serde_json::to_string(value)?)
    }

    /// Bytes to standard output, unchanged.
    pub(crate) fn raw(&self, bytes: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()
    }

    /// Bytes to standard error, unchanged.
    pub(crate) fn raw_error(&self, bytes: &[u8]) -> io::Result<()> {
        io::stderr().lock().write_all(bytes)
    }

    /// A line with a coloured word in front.
    pub(crate) fn tagged_line(&self, tag: &str, style: Style, text: &str) -> io::Result<()> {
        self.line(&format!("{} {text}", painted(tag, style, self.colour_out)))
    }

    /// Text from a guest that is safe to print: control characters are made visible, except for
    /// colours where output is coloured.
    pub(crate) fn harmless(&self, text: &str) -> String {
        visible(text, self.colour_out)
    }

    /// Clears the terminal before a refresh. Without a terminal, separates refreshes by an empty
    /// line.
    pub(crate) fn refresh(&self, first: bool) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        if stdout.is_terminal() {
            stdout.write_all(b"\x1b[H\x1b[2J")?;
        } else if !first && !self.json {
            stdout.write_all(b"\n")?;
        }
        stdout.flush()
    }

    /// A message about what happened.
    pub(crate) fn note(&self, text: &str) {
        self.message(text);
    }

    /// A message about something that deserves attention.
    pub(crate) fn warning(&self, text: &str) {
        self.message(&format!(
            "{} {text}",
            painted("warning:", Style::Busy, self.colour_err)
        ));
    }

    /// An error with all its causes, and what to do about it.
    pub(crate) fn error(&self, error: &dyn Error, hint: Option<&str>) {
        let label = painted("error:", Style::Bad, self.colour_err);
        self.message(&format!("{label} {}", error_text::with_causes(error)));
        if let Some(hint) = hint {
            self.message(&format!(
                "{} {hint}",
                painted("hint:", Style::Strong, self.colour_err)
            ));
        }
    }

    /// Asks a question to be answered with yes or no. Only `y` and `yes` mean yes.
    pub(crate) fn confirm(&self, question: &str) -> io::Result<bool> {
        let mut stderr = io::stderr().lock();
        write!(stderr, "{question} [y/N] ")?;
        stderr.flush()?;
        let mut answer = String::new();
        io::stdin().read_line(&mut answer)?;
        Ok(matches!(
            answer.trim().to_ascii_lowercase().as_str(),
            "y" | "yes"
        ))
    }

    /// A spinner that appears on a terminal if the activity takes longer than half a second.
    pub(crate) fn spinner(&self, activity: String) -> Spinner {
        Spinner::new(activity)
    }

    /// A progress bar for `length` units, on a terminal.
    pub(crate) fn progress(&self, length: u64, unit: &str) -> Progress {
        Progress::new(length, unit)
    }

    /// A progress bar for `length` bytes, on a terminal.
    pub(crate) fn progress_in_bytes(&self, length: u64) -> Progress {
        Progress::in_bytes(length)
    }

    /// A failure to write to standard error is ignored: nobody could be told about it.
    fn message(&self, text: &str) {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }
}
