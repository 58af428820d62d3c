//! The command line of `mctl-kvm-host`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use kvm_host::clock::Clock;
use kvm_host::emulator::Emulator;
use kvm_host::pack::HostFile;
use kvm_host::plan::Filesystem;
use kvm_host::storage::{DiskFile, MemoryDisk};

const EXEC_EXAMPLES: &str = "\
Examples:
  mctl-kvm-host exec -- /bin/dmesg
  mctl-kvm-host exec --root debian --package sqlite3 --disk /tmp/disk.img:/data:1024 -- \\
      sqlite3 /data/test.db 'CREATE TABLE numbers (number)'";

/// Run a complete KVM host on any Linux, emulated by QEMU or Bochs
#[derive(Debug, Parser)]
#[command(name = "mctl-kvm-host", version)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a supervisor inside and forward its API, until Ctrl-C
    Run(RunArgs),
    /// Run one program inside and exit with its code; a static one, or one of Debian's root
    #[command(after_help = EXEC_EXAMPLES)]
    Exec(ExecArgs),
    /// Open a shell inside
    Shell(HostArgs),
    /// Show the kind of KVM that this host has, and which virtual hosts it can run
    Doctor {
        /// Fail if virtual hosts of this kind cannot be run, instead of if Linux guests cannot
        #[arg(long, value_name = "KIND", value_parser = parse_kvm)]
        kvm: Option<Emulator>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct HostArgs {
    /// Memory of the virtual host
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    pub(crate) memory_mib: u32,
    /// Processors of the virtual host; they share one of this host's, so more do not make it faster
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) cpus: u32,
    /// Emulated processor: "amd" (QEMU), "intel" or "bochs-amd" (Bochs, which is slower, and runs
    /// single commands only)
    #[arg(long, value_name = "KIND", default_value = "amd", value_parser = parse_kvm)]
    pub(crate) kvm: Emulator,
    /// Clock of the virtual host: "real", or "virtual", where an instruction takes a fixed time and
    /// waiting takes none [default: real, in Bochs virtual]
    #[arg(long, value_name = "CLOCK", value_parser = parse_clock)]
    pub(crate) clock: Option<Clock>,
    /// File to copy inside, as an executable; may be given several times
    #[arg(long = "file", value_name = "PATH:INSIDE", value_parser = parse_file)]
    pub(crate) files: Vec<HostFile>,
    /// Folder for logs
    #[arg(long, value_name = "DIR", default_value = "target/kvm-host")]
    pub(crate) log_folder: PathBuf,
    /// Folder for downloaded packages [default: ~/.cache/mctl]
    #[arg(long, value_name = "DIR", env = "MCTL_CACHE")]
    pub(crate) cache: Option<PathBuf>,
    /// First process inside [default: `kvm-host-init` beside this program]
    #[arg(long, value_name = "PATH")]
    pub(crate) init: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) storage: StorageArgs,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Storage")]
pub(crate) struct StorageArgs {
    /// Where programs run and what they see: Debian's root, made once for each list of packages;
    /// without it, an initramfs with busybox
    #[arg(long, value_name = "ROOT")]
    pub(crate) root: Option<RootName>,
    /// Debian package in that root; may be given several times
    #[arg(long = "package", value_name = "NAME", requires = "root")]
    pub(crate) packages: Vec<String>,
    /// Disk in a file of this host, which is made if it does not exist, and where it is mounted; may
    /// be given several times. FS is ext4 (the default) or xfs
    #[arg(long = "disk", value_name = "FILE:INSIDE:MIB[:FS]", value_parser = parse_disk)]
    pub(crate) disks: Vec<DiskFile>,
    /// Disk in the memory of the virtual host, whose requests take US microseconds of its clock; may
    /// be given several times
    #[arg(long = "memory-disk", value_name = "INSIDE:MIB:US[:FS]", value_parser = parse_memory_disk)]
    pub(crate) memory_disks: Vec<MemoryDisk>,
}

impl StorageArgs {
    /// Whether no storage is asked for.
    pub(crate) fn is_empty(&self) -> bool {
        self.root.is_none() && self.disks.is_empty() && self.memory_disks.is_empty()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RootName {
    /// Debian 12
    Debian,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) host: HostArgs,
    /// Port of 127.0.0.1 for the API [default: a free one]
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Folder with the guest image
    #[arg(long, value_name = "DIR")]
    pub(crate) image: PathBuf,
    /// Folder with mctl-supervisor and mctl-vmm [default: that of this program]
    #[arg(long, value_name = "DIR")]
    pub(crate) programs: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    pub(crate) host: HostArgs,
    /// Longest that the program may take, in seconds of this host's clock
    #[arg(long, value_name = "S", default_value_t = 600)]
    pub(crate) timeout_s: u64,
    /// Folder inside to copy out at the end
    #[arg(long, value_name = "INSIDE:DIR", value_parser = parse_export)]
    pub(crate) export: Option<(String, PathBuf)>,
    /// Program and arguments
    #[arg(required = true, trailing_var_arg = true)]
    pub(crate) argv: Vec<String>,
}

fn parse_file(text: &str) -> Result<HostFile, String> {
    let (source, inside) = split_pair(text)?;
    Ok(HostFile::program(source, inside))
}

fn parse_export(text: &str) -> Result<(String, PathBuf), String> {
    let (inside, folder) = split_pair(text)?;
    Ok((inside.to_owned(), folder.into()))
}

fn parse_kvm(text: &str) -> Result<Emulator, String> {
    Emulator::of_name(text)
        .ok_or_else(|| format!("expected {}", Emulator::ALL.map(Emulator::name).join(", ")))
}

fn parse_clock(text: &str) -> Result<Clock, String> {
    Clock::of_name(text).ok_or_else(|| "expected real or virtual".to_owned())
}

fn split_pair(text: &str) -> Result<(&str, &str), String> {
    text.split_once(':')
        .ok_or_else(|| "expected two paths with a colon between them".to_owned())
}

fn parse_disk(text: &str) -> Result<DiskFile, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (&[file, inside, mib], filesystem) = with_filesystem(&parts)? else {
        return Err("expected FILE:INSIDE:MIB or FILE:INSIDE:MIB:FS".to_owned());
    };
    Ok(DiskFile {
        file: file.into(),
        inside: mount_point(inside)?,
        size_mib: parse_size(mib, filesystem)?,
        filesystem,
    })
}

fn parse_memory_disk(text: &str) -> Result<MemoryDisk, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (&[inside, mib, us], filesystem) = with_filesystem(&parts)? else {
        return Err("expected INSIDE:MIB:US or INSIDE:MIB:US:FS".to_owned());
    };
    Ok(MemoryDisk {
        inside: mount_point(inside)?,
        size_mib: parse_size(mib, filesystem)?,
        completion_us: us
            .parse()
            .map_err(|_| format!("{us:?} is no number of microseconds"))?,
        filesystem,
    })
}

/// Three parts, and the file system that a fourth may name.
fn with_filesystem<'a, 'b>(parts: &'a [&'b str]) -> Result<(&'a [&'b str], Filesystem), String> {
    match parts {
        [first @ .., "ext4"] if parts.len() == 4 => Ok((first, Filesystem::Ext4)),
        [first @ .., "xfs"] if parts.len() == 4 => Ok((first, Filesystem::Xfs)),
        [.., other] if parts.len() == 4 => {
            Err(format!("{other:?} is no file system: ext4 and xfs are"))
        }
        _ => Ok((parts, Filesystem::Ext4)),
    }
}

fn mount_point(path: &str) -> Result<String, String> {
    if path.len() < 2 || !path.starts_with('/') || path.split('/').any(|part| part == "..") {
        return Err(format!("{path:?} is no absolute path to mount a disk on"));
    }
    Ok(path.trim_end_matches('/').to_owned())
}

/// Below these sizes, mkfs refuses.
fn parse_size(text: &str, filesystem: Filesystem) -> Result<u32, String> {
    let least = match filesystem {
        Filesystem::Ext4 => 8,
        Filesystem::Xfs => 300,
    };
    let size: u32 = text
        .parse()
        .map_err(|_| format!("{text:?} is no number of MiB"))?;
    if size < least {
        return Err(format!("{} needs at least {least} MiB", filesystem.name()));
    }
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn disks_are_described_by_their_parts() {
        let disk = DiskFile {
            file: "disk.img".into(),
            inside: "/data".to_owned(),
            size_mib: 512,
            filesystem: Filesystem::Ext4,
        };
        assert_eq!(parse_disk("disk.img:/data:512").unwrap(), disk);
        assert_eq!(parse_disk("disk.img:/data/:512:ext4").unwrap(), disk);
        let memory = parse_memory_disk("/data:512:80:xfs").unwrap();
        assert_eq!(memory.inside, "/data");
        assert_eq!((memory.size_mib, memory.completion_us), (512, 80));
        assert_eq!(memory.filesystem, Filesystem::Xfs);
    }

    #[test]
    fn descriptions_that_make_no_sense_say_why() {
        for (text, reason) in [
            ("disk.img", "expected"),
            ("disk.img:/data", "expected"),
            ("disk.img:data:512", "absolute"),
            ("disk.img:/:512", "absolute"),
            ("disk.img:/a/../b:512", "absolute"),
            ("disk.img:/data:much", "MiB"),
            ("disk.img:/data:4", "at least 8"),
            ("disk.img:/data:100:xfs", "at least 300"),
            ("disk.img:/data:512:btrfs", "btrfs"),
            ("disk.img:/data:512:ext4:more", "expected"),
        ] {
            let error = parse_disk(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let error = parse_memory_disk("/data:512:soon").unwrap_err();
        assert!(error.contains("microseconds"), "{error}");
    }
}
