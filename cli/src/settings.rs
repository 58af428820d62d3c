//! What holds for this call of `mctl`, and where each value came from: a flag wins over the
//! environment, the environment over the file, the file over the default.

use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::{Endpoint, EndpointError};
use serde::Deserialize;
use thiserror::Error;

use crate::span::parse_duration;

/// A value with its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting<T> {
    pub(crate) value: T,
    pub(crate) origin: Origin,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    Flag(&'static str),
    Environment(&'static str),
    File(PathBuf),
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// What the flags said.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flags {
    pub(crate) config: Option<PathBuf>,
    pub(crate) host: Option<String>,
    pub(crate) token: Option<String>,
    pub(crate) ca_cert: Option<PathBuf>,
    pub(crate) wait_timeout: Option<String>,
    pub(crate) color: Option<ColorChoice>,
}

/// Whether output is coloured.
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

/// What holds.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) file: Setting<PathBuf>,
    pub(crate) host: Setting<Endpoint>,
    pub(crate) token: Option<Setting<String>>,
    pub(crate) ca_cert: Option<Setting<PathBuf>>,
    pub(crate) wait_timeout: Setting<Duration>,
    pub(crate) color: Setting<ColorChoice>,
}

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSettings {
    host: Option<String>,
    token: Option<String>,
    ca_cert: Option<String>,
    wait_timeout: Option<String>,
    color: Option<ColorChoice>,
}

/// Why the settings make no sense.
#[derive(Debug, Error)]
pub(crate) enum SettingsError {
    #[error("could not read the configuration file {}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("the configuration file {} makes no sense", path.display())]
    Malformed {
        path: PathBuf,
        source: toml::de::Error,
    },
    #[error("host from {origin}")]
    Host {
        origin: Origin,
        source: EndpointError,
    },
    #[error("wait_timeout from {origin}: {reason}")]
    WaitTimeout { origin: Origin, reason: String },
}

impl SettingsError {
    pub(crate) fn hint(&self) -> Option<String> {
        matches!(self, Self::Malformed { .. }).then(|| {
            "it is TOML and knows the keys host, token, ca_cert, wait_timeout and color".to_owned()
        })
    }
}

const DEFAULT_WAIT: Duration = Duration::from_secs(120);

impl Settings {
    /// Works out what holds.
    pub(crate) fn resolve(flags: Flags) -> Result<Self, SettingsError> {
        let file = file_path(flags.config);
        let in_file = read_file(&file)?;
        let pick = |flag: Option<(&'static str, String)>, name, in_file: Option<String>| {
            strongest(flag, name, in_file, &file.value)
        };

        let host = match pick(flags.host.map(|v| ("--host", v)), "MCTL_HOST", in_file.host) {
            Some(Setting { value, origin }) => match value.parse() {
                Ok(value) => Setting { value, origin },
                Err(source) => return Err(SettingsError::Host { origin, source }),
            },
            None => Setting {
                value: default_host(),
                origin: Origin::Default,
            },
        };
        let token = pick(
            flags.token.map(|v| ("--token", v)),
            "MCTL_TOKEN",
            in_file.token,
        );
        let flag = flags.ca_cert.map(|v| v.to_string_lossy().into_owned());
        let ca_cert = pick(
            flag.map(|v| ("--ca-cert", v)),
            "MCTL_CA_CERT",
            in_file.ca_cert,
        );
        let ca_cert = ca_cert.map(|Setting { value, origin }| Setting {
            value: PathBuf::from(value),
            origin,
        });
        let wait_timeout = match pick(
            flags.wait_timeout.map(|v| ("--wait-timeout", v)),
            "MCTL_WAIT_TIMEOUT",
            in_file.wait_timeout,
        ) {
            Some(Setting { value, origin }) => match parse_duration(&value) {
                Ok(value) => Setting { value, origin },
                Err(reason) => return Err(SettingsError::WaitTimeout { origin, reason }),
            },
            None => Setting {
                value: DEFAULT_WAIT,
                origin: Origin::Default,
            },
        };
        let color = color(flags.color, in_file.color, &file.value);
        Ok(Self {
            file,
            host,
            token,
            ca_cert,
            wait_timeout,
            color,
        })
    }
}

fn strongest(
    flag: Option<(&'static str, String)>,
    name: &'static str,
    in_file: Option<String>,
    file: &Path,
) -> Option<Setting<String>> {
    if let Some((flag, value)) = flag {
        return Some(Setting {
            value,
            origin: Origin::Flag(flag),
        });
    }
    if let Some(value) = variable(name) {
        return Some(Setting {
            value,
            origin: Origin::Environment(name),
        });
    }
    in_file.map(|value| Setting {
        value,
        origin: Origin::File(file.to_owned()),
    })
}

/// `NO_COLOR` (<https://no-color.org>) counts when it is set and not empty.
fn color(
    flag: Option<ColorChoice>,
    in_file: Option<ColorChoice>,
    file: &Path,
) -> Setting<ColorChoice> {
    if let Some(value) = flag {
        return Setting {
            value,
            origin: Origin::Flag("--color"),
        };
    }
    if variable("NO_COLOR").is_some() {
        return Setting {
            value: ColorChoice::Never,
            origin: Origin::Environment("NO_COLOR"),
        };
    }
    match in_file {
        Some(value) => Setting {
            value,
            origin: Origin::File(file.to_owned()),
        },
        None => Setting {
            value: ColorChoice::Auto,
            origin: Origin::Default,
        },
    }
}

/// A variable that is set and not empty.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn file_path(flag: Option<PathBuf>) -> Setting<PathBuf> {
    if let Some(value) = flag {
        return Setting {
            value,
            origin: Origin::Flag("--config"),
        };
    }
    if let Some(value) = variable("MCTL_CONFIG") {
        return Setting {
            value: value.into(),
            origin: Origin::Environment("MCTL_CONFIG"),
        };
    }
    let folder = variable("XDG_CONFIG_HOME").map_or_else(
        || Path::new(&variable("HOME").unwrap_or_else(|| "/".to_owned())).join(".config"),
        PathBuf::from,
    );
    Setting {
        value: folder.join("mctl/config.toml"),
        origin: Origin::Default,
    }
}

/// A file that nobody asked for by name may be missing.
fn read_file(file: &Setting<PathBuf>) -> Result<FileSettings, SettingsError> {
    let path = file.value.clone();
    match fs::read_to_string(&path) {
        Ok(text) => {
            toml::from_str(&text).map_err(|source| SettingsError::Malformed { path, source })
        }
        Err(error)
            if file.origin == Origin::Default
                && matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
        {
            Ok(FileSettings::default())
        }
        Err(source) => Err(SettingsError::Unreadable { path, source }),
    }
}

/// Where a supervisor started by the same user listens.
fn default_host() -> Endpoint {
    Endpoint::Unix(default_state_dir().join("api.sock"))
}

/// The supervisor's state directory for this user.
pub(crate) fn default_state_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/mctl");
    }
    variable("XDG_STATE_HOME")
        .map_or_else(
            || Path::new(&variable("HOME").unwrap_or_else(|| "/".to_owned())).join(".local/state"),
            PathBuf::from,
        )
        .join("mctl")
}
