//! The plan: what `kvm-host-init` does once the virtual host has booted.
//!
//! The packer writes it into the initramfs, PID 1 reads it and carries it out.

use serde::{Deserialize, Serialize};

/// Where the plan lies inside.
pub const PLAN_PATH: &str = "/etc/kvm-host.json";
/// The name of the virtio-serial port that carries the [`crate::protocol`].
pub const CHANNEL_NAME: &str = "mctl.kvm-host";
/// The word of the kernel's command line with the device of the channel, where that is a serial port.
pub const CHANNEL_WORD: &str = "mctl.channel=";
/// The address that QEMU's user-mode network gives its only machine.
pub const INSIDE_ADDRESS: &str = "10.0.2.15/24";

/// The serial number of the virtio-blk device with Debian's root.
pub const DEBIAN_SERIAL: &str = "debian";

/// All that the inside has to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Mounted first, where there is any.
    pub storage: Option<Storage>,
    pub program: Program,
}

/// What is mounted, and where programs run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    /// Whether Debian's root becomes the root of all programs.
    pub programs_in_debian: bool,
    pub volumes: Vec<Volume>,
    /// Files of the initramfs that programs need. Volumes and another root would hide them, so they
    /// are put above.
    pub files: Vec<String>,
}

/// A disk and where it is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    pub device: Device,
    pub path: String,
    /// Made if the disk is empty.
    pub filesystem: Filesystem,
}

/// What a volume lies on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// The virtio-blk device with this serial number.
    Disk { serial: String },
    /// Memory, by Linux' `null_blk`.
    Memory { size_mib: u32, completion_us: u32 },
}

/// A file system that survives power cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Filesystem {
    Ext4,
    /// With reflinks.
    Xfs,
}

impl Filesystem {
    /// Its name for `mount` and for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
        }
    }
}

/// The one program that a virtual host is started for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Program {
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
