//! What `kvm-host-init` shall do once the virtual host has booted.
//!
//! Written into the initramfs by `pack`, read by PID 1. How it does it is PID 1's business.

use serde::{Deserialize, Serialize};

/// Where the plan lies inside.
pub const PLAN_PATH: &str = "/etc/kvm-host.json";
/// The name of the virtio-serial port that carries the [`crate::protocol`].
pub const CHANNEL_NAME: &str = "mctl.kvm-host";
/// The address that QEMU's user-mode network gives its only machine.
pub const INSIDE_ADDRESS: &str = "10.0.2.15/24";

/// The one program that a virtual host is started for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Plan {
    /// Runs for ever and is started again when it ends. Its output goes to the console.
    Service {
        argv: Vec<String>,
        /// It is ready when it accepts TCP connections here.
        ready_port: u16,
    },
    /// Runs once; the host ends with it. Its output goes through the channel.
    Command {
        argv: Vec<String>,
        env: Vec<(String, String)>,
        /// A folder that is sent out at the end.
        export: Option<String>,
    },
    /// A shell on the console; the host ends with it.
    Shell,
}
