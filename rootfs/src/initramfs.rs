//! The base of an initramfs: folders, a shell, kernel modules with their load order.
//!
//! The guest and the virtual KVM host have the same base. Which program is `/init`, and further
//! files, are the caller's choice.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fs, io};

use thiserror::Error;

use crate::cpio::Archive;
use crate::modules::{Module, ModulesError};

/// Folder of the modules; the names in [`MODULE_ORDER`] are relative to it.
pub const MODULE_FOLDER: &str = "/lib/modules";
/// File with the names of the module files in load order, one per line.
pub const MODULE_ORDER: &str = "/lib/modules/order";

/// Modules that a guest needs for the devices that a VMM offers: `mctl-vmm` has them on virtio-mmio,
/// others, which run the same guests, on PCI.
pub const GUEST_MODULES: [&str; 5] = [
    "virtio_mmio",
    "virtio_pci",
    "vmw_vsock_virtio_transport",
    "virtio_blk",
    "virtio_rng",
];
/// Modules that make a guest more useful if its kernel has them.
pub const GUEST_OPTIONAL_MODULES: [&str; 2] = ["vsock_diag", "ext4"];

/// Why the base of an initramfs could not be made.
#[derive(Debug, Error)]
pub enum InitramfsError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("cannot run {path} to list its programs (it must be a static busybox)")]
    BusyboxList { path: PathBuf, source: io::Error },
    #[error("{path} does not answer `--list-full` like a busybox")]
    NotBusybox { path: PathBuf },
    #[error(transparent)]
    Modules(#[from] ModulesError),
}

/// A static busybox and the programs in it.
#[derive(Debug, Clone)]
pub struct Busybox {
    path: PathBuf,
    /// Absolute paths of the links to it.
    applets: Vec<String>,
}

impl Busybox {
    /// Runs the binary to list its programs.
    pub fn open(path: &Path) -> Result<Self, InitramfsError> {
        let output = Command::new(path)
            .arg("--list-full")
            .output()
            .map_err(|source| InitramfsError::BusyboxList {
                path: path.to_owned(),
                source,
            })?;
        let applets = parse_applets(&String::from_utf8_lossy(&output.stdout))
            .filter(|_| output.status.success())
            .ok_or_else(|| InitramfsError::NotBusybox {
                path: path.to_owned(),
            })?;
        Ok(Self {
            path: path.to_owned(),
            applets,
        })
    }

    /// Any file, for tests.
    #[cfg(test)]
    pub(crate) fn sample(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            applets: Vec::new(),
        }
    }
}

/// An archive with `/init`, the usual folders and files, busybox and the modules.
pub fn base(init: &Path, busybox: &Busybox, modules: &[Module]) -> Result<Archive, InitramfsError> {
    let mut archive = Archive::new();
    for (path, permissions) in FOLDERS {
        archive.add_directory(path, permissions);
    }
    for (path, text) in FILES {
        archive.add_bytes(path, 0o644, text);
    }
    // The kernel opens this before /init can mount anything.
    archive.add_character_device("/dev/console", 0o600, (5, 1));
    archive.add_bytes("/init", 0o755, read(init)?);
    archive.add_bytes("/bin/busybox", 0o755, read(&busybox.path)?);
    for applet in &busybox.applets {
        archive.add_link(applet, "/bin/busybox");
    }
    add_modules(&mut archive, modules)?;
    Ok(archive)
}

const FOLDERS: [(&str, u32); 10] = [
    ("/dev", 0o755),
    ("/etc", 0o755),
    ("/mnt", 0o755),
    ("/proc", 0o755),
    ("/root", 0o700),
    ("/run", 0o755),
    ("/sys", 0o755),
    ("/tmp", 0o1777),
    ("/var/lib", 0o755),
    ("/var/log", 0o755),
];

const FILES: [(&str, &str); 5] = [
    ("/etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    ("/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    (
        "/etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files dns\n",
    ),
    (
        "/etc/passwd",
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    ),
    ("/etc/resolv.conf", ""),
];

/// The output of `busybox --list-full` as absolute paths, so that links like `/usr/bin/env` exist as
/// well as `/bin/sh`.
fn parse_applets(list: &str) -> Option<Vec<String>> {
    let applets: Vec<String> = list
        .lines()
        .filter(|line| !line.ends_with("/busybox") && *line != "linuxrc")
        .map(|line| format!("/{line}"))
        .collect();
    applets
        .iter()
        .any(|applet| applet == "/bin/sh")
        .then_some(applets)
}

fn add_modules(archive: &mut Archive, modules: &[Module]) -> Result<(), InitramfsError> {
    let mut order = String::new();
    for module in modules {
        let file = format!("{}.ko", module.name);
        archive.add_bytes(&format!("{MODULE_FOLDER}/{file}"), 0o644, module.read()?);
        order.push_str(&file);
        order.push('\n');
    }
    archive.add_bytes(MODULE_ORDER, 0o644, order);
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, InitramfsError> {
    fs::read(path).map_err(|source| InitramfsError::Read {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_of_busybox_becomes_a_link_at_its_usual_place() {
        let applets = parse_applets("bin/busybox\nbin/sh\nlinuxrc\nusr/bin/env\n").unwrap();
        assert_eq!(applets, ["/bin/sh", "/usr/bin/env"]);
    }

    #[test]
    fn a_program_that_is_not_a_busybox_is_refused() {
        assert_eq!(parse_applets("hello\n"), None);
    }

    #[test]
    fn the_modules_keep_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "content").unwrap();
        let modules = ["z", "a"].map(|name| Module {
            name: name.to_owned(),
            path: file.clone(),
        });
        let busybox = Busybox {
            path: file.clone(),
            applets: Vec::new(),
        };

        let archive = base(&file, &busybox, &modules).unwrap();

        let mut bytes = Vec::new();
        archive.write_to(&mut bytes).unwrap();
        assert!(String::from_utf8_lossy(&bytes).contains("z.ko\na.ko\n"));
    }
}
