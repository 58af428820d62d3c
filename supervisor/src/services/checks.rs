//! Periodic checks of started machines: tcp, http and exec, all inside the guest.
//!
//! A failing check is shown and becomes an event; it never restarts a machine.

use std::collections::BTreeMap;
use std::time::Duration;

use guest_protocol::{ExecSpec, Request};
use machine_api::{Check, CheckHeader, CheckKind, CheckStatus};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::error_chain::error_chain;
use crate::guest::{GuestAddress, GuestError};
use crate::machine::Handle;
use crate::model::machine_checks::{self, PASSING};
use crate::{clock, duration};

/// Times of a check that names none.
const INTERVAL: Duration = Duration::from_secs(15);
const TIMEOUT: Duration = Duration::from_secs(5);
const GRACE: Duration = Duration::from_secs(1);
/// Shortest interval.
const INTERVAL_LEAST: Duration = Duration::from_millis(100);
/// Most bytes of an HTTP answer that are read to find its status.
const ANSWER_BYTES: usize = 4096;
/// Most characters of a check's output that are kept.
const OUTPUT_CHARACTERS: usize = 500;

/// Runs a machine's checks while it is started, until it is gone.
pub(super) async fn serve(handle: Handle) {
    let mut live = handle.watch_live();
    let mut view = handle.watch();
    let mut running: Option<(BTreeMap<String, Check>, GuestAddress, JoinSet<()>)> = None;
    loop {
        let checks = machine_checks::all(&view.borrow_and_update().config);
        let address = live
            .borrow_and_update()
            .as_ref()
            // Each check makes one call at a time, and must not fail because clients make many.
            .map(|live| live.address.clone().without_permits());
        let same = running.as_ref().is_some_and(|(known, checked, _)| {
            let generation = address.as_ref().map(|address| address.generation);
            *known == checks && generation == Some(checked.generation)
        });
        if !same {
            // Checks of another guest or configuration end here.
            running = address.filter(|_| !checks.is_empty()).map(|address| {
                let tasks = begin(&handle, &checks, &address);
                (checks, address, tasks)
            });
        }
        tokio::select! {
            changed = view.changed() => if changed.is_err() { return },
            changed = live.changed() => if changed.is_err() { return },
        }
    }
}

fn begin(handle: &Handle, checks: &BTreeMap<String, Check>, address: &GuestAddress) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    for (name, check) in checks {
        tasks.spawn(repeat(
            handle.clone(),
            name.clone(),
            check.clone(),
            address.clone(),
        ));
    }
    tasks
}

async fn repeat(handle: Handle, name: String, check: Check, address: GuestAddress) {
    let time = |text: &Option<String>, usual| {
        text.as_deref()
            .and_then(|text| duration::parse(text).ok())
            .unwrap_or(usual)
    };
    let interval = time(&check.interval, INTERVAL).max(INTERVAL_LEAST);
    let limit = time(&check.timeout, TIMEOUT);
    let grace = Instant::now() + time(&check.grace_period, GRACE);
    loop {
        let result = timeout(limit, run(&check, &address, limit)).await;
        let (status, output) = match result {
            Ok(Ok(output)) => (PASSING, output),
            Ok(Err(output)) => (failing(grace), output),
            Err(_) => (
                failing(grace),
                format!("no result within {} ms", limit.as_millis()),
            ),
        };
        let status = CheckStatus {
            name: name.clone(),
            status: status.to_owned(),
            output: output.chars().take(OUTPUT_CHARACTERS).collect(),
            updated_at: clock::rfc3339_ms(clock::realtime_ms()),
        };
        if !handle.report_check(address.generation, status).await {
            return;
        }
        sleep(interval).await;
    }
}

fn failing(grace: Instant) -> &'static str {
    if Instant::now() < grace {
        "warning"
    } else {
        "critical"
    }
}

/// Runs a check once; its output, as a success or a failure.
async fn run(check: &Check, address: &GuestAddress, limit: Duration) -> Result<String, String> {
    let port = check.port.unwrap_or(0);
    let failed = |error: GuestError| error_chain(&error);
    match check.kind {
        CheckKind::Tcp => {
            address
                .open(Request::Forward { port })
                .await
                .map_err(failed)?;
            Ok(format!("port {port} accepts connections"))
        }
        CheckKind::Http => http(check, address, port).await,
        CheckKind::Exec => {
            let exec = ExecSpec {
                argv: check.command.clone(),
                ..ExecSpec::default()
            };
            let done = address.run_to_end(exec, &[], limit).await.map_err(failed)?;
            let output = String::from_utf8_lossy(&done.stdout).trim().to_owned();
            match (done.exit.code, done.exit.signal) {
                (Some(0), _) => Ok(output),
                (Some(code), _) => Err(format!("exit code {code}: {output}")),
                (None, signal) => Err(format!("killed by signal {}", signal.unwrap_or(0))),
            }
        }
    }
}

async fn http(check: &Check, address: &GuestAddress, port: u16) -> Result<String, String> {
    let failed = |error: GuestError| error_chain(&error);
    let stream = address
        .open(Request::Forward { port })
        .await
        .map_err(failed)?;
    let (mut reader, mut writer, mut answer) = stream.into_raw();
    let method = check
        .method
        .as_deref()
        .unwrap_or("GET")
        .to_ascii_uppercase();
    let path = check
        .path
        .as_deref()
        .filter(|path| path.starts_with('/'))
        .unwrap_or("/");
    let request = request_of(check, &method, path);
    let broke = |error: std::io::Error| format!("the connection broke: {error}");
    writer.write_all(request.as_bytes()).await.map_err(broke)?;
    while !answer.contains(&b'\n') && answer.len() < ANSWER_BYTES {
        if reader.read_buf(&mut answer).await.map_err(broke)? == 0 {
            break;
        }
    }
    status_of(&answer)
}

/// A whole request; headers of the check replace ours.
fn request_of(check: &Check, method: &str, path: &str) -> String {
    let mut request = format!("{method} {path} HTTP/1.1\r\n");
    for (name, value) in [("host", "localhost"), ("user-agent", "mctl")] {
        let given = |header: &CheckHeader| header.name.eq_ignore_ascii_case(name);
        if !check.headers.iter().any(given) {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    for header in &check.headers {
        for value in &header.values {
            request.push_str(&format!("{}: {value}\r\n", header.name));
        }
    }
    request.push_str("connection: close\r\n\r\n");
    request
}

/// Judges an HTTP answer by its first line.
fn status_of(answer: &[u8]) -> Result<String, String> {
    let text = String::from_utf8_lossy(answer);
    let line = text.lines().next().unwrap_or("").trim();
    let mut words = line.split(' ');
    let http = words.next().is_some_and(|word| word.starts_with("HTTP/1."));
    let status = words
        .next()
        .and_then(|word| word.parse::<u16>().ok())
        .filter(|_| http);
    match status {
        Some(100..400) => Ok(line.to_owned()),
        Some(_) => Err(line.to_owned()),
        None => Err("the answer is not HTTP".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_the_check_replace_ours() {
        let check = serde_json::from_value(serde_json::json!({
            "type": "http", "port": 81, "headers": [{"name": "Host", "values": ["shop"]}],
        }));
        assert_eq!(
            request_of(&check.unwrap(), "GET", "/"),
            "GET / HTTP/1.1\r\nuser-agent: mctl\r\nHost: shop\r\nconnection: close\r\n\r\n"
        );
    }

    #[test]
    fn an_http_answer_is_judged_by_its_status() {
        assert!(status_of(b"HTTP/1.1 204 No Content\r\n").is_ok());
        assert!(status_of(b"HTTP/1.0 302 Found\r\n").is_ok());
        assert!(status_of(b"HTTP/1.1 503 Unavailable\r\n").is_err());
        for nonsense in [&b""[..], b"SSH-2.0-x\r\n", b"HTTP/1.1\r\n", b"\xff\xff"] {
            assert_eq!(
                status_of(nonsense),
                Err("the answer is not HTTP".to_owned())
            );
        }
    }
}
