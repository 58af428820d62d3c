//! The only printer: data to standard output, talk to standard error.
//!
//! People get tables and sentences, programs get JSON. Colour only repeats what a word already
//! says, and goes only to terminals unless it was asked for. Text that came out of a guest is
//! made harmless before a terminal sees it.

mod progress;
mod table;
mod visible;

use std::error::Error;
use std::io::{self, IsTerminal, Write};

use serde::Serialize;

pub(crate) use progress::{Progress, Spinner};
pub(crate) use table::{Cell, Table};
pub(crate) use visible::visible;

use crate::settings::ColorChoice;

/// How a piece of text stands out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Style {
    Plain,
    Good,
    Busy,
    Bad,
    Faint,
    Strong,
}

impl Style {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Good => "32",
            Self::Busy => "33",
            Self::Bad => "31",
            Self::Faint => "2",
            Self::Strong => "1",
        }
    }
}

/// `text` in `style`, if there is colour.
fn painted(text: &str, style: Style, colour: bool) -> String {
    if !colour || style == Style::Plain {
        return text.to_owned();
    }
    format!("\x1b[{}m{text}\x1b[0m", style.code())
}

/// Where everything is printed.
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

    /// Whether programs read the output.
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

    /// Rows for people.
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

    /// Bytes of a command's standard output, as they are.
    pub(crate) fn raw(&self, bytes: &[u8]) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        stdout.write_all(bytes)?;
        stdout.flush()
    }

    /// Bytes of a command's standard error, as they are.
    pub(crate) fn raw_error(&self, bytes: &[u8]) -> io::Result<()> {
        io::stderr().lock().write_all(bytes)
    }

    /// A line with a coloured word in front.
    pub(crate) fn tagged_line(&self, tag: &str, style: Style, text: &str) -> io::Result<()> {
        self.line(&format!("{} {text}", painted(tag, style, self.colour_out)))
    }

    /// Makes text from a guest harmless; its colours survive only where ours would show.
    pub(crate) fn harmless(&self, text: &str) -> String {
        visible(text, self.colour_out)
    }

    /// Clears the screen before a refresh, or separates refreshes where there is none.
    pub(crate) fn refresh(&self, first: bool) -> io::Result<()> {
        let mut stdout = io::stdout().lock();
        if stdout.is_terminal() {
            stdout.write_all(b"\x1b[H\x1b[2J")?;
        } else if !first && !self.json {
            stdout.write_all(b"\n")?;
        }
        stdout.flush()
    }

    /// Talk: what happened.
    pub(crate) fn note(&self, text: &str) {
        self.talk(text);
    }

    /// Talk: what deserves attention.
    pub(crate) fn warning(&self, text: &str) {
        self.talk(&format!(
            "{} {text}",
            painted("warning:", Style::Busy, self.colour_err)
        ));
    }

    /// Talk: what failed with all its causes, and what to do.
    pub(crate) fn error(&self, error: &dyn Error, hint: Option<&str>) {
        let mut text = format!("{} {error}", painted("error:", Style::Bad, self.colour_err));
        let mut cause = error.source();
        while let Some(source) = cause {
            text = format!("{text}: {source}");
            cause = source.source();
        }
        self.talk(&text);
        if let Some(hint) = hint {
            self.talk(&format!(
                "{} {hint}",
                painted("hint:", Style::Strong, self.colour_err)
            ));
        }
    }

    /// Asks a question that is answered with yes or no; only `y` and `yes` mean yes.
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

    /// Shows that something is going on, if it goes on for longer than half a second and a
    /// terminal is there to see it.
    pub(crate) fn spinner(&self, doing: String) -> Spinner {
        Spinner::new(doing)
    }

    /// A bar for something of a known length, drawn on terminals only.
    pub(crate) fn progress(&self, length: u64, unit: &str) -> Progress {
        Progress::new(length, unit)
    }

    /// The same for bytes.
    pub(crate) fn progress_in_bytes(&self, length: u64) -> Progress {
        Progress::in_bytes(length)
    }

    /// There is nobody to tell that standard error is gone.
    fn talk(&self, text: &str) {
        let _ = writeln!(io::stderr().lock(), "{text}");
    }
}
