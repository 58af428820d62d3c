//! Colours, and when they are used.

use std::fmt;

use serde::Deserialize;

/// When output is coloured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ColorChoice {
    /// On a terminal, unless `NO_COLOR` is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl fmt::Display for ColorChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Always => "always",
            Self::Never => "never",
        })
    }
}

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
    /// The parameter of the escape sequence (ECMA-48, SGR).
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

/// `text` in `style`, if `colour` is on.
pub(super) fn painted(text: &str, style: Style, colour: bool) -> String {
    if !colour || style == Style::Plain {
        return text.to_owned();
    }
    format!("\x1b[{}m{text}\x1b[0m", style.code())
}
