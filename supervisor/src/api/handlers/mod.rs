//! The operations of the API, one file for each subject.

use std::time::Duration;

pub(super) mod apps;
pub(super) mod events;
pub(super) mod exec_stream;
pub(super) mod files;
pub(super) mod guest;
pub(super) mod host;
pub(super) mod inspect;
pub(super) mod lease;
pub(super) mod lifecycle;
pub(super) mod logs;
pub(super) mod machines;
pub(super) mod metadata;
pub(super) mod metrics;
mod metrics_text;
pub(super) mod resources;
pub(super) mod set_aside;
pub(super) mod tokens;
pub(super) mod unlisted;
pub(super) mod usage;
pub(super) mod wait;

/// Longest wait of `…/wait`.
const WAIT_MOST: Duration = Duration::from_secs(300);
