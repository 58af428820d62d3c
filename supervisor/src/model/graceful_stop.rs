//! How a main process is asked to end: a signal, and the time until it is killed.

use std::time::Duration;

use machine_api::{MachineConfig, StopConfig};
use serde::{Deserialize, Serialize};

use crate::duration;

/// Time that a main process has to end if the configuration gives none.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time that it may be given.
const TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// How a main process is asked to end before it is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct GracefulStop {
    /// Signal number.
    pub(crate) signal: i32,
    /// Time until it is killed.
    pub(crate) timeout: Duration,
}

impl GracefulStop {
    /// What a request wants or, for what it leaves out, the configuration.
    pub(crate) fn resolve(
        signal: Option<&str>,
        timeout: Option<&str>,
        config: Option<&StopConfig>,
    ) -> Result<Self, String> {
        let signal = signal.or(config.and_then(|config| config.signal.as_deref()));
        let timeout = timeout.or(config.and_then(|config| config.timeout.as_deref()));
        let timeout = match timeout {
            Some(text) => duration::parse(text).map_err(|error| error.to_string())?,
            None => TIMEOUT,
        };
        let signal = signal.unwrap_or("SIGINT");
        Ok(Self {
            signal: signal_number(signal).ok_or_else(|| format!("unknown signal {signal:?}"))?,
            timeout: timeout.min(TIMEOUT_MAX),
        })
    }

    /// What the configuration wants; none if that is invalid.
    pub(crate) fn configured(config: &MachineConfig) -> Option<Self> {
        Self::resolve(None, None, config.stop_config.as_ref()).ok()
    }
}

/// How a transition ends the guest, as it is stored with the transition: another supervisor may have to do
/// it, and the configuration may be another one by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub(crate) enum GuestEnd {
    /// Ask the main process to end.
    Ask {
        /// Signal number.
        signal: i32,
        /// Time until it is killed, in milliseconds.
        timeout_ms: u64,
    },
    /// Kill it at once.
    Kill,
}

impl From<Option<GracefulStop>> for GuestEnd {
    fn from(stop: Option<GracefulStop>) -> Self {
        stop.map_or(Self::Kill, |stop| Self::Ask {
            signal: stop.signal,
            timeout_ms: u64::try_from(stop.timeout.as_millis()).unwrap_or(u64::MAX),
        })
    }
}

impl From<GuestEnd> for Option<GracefulStop> {
    fn from(end: GuestEnd) -> Self {
        match end {
            GuestEnd::Kill => None,
            GuestEnd::Ask { signal, timeout_ms } => Some(GracefulStop {
                signal,
                timeout: Duration::from_millis(timeout_ms),
            }),
        }
    }
}

/// The number of a signal given by name, with or without `SIG`, or by number.
pub(crate) fn signal_number(text: &str) -> Option<i32> {
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        let number = text.parse().ok().filter(|number| (1..=64).contains(number));
        // One spelling per number.
        return number.filter(|_| !text.starts_with('0'));
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    SIGNALS
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number)
}

/// All names, without `SIG`.
pub(crate) fn signal_names() -> impl Iterator<Item = &'static str> {
    SIGNALS.iter().map(|(name, _)| *name)
}

/// Linux's numbers on x86-64.
const SIGNALS: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [("SIGTERM", 15), ("int", 2), ("9", 9), ("SIGHUP", 1)] {
            assert_eq!(signal_number(text), Some(number), "{text}");
        }
        assert_eq!(signal_number("SIGNONE"), None);
        assert_eq!(signal_number("65"), None);
    }

    #[test]
    fn how_a_guest_is_ended_survives_its_storage() {
        let ask = GracefulStop {
            signal: 15,
            timeout: Duration::from_millis(1500),
        };
        for stop in [Some(ask), None] {
            let stored = serde_json::to_string(&GuestEnd::from(stop)).unwrap();
            let read: GuestEnd = serde_json::from_str(&stored).unwrap();
            assert_eq!(Option::<GracefulStop>::from(read), stop);
        }
    }

    #[test]
    fn a_request_about_stopping_wins_over_the_configuration() {
        let config = StopConfig {
            signal: Some("SIGTERM".to_owned()),
            timeout: Some("9s".to_owned()),
        };
        let stop = GracefulStop::resolve(Some("SIGKILL"), None, Some(&config)).unwrap();
        assert_eq!(
            stop,
            GracefulStop {
                signal: 9,
                timeout: Duration::from_secs(9)
            }
        );
    }
}
