//! Makes a bare kernel a usable host: mounts, modules, limits, network.
//!
//! The program that runs then is in `program`.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use kvm_host::plan::INSIDE_ADDRESS;
use rootfs::initramfs::{MODULE_FOLDER, MODULE_ORDER};
use rustix::mount::MountFlags;
use rustix::process::{Resource, Rlimit};

/// Source, target, type, options.
///
/// With `favordynmods`, KVM_CREATE_VM moves its thread into the caller's control group without waiting
/// for an RCU grace period, which takes one or two timer ticks (Linux 6.0 and later,
/// `kernel/cgroup/cgroup.c`, `cgroup_favor_dynmods`). Without a control group file system it waits,
/// too. `mctl doctor` recommends the same for real hosts.
const MOUNTS: [(&str, &str, &str, &str); 7] = [
    ("proc", "/proc", "proc", ""),
    ("sysfs", "/sys", "sysfs", ""),
    ("cgroup2", "/sys/fs/cgroup", "cgroup2", "favordynmods"),
    ("devtmpfs", "/dev", "devtmpfs", ""),
    ("devpts", "/dev/pts", "devpts", "ptmxmode=666"),
    ("tmpfs", "/dev/shm", "tmpfs", "mode=1777"),
    ("tmpfs", "/run", "tmpfs", "mode=755"),
];

const OPEN_FILES: u64 = 1 << 20;

/// Does all that programs need before they can run.
pub(crate) fn bring_up() -> anyhow::Result<()> {
    mount_all()?;
    load_modules()?;
    halt_without_polling()?;
    raise_limits()?;
    bring_up_network()?;
    rustix::system::sethostname(b"kvm-host").context("cannot set the host name")
}

/// The module of its vendor loads on any processor; it makes the device only where the processor has
/// SVM or VMX.
pub(crate) fn check_kvm() -> anyhow::Result<()> {
    if !Path::new("/dev/kvm").exists() {
        bail!("KVM is loaded, yet there is no /dev/kvm: does the processor have SVM or VMX?");
    }
    Ok(())
}

fn mount_all() -> anyhow::Result<()> {
    for (source, target, kind, options) in MOUNTS {
        fs::create_dir_all(target).with_context(|| format!("cannot create {target}"))?;
        let options = std::ffi::CString::new(options)?;
        rustix::mount::mount(
            source,
            target,
            kind,
            MountFlags::empty(),
            options.as_c_str(),
        )
        .with_context(|| format!("cannot mount {target}"))?;
    }
    // By default the root, a tmpfs, may use half of the memory. Images of suspended machines lie
    // there, and little else needs memory meanwhile.
    rustix::mount::mount_remount("/", MountFlags::empty(), c"size=85%")
        .context("cannot enlarge the root file system")
}

fn load_modules() -> anyhow::Result<()> {
    let order = fs::read_to_string(MODULE_ORDER).context("cannot read the order of modules")?;
    for name in order.lines() {
        let path = Path::new(MODULE_FOLDER).join(name);
        let module = File::open(&path).with_context(|| format!("cannot open {name}"))?;
        rustix::system::finit_module(&module, c"", 0)
            .with_context(|| format!("cannot load {name}"))?;
    }
    Ok(())
}

/// A supervisor and its VMMs have many files and connections open.
fn raise_limits() -> anyhow::Result<()> {
    let files = Rlimit {
        current: Some(OPEN_FILES),
        maximum: Some(OPEN_FILES),
    };
    rustix::process::setrlimit(Resource::Nofile, files).context("cannot raise the file limit")?;
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    rustix::process::setrlimit(Resource::Memlock, unlimited)
        .context("cannot raise the limit of locked memory")
}

/// Makes KVM put a halted vCPU to sleep at once. By default it first polls for up to 200 µs whether
/// the vCPU is woken (Documentation/virt/kvm/halt-polling.rst), which pays only if another processor
/// does the waking; here there is one. And each PAUSE of that loop sends QEMU through its main loop,
/// which in virtual time costs a thousand times what it counts.
fn halt_without_polling() -> anyhow::Result<()> {
    let path = "/sys/module/kvm/parameters/halt_poll_ns";
    fs::write(path, "0").with_context(|| format!("cannot write {path}"))
}

fn bring_up_network() -> anyhow::Result<()> {
    // busybox is here anyway for its shell, and three calls of it replace a netlink client.
    ip("link set lo up")?;
    // Bochs' hosts have no other.
    if !Path::new("/sys/class/net/eth0").exists() {
        return Ok(());
    }
    ip("link set eth0 up")?;
    ip(&format!("addr add {INSIDE_ADDRESS} dev eth0"))
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    let status = Command::new("/bin/busybox")
        .arg("ip")
        .args(arguments.split(' '))
        .status()
        .context("cannot run busybox")?;
    if !status.success() {
        bail!("`ip {arguments}` ended with {status}");
    }
    Ok(())
}
