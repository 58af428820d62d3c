//! Fields of the Fly Machines API that this host cannot honour. One that asks for something is refused
//! by name, never ignored. An empty one (null, false, 0, an empty list) is accepted, since Go's clients
//! write it. Fields that the API does not have are ignored.

use serde_json::Value;

use crate::api::error::ApiError;

const NO_INTERFACE: &str = "guests have no network interface";
const ONE_PROCESS: &str = "a machine has one main process, which init describes";
const RAW_BYTES: &str = "ports carry bytes as they are";
const DISKS: &str = "disks are files of this host, which are not created or grown here";

/// Paths below `config`, each with the reason. `[]` stands for each item of a list, `*` for each field
/// of an object.
const FIELDS: &[(&str, &str)] = &[
    ("cache_drive", "there are no cache drives"),
    ("checks.*.tls_server_name", "checks are made without TLS"),
    ("containers", ONE_PROCESS),
    ("disable_machine_autostart", "services[].autostart says it"),
    ("dns.dns_forward_rules", NO_INTERFACE),
    ("dns.hostname", NO_INTERFACE),
    ("dns.hostname_fqdn", NO_INTERFACE),
    ("dns.nameservers", NO_INTERFACE),
    ("dns.options", NO_INTERFACE),
    ("dns.searches", NO_INTERFACE),
    ("files[].image_config", "files are given by raw_value"),
    (
        "files[].secret_name",
        "there are no secrets; files are given by raw_value",
    ),
    ("guest.gpu_kind", "there are no GPUs"),
    ("guest.gpus", "there are no GPUs"),
    ("guest.host_dedication_id", "there is one host"),
    (
        "guest.max_memory_mb",
        "memory does not grow; guest.memory_mb says it",
    ),
    (
        "guest.persist_rootfs",
        "a boot begins with the image's files; use mounts",
    ),
    ("init.kernel_args", "guest.kernel_args says it"),
    ("init.swap_size_mb", "guests have no swap"),
    ("mounts[].add_size_gb", DISKS),
    ("mounts[].encrypted", DISKS),
    ("mounts[].extend_threshold_percent", DISKS),
    ("mounts[].size_gb", DISKS),
    ("mounts[].size_gb_limit", DISKS),
    ("processes", ONE_PROCESS),
    ("restart.gpu_bid_price", "there are no GPUs"),
    (
        "rootfs.persist",
        "a boot begins with the image's files; use mounts",
    ),
    ("rootfs.size_gb", "the root is in memory; use mounts"),
    ("schedule", "nothing is started by the clock"),
    (
        "services[].checks[].tls_server_name",
        "checks are made without TLS",
    ),
    (
        "services[].force_instance_key",
        "there is one machine behind a port",
    ),
    (
        "services[].min_machines_running",
        "each machine rests by itself; set autostop to off",
    ),
    ("services[].ports[].force_https", RAW_BYTES),
    ("services[].ports[].http_options", RAW_BYTES),
    ("services[].ports[].proxy_proto_options", RAW_BYTES),
    ("services[].ports[].tls_options", RAW_BYTES),
    ("size", "guest.cpus and guest.memory_mb say it"),
    ("spot", "there are no prices"),
    ("standbys", "there is one host"),
    ("statics", "the supervisor serves no files"),
    ("volumes", ONE_PROCESS),
];

/// Refuses a create or an update that asks for one of these fields.
pub(crate) fn check(body: &Value) -> Result<(), ApiError> {
    for (path, why) in FIELDS {
        let steps: Vec<&str> = path.split('.').collect();
        if let Some(field) = asked_for(&body["config"], &steps, "config") {
            return Err(ApiError::invalid(format!("{field}: {why}")));
        }
    }
    Ok(())
}

/// The full name of the first field at that path that asks for something.
fn asked_for(value: &Value, steps: &[&str], name: &str) -> Option<String> {
    let Some((step, rest)) = steps.split_first() else {
        return asks_for_something(value).then(|| name.to_owned());
    };
    if *step == "*" {
        let mut fields = value.as_object()?.iter();
        return fields.find_map(|(key, value)| asked_for(value, rest, &format!("{name}.{key}")));
    }
    let Some(key) = step.strip_suffix("[]") else {
        return asked_for(value.get(step)?, rest, &format!("{name}.{step}"));
    };
    let mut items = value.get(key)?.as_array()?.iter().enumerate();
    items.find_map(|(index, item)| asked_for(item, rest, &format!("{name}.{key}[{index}]")))
}

fn asks_for_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(set) => *set,
        Value::Number(number) => number.as_f64() != Some(0.0),
        // "never" and "none" are the values of `rootfs.persist` that ask for nothing.
        Value::String(text) => !matches!(text.as_str(), "" | "never" | "none"),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => fields.values().any(asks_for_something),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn empty_fields_are_accepted() {
        let config = json!({
            "schedule": "", "statics": null, "standbys": [], "spot": {}, "containers": null,
            "metrics": {"port": 9091}, "dns": {"skip_registration": true, "nameservers": []},
            "rootfs": {"persist": "never", "size_gb": 0}, "a_field_of_nobody": 5,
            "services": [{"force_instance_key": null, "ports": [{"force_https": false}]}],
            "guest": null, "checks": {"web": {"tls_server_name": ""}}, "files": 5,
        });
        assert!(check(&json!({"config": config})).is_ok());
        assert!(check(&json!([])).is_ok());
    }

    #[test]
    fn a_field_that_cannot_be_honoured_is_named_with_its_place() {
        let name = |config: Value| {
            asked_for_anything(&config).unwrap_or_else(|| panic!("{config} was let through"))
        };
        let port = json!({"port": 443, "force_https": true});
        let services = json!([{}, {"ports": [{}, port]}]);
        assert_eq!(
            name(json!({"services": services})),
            "config.services[1].ports[1].force_https"
        );
        assert_eq!(name(json!({"schedule": "daily"})), "config.schedule");
        assert_eq!(name(json!({"guest": {"gpus": 1}})), "config.guest.gpus");
        let checks = json!({"web": {"tls_server_name": "shop"}});
        assert_eq!(
            name(json!({"checks": checks})),
            "config.checks.web.tls_server_name"
        );
        assert_eq!(
            name(json!({"rootfs": {"persist": "always"}})),
            "config.rootfs.persist"
        );
    }

    fn asked_for_anything(config: &Value) -> Option<String> {
        FIELDS.iter().find_map(|(path, _)| {
            let steps: Vec<&str> = path.split('.').collect();
            asked_for(config, &steps, "config")
        })
    }
}
