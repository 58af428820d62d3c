//! How a machine is started: the supervisor's settings, and what a machine's configuration overrides.

use std::time::Duration;

use clap::ValueEnum;
use guest_protocol::backoff::Backoff;
use machine_api::{PortPolicy as ApiPortPolicy, VsockOptions};

/// Where local vsock ports begin after each start and resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PortPolicy {
    /// Drawn anew each time
    Random,
    /// After the last one that the image holds
    Continue,
    /// 2^30 each time
    Fixed,
}

/// When a resume checks the memory of its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum VerifyMode {
    /// Before the guest runs
    Full,
    /// While the guest runs
    Background,
    /// Not at all
    Off,
}

/// How machines are started.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StartSettings {
    /// Where local vsock ports begin.
    pub(crate) port_policy: PortPolicy,
    /// Whether saved pairs are evicted.
    pub(crate) eviction: bool,
    /// When the memory of an image is checked.
    pub(crate) verify: VerifyMode,
    /// Whether the monitor connects before the readiness check.
    pub(crate) monitor_first: bool,
    /// Bounds of the readiness check.
    pub(crate) readiness: ReadinessLimits,
}

/// Bounds of a readiness check.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadinessLimits {
    /// Deadline of one attempt.
    pub(crate) attempt: Duration,
    /// Waits between attempts.
    pub(crate) backoff: Backoff,
    /// Deadline of the whole check.
    pub(crate) total: Duration,
}

impl StartSettings {
    /// These settings with a machine's own vsock options in place of the supervisor's.
    pub(crate) fn overridden_by(&self, options: Option<&VsockOptions>) -> Self {
        let VsockOptions {
            port_policy,
            eviction,
            monitor_first,
        } = options.cloned().unwrap_or_default();
        Self {
            port_policy: port_policy.map_or(self.port_policy, PortPolicy::from),
            eviction: eviction.unwrap_or(self.eviction),
            monitor_first: monitor_first.unwrap_or(self.monitor_first),
            ..*self
        }
    }
}

impl From<ApiPortPolicy> for PortPolicy {
    fn from(policy: ApiPortPolicy) -> Self {
        match policy {
            ApiPortPolicy::Random => Self::Random,
            ApiPortPolicy::Continue => Self::Continue,
            ApiPortPolicy::Fixed => Self::Fixed,
        }
    }
}

impl From<PortPolicy> for ApiPortPolicy {
    fn from(policy: PortPolicy) -> Self {
        match policy {
            PortPolicy::Random => Self::Random,
            PortPolicy::Continue => Self::Continue,
            PortPolicy::Fixed => Self::Fixed,
        }
    }
}
