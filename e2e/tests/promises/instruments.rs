//! The instruments of operators: the diagnosis, a benchmark with its report, metrics.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, bail, ensure};
use e2e::counter;
use machine_api::{EventType, PortPolicy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::stage::{DEADLINE, Stage};
use crate::vsock::leaky;

pub(crate) async fn a_leak_is_reported_with_its_size_start_and_cost(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let machine = stage.boot(leaky(PortPolicy::Random, false)).await?;
    let id = machine.id.as_str();
    // Three cycles; without --allow-leaks the bench stops at the first one that leaves a socket.
    let bench = ["bench", "resume", id, "--cycles", "3", "--allow-leaks"];
    stage.mctl(&bench).await?.success_output()?;
    let doctor = stage.mctl(&["doctor", "vsock", id]).await?;
    let error = doctor.error_output(8)?;
    ensure!(error.contains("3 vsock sockets"), "{error}");
    let text = doctor.text();
    for (name, value) in [
        ("verdict", "leaking"),
        ("leaked pairs", "3"),
        ("leaking since", "generation 1"),
        ("next resume", "0.0 failed attempts"),
    ] {
        let found = text.lines().any(|line| {
            let rest = line.to_lowercase();
            let rest = rest.trim_start().strip_prefix(name).map(str::to_owned);
            rest.is_some_and(|rest| rest.trim_start_matches([':', ' ']).starts_with(value))
        });
        ensure!(found, "{name} is not {value} in:\n{text}");
    }
    ensure!(text.contains("--vsock-eviction"), "no advice in:\n{text}");

    let seen = stage.client.machine(id).await?;
    let warned = |text: &str| text.contains("3 vsock sockets of older generations");
    ensure!(seen.warnings.iter().any(|text| warned(text)), "{seen:?}");
    let reported = seen.events.iter().any(|event| {
        event.kind == EventType::Warning && event.message.as_deref().is_some_and(warned)
    });
    ensure!(reported, "{:?}", seen.events);

    let metrics = metrics(stage).await?;
    let older = older_sockets(&metrics, id)?;
    ensure!(older == 3.0, "{older} older sockets");
    let bench = stage
        .mctl(&["bench", "resume", id, "--cycles", "5"])
        .await?;
    let error = bench.error_output(8)?;
    ensure!(error.contains("cycle"), "{error}");
    Ok(())
}

pub(crate) async fn a_healthy_machine_is_reported_healthy_and_its_bench_writes_a_report(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let machine = stage.boot_counter().await?;
    let id = machine.id.as_str();
    let file = |name: &str| stage.scratch().join(name).display().to_string();
    let (json, page, csv) = (file("bench.json"), file("again.html"), file("again.csv"));
    let cycles = ["--counter-file", counter::FILE, "--cycles", "3"];
    let assert = [&["bench", "resume", id, "--assert-flat"], &cycles[..]].concat();
    let refused = stage.mctl(&assert).await?;
    let error = refused.error_output(2)?;
    ensure!(error.contains("at least 30"), "{error}");

    let bench = [&["bench", "resume", id, "--output", &json], &cycles[..]].concat();
    let text = stage.mctl(&bench).await?.success_output()?;
    ensure!(text.contains("too few cycles"), "{text}");
    let report = cycles::load(json.as_ref()).context("the bench's report")?;
    let attempts: Vec<u32> = report.cycles.iter().map(cycles::Cycle::attempts).collect();
    ensure!(attempts == [1, 1, 1], "{attempts:?}");
    let text = stage
        .mctl(&["doctor", "vsock", id])
        .await?
        .success_output()?;
    ensure!(text.contains("healthy"), "{text}");

    let report = ["report", &json, "--html", &page, "--csv", &csv];
    stage.mctl(&report).await?.success_output()?;
    for page in [page, file("bench.html")] {
        let marks = fs::read_to_string(&page)?
            .matches("class=\"mark resume")
            .count();
        ensure!(marks == 3, "{page} has {marks} marks for 3 resumes");
    }
    ensure!(fs::read_to_string(&csv)?.lines().count() == 4, "no CSV");
    let whole = fs::read_to_string(&json)?;
    let broken = [
        ("cut.json", &whole[..whole.len() / 2], "not JSON"),
        (
            "other.json",
            "{\"name\": \"of something else\"}",
            "not a report",
        ),
    ];
    for (name, text, reason) in broken {
        fs::write(file(name), text)?;
        let output = stage.mctl(&["report", &file(name)]).await?;
        let error = output.error_output(1)?;
        ensure!(error.contains(reason) && error.contains(name), "{error}");
    }

    let metrics = metrics(stage).await?;
    let accepted = sample(
        &metrics,
        "mctl_vsock_requests_total",
        id,
        "outcome=\"accepted\"",
    )?;
    ensure!(accepted > 0.0, "no request was accepted");
    let generation = sample(&metrics, "mctl_machine_generation", id, "")?;
    ensure!(generation == 4.0, "generation {generation} after 3 resumes");
    let older = older_sockets(&metrics, id)?;
    ensure!(older == 0.0, "{older} older sockets");
    Ok(())
}

/// Values by name and labels.
type Samples = BTreeMap<String, f64>;

/// The value of the sample `name` of a machine, with `label` if that is not empty.
fn sample(samples: &Samples, name: &str, machine: &str, label: &str) -> anyhow::Result<f64> {
    let found = samples.iter().find(|(key, _)| {
        key.starts_with(&format!("{name}{{")) && key.contains(machine) && key.contains(label)
    });
    let keys = || samples.keys().cloned().collect::<Vec<_>>().join("\n");
    let (_, value) = found.with_context(|| format!("no {name} {label} in\n{}", keys()))?;
    Ok(*value)
}

/// The sample of a machine's sockets of older generations.
fn older_sockets(samples: &Samples, machine: &str) -> anyhow::Result<f64> {
    let label = "generation=\"older\"";
    sample(samples, "mctl_guest_vsock_sockets", machine, label)
}

/// The samples of `/metrics`, parsed strictly by Prometheus's text format 0.0.4.
async fn metrics(stage: &Stage) -> anyhow::Result<Samples> {
    let mut stream = UnixStream::connect(stage.api()).await?;
    let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    let reading = timeout(DEADLINE, stream.read_to_string(&mut answer));
    reading
        .await
        .context("the response of /metrics did not end")??;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let head = head.to_ascii_lowercase();
    ensure!(
        head.contains("content-type: text/plain; version=0.0.4"),
        "{head}"
    );
    ensure!(body.ends_with('\n'), "the last line has no line feed");
    let mut samples = Samples::new();
    let mut family = Family::default();
    for line in body.lines() {
        let parsed = family.parse_line(line, &mut samples);
        parsed.with_context(|| format!("in the line {line:?}"))?;
    }
    Ok(samples)
}

/// The metric family of the present line.
#[derive(Debug, Default)]
struct Family {
    name: String,
    /// Whether its TYPE line was read.
    has_kind: bool,
    seen: Vec<String>,
}

impl Family {
    fn parse_line(&mut self, line: &str, samples: &mut Samples) -> anyhow::Result<()> {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, text) = rest.split_once(' ').context("HELP without a text")?;
            ensure!(!text.is_empty() && is_name(name), "invalid HELP");
            ensure!(
                !self.seen.iter().any(|seen| seen == name),
                "the family occurs twice"
            );
            self.seen.push(name.to_owned());
            name.clone_into(&mut self.name);
            self.has_kind = false;
            return Ok(());
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').context("TYPE without a kind")?;
            ensure!(
                name == self.name && !self.has_kind,
                "TYPE of another family"
            );
            match kind {
                "counter" => ensure!(name.ends_with("_total"), "invalid name of a counter"),
                "gauge" => ensure!(!name.ends_with("_total"), "invalid name of a gauge"),
                _ => bail!("unknown kind"),
            }
            self.has_kind = true;
            return Ok(());
        }
        let (key, value) = line.rsplit_once(' ').context("no value")?;
        let (name, labels) = key.split_once('{').context("no labels")?;
        ensure!(
            name == self.name && self.has_kind,
            "a sample without its family"
        );
        let labels = labels.strip_suffix('}').context("no closing brace")?;
        for label in labels.split("\",") {
            let (name, value) = label.split_once("=\"").context("a label without a value")?;
            ensure!(is_name(name), "invalid name of a label");
            let value = value.strip_suffix('"').unwrap_or(value);
            ensure!(!value.contains(['"', '\\']), "invalid value of a label");
        }
        let value: f64 = value.parse().context("no number")?;
        let known = samples.insert(key.to_owned(), value);
        ensure!(known.is_none(), "the sample occurs twice");
        Ok(())
    }
}

fn is_name(text: &str) -> bool {
    let first = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    first && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
