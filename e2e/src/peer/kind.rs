//! The kinds of VMM that there is an adapter for.

use serde::{Deserialize, Serialize};

use super::cloud_hypervisor::CloudHypervisor;
use super::driver::Driver;
use super::firecracker::Firecracker;

/// A kind of VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PeerKind {
    /// <https://github.com/firecracker-microvm/firecracker>
    Firecracker,
    /// <https://github.com/cloud-hypervisor/cloud-hypervisor>
    CloudHypervisor,
}

impl PeerKind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Firecracker, Self::CloudHypervisor];

    /// Its name on command lines, in titles and file names.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Firecracker => "firecracker",
            Self::CloudHypervisor => "cloud-hypervisor",
        }
    }

    pub(super) fn driver(self) -> &'static dyn Driver {
        match self {
            Self::Firecracker => &Firecracker,
            Self::CloudHypervisor => &CloudHypervisor,
        }
    }
}
