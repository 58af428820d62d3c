//! Turns a configuration as a client wrote it into the form that is stored: ranges of ports become
//! single ports, and durations are spelled as Go spells them, since Go's clients read them back.

use machine_api::{MachineConfig, Port};

use crate::api::error::ApiError;
use crate::duration;

/// Most ports in the ranges of a service.
const PORTS_MOST: usize = 1_000;

/// Brings `config` into that form.
pub(crate) fn normalise(config: &mut MachineConfig) -> Result<(), ApiError> {
    for (index, service) in config.services.iter_mut().enumerate() {
        let ports = std::mem::take(&mut service.ports);
        for port in ports {
            let field = format!("config.services[{index}].ports");
            expand(port, &field, &mut service.ports)?;
        }
    }
    let stop = config.stop_config.iter_mut();
    let times = stop.map(|stop| &mut stop.timeout);
    let checks = config.checks.values_mut();
    let checks = checks.flat_map(|check| {
        [
            &mut check.interval,
            &mut check.timeout,
            &mut check.grace_period,
        ]
    });
    for text in times.chain(checks).flatten() {
        // An invalid duration is refused later, with the field's name.
        if let Ok(time) = duration::parse(text) {
            *text = duration::format_like_go(time);
        }
    }
    Ok(())
}

fn expand(port: Port, field: &str, ports: &mut Vec<Port>) -> Result<(), ApiError> {
    let (first, last) = match (port.start_port, port.end_port) {
        (None, None) => {
            ports.push(port);
            return Ok(());
        }
        (first, last) => (first.unwrap_or(1), last.unwrap_or(u16::MAX)),
    };
    let refused = |problem: String| ApiError::contradictory(format!("{field}: {problem}"));
    if port.port != 0 {
        let problem = "a port and a range of ports can't be given together";
        return Err(refused(problem.to_owned()));
    }
    if first == 0 || first > last {
        return Err(refused(format!("{first} to {last} is no range")));
    }
    if ports.len() + usize::from(last - first) >= PORTS_MOST {
        return Err(refused(format!("more than {PORTS_MOST} ports")));
    }
    ports.extend((first..=last).map(|number| Port {
        port: number,
        start_port: None,
        end_port: None,
        ..port.clone()
    }));
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn normal(config: Value) -> Result<Value, ApiError> {
        let mut config: MachineConfig = serde_json::from_value(config).unwrap();
        normalise(&mut config)?;
        Ok(serde_json::to_value(config).unwrap())
    }

    #[test]
    fn a_range_becomes_its_ports() {
        let service = |ports| json!({"services": [{"internal_port": 80, "ports": [ports]}]});
        let stored = normal(service(
            json!({"start_port": 7, "end_port": 8, "handlers": ["http"]}),
        ));
        let ports = &stored.unwrap()["services"][0]["ports"];
        let expected =
            json!([{"port": 7, "handlers": ["http"]}, {"port": 8, "handlers": ["http"]}]);
        assert_eq!(*ports, expected);
        for refused in [
            json!({"start_port": 8, "end_port": 7}),
            json!({"start_port": 0, "end_port": 7}),
            json!({"start_port": 1, "end_port": 1_001}),
            json!({"start_port": 1}),
            json!({"port": 5, "start_port": 7, "end_port": 8}),
        ] {
            assert!(normal(service(refused.clone())).is_err(), "{refused}");
        }
    }

    #[test]
    fn times_are_spelled_as_in_go() {
        let config = json!({
            "stop_config": {"timeout": 5_000_000_000_u64},
            "checks": {"web": {"type": "tcp", "port": 80, "interval": "90", "timeout": "nonsense"}},
        });
        let stored = normal(config).unwrap();
        assert_eq!(stored["stop_config"]["timeout"], "5s");
        assert_eq!(stored["checks"]["web"]["interval"], "1m30s");
        assert_eq!(stored["checks"]["web"]["timeout"], "nonsense");
    }
}
