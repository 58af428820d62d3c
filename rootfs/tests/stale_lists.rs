//! A host whose package lists are older than the mirror: the kernel that they name is gone, and the
//! newer one is a package of another name. Shell scripts stand in for apt's programs.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests may do what tests may do"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

const APT_CACHE: &str = r#"#!/bin/sh
case "$*" in *Dir::State::Lists*) abi=2 ;; *) abi=1 ;; esac
case "$*" in
*linux-image-cloud-amd64) printf 'Package: linux-image-cloud-amd64\nVersion: %s\nDepends: linux-image-6.1.0-%s\n' $abi $abi ;;
*linux-image-6.1.0-$abi) printf 'Package: linux-image-6.1.0-%s\nVersion: %s\n' $abi $abi ;;
*) echo "E: No packages found" >&2; exit 100 ;;
esac
"#;

const APT_GET: &str = r#"#!/bin/sh
case "$*" in
*update) ;;
*linux-image-6.1.0-2=2) echo deb >linux-image.deb ;;
*) echo "E: Failed to fetch: 404 Not Found" >&2; exit 100 ;;
esac
"#;

const DPKG_DEB: &str = r#"#!/bin/sh
mkdir -p "$3/boot" "$3/lib/modules/6.1.0-2"
echo none >"$3/boot/vmlinuz-6.1.0-2"
"#;

fn program(folder: &Path, name: &str, script: &str) {
    let path = folder.join(name);
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_kernel_that_the_mirror_has_replaced_is_fetched_under_its_new_name() {
    let folder = tempfile::tempdir().unwrap();
    let programs = folder.path().join("bin");
    fs::create_dir(&programs).unwrap();
    program(&programs, "apt-cache", APT_CACHE);
    program(&programs, "apt-get", APT_GET);
    program(&programs, "dpkg-deb", DPKG_DEB);
    let cache = folder.path().join("cache");

    let output = Command::new(env!("CARGO_BIN_EXE_mctl-rootfs"))
        .args(["build", "--init", "/bin/true", "--busybox", "/bin/true"])
        .arg("--cache")
        .arg(&cache)
        .arg("--output")
        .arg(folder.path().join("images"))
        .env("PATH", format!("{}:/usr/bin:/bin", programs.display()))
        .output()
        .unwrap();

    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    let unpacked = cache.join("packages/linux-image-6.1.0-2_2/lib/modules/6.1.0-2");
    assert!(unpacked.is_dir(), "{stderr}");
    let note = fs::read_to_string(cache.join("packages/linux-image-cloud-amd64.json")).unwrap();
    assert!(note.contains("linux-image-6.1.0-2_2"), "{note}");
}
