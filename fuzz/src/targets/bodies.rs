//! The bodies of the API.

use supervisor::fuzzing::{BODY_KINDS, BodyKind, read_body};

/// See [`crate::TARGETS`].
pub(crate) fn target(input: &[u8]) {
    let Some((first, body)) = input.split_first() else {
        return;
    };
    let kind = BODY_KINDS[usize::from(*first) % BODY_KINDS.len()];
    match read_body(kind, body) {
        Err(problem) => assert!(!problem.is_empty(), "a refusal says why"),
        Ok(understood) => {
            let shown = String::from_utf8_lossy(&understood).into_owned();
            let again = read_body(kind, &understood);
            assert_eq!(
                again.as_ref(),
                Ok(&understood),
                "{kind:?}: {shown} is accepted as it was understood"
            );
        }
    }
}

/// See [`crate::TARGETS`].
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let config = r#"{"image":"default","guest":{"cpus":2.0,"memory_mb":256,"kernel_args":["quiet"],"cpu_template":"x86-64-v2"},
        "init":{"exec":["/bin/sh","-c","sleep 5"],"entrypoint":[],"cmd":["x"],"tty":false},
        "env":{"A":"b"},"metadata":{"key":"value"},"auto_destroy":true,
        "restart":{"policy":"on-failure","max_retries":3},
        "stop_config":{"signal":"SIGTERM","timeout":"1m30s"},
        "mounts":[{"path":"/data","volume":"/dev/null","name":"d"}],
        "files":[{"guest_path":"/etc/x","raw_value":"aGk=","mode":420}],
        "checks":{"web":{"type":"http","port":80,"path":"/","method":"get","interval":"15s","timeout":10000000000,
            "grace_period":"1.5s","protocol":"http","headers":[{"name":"Host","values":["x"]}]},
            "port":{"type":"tcp","port":5432,"interval":"0.5m"}},
        "services":[{"protocol":"tcp","internal_port":80,"autostart":true,"autostop":"suspend",
            "ports":[{"port":8080,"handlers":["http"]},{"start_port":9000,"end_port":9003,"address":"127.0.0.1"}],
            "concurrency":{"type":"connections","soft_limit":5,"hard_limit":10},
            "checks":[{"type":"tcp","port":80}]}],
        "schedule":"","statics":null,"guestless":5}"#;
    let kind = |index: u8, body: &str| [&[index][..], body.as_bytes()].concat();
    let create = format!(
        r#"{{"name":"m","region":"local","config":{config},"skip_launch":true,"lease_ttl":30}}"#
    );
    let update =
        format!(r#"{{"config":{config},"current_version":"v","skip_service_registration":true}}"#);
    debug_assert!(matches!(BODY_KINDS[9], BodyKind::Duration));
    vec![
        ("create", kind(0, &create)),
        ("smallest", kind(0, r#"{"config":{}}"#)),
        ("update", kind(1, &update)),
        (
            "unsupported",
            kind(
                1,
                r#"{"config":{"guest":{"gpus":1},"dns":{"nameservers":["x"]}}}"#,
            ),
        ),
        ("stop", kind(2, r#"{"signal":2,"timeout":"30s"}"#)),
        ("no_stop", kind(2, "null")),
        ("signal", kind(3, r#"{"signal":"SIGHUP"}"#)),
        (
            "exec",
            kind(
                4,
                r#"{"command":["ls","-l"],"cmd":"echo \"a b\" 'c'","timeout":5,"stdin":"x"}"#,
            ),
        ),
        ("lease", kind(5, r#"{"ttl":60,"description":"deploy"}"#)),
        ("metadata", kind(6, r#"{"value":"x"}"#)),
        ("token", kind(7, r#"{"name":"ci","scope":"read"}"#)),
        ("adopt", kind(8, r#"{"name":"m2"}"#)),
        ("duration", kind(9, "1h1m1.5s3ms7µs9ns")),
        ("seconds", kind(9, "0.25")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_among_the_seeds_are_accepted() {
        for (name, input) in seeds() {
            let kind = BODY_KINDS[usize::from(input[0])];
            let read = read_body(kind, &input[1..]);
            assert_eq!(read.is_ok(), name != "unsupported", "{name}: {read:?}");
        }
    }
}
