//! Mounts Debian's root and the volumes, before any program of the plan runs.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use kvm_host::plan::{DEBIAN_SERIAL, Device, Filesystem, Storage, Volume};
use rustix::mount::MountFlags;

/// Where Debian's root is mounted.
const DEBIAN: &str = "/debian";
/// Its parts: the image, and what is written above it.
const LOWER: &str = "/debian-image";
const ABOVE: &str = "/debian-changes";
/// Where the given files are until everything is mounted.
const FILES: &str = "/files";
const NULL_BLOCK: &str = "/sys/kernel/config/nullb";

/// An empty disk has nothing in its beginning, where file systems have their superblocks.
const BEGINNING_BYTES: usize = 64 << 10;

/// Mounts everything, puts the given files where programs see them and, if asked to, makes Debian's
/// root the root of this process and all that it starts.
pub(crate) fn set_up(storage: &Storage) -> anyhow::Result<()> {
    for path in &storage.files {
        set_aside(path).with_context(|| format!("cannot set {path} aside"))?;
    }
    mount_debian()?;
    let root = if storage.programs_in_debian {
        DEBIAN
    } else {
        ""
    };
    for (number, volume) in storage.volumes.iter().enumerate() {
        let device = device(number, &volume.device)?;
        mount_volume(&device, volume, root)
            .with_context(|| format!("cannot mount {} on {}", device.display(), volume.path))?;
    }
    for path in &storage.files {
        put_back(path, root).with_context(|| format!("cannot put {path} in its place"))?;
    }
    if storage.programs_in_debian {
        enter_debian().context("cannot make Debian's root the root")?;
    }
    Ok(())
}

fn set_aside(path: &str) -> io::Result<()> {
    let aside = below(FILES, path);
    create_parent(&aside)?;
    fs::rename(path, aside)
}

fn put_back(path: &str, root: &str) -> io::Result<()> {
    let aside = below(FILES, path);
    let place = below(root, path);
    create_parent(&place)?;
    match fs::rename(&aside, &place) {
        // Onto another file system. A program that runs can't be written to, so it is replaced.
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let new = PathBuf::from(format!("{}.new", place.display()));
            fs::copy(&aside, &new)?;
            fs::set_permissions(&new, fs::metadata(&aside)?.permissions())?;
            fs::rename(&new, &place)?;
            fs::remove_file(&aside)
        }
        result => result,
    }
}

fn create_parent(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(path))
}

/// An absolute path, below another root.
fn below(root: &str, path: &str) -> PathBuf {
    PathBuf::from(format!("{root}{path}"))
}

/// Debian's image is only read. What is written lies above it, in memory.
fn mount_debian() -> anyhow::Result<()> {
    let device = find_disk(DEBIAN_SERIAL)?;
    mount(&device, LOWER, "ext4", MountFlags::RDONLY, "")?;
    mount(Path::new("tmpfs"), ABOVE, "tmpfs", MountFlags::empty(), "")?;
    let (upper, work) = (format!("{ABOVE}/upper"), format!("{ABOVE}/work"));
    for folder in [&upper, &work] {
        fs::create_dir(folder).with_context(|| format!("cannot create {folder}"))?;
    }
    let options = format!("lowerdir={LOWER},upperdir={upper},workdir={work}");
    mount(
        Path::new("overlay"),
        DEBIAN,
        "overlay",
        MountFlags::empty(),
        &options,
    )?;
    // Programs expect to write there, whoever they run as.
    fs::set_permissions(below(DEBIAN, "/tmp"), fs::Permissions::from_mode(0o1777))
        .context("cannot open Debian's /tmp to all")?;
    for shared in ["/proc", "/sys", "/dev"] {
        rustix::mount::mount_bind_recursive(shared, below(DEBIAN, shared))
            .with_context(|| format!("cannot show {shared} in {DEBIAN}"))?;
    }
    Ok(())
}

fn mount(
    source: &Path,
    target: &str,
    kind: &str,
    flags: MountFlags,
    options: &str,
) -> anyhow::Result<()> {
    fs::create_dir_all(target).with_context(|| format!("cannot create {target}"))?;
    let options = std::ffi::CString::new(options)?;
    rustix::mount::mount(source, target, kind, flags, options.as_c_str())
        .with_context(|| format!("cannot mount {} on {target}", source.display()))
}

/// The device file of a volume; a disk of memory is made.
fn device(number: usize, device: &Device) -> anyhow::Result<PathBuf> {
    match device {
        Device::Disk { serial } => find_disk(serial),
        Device::Memory {
            size_mib,
            completion_us,
        } => make_memory_disk(number, *size_mib, *completion_us),
    }
}

fn find_disk(serial: &str) -> anyhow::Result<PathBuf> {
    for entry in fs::read_dir("/sys/block").context("cannot list the disks")? {
        let entry = entry.context("cannot list the disks")?;
        let found = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
        if found.trim() == serial {
            return Ok(Path::new("/dev").join(entry.file_name()));
        }
    }
    bail!("there is no disk with the serial number {serial}")
}

/// Documentation/block/null_blk.rst: a disk that keeps its content (`memory_backed`) and answers each
/// request by a timer (`irqmode` 2).
fn make_memory_disk(number: usize, size_mib: u32, completion_us: u32) -> anyhow::Result<PathBuf> {
    let configuration = Path::new("/sys/kernel/config");
    if !Path::new(NULL_BLOCK).exists() {
        rustix::mount::mount(
            "configfs",
            configuration,
            "configfs",
            MountFlags::empty(),
            c"",
        )
        .context("cannot mount configfs")?;
    }
    // The device gets the name of this folder. `nullb0` exists from the start, with another size.
    let name = format!("memory-{number}");
    let folder = Path::new(NULL_BLOCK).join(&name);
    fs::create_dir(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let completion_ns = u64::from(completion_us) * 1_000;
    for (attribute, value) in [
        ("size", u64::from(size_mib)),
        ("memory_backed", 1),
        ("irqmode", 2),
        ("completion_nsec", completion_ns),
        ("power", 1),
    ] {
        let path = folder.join(attribute);
        fs::write(&path, value.to_string())
            .with_context(|| format!("cannot write {value} to {}", path.display()))?;
    }
    Ok(Path::new("/dev").join(name))
}

fn mount_volume(device: &Path, volume: &Volume, root: &str) -> anyhow::Result<()> {
    if is_empty(device).context("cannot read it")? {
        make_filesystem(device, volume.filesystem)?;
    }
    let target = below(root, &volume.path);
    fs::create_dir_all(&target).context("cannot create the mount point")?;
    let kind = volume.filesystem.name();
    rustix::mount::mount(device, &target, kind, MountFlags::empty(), c"").with_context(|| {
        format!("it is neither empty nor a file system of kind {kind} that can be used (the console says more)")
    })
}

fn is_empty(device: &Path) -> io::Result<bool> {
    let mut beginning = vec![0; BEGINNING_BYTES];
    File::open(device)?.read_exact_at(&mut beginning, 0)?;
    Ok(beginning.iter().all(|byte| *byte == 0))
}

fn make_filesystem(device: &Path, kind: Filesystem) -> anyhow::Result<()> {
    let program = format!("/sbin/mkfs.{}", kind.name());
    let mut child = Command::new("/bin/busybox")
        .args(["chroot", DEBIAN, &program, "-q"])
        .arg(device)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot run busybox")?;
    let mut message = String::new();
    if let Some(stderr) = &mut child.stderr {
        stderr
            .read_to_string(&mut message)
            .with_context(|| format!("cannot read what {program} says"))?;
    }
    let status = child
        .wait()
        .with_context(|| format!("cannot wait for {program}"))?;
    if !status.success() {
        bail!("{program} ended with {status}: {}", message.trim());
    }
    Ok(())
}

/// Moves Debian's root over the initramfs, so that programs inside may change their root in turn and
/// make user namespaces, which Linux forbids after a mere chroot.
fn enter_debian() -> io::Result<()> {
    std::env::set_current_dir(DEBIAN)?;
    rustix::mount::mount_move(DEBIAN, "/")?;
    rustix::process::chroot(".")?;
    std::env::set_current_dir("/")
}
