//! The plan: what `kvm-host-init` does once the virtual host has booted.
//!
//! The packer writes it into the initramfs, PID 1 reads it and carries it out.

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
    /// Runs until the host ends, and is restarted whenever it ends. Its output goes to the console.
    Service {
        argv: Vec<String>,
        /// The TCP port on which it accepts connections once it is ready.
        ready_port: u16,
    },
    /// Runs once; the host ends with it. Its output goes through the channel.
    Command {
        argv: Vec<String>,
        env: Vec<(String, String)>,
        /// A folder whose files are sent out at the end.
        export: Option<String>,
    },
    /// A shell on the console; the host ends with it.
    Shell,
}
