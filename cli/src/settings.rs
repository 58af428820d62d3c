//! The settings of this call of `mctl`, and where each value came from. A flag takes precedence over
//! the environment, the environment over the configuration file, the file over the default.

use std::env;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use client::{Endpoint, EndpointError, Trust};
use serde::Deserialize;
use thiserror::Error;

use crate::output::ColorChoice;
use crate::parse;

/// A value, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting<T> {
    pub(crate) value: T,
    pub(crate) from: SettingSource,
}

/// Where the value of a setting came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SettingSource {
    Flag(&'static str),
    Environment(&'static str),
    File(PathBuf),
    Default,
}

impl fmt::Display for SettingSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// Values of the global flags that are settings.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flags {
    pub(crate) config: Option<PathBuf>,
    pub(crate) host: Option<String>,
    pub(crate) token: Option<String>,
    pub(crate) ca_cert: Option<PathBuf>,
    pub(crate) wait_timeout: Option<String>,
    pub(crate) color: Option<ColorChoice>,
}

/// The settings in force.
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

/// Why the settings cannot be used.
#[derive(Debug, Error)]
pub(crate) enum SettingsError {
    #[error("could not read the configuration file {}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("could not parse the configuration file {}", path.display())]
    Malformed {
        path: PathBuf,
        source: toml::de::Error,
    },
    #[error("host from {from} is not valid")]
    Host {
        from: SettingSource,
        source: EndpointError,
    },
    #[error("wait_timeout from {from} is not valid: {reason}")]
    WaitTimeout { from: SettingSource, reason: String },
}

impl SettingsError {
    pub(crate) fn hint(&self) -> Option<String> {
        matches!(self, Self::Malformed { .. }).then(|| {
            "the file is TOML with the keys host, token, ca_cert, wait_timeout and color".to_owned()
        })
    }
}

const DEFAULT_WAIT_TIMEOUT: Duration = Duration::from_secs(120);

impl Settings {
    /// Which certificates are trusted over https.
    pub(crate) fn trust(&self) -> Trust {
        match &self.ca_cert {
            Some(file) => Trust::File(file.value.clone()),
            None => Trust::System,
        }
    }

    /// Reads environment and configuration file, and chooses the value of each setting.
    pub(crate) fn resolve(flags: Flags) -> Result<Self, SettingsError> {
        let file = file_path(flags.config);
        let in_file = read_file(&file)?;
        let pick = |flag: Option<(&'static str, String)>, name, in_file: Option<String>| {
            first_given(flag, name, in_file, &file.value)
        };

        let host = match pick(flags.host.map(|v| ("--host", v)), "MCTL_HOST", in_file.host) {
            Some(Setting { value, from }) => match value.parse() {
                Ok(value) => Setting { value, from },
                Err(source) => return Err(SettingsError::Host { from, source }),
            },
            None => Setting {
                value: default_host(),
                from: SettingSource::Default,
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
        let ca_cert = ca_cert.map(|Setting { value, from }| Setting {
            value: PathBuf::from(value),
            from,
        });
        let wait_timeout = match pick(
            flags.wait_timeout.map(|v| ("--wait-timeout", v)),
            "MCTL_WAIT_TIMEOUT",
            in_file.wait_timeout,
        ) {
            Some(Setting { value, from }) => match parse::duration(&value) {
                Ok(value) => Setting { value, from },
                Err(reason) => return Err(SettingsError::WaitTimeout { from, reason }),
            },
            None => Setting {
                value: DEFAULT_WAIT_TIMEOUT,
                from: SettingSource::Default,
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

/// The value of the first of flag, variable and file that has one.
fn first_given(
    flag: Option<(&'static str, String)>,
    name: &'static str,
    in_file: Option<String>,
    file: &Path,
) -> Option<Setting<String>> {
    if let Some((flag, value)) = flag {
        return Some(Setting {
            value,
            from: SettingSource::Flag(flag),
        });
    }
    if let Some(value) = variable(name) {
        return Some(Setting {
            value,
            from: SettingSource::Environment(name),
        });
    }
    in_file.map(|value| Setting {
        value,
        from: SettingSource::File(file.to_owned()),
    })
}

/// `NO_COLOR` (<https://no-color.org>) applies if it is set and not empty.
fn color(
    flag: Option<ColorChoice>,
    in_file: Option<ColorChoice>,
    file: &Path,
) -> Setting<ColorChoice> {
    if let Some(value) = flag {
        return Setting {
            value,
            from: SettingSource::Flag("--color"),
        };
    }
    if variable("NO_COLOR").is_some() {
        return Setting {
            value: ColorChoice::Never,
            from: SettingSource::Environment("NO_COLOR"),
        };
    }
    match in_file {
        Some(value) => Setting {
            value,
            from: SettingSource::File(file.to_owned()),
        },
        None => Setting {
            value: ColorChoice::Auto,
            from: SettingSource::Default,
        },
    }
}

/// The value of a variable that is set and not empty.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

fn file_path(flag: Option<PathBuf>) -> Setting<PathBuf> {
    if let Some(value) = flag {
        return Setting {
            value,
            from: SettingSource::Flag("--config"),
        };
    }
    if let Some(value) = variable("MCTL_CONFIG") {
        return Setting {
            value: value.into(),
            from: SettingSource::Environment("MCTL_CONFIG"),
        };
    }
    Setting {
        value: user_folder("XDG_CONFIG_HOME", ".config").join("mctl/config.toml"),
        from: SettingSource::Default,
    }
}

/// Reads the configuration file. The default file may be missing; one that the user names may not.
fn read_file(file: &Setting<PathBuf>) -> Result<FileSettings, SettingsError> {
    let path = file.value.clone();
    match fs::read_to_string(&path) {
        Ok(text) => {
            toml::from_str(&text).map_err(|source| SettingsError::Malformed { path, source })
        }
        Err(error)
            if file.from == SettingSource::Default
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

/// Address of a supervisor that runs as the same user with default settings.
fn default_host() -> Endpoint {
    Endpoint::Unix(default_state_dir().join("api.sock"))
}

/// Default state directory of a supervisor that runs as this user.
pub(crate) fn default_state_dir() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/mctl");
    }
    user_folder("XDG_STATE_HOME", ".local/state").join("mctl")
}

/// A folder of the XDG base directory specification: the value of `name`, or `below_home`.
fn user_folder(name: &str, below_home: &str) -> PathBuf {
    variable(name).map_or_else(
        || Path::new(&variable("HOME").unwrap_or_else(|| "/".to_owned())).join(below_home),
        PathBuf::from,
    )
}
