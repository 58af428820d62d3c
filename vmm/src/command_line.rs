//! The command line of `mctl-vmm`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::devices::virtio::vsock::PortPolicy;
use crate::machine::configuration::{Disk, MAX_VCPUS};
use crate::machine::restore::Verify;
use crate::vcpu::template::CpuTemplate;

/// Give one machine its virtual hardware.
#[derive(Debug, Parser)]
#[command(name = "mctl-vmm", version)]
pub struct CommandLine {
    /// Boot, restore, or tell.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a machine from a kernel
    Boot(BootArgs),
    /// Restore a machine from its image and continue it
    Restore(RestoreArgs),
    /// Print the versions of its protocol and of its images as JSON, and exit
    Protocols,
}

/// Flags of `boot`.
#[derive(Debug, Args)]
pub struct BootArgs {
    /// Uncompressed ELF kernel
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// Initial file system
    #[arg(long, value_name = "FILE")]
    pub initramfs: Option<PathBuf>,
    /// Words to append to the kernel command line
    #[arg(
        long,
        value_name = "WORDS",
        default_value = "",
        allow_hyphen_values = true
    )]
    pub cmdline: String,
    /// Number of processors
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=i64::from(MAX_VCPUS)))]
    pub vcpus: u8,
    /// Memory in MiB
    #[arg(long, value_name = "N")]
    pub memory_mib: u32,
    /// Processor that the guest sees; with a level, its image can be resumed on every host of that level
    #[arg(long, value_enum, value_name = "TEMPLATE", default_value = "host")]
    pub cpu_template: CpuTemplateArg,
    /// Flags that `restore` has too.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Flags of `restore`.
#[derive(Debug, Args)]
pub struct RestoreArgs {
    /// Image directory
    #[arg(long, value_name = "DIR")]
    pub image: PathBuf,
    /// Generation of the machine that was suspended; an image of another one is refused
    #[arg(long, value_name = "N")]
    pub expect_generation: Option<u64>,
    /// When to compare the checksums of guest memory
    #[arg(long, value_enum, value_name = "WHEN", default_value = "background")]
    pub verify: VerifyArg,
    /// Flags that `boot` has too.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Flags of both.
#[derive(Debug, Args)]
pub struct CommonArgs {
    /// Identity of the machine
    #[arg(long, value_name = "ID")]
    pub machine_id: String,
    /// Generation of the machine in this process
    #[arg(long, value_name = "N")]
    pub generation: u64,
    /// Path of the control socket
    #[arg(long, value_name = "PATH", conflicts_with = "control_fd")]
    pub control: Option<PathBuf>,
    /// Inherited listening control socket; only descriptor 0
    #[arg(long, value_name = "FD", value_parser = clap::value_parser!(u8).range(0..=0))]
    pub control_fd: Option<u8>,
    /// Where to write the exit report
    #[arg(long, value_name = "FILE")]
    pub exit_file: Option<PathBuf>,
    /// Where to append console output, instead of standard output
    #[arg(long, value_name = "FILE")]
    pub console: Option<PathBuf>,
    /// Host socket of the vsock device
    #[arg(long, value_name = "PATH")]
    pub vsock_socket: Option<PathBuf>,
    /// Guest's vsock address, at least 3
    #[arg(long, value_name = "CID", requires = "vsock_socket")]
    pub vsock_cid: Option<u32>,
    /// How local vsock ports are chosen
    #[arg(long, value_enum, value_name = "POLICY", default_value = "random")]
    pub vsock_port_policy: PortPolicyArg,
    /// Free the pairs of broken connections in the guest before a transport reset
    #[arg(long, value_enum, value_name = "ON|OFF", default_value = "on")]
    pub vsock_eviction: Switch,
    /// How long the guest may take to answer a connection request
    #[arg(long, value_name = "MS", default_value = "2000")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub vsock_request_timeout_ms: u32,
    /// Disk: a raw file or block device, read-only with `:ro` appended
    #[arg(long = "disk", value_name = "PATH[:ro]", value_parser = parse_disk)]
    pub disks: Vec<Disk>,
    /// Event to send that a supervisor of the first release does not know
    #[arg(long, value_enum, value_name = "EVENT")]
    pub announce: Vec<AnnounceArg>,
    /// Run without system call filters
    #[arg(long)]
    pub no_sandbox: bool,
}

/// `--cpu-template`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum CpuTemplateArg {
    /// All that KVM offers on this host
    Host,
    /// The level x86-64-v2 of the psABI
    #[value(name = "x86-64-v2")]
    X86_64V2,
    /// The level x86-64-v3 of the psABI, with AES, CLMUL and RDRAND
    #[value(name = "x86-64-v3")]
    X86_64V3,
}

impl From<CpuTemplateArg> for CpuTemplate {
    fn from(argument: CpuTemplateArg) -> Self {
        match argument {
            CpuTemplateArg::Host => Self::Host,
            CpuTemplateArg::X86_64V2 => Self::X86_64V2,
            CpuTemplateArg::X86_64V3 => Self::X86_64V3,
        }
    }
}

/// `--verify`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum VerifyArg {
    /// Before the guest runs
    Full,
    /// While the guest runs
    Background,
    /// Never
    Off,
}

impl From<VerifyArg> for Verify {
    fn from(argument: VerifyArg) -> Self {
        match argument {
            VerifyArg::Full => Self::Full,
            VerifyArg::Background => Self::Background,
            VerifyArg::Off => Self::Off,
        }
    }
}

/// `--vsock-port-policy`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum PortPolicyArg {
    /// From a new random port at each start
    Random,
    /// From the saved last port
    Continue,
    /// From 2^30 at each start
    Fixed,
}

impl From<PortPolicyArg> for PortPolicy {
    fn from(argument: PortPolicyArg) -> Self {
        match argument {
            PortPolicyArg::Random => Self::Random,
            PortPolicyArg::Continue => Self::Continue,
            PortPolicyArg::Fixed => Self::Fixed,
        }
    }
}

/// `--announce`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum AnnounceArg {
    /// It is durable that the image was used
    Consumption,
}

impl AnnounceArg {
    /// The names of all of them.
    pub fn names() -> Vec<String> {
        let names = Self::value_variants().iter();
        names
            .filter_map(|variant| Some(variant.to_possible_value()?.get_name().to_owned()))
            .collect()
    }
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// Do it
    On,
    /// Don't
    Off,
}

fn parse_disk(text: &str) -> Result<Disk, &'static str> {
    let (path, read_only) = match text.strip_suffix(":ro") {
        Some(path) => (path, true),
        None => (text, false),
    };
    if path.is_empty() {
        return Err("a disk needs a path");
    }
    Ok(Disk {
        path: path.into(),
        read_only,
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn the_names_of_announcements_are_those_of_the_protocol() {
        assert_eq!(AnnounceArg::names(), [vmm_control::ANNOUNCE_CONSUMPTION]);
    }

    #[test]
    fn a_disk_may_be_read_only() {
        let disk = parse_disk("/a:b:ro").unwrap();
        assert_eq!(
            disk,
            Disk {
                path: "/a:b".into(),
                read_only: true
            }
        );
        assert!(parse_disk(":ro").is_err());
    }
}
