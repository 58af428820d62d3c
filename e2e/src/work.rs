//! What is put through cycles, and how often: the same for our own machine and for a peer.

use std::path::PathBuf;
use std::str::FromStr;

use cycles::{LeftoverVsocks, PortPolicy};
use machine_api::VsockOptions;
use serde::{Deserialize, Serialize};

use crate::artifacts::GuestImage;
use crate::counter;
use crate::machine::MachineSpec;
use crate::peer::PeerKind;

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
    /// Another one.
    Peer {
        /// Which.
        kind: PeerKind,
        /// Its binary.
        binary: PathBuf,
    },
}

impl Vmm {
    /// Its name in titles and file names.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Mctl => "mctl",
            Self::Peer { kind, .. } => kind.name(),
        }
    }
}

/// Why a text does not name a peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParsePeerError {
    /// It does not have the form.
    #[error("write it as KIND=PATH, with a KIND of {}", kinds())]
    Form,
    /// There is no adapter for the kind.
    #[error("there is no adapter for {0:?}, only for {kinds}", kinds = kinds())]
    Kind(String),
    /// There is no file.
    #[error("there is no binary at {0}")]
    Missing(PathBuf),
}

fn kinds() -> String {
    PeerKind::ALL.map(PeerKind::name).join(" or ")
}

/// A peer is named by its kind and its binary, as in `firecracker=/path/to/it`.
impl FromStr for Vmm {
    type Err = ParsePeerError;

    fn from_str(text: &str) -> Result<Self, ParsePeerError> {
        let (name, path) = text.split_once('=').ok_or(ParsePeerError::Form)?;
        let kind = PeerKind::ALL.into_iter().find(|kind| kind.name() == name);
        let kind = kind.ok_or_else(|| ParsePeerError::Kind(name.to_owned()))?;
        if path.is_empty() {
            return Err(ParsePeerError::Form);
        }
        let binary = PathBuf::from(path);
        if !binary.is_file() {
            return Err(ParsePeerError::Missing(binary));
        }
        Ok(Self::Peer { kind, binary })
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
        let folder = tempfile::Builder::new().prefix("vmm=1").tempdir().unwrap();
        let binary = folder.path().join("binary");
        std::fs::write(&binary, "").unwrap();
        let named = |kind: &str| format!("{kind}={}", binary.display()).parse::<Vmm>();
        let peer = |kind| Vmm::Peer {
            kind,
            binary: binary.clone(),
        };
        assert_eq!(named("firecracker"), Ok(peer(PeerKind::Firecracker)));
        let other = named("cloud-hypervisor");
        assert_eq!(other, Ok(peer(PeerKind::CloudHypervisor)));
    }

    #[test]
    fn a_peer_without_a_binary_or_of_another_kind_is_refused() {
        for text in ["", "firecracker", "firecracker=", "/usr/bin/firecracker"] {
            assert_eq!(text.parse::<Vmm>(), Err(ParsePeerError::Form));
        }
        let kind = ParsePeerError::Kind("qemu".to_owned());
        let text = kind.to_string();
        assert!(text.ends_with("firecracker or cloud-hypervisor"), "{text}");
        assert_eq!("qemu=/usr/bin/qemu".parse::<Vmm>(), Err(kind));
        let missing = ParsePeerError::Missing("/nowhere".into());
        assert_eq!("firecracker=/nowhere".parse::<Vmm>(), Err(missing));
    }
}
