//! What operators see: the diagnosis, a benchmark of their own machine with its report, metrics.

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

pub(crate) async fn a_leak_is_told_with_its_size_its_beginning_and_its_cost(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let machine = stage.boot(leaky(PortPolicy::Random, false)).await?;
    let id = machine.id.as_str();
    // Three cycles; without --allow-leaks the bench stops at the first one that leaves a socket.
    let bench = ["bench", "resume", id, "--cycles", "3", "--allow-leaks"];
    stage.mctl(&bench).await?.printed()?;
    let doctor = stage.mctl(&["doctor", "vsock", id]).await?;
    let complaint = doctor.complaint(8)?;
    ensure!(complaint.contains("3 vsock sockets"), "{complaint}");
    let text = doctor.text();
    for (name, value) in [
        ("verdict", "leaking"),
        ("leaked pairs", "3"),
        ("leaking since", "generation 1"),
        ("next resume", "0.0 failed attempts"),
    ] {
        let said = text.lines().any(|line| {
            let rest = line.to_lowercase();
            let rest = rest.trim_start().strip_prefix(name).map(str::to_owned);
            rest.is_some_and(|rest| rest.trim_start_matches([':', ' ']).starts_with(value))
        });
        ensure!(said, "{name} is not {value} in:\n{text}");
    }
    ensure!(text.contains("--vsock-eviction"), "no advice in:\n{text}");

    let seen = stage.client.machine(id).await?;
    let warned = |text: &str| text.contains("3 vsock sockets of older generations");
    ensure!(seen.warnings.iter().any(|text| warned(text)), "{seen:?}");
    let told = seen.events.iter().any(|event| {
        event.kind == EventType::Warning && event.message.as_deref().is_some_and(warned)
    });
    ensure!(told, "{:?}", seen.events);

    let metrics = metrics(stage).await?;
    let older = of(
        &metrics,
        "mctl_guest_vsock_sockets",
        id,
        "generation=\"older\"",
    )?;
    ensure!(older == 3.0, "{older} older sockets");
    let bench = stage
        .mctl(&["bench", "resume", id, "--cycles", "5"])
        .await?;
    let complaint = bench.complaint(8)?;
    ensure!(complaint.contains("cycle"), "{complaint}");
    Ok(())
}

pub(crate) async fn a_healthy_machine_is_told_healthy_and_a_bench_of_it_makes_a_report(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let machine = stage.boot_counter().await?;
    let id = machine.id.as_str();
    let file = |name: &str| stage.scratch().join(name).display().to_string();
    let (json, page, csv) = (file("bench.json"), file("again.html"), file("again.csv"));
    let cycles = ["--counter-file", counter::FILE, "--cycles", "3"];
    let assert = [&["bench", "resume", id, "--assert-flat"], &cycles[..]].concat();
    let refused = stage.mctl(&assert).await?;
    let complaint = refused.complaint(2)?;
    ensure!(complaint.contains("at least 30"), "{complaint}");

    let bench = [&["bench", "resume", id, "--output", &json], &cycles[..]].concat();
    let text = stage.mctl(&bench).await?.printed()?;
    ensure!(text.contains("too few cycles"), "{text}");
    let report = cycles::load(json.as_ref()).context("the bench's report")?;
    let attempts: Vec<u32> = report.cycles.iter().map(cycles::Cycle::attempts).collect();
    ensure!(attempts == [1, 1, 1], "{attempts:?}");
    let text = stage.mctl(&["doctor", "vsock", id]).await?.printed()?;
    ensure!(text.contains("healthy"), "{text}");

    let report = ["report", &json, "--html", &page, "--csv", &csv];
    stage.mctl(&report).await?.printed()?;
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
    for (name, text, complaint) in broken {
        fs::write(file(name), text)?;
        let ran = stage.mctl(&["report", &file(name)]).await?;
        let said = ran.complaint(1)?;
        ensure!(said.contains(complaint) && said.contains(name), "{said}");
    }

    let metrics = metrics(stage).await?;
    let accepted = of(
        &metrics,
        "mctl_vsock_requests_total",
        id,
        "outcome=\"accepted\"",
    )?;
    ensure!(accepted > 0.0, "no request was accepted");
    let generation = of(&metrics, "mctl_machine_generation", id, "")?;
    ensure!(generation == 4.0, "generation {generation} after 3 resumes");
    let older = of(
        &metrics,
        "mctl_guest_vsock_sockets",
        id,
        "generation=\"older\"",
    )?;
    ensure!(older == 0.0, "{older} older sockets");
    Ok(())
}

/// Values by what stands before them: name and labels.
type Samples = BTreeMap<String, f64>;

/// The sample of a machine with that name, and with `label` if that is not empty.
fn of(samples: &Samples, name: &str, machine: &str, label: &str) -> anyhow::Result<f64> {
    let found = samples.iter().find(|(key, _)| {
        key.starts_with(&format!("{name}{{")) && key.contains(machine) && key.contains(label)
    });
    let keys = || samples.keys().cloned().collect::<Vec<_>>().join("\n");
    let (_, value) = found.with_context(|| format!("no {name} {label} in\n{}", keys()))?;
    Ok(*value)
}

/// What `/metrics` says, read as strictly as Prometheus's text format 0.0.4 is written down.
async fn metrics(stage: &Stage) -> anyhow::Result<Samples> {
    let mut stream = UnixStream::connect(stage.api()).await?;
    let request = "GET /metrics HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    let reading = timeout(DEADLINE, stream.read_to_string(&mut answer));
    reading.await.context("/metrics did not end")??;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP")?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let head = head.to_ascii_lowercase();
    ensure!(
        head.contains("content-type: text/plain; version=0.0.4"),
        "{head}"
    );
    ensure!(body.ends_with('\n'), "the last line has no end");
    let mut samples = Samples::new();
    let mut family = Family::default();
    for line in body.lines() {
        let said = family.line(line, &mut samples);
        said.with_context(|| format!("in the line {line:?}"))?;
    }
    Ok(samples)
}

/// The metric family that lines belong to at present.
#[derive(Debug, Default)]
struct Family {
    name: String,
    /// With a TYPE line, too.
    has_kind: bool,
    seen: Vec<String>,
}

impl Family {
    fn line(&mut self, line: &str, samples: &mut Samples) -> anyhow::Result<()> {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, text) = rest.split_once(' ').context("HELP without a text")?;
            ensure!(!text.is_empty() && is_name(name), "a bad HELP");
            ensure!(!self.seen.iter().any(|seen| seen == name), "it comes twice");
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
                "counter" => ensure!(name.ends_with("_total"), "a counter's name"),
                "gauge" => ensure!(!name.ends_with("_total"), "a gauge's name"),
                _ => bail!("no kind"),
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
        let labels = labels.strip_suffix('}').context("labels are not closed")?;
        for label in labels.split("\",") {
            let (name, value) = label.split_once("=\"").context("a label without a value")?;
            ensure!(is_name(name), "a label's name");
            let value = value.strip_suffix('"').unwrap_or(value);
            ensure!(!value.contains(['"', '\\']), "a label's value");
        }
        let value: f64 = value.parse().context("no number")?;
        let known = samples.insert(key.to_owned(), value);
        ensure!(known.is_none(), "the sample comes twice");
        Ok(())
    }
}

fn is_name(text: &str) -> bool {
    let first = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    first && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
