//! Checks a configuration as a user wrote it. What this host cannot honour is refused by the field's
//! name, never ignored.

use guest_protocol::base64;
use machine_api::{Check, CheckHeader, CheckKind, File, MachineConfig, Service};

use crate::duration;
use crate::model::graceful_stop::GracefulStop;

/// Most metadata pairs of a machine.
pub(crate) const METADATA_PAIRS: usize = 256;
/// Most characters of a metadata key or value.
pub(crate) const METADATA_CHARACTERS: usize = 4096;
/// Most mounts of a machine: guest-init knows their disks as `/dev/vda` to `/dev/vdz`.
pub(crate) const MOUNTS: usize = 26;
/// Most base64 of all files of a machine: it has to fit into the message that starts the main process.
const FILES_BYTES: usize = 768 << 10;
/// A field that cannot be honoured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("config.{field}: {problem}")]
pub(crate) struct InvalidConfig {
    /// Path of the field.
    pub(crate) field: String,
    /// What is wrong with it.
    pub(crate) problem: String,
    /// The field names something that this host does not have.
    pub(crate) absent: bool,
}

fn invalid(field: impl Into<String>, problem: impl Into<String>) -> InvalidConfig {
    InvalidConfig {
        field: field.into(),
        problem: problem.into(),
        absent: false,
    }
}

/// Checks all of `config`.
pub(crate) fn check(config: &MachineConfig) -> Result<(), InvalidConfig> {
    if let Some(guest) = &config.guest {
        if !(1..=32).contains(&guest.cpus) {
            return Err(invalid(
                "guest.cpus",
                format!("{} is not 1 to 32", guest.cpus),
            ));
        }
        if !(64..=65_536).contains(&guest.memory_mb) {
            let problem = format!("{} is not 64 to 65536", guest.memory_mb);
            return Err(invalid("guest.memory_mb", problem));
        }
        if guest
            .kernel_args
            .iter()
            .any(|arg| arg.contains(['\n', '\0']))
        {
            return Err(invalid("guest.kernel_args", "line ends are not allowed"));
        }
    }
    check_strings(config)?;
    if let Some(stop) = &config.stop_config {
        GracefulStop::resolve(stop.signal.as_deref(), stop.timeout.as_deref(), None)
            .map_err(|problem| invalid("stop_config", problem))?;
    }
    for (index, service) in config.services.iter().enumerate() {
        check_service(service)
            .map_err(|(field, problem)| invalid(format!("services[{index}].{field}"), problem))?;
    }
    for (name, check) in &config.checks {
        check_check(check)
            .map_err(|(field, problem)| invalid(format!("checks.{name}.{field}"), problem))?;
    }
    check_files(&config.files)?;
    check_mounts(config)
}

fn check_strings(config: &MachineConfig) -> Result<(), InvalidConfig> {
    let init = config.init.clone().unwrap_or_default();
    let words = init.exec.iter().chain(&init.entrypoint).chain(&init.cmd);
    if words.into_iter().any(|word| word.contains('\0')) {
        return Err(invalid("init", "zero bytes are not allowed"));
    }
    let first = |words: &[String]| words.first().is_some_and(String::is_empty);
    let by_cmd = init.exec.is_empty() && init.entrypoint.is_empty();
    if first(&init.exec) || first(&init.entrypoint) || (by_cmd && first(&init.cmd)) {
        return Err(invalid("init", "the program's name is empty"));
    }
    for (key, value) in &config.env {
        if key.is_empty() || key.contains(['=', '\0']) || value.contains('\0') {
            return Err(invalid("env", format!("{key:?} is not a valid variable")));
        }
    }
    check_metadata(&config.metadata)
}

/// Checks a set of metadata.
pub(crate) fn check_metadata(
    metadata: &std::collections::BTreeMap<String, String>,
) -> Result<(), InvalidConfig> {
    if metadata.len() > METADATA_PAIRS {
        return Err(invalid(
            "metadata",
            format!("more than {METADATA_PAIRS} pairs"),
        ));
    }
    for (key, value) in metadata {
        let longest = key.chars().count().max(value.chars().count());
        if key.is_empty() || longest > METADATA_CHARACTERS {
            let problem = format!("keys and values have up to {METADATA_CHARACTERS} characters");
            return Err(invalid("metadata", problem));
        }
    }
    Ok(())
}

type FieldProblem = (String, String);

fn field(name: &str, problem: impl ToString) -> FieldProblem {
    (name.to_owned(), problem.to_string())
}

fn check_service(service: &Service) -> Result<(), FieldProblem> {
    if !matches!(service.protocol.as_str(), "" | "tcp") {
        return Err(field("protocol", "only tcp is carried"));
    }
    if service.internal_port == 0 {
        return Err(field("internal_port", "0 is no port"));
    }
    for port in &service.ports {
        if let Some(other) = port.handlers.iter().find(|name| *name != "http") {
            let problem = format!(
                "{other:?} is not done here: bytes are carried as they are, so leave it out and \
                 let the program in the guest do it"
            );
            return Err(field("ports.handlers", problem));
        }
        if let Some(address) = &port.address {
            address
                .parse::<std::net::IpAddr>()
                .map_err(|error| field("ports.address", error))?;
        }
    }
    if let Some(autostop) = service.autostop.as_deref()
        && !matches!(autostop, "off" | "stop" | "suspend")
    {
        return Err(field(
            "autostop",
            format!("{autostop:?} is not off, stop or suspend"),
        ));
    }
    if let Some(idle) = &service.idle_timeout {
        duration::parse(idle).map_err(|error| field("idle_timeout", error))?;
    }
    for (index, check) in service.checks.iter().enumerate() {
        let check = Check {
            port: check.port.or(Some(service.internal_port)),
            ..check.clone()
        };
        check_check(&check)
            .map_err(|(name, problem)| (format!("checks[{index}].{name}"), problem))?;
    }
    let kind = service
        .concurrency
        .as_ref()
        .map_or("", |bounds| bounds.kind.as_str());
    if !matches!(kind, "" | "connections") {
        return Err(field("concurrency.type", "only connections are counted"));
    }
    let bounds = service.concurrency.as_ref();
    if bounds.is_some_and(|bounds| bounds.hard_limit == Some(0)) {
        let problem = "0 lets nobody connect; leave it out for no bound of its own";
        return Err(field("concurrency.hard_limit", problem));
    }
    Ok(())
}

fn check_check(check: &Check) -> Result<(), FieldProblem> {
    match check.kind {
        // Whether it is used or not: the API's description knows no such port.
        _ if check.port == Some(0) => return Err(field("port", "0 is no port")),
        CheckKind::Tcp | CheckKind::Http if check.port.is_none() => {
            return Err(field("port", "a port is needed"));
        }
        CheckKind::Exec if check.command.is_empty() => {
            return Err(field("command", "a command is needed"));
        }
        CheckKind::Tcp | CheckKind::Http | CheckKind::Exec => {}
    }
    let times = [
        ("interval", &check.interval),
        ("timeout", &check.timeout),
        ("grace_period", &check.grace_period),
    ];
    for (name, text) in times {
        if let Some(text) = text {
            duration::parse(text).map_err(|error| field(name, error))?;
        }
    }
    if !matches!(
        check.purpose.as_deref(),
        None | Some("informational" | "readiness")
    ) {
        return Err(field("kind", "not informational or readiness"));
    }
    let printable = |text: &Option<String>| {
        text.as_ref()
            .is_none_or(|text| text.chars().all(|c| c.is_ascii_graphic()))
    };
    if !printable(&check.method) || !printable(&check.path) {
        return Err(field("path", "only printable ASCII can be asked for"));
    }
    if !matches!(check.protocol.as_deref(), None | Some("" | "http")) {
        let problem = "the guest's loopback is asked without TLS; only http is possible";
        return Err(field("protocol", problem));
    }
    if !check.headers.iter().all(is_header) {
        return Err(field(
            "headers",
            "a name is a word, a value is printable ASCII",
        ));
    }
    Ok(())
}

fn is_header(header: &CheckHeader) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let printable = |c: char| c == ' ' || c.is_ascii_graphic();
    let mut values = header.values.iter();
    !header.name.is_empty()
        && header.name.chars().all(word)
        && values.all(|value| value.chars().all(printable))
}

fn check_files(files: &[File]) -> Result<(), InvalidConfig> {
    let size: usize = files.iter().map(|file| file.raw_value.len()).sum();
    if size > FILES_BYTES {
        let problem = format!("more than {} KiB of base64", FILES_BYTES >> 10);
        return Err(invalid("files", problem));
    }
    for (index, file) in files.iter().enumerate() {
        let field_path = |name: &str| format!("files[{index}].{name}");
        let path = &file.guest_path;
        if !path.starts_with('/') || path.ends_with('/') || path.contains('\0') {
            return Err(invalid(
                field_path("guest_path"),
                "an absolute path of a file is needed",
            ));
        }
        if base64::decode(&file.raw_value).is_none() {
            return Err(invalid(field_path("raw_value"), "it is no base64"));
        }
        if file.mode > 0o7777 {
            return Err(invalid(field_path("mode"), "more than permission bits"));
        }
    }
    Ok(())
}

fn check_mounts(config: &MachineConfig) -> Result<(), InvalidConfig> {
    if config.mounts.len() > MOUNTS {
        return Err(invalid("mounts", format!("more than {MOUNTS}")));
    }
    for (index, mount) in config.mounts.iter().enumerate() {
        let field_path = |name: &str| format!("mounts[{index}].{name}");
        if !mount.volume.starts_with('/') || mount.volume.contains('\0') {
            return Err(invalid(
                field_path("volume"),
                "an absolute path of the host is needed",
            ));
        }
        if mount.volume.ends_with(":ro") {
            return Err(invalid(field_path("volume"), "a path can't end in :ro"));
        }
        let path = &mount.path;
        if !path.starts_with('/') || path == "/" || path.contains('\0') {
            return Err(invalid(
                field_path("path"),
                "an absolute path below / is needed",
            ));
        }
        if !std::path::Path::new(&mount.volume).exists() {
            let problem = format!("{} does not exist", mount.volume);
            return Err(InvalidConfig {
                absent: true,
                ..invalid(field_path("volume"), problem)
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use machine_api::{Guest, Mount, ServiceConcurrency};

    use super::*;

    fn field_refused(config: &MachineConfig) -> String {
        check(config).unwrap_err().field
    }

    #[test]
    fn an_empty_configuration_is_fine() {
        assert_eq!(check(&MachineConfig::default()), Ok(()));
    }

    #[test]
    fn what_can_not_be_honoured_is_refused_by_its_name() {
        let guest = |guest| MachineConfig {
            guest: Some(guest),
            ..MachineConfig::default()
        };
        let cpus = guest(Guest {
            cpus: 33,
            ..Guest::default()
        });
        assert_eq!(field_refused(&cpus), "guest.cpus");
        let memory = guest(Guest {
            memory_mb: 63,
            ..Guest::default()
        });
        assert_eq!(field_refused(&memory), "guest.memory_mb");
        let udp = Service {
            protocol: "udp".to_owned(),
            internal_port: 1,
            ..Service::default()
        };
        let services = MachineConfig {
            services: vec![udp],
            ..MachineConfig::default()
        };
        assert_eq!(field_refused(&services), "services[0].protocol");
        let unused_port = Check {
            kind: CheckKind::Exec,
            command: vec!["true".to_owned()],
            port: Some(0),
            ..Check::default()
        };
        let checks = MachineConfig {
            checks: [("one".to_owned(), unused_port)].into(),
            ..MachineConfig::default()
        };
        assert_eq!(field_refused(&checks), "checks.one.port");
        let mount = Mount {
            volume: "relative".to_owned(),
            ..Mount::default()
        };
        let mounts = MachineConfig {
            mounts: vec![mount],
            ..MachineConfig::default()
        };
        assert_eq!(field_refused(&mounts), "mounts[0].volume");
        let mount = Mount {
            volume: "/dev/null".to_owned(),
            path: "/data".to_owned(),
            ..Mount::default()
        };
        let mut mounts = MachineConfig {
            mounts: vec![mount; MOUNTS],
            ..MachineConfig::default()
        };
        assert_eq!(check(&mounts), Ok(()));
        mounts.mounts.extend(mounts.mounts[..1].to_vec());
        assert_eq!(field_refused(&mounts), "mounts");
        let nobody = Service {
            internal_port: 80,
            concurrency: Some(ServiceConcurrency {
                hard_limit: Some(0),
                ..ServiceConcurrency::default()
            }),
            ..Service::default()
        };
        let services = MachineConfig {
            services: vec![nobody],
            ..MachineConfig::default()
        };
        assert_eq!(
            field_refused(&services),
            "services[0].concurrency.hard_limit"
        );
    }
}
