//! The flags that describe the configuration of a machine. They change a given configuration; fields
//! without a flag stay as they are.

use std::fs;
use std::path::PathBuf;

use clap::ValueEnum;
use machine_api::{
    CpuTemplate, File, Guest, Init, MachineConfig, Mount, Port, PortPolicy, Restart, RestartPolicy,
    Service,
};

use crate::error::CommandError;
use crate::parse;

/// Changes to the configuration of a machine.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Machine options")]
pub(crate) struct MachineFlags {
    /// Number of vCPUs
    #[arg(long, alias = "vm-cpus", value_name = "N")]
    cpus: Option<u32>,
    /// Memory in MiB, or with a unit: 512, 512mb, 2gb
    #[arg(long, alias = "vm-memory", value_name = "SIZE", value_parser = parse_memory_mib)]
    memory: Option<u32>,
    /// Environment variable of the main process; can be repeated
    #[arg(long, short, value_name = "NAME=VALUE", value_parser = parse::key_value)]
    env: Vec<(String, String)>,
    /// Metadata; can be repeated
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = parse::key_value)]
    metadata: Vec<(String, String)>,
    /// When the machine starts again: no, always, on-failure, on-failure:MAX
    #[arg(long, value_name = "POLICY", value_parser = parse_restart)]
    restart: Option<Restart>,
    /// Publish a port of the guest on this host; can be repeated
    #[arg(long = "port", short, value_name = "[ADDRESS:]HOST:GUEST", value_parser = parse_port)]
    ports: Vec<PublishedPort>,
    /// What happens to the machine when its published ports are idle
    #[arg(long, value_name = "ACTION")]
    autostop: Option<AutoStop>,
    /// How long without a connection counts as idle, such as 5m
    #[arg(long, value_name = "TIME", value_parser = checked_duration)]
    idle_timeout: Option<String>,
    /// Start the machine when somebody connects to a published port
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    autostart: Option<bool>,
    /// Attach a disk image of this host and mount it; can be repeated
    #[arg(long = "disk", short = 'v', alias = "volume", value_name = "FILE:MOUNTPOINT[:ro]",
          value_parser = parse_disk)]
    disks: Vec<Mount>,
    /// Write a local file into the guest before the main process starts; can be repeated
    #[arg(long, value_name = "GUEST=FILE", value_parser = parse::key_value)]
    file_local: Vec<(String, String)>,
    /// Write a file with this text into the guest before the main process starts; can be repeated
    #[arg(long, value_name = "GUEST=TEXT", value_parser = parse::key_value)]
    file_literal: Vec<(String, String)>,
    /// Program of the main process, instead of the image's
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Argument to append to the kernel's command line; can be repeated
    #[arg(long = "kernel-arg", value_name = "ARG")]
    kernel_args: Vec<String>,
    /// Processor that the guest sees; with a level, a suspended machine can be resumed on every host of
    /// that level and vendor, under older and newer kernels
    #[arg(long, value_name = "TEMPLATE")]
    cpu_template: Option<TemplateName>,
    /// How the VMM chooses its first vsock port after each start and resume
    #[arg(long, value_name = "POLICY")]
    vsock_port_policy: Option<PolicyName>,
    /// Whether a resume frees the guest's ends of saved connections
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    vsock_eviction: Option<bool>,
    /// Connect the CPU monitor before the readiness check; for experiments
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    monitor_first: Option<bool>,
    /// Whole configuration as JSON, or a file with it; the other flags change it
    #[arg(long, value_name = "FILE|JSON")]
    machine_config: Option<String>,
}

#[derive(Debug, Clone)]
struct PublishedPort {
    address: Option<String>,
    host: u16,
    guest: u16,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AutoStop {
    /// Nothing happens
    Off,
    /// The machine is stopped
    Stop,
    /// The machine is suspended
    Suspend,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum PolicyName {
    /// A random port
    Random,
    /// The port after the last one
    Continue,
    /// Always from 2^30
    Fixed,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TemplateName {
    /// All that KVM offers on the host
    Host,
    /// SSE4.2, POPCNT, CMPXCHG16B
    #[value(name = "x86-64-v2")]
    X86_64V2,
    /// AVX2, BMI, FMA, MOVBE, and AES, CLMUL and RDRAND
    #[value(name = "x86-64-v3")]
    X86_64V3,
}

impl From<TemplateName> for CpuTemplate {
    fn from(name: TemplateName) -> Self {
        match name {
            TemplateName::Host => Self::Host,
            TemplateName::X86_64V2 => Self::X86_64V2,
            TemplateName::X86_64V3 => Self::X86_64V3,
        }
    }
}

impl MachineFlags {
    /// Whether the flags publish ports.
    pub(crate) const fn publishes(&self) -> bool {
        !self.ports.is_empty()
    }

    /// Changes `config` according to the flags.
    pub(crate) fn apply(self, config: &mut MachineConfig) -> Result<(), CommandError> {
        if let Some(text) = self.machine_config {
            *config = read_config(&text)?;
        }
        if self.cpus.is_some() || self.memory.is_some() || !self.kernel_args.is_empty() {
            let guest = config.guest.get_or_insert_with(Guest::default);
            guest.cpus = self.cpus.unwrap_or(guest.cpus);
            guest.memory_mb = self.memory.unwrap_or(guest.memory_mb);
            guest.kernel_args.extend(self.kernel_args);
        }
        if let Some(template) = self.cpu_template {
            let guest = config.guest.get_or_insert_with(Guest::default);
            guest.cpu_template = template.into();
        }
        config.env.extend(self.env);
        config.metadata.extend(self.metadata);
        if self.restart.is_some() {
            config.restart = self.restart;
        }
        config.mounts.extend(self.disks);
        for (guest_path, local) in self.file_local {
            put_file(&mut config.files, guest_path, &read_local(&local)?);
        }
        for (guest_path, text) in self.file_literal {
            put_file(&mut config.files, guest_path, text.as_bytes());
        }
        if let Some(program) = self.entrypoint {
            config.init.get_or_insert_with(Init::default).entrypoint = vec![program];
        }
        if let Some(policy) = self.vsock_port_policy {
            config.vsock.get_or_insert_default().port_policy = Some(match policy {
                PolicyName::Random => PortPolicy::Random,
                PolicyName::Continue => PortPolicy::Continue,
                PolicyName::Fixed => PortPolicy::Fixed,
            });
        }
        if self.vsock_eviction.is_some() || self.monitor_first.is_some() {
            let vsock = config.vsock.get_or_insert_default();
            vsock.eviction = self.vsock_eviction.or(vsock.eviction);
            vsock.monitor_first = self.monitor_first.or(vsock.monitor_first);
        }
        publish(&mut config.services, self.ports);
        for service in &mut config.services {
            if let Some(action) = self.autostop {
                service.autostop = Some(action.wire_name().to_owned());
            }
            service.idle_timeout = self.idle_timeout.clone().or(service.idle_timeout.take());
            service.autostart = self.autostart.or(service.autostart);
        }
        Ok(())
    }
}

impl AutoStop {
    const fn wire_name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Stop => "stop",
            Self::Suspend => "suspend",
        }
    }
}

/// Adds `ports` to `services`. Ports of the same guest port belong to one service.
fn publish(services: &mut Vec<Service>, ports: Vec<PublishedPort>) {
    for PublishedPort {
        address,
        host,
        guest,
    } in ports
    {
        let port = Port {
            port: host,
            address,
            ..Port::default()
        };
        match services
            .iter_mut()
            .find(|service| service.internal_port == guest)
        {
            Some(service) => service.ports.push(port),
            None => services.push(Service {
                protocol: "tcp".to_owned(),
                internal_port: guest,
                ports: vec![port],
                ..Service::default()
            }),
        }
    }
}

/// Adds a file to `files`, in place of an earlier one with the same path.
fn put_file(files: &mut Vec<File>, guest_path: String, content: &[u8]) {
    files.retain(|file| file.guest_path != guest_path);
    files.push(File {
        guest_path,
        raw_value: base64(content),
        mode: 0,
    });
}

fn read_local(path: &str) -> Result<Vec<u8>, CommandError> {
    let path = PathBuf::from(path);
    fs::read(&path).map_err(|source| CommandError::File {
        action: "read",
        path,
        source,
    })
}

/// `bytes` in base64 (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = (byte(0) << 16) | (byte(1) << 8) | byte(2);
        for index in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * index)) as usize & 63];
            text.push(if index > group.len() {
                '='
            } else {
                char::from(digit)
            });
        }
    }
    text
}

fn read_config(text: &str) -> Result<MachineConfig, CommandError> {
    let json = if text.trim_start().starts_with('{') {
        text.to_owned()
    } else {
        let path = PathBuf::from(text);
        fs::read_to_string(&path).map_err(|source| CommandError::File {
            action: "read the machine configuration",
            path,
            source,
        })?
    };
    serde_json::from_str(&json).map_err(|error| CommandError::Argument {
        argument: "--machine-config",
        reason: format!("not a machine configuration: {error}"),
    })
}

fn parse_memory_mib(text: &str) -> Result<u32, String> {
    let lower = text.to_ascii_lowercase();
    let (digits, factor) = ["gib", "gb", "g"]
        .iter()
        .find_map(|unit| lower.strip_suffix(unit).map(|digits| (digits, 1024)))
        .or_else(|| {
            ["mib", "mb", "m"]
                .iter()
                .find_map(|unit| lower.strip_suffix(unit).map(|d| (d, 1)))
        })
        .unwrap_or((&lower, 1));
    let number: u32 = digits
        .trim()
        .parse()
        .map_err(|_| "write it as 512, 512mb or 2gb")?;
    number
        .checked_mul(factor)
        .ok_or_else(|| "that is too much memory".to_owned())
}

fn parse_restart(text: &str) -> Result<Restart, String> {
    let (name, max_retries) = match text.split_once(':') {
        Some((name, max)) => (
            name,
            Some(
                max.parse()
                    .map_err(|_| format!("{max:?} is not a number of retries"))?,
            ),
        ),
        None => (text, None),
    };
    let policy = match name {
        "no" => RestartPolicy::No,
        "always" => RestartPolicy::Always,
        // flyctl writes the short form.
        "on-failure" | "on-fail" => RestartPolicy::OnFailure,
        _ => return Err("write one of no, always, on-failure, on-failure:MAX".to_owned()),
    };
    if max_retries.is_some() && policy != RestartPolicy::OnFailure {
        return Err(format!("{name} takes no number of retries"));
    }
    Ok(Restart {
        policy,
        max_retries,
    })
}

fn parse_port(text: &str) -> Result<PublishedPort, String> {
    let wrong = || "write it as HOST:GUEST or ADDRESS:HOST:GUEST".to_owned();
    // flyctl allows a protocol after the port.
    let text = text.strip_suffix("/tcp").unwrap_or(text);
    let (rest, guest) = text.rsplit_once(':').unwrap_or((text, text));
    let guest: u16 = guest.parse().map_err(|_| wrong())?;
    if guest == 0 {
        return Err("the guest's port cannot be 0".to_owned());
    }
    let (address, host) = match rest.rsplit_once(':') {
        Some((address, host)) => (Some(address.trim_matches(['[', ']']).to_owned()), host),
        None => (None, rest),
    };
    Ok(PublishedPort {
        address,
        host: host.parse().map_err(|_| wrong())?,
        guest,
    })
}

fn parse_disk(text: &str) -> Result<Mount, String> {
    let (text, read_only) = match text.strip_suffix(":ro") {
        Some(rest) => (rest, true),
        None => (text, false),
    };
    match text.split_once(':') {
        Some((volume, path)) if volume.starts_with('/') && path.starts_with('/') => Ok(Mount {
            volume: volume.to_owned(),
            path: path.to_owned(),
            read_only,
        }),
        _ => Err("write it as /disk.img:/mountpoint, both absolute".to_owned()),
    }
}

fn checked_duration(text: &str) -> Result<String, String> {
    parse::duration(text).map(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_encoded_as_in_the_rfc() {
        let texts = ["", "f", "fo", "foo", "foob"].map(|text| base64(text.as_bytes()));
        assert_eq!(texts, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg=="]);
    }

    #[test]
    fn memory_is_read_with_and_without_units() {
        let read = ["512", "512mb", "2gb", "1GiB"].map(|text| parse_memory_mib(text).unwrap());
        assert_eq!(read, [512, 512, 2048, 1024]);
        assert!(parse_memory_mib("lots").is_err());
        assert!(
            parse_memory_mib("4194304gb")
                .unwrap_err()
                .contains("too much")
        );
    }

    #[test]
    fn a_port_may_carry_an_address() {
        let port = parse_port("[::1]:8080:80").unwrap();
        assert_eq!(
            (port.address.as_deref(), port.host, port.guest),
            (Some("::1"), 8080, 80)
        );
        let port = parse_port("0:80/tcp").unwrap();
        assert_eq!((port.address, port.host, port.guest), (None, 0, 80));
        assert!(parse_port("80:0").is_err());
        assert!(parse_port("http:80").is_err());
    }

    #[test]
    fn only_on_failure_takes_a_number_of_retries() {
        let restart = parse_restart("on-failure:3").unwrap();
        assert_eq!(restart.max_retries, Some(3));
        assert!(parse_restart("always:3").is_err());
        assert!(parse_restart("sometimes").is_err());
    }

    #[test]
    fn two_ports_of_one_guest_port_are_one_service() {
        let mut services = vec![];
        let ports = ["8080:80", "8081:80", "9000:90"].map(|text| parse_port(text).unwrap());
        publish(&mut services, ports.into());
        let ports: Vec<usize> = services.iter().map(|service| service.ports.len()).collect();
        assert_eq!(ports, [2, 1]);
    }
}
