//! Which checks a machine has, and what their results mean for its published ports.

use std::collections::BTreeMap;

use machine_api::{Check, CheckKind, Machine, MachineConfig};

/// Purpose of a check that holds connections back while it fails.
const READINESS: &str = "readiness";
/// Status of a check that succeeded.
pub(crate) const PASSING: &str = "passing";

/// A machine's own checks and those of its services, by name.
pub(crate) fn all(config: &MachineConfig) -> BTreeMap<String, Check> {
    let mut checks = config.checks.clone();
    let services = config.services.iter();
    let of_services =
        services.flat_map(|service| service.checks.iter().map(move |check| (service, check)));
    for (number, (service, check)) in of_services.enumerate() {
        let port = check.port.unwrap_or(service.internal_port);
        let kind = match check.kind {
            CheckKind::Tcp => "tcp",
            CheckKind::Http => "http",
            CheckKind::Exec => "exec",
        };
        let with_port = Check {
            port: Some(port),
            ..check.clone()
        };
        checks.insert(format!("servicecheck-{number:02}-{kind}-{port}"), with_port);
    }
    checks
}

/// Whether connections may be carried: all checks of its services and all its own readiness checks
/// have succeeded.
pub(crate) fn allow_connections(machine: &Machine) -> bool {
    let decisive = |name: &str| match machine.config.checks.get(name) {
        Some(check) => check.purpose.as_deref() == Some(READINESS),
        None => true,
    };
    let passes = |name: &String| {
        let mut results = machine.checks.iter();
        results.any(|result| result.name == *name && result.status == PASSING)
    };
    all(&machine.config)
        .keys()
        .filter(|name| decisive(name))
        .all(passes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_bring_their_checks() {
        let config = serde_json::from_value(serde_json::json!({"services": [{
            "internal_port": 80,
            "checks": [{"type": "tcp"}, {"type": "http", "port": 81}],
        }]}));
        let checks = all(&config.unwrap());
        let names: Vec<&String> = checks.keys().collect();
        assert_eq!(names, ["servicecheck-00-tcp-80", "servicecheck-01-http-81"]);
    }
}
