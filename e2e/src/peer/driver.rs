//! What differs between VMMs: a command line, and the API calls of a boot, a suspend and a resume.
//!
//! A driver only says what to call. The calls are made, and timed, by the machine.

use std::ffi::OsString;
use std::fmt::Debug;
use std::path::{Path, PathBuf};

use super::api::ApiCall;

/// What a guest boots from, and with what.
#[derive(Debug, Clone)]
pub(super) struct Guest {
    /// Uncompressed kernel.
    pub(super) kernel: PathBuf,
    /// Initramfs with guest-init.
    pub(super) initramfs: PathBuf,
    /// Its memory.
    pub(super) memory_mib: u32,
    /// Its processors.
    pub(super) vcpus: u32,
    /// The Unix socket of its vsock device.
    pub(super) vsock: PathBuf,
}

/// The guest's end of the vsock device; any CID from 3 will do, as each guest has a socket of its own.
pub(super) const GUEST_CID: u32 = 3;

/// The kernel's command line: the default of our own VMM.
pub(super) const KERNEL_ARGUMENTS: &str = "console=ttyS0 reboot=k panic=-1 quiet";

/// An API call that is a phase of a suspend or resume.
#[derive(Debug)]
pub(super) struct PhaseCall {
    /// The phase's name in reports.
    pub(super) phase: &'static str,
    pub(super) call: ApiCall,
}

/// A kind of VMM.
pub(super) trait Driver: Debug + Sync {
    /// Arguments of a process that waits for calls to the socket `api`.
    fn arguments(&self, api: &Path) -> Vec<OsString>;

    /// Creates and boots a machine.
    fn boot(&self, guest: &Guest) -> Vec<ApiCall>;

    /// Pauses the machine and saves it in `folder`, which is empty.
    fn suspend(&self, folder: &Path) -> Vec<PhaseCall>;

    /// In a process without a machine: restores the one in `folder`, and lets it run.
    fn resume(&self, folder: &Path) -> Vec<PhaseCall>;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::kind::PeerKind;

    fn mentions(calls: &[PhaseCall], path: &Path) -> bool {
        let path = path.display().to_string();
        calls
            .iter()
            .any(|one| one.call.body.to_string().contains(&path))
    }

    #[test]
    fn every_peer_restores_what_it_saved() {
        for kind in PeerKind::ALL {
            let folder = Path::new("/peer/snapshot-7");
            let driver = kind.driver();
            assert!(mentions(&driver.suspend(folder), folder), "{kind:?}");
            assert!(mentions(&driver.resume(folder), folder), "{kind:?}");
        }
    }

    #[test]
    fn every_peer_boots_the_same_guest() {
        let guest = Guest {
            kernel: "/images/kernel".into(),
            initramfs: "/images/initramfs".into(),
            memory_mib: 192,
            vcpus: 3,
            vsock: "/peer/v.sock".into(),
        };
        for kind in PeerKind::ALL {
            let calls = kind.driver().boot(&guest);
            let bodies: Vec<String> = calls.iter().map(|call| call.body.to_string()).collect();
            let all = bodies.concat();
            for part in ["/images/kernel", "/images/initramfs", KERNEL_ARGUMENTS] {
                assert!(all.contains(part), "{kind:?}: {part} in {all}");
            }
            assert!(all.contains("/peer/v.sock"), "{kind:?}: {all}");
        }
    }

    #[test]
    fn every_peer_listens_where_it_is_told() {
        for kind in PeerKind::ALL {
            let arguments = kind.driver().arguments(Path::new("/peer/api.sock"));
            let last = arguments.last().map(OsString::as_os_str);
            assert_eq!(last, Some("/peer/api.sock".as_ref()), "{kind:?}");
        }
    }
}
