//! What is put through cycles, and how often: the same for our own machine and for a peer.

use std::path::PathBuf;
use std::str::FromStr;

use cycles::{LeftoverVsocks, PortPolicy};
use machine_api::VsockOptions;
use serde::{Deserialize, Serialize};

use crate::artifacts::GuestImage;
use crate::counter;
use crate::machine::MachineSpec;

/// One chain of cycles on one machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// A title for progress, and the machine's name.
    pub name: String,
    /// In what the machine runs.
    pub vmm: Vmm,
    /// How many cycles.
    pub cycles: u32,
    /// To how many cycles the run goes on while it is undecided.
    pub most_cycles: u32,
    /// Memory of the guest, in MiB.
    pub memory_mib: u32,
    /// vCPUs of the guest.
    pub vcpus: u32,
    /// Which init the guest runs.
    pub guest: GuestImage,
    /// Whether sockets left over in the guest are only recorded: it leaks on purpose.
    pub expects_leaks: bool,
    /// How local ports are chosen; the VMM's own way if not given.
    pub port_policy: Option<PortPolicy>,
    /// Whether saved pairs are evicted; the VMM's own way if not given.
    pub eviction: Option<bool>,
    /// Whether the long-lived monitor connects before the status check.
    pub monitor_first: bool,
}

/// A VMM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Vmm {
    /// Ours, behind a supervisor.
    Mctl,
    /// Firecracker's binary.
    Firecracker(PathBuf),
}

impl Vmm {
    /// Its name in titles and file names.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Mctl => "mctl",
            Self::Firecracker(_) => "firecracker",
        }
    }
}

/// Why a text does not name a peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// It does not have the form.
    #[error("write it as firecracker=PATH")]
    Form,
    /// There is no adapter for the kind.
    #[error("there is no adapter for {0:?}; the only one is firecracker")]
    Kind(String),
    /// There is no file.
    #[error("there is no binary at {0}")]
    Missing(PathBuf),
}

/// A peer is named by its kind and its binary, as in `firecracker=/path/to/it`.
impl FromStr for Vmm {
    type Err = PeerError;

    fn from_str(text: &str) -> Result<Self, PeerError> {
        match text.split_once('=') {
            Some(("firecracker", path)) if !path.is_empty() => {
                let path = PathBuf::from(path);
                if path.is_file() {
                    Ok(Self::Firecracker(path))
                } else {
                    Err(PeerError::Missing(path))
                }
            }
            Some(("firecracker", _)) | None => Err(PeerError::Form),
            Some((kind, _)) => Err(PeerError::Kind(kind.to_owned())),
        }
    }
}

impl Work {
    /// What a vsock socket left over in the guest means.
    pub fn leftover_vsocks(&self) -> LeftoverVsocks {
        match (&self.vmm, self.guest, self.expects_leaks) {
            (Vmm::Mctl, GuestImage::Default, false) => LeftoverVsocks::Fail,
            _ => LeftoverVsocks::Record,
        }
    }

    /// The machine of the Machines API.
    pub fn machine(&self) -> MachineSpec {
        MachineSpec {
            name: self.name.clone(),
            image: self.guest,
            memory_mib: self.memory_mib,
            vcpus: self.vcpus,
            vsock: Some(VsockOptions {
                port_policy: self.port_policy.map(Into::into),
                eviction: self.eviction,
                monitor_first: Some(self.monitor_first),
            }),
            command: counter::command(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_named_by_its_kind_and_a_path() {
        let folder = tempfile::Builder::new().prefix("fc=1").tempdir().unwrap();
        let binary = folder.path().join("firecracker");
        std::fs::write(&binary, "").unwrap();
        let named = format!("firecracker={}", binary.display()).parse::<Vmm>();
        assert_eq!(named, Ok(Vmm::Firecracker(binary)));
    }

    #[test]
    fn a_peer_without_a_binary_or_of_another_kind_is_refused() {
        for text in ["", "firecracker", "firecracker=", "/usr/bin/firecracker"] {
            assert_eq!(text.parse::<Vmm>(), Err(PeerError::Form));
        }
        let kind = PeerError::Kind("qemu".to_owned());
        assert_eq!("qemu=/usr/bin/qemu".parse::<Vmm>(), Err(kind));
        let missing = PeerError::Missing("/nowhere".into());
        assert_eq!("firecracker=/nowhere".parse::<Vmm>(), Err(missing));
    }
}
