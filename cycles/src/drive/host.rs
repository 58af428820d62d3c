//! The host of a report, from what its supervisor says about it.

use machine_api::HostInfo;

use crate::record::{Clock, Host, KvmKind};

/// The clock by which a supervisor measures.
impl From<&HostInfo> for Clock {
    fn from(info: &HostInfo) -> Self {
        match info.clock.as_str() {
            "virtual" => Self::Virtual,
            _ => Self::Real,
        }
    }
}

impl From<HostInfo> for Host {
    fn from(info: HostInfo) -> Self {
        let kvm = match info.kvm.as_str() {
            "hardware" => KvmKind::Hardware,
            "virtual" => KvmKind::Virtual,
            "software" => KvmKind::Software,
            _ => KvmKind::Unknown,
        };
        let details = [
            ("cpu", info.cpu.into()),
            ("kernel", info.kernel.into()),
            ("cpus", info.cpus.into()),
            ("memory_mib", info.memory_mib.into()),
            ("kvm_detail", info.kvm_detail.into()),
        ];
        let details = details
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        Self {
            kvm,
            details: details.collect(),
        }
    }
}
