//! Checks of the host: the supervisor, and, through it or directly, KVM, host, image and VMM.

use std::path::{Path, PathBuf};

use client::{Endpoint, ErrorKind};
use kvm_host::probe::{KvmKind, detect};
use machine_api::HostInfo;

use super::Finding;
use crate::session::Session;
use crate::settings::default_state_dir;
use crate::units::bytes;

/// Makes all checks. If the supervisor answers, its view is used: it may be on another host, or
/// have access that this user does not have.
pub(super) async fn check(session: &Session) -> Vec<Finding> {
    match session.client.host().await {
        Ok(info) => {
            let mut findings = from_supervisor(session, &info);
            findings.extend(unlisted(session).await);
            findings.extend(set_aside(session).await);
            if let Endpoint::Unix(_) = session.client.endpoint() {
                findings.extend(vm_creation());
            }
            findings
        }
        Err(error) => {
            let mut findings = vec![unreachable_supervisor(session, &error)];
            if let Endpoint::Unix(socket) = session.client.endpoint() {
                let state_dir = socket
                    .parent()
                    .map_or_else(default_state_dir, Path::to_owned);
                findings.push(probed_kvm());
                findings.push(default_image(&state_dir));
            }
            findings
        }
    }
}

fn unreachable_supervisor(session: &Session, error: &client::Error) -> Finding {
    let endpoint = session.client.endpoint();
    match error.kind() {
        ErrorKind::Denied => Finding::problem(
            "supervisor",
            format!("{endpoint} needs a token"),
            "set MCTL_TOKEN; `mctl token create` on its host creates one",
        ),
        _ => Finding::problem(
            "supervisor",
            format!("{error}"),
            error
                .hint()
                .unwrap_or_else(|| "start it with `mctl-supervisor`".to_owned()),
        ),
    }
}

fn from_supervisor(session: &Session, info: &HostInfo) -> Vec<Finding> {
    let ours = env!("CARGO_PKG_VERSION");
    let endpoint = session.client.endpoint();
    let found = format!("version {} at {endpoint}", info.version);
    let supervisor = if info.version == ours {
        Finding::ok("supervisor", found)
    } else {
        Finding::warning(
            "supervisor",
            found,
            format!("this is mctl {ours}: use the same version of both"),
        )
    };
    let image = if info.images.iter().any(|name| name == "default") {
        Finding::ok(
            "image",
            format!("{} in {}", images_with_kernels(info), info.state_dir),
        )
    } else {
        no_image(&info.state_dir)
    };
    vec![
        supervisor,
        kvm(info),
        Finding::ok(
            "host",
            format!(
                "{}, {} CPUs, {} MiB, Linux {}",
                info.cpu, info.cpus, info.memory_mib, info.kernel
            ),
        ),
        image,
        vmm(info),
    ]
}

/// Machines that the database does not know; nothing if the supervisor is older than the question.
async fn unlisted(session: &Session) -> Option<Finding> {
    const CHECK: &str = "database";
    let unlisted = session.client.unlisted().await.ok()?;
    if unlisted.is_empty() {
        return Some(Finding::ok(CHECK, "knows all machines"));
    }
    let running = unlisted.iter().filter(|one| one.vmm_pid.is_some()).count();
    let folders: Vec<&str> = unlisted.iter().map(|one| one.folder.as_str()).collect();
    Some(Finding::warning(
        CHECK,
        format!(
            "does not know {} machines, {running} of them running: {}",
            unlisted.len(),
            folders.join(", ")
        ),
        "`mctl adopt` shows them and takes them back",
    ))
}

/// Images that were set aside; nothing if there are none.
async fn set_aside(session: &Session) -> Option<Finding> {
    let images = session.client.images_set_aside().await.ok()?;
    let total: u64 = images.iter().map(|image| image.bytes).sum();
    (!images.is_empty()).then(|| {
        Finding::warning(
            "set aside",
            format!(
                "{} damaged or passed-over images of machines, {}",
                images.len(),
                bytes(total)
            ),
            "`mctl set-aside list` shows them, `mctl set-aside remove` frees their space",
        )
    })
}

/// Images, each with its kernel.
fn images_with_kernels(info: &HostInfo) -> String {
    let described = info
        .images
        .iter()
        .map(|name| match info.image_kernels.get(name) {
            Some(release) => format!("{name} (Linux {release})"),
            None => name.clone(),
        });
    described.collect::<Vec<_>>().join(", ")
}

fn vmm(info: &HostInfo) -> Finding {
    if info.vmm_there {
        return Finding::ok("vmm", info.vmm.as_str());
    }
    Finding::problem(
        "vmm",
        format!("{} does not exist", info.vmm),
        "build it with `./just build`, or give its path to `mctl-supervisor --vmm`",
    )
}

fn kvm(info: &HostInfo) -> Finding {
    // The detail comes from the probe, which cannot distinguish an emulated computer from hardware.
    let found = if info.kvm_detail.starts_with(&info.kvm) {
        info.kvm_detail.clone()
    } else {
        format!("{}: {}", info.kvm, info.kvm_detail)
    };
    match info.kvm.as_str() {
        "hardware" => Finding::ok("kvm", found),
        "virtual" => Finding::warning(
            "kvm",
            found,
            "good for tests, but slow: latencies are not those of hardware",
        ),
        "software" => Finding::problem("kvm", found, USE_VIRTUAL_HOST),
        _ => Finding::problem("kvm", found, KVM_MISSING),
    }
}

const USE_VIRTUAL_HOST: &str = "this KVM interprets guest kernels and cannot boot Linux: start the \
                                virtual KVM host with `./just kvm-host` and point MCTL_HOST at it";

const KVM_MISSING: &str = "enable virtualisation in the firmware and load kvm_intel or kvm_amd, \
                           or use the virtual KVM host: `./just kvm-host`";

/// Whether KVM_CREATE_VM waits for an RCU grace period, which adds some milliseconds to each start
/// and each resume; nothing if this cannot be told.
fn vm_creation() -> Option<Finding> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let nx_huge_pages = std::fs::read_to_string("/sys/module/kvm/parameters/nx_huge_pages");
    vm_creation_with(&mounts, nx_huge_pages.unwrap_or_default().trim())
}

/// KVM moves its thread `kvm-nx-lpage-recovery` into the VMM's control group, and since Linux 6.0 such
/// a move is slow unless the file system is mounted with `favordynmods` (`kernel/cgroup/cgroup.c`).
fn vm_creation_with(mounts: &str, nx_huge_pages: &str) -> Option<Finding> {
    let (target, options) = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (target, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
        (kind == "cgroup2").then_some((target, options))
    })?;
    let check = "start of a VM";
    if nx_huge_pages == "never" {
        return Some(Finding::ok(check, "fast (kvm.nx_huge_pages=never)"));
    }
    if options.split(',').any(|option| option == "favordynmods") {
        return Some(Finding::ok(check, "fast (favordynmods)"));
    }
    Some(Finding::warning(
        check,
        format!("{target} is mounted without favordynmods: some ms more for each start and resume"),
        format!("mount -o remount,favordynmods {target}"),
    ))
}

/// Without a supervisor: what a guest loop of our own measures.
fn probed_kvm() -> Finding {
    let kind = detect();
    let found = kind.to_string();
    match kind {
        KvmKind::Hardware { .. } | KvmKind::Virtual { .. } => Finding::ok("kvm", found),
        KvmKind::Software { .. } => Finding::problem("kvm", found, USE_VIRTUAL_HOST),
        KvmKind::Missing { .. } => Finding::problem("kvm", found, KVM_MISSING),
    }
}

/// Without a supervisor: the default image in the store of this user's supervisor.
fn default_image(state_dir: &Path) -> Finding {
    let folder = state_dir.join("images/default");
    let missing: Vec<PathBuf> = ["image.json", "kernel", "initramfs"]
        .iter()
        .map(|name| folder.join(name))
        .filter(|path| !path.exists())
        .collect();
    match missing.first() {
        None => Finding::ok("image", image_with_kernel(&folder)),
        Some(_) => no_image(&state_dir.display().to_string()),
    }
}

/// The default image with its kernel and folder.
fn image_with_kernel(folder: &Path) -> String {
    let release = std::fs::read(folder.join("image.json"))
        .ok()
        .and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok())
        .and_then(|image| Some(image["kernel_version"].as_str()?.to_owned()));
    match release {
        Some(release) => format!("default (Linux {release}) in {}", folder.display()),
        None => folder.display().to_string(),
    }
}

fn no_image(state_dir: &str) -> Finding {
    Finding::problem(
        "image",
        format!("no image `default` in {state_dir}/images"),
        "create it with `./just images`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::Grade;

    #[test]
    fn a_slow_start_of_vms_is_told_with_the_way_to_a_fast_one() {
        let mounts = |options: &str| {
            format!("proc /proc proc rw 0 0\ncgroup2 /sys/fs/cgroup cgroup2 {options} 0 0\n")
        };
        let slow = vm_creation_with(&mounts("rw,nsdelegate"), "Y").unwrap();
        assert_eq!(slow.grade, Grade::Warning);
        let advice = slow.advice.unwrap();
        assert_eq!(advice, "mount -o remount,favordynmods /sys/fs/cgroup");
        for (options, nx_huge_pages) in [("rw,favordynmods", "Y"), ("rw", "never")] {
            let fast = vm_creation_with(&mounts(options), nx_huge_pages).unwrap();
            assert_eq!(fast.grade, Grade::Ok, "{options} {nx_huge_pages}");
        }
        assert!(vm_creation_with("cgroup /sys/fs/cgroup cgroup rw 0 0", "Y").is_none());
    }
}
