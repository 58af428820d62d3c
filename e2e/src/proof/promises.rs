//! Runs the tests on real guests, an executable of `cargo test`, and reads how each of them ended.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use cycles::{PromiseOutcome, PromiseResult};
use serde::Deserialize;

use crate::child;
use crate::kvm_place::{HOST_CPUS_ENV, KVM_ENV, KvmArguments};

/// Longest that all of them may take. They have a deadline of two hours for each virtual host.
const DEADLINE: Duration = Duration::from_secs(5 * 3600);
/// How long the executable may take to end after its last line.
const END_DEADLINE: Duration = Duration::from_secs(60);
/// Longest message of a broken promise that is kept: its beginning says what was wrong.
const MESSAGE_CHARACTERS: usize = 4_000;

/// One line of what `cargo test --no-run --message-format json` writes.
#[derive(Debug, Deserialize)]
struct CargoMessage {
    target: Option<CargoTarget>,
    executable: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct CargoTarget {
    name: String,
}

/// One line of what the tests write with `--format json`.
#[derive(Debug, Deserialize)]
struct TestEvent {
    #[serde(rename = "type")]
    kind: String,
    event: Option<String>,
    name: Option<String>,
    stdout: Option<String>,
}

/// The tests' executable, from the messages of cargo in the file at `path`.
///
/// # Errors
/// If there is none.
pub(super) fn executable(path: &Path) -> anyhow::Result<PathBuf> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    text.lines()
        .filter_map(|line| serde_json::from_str::<CargoMessage>(line).ok())
        .filter(|message| {
            message
                .target
                .as_ref()
                .is_some_and(|target| target.name == "promises")
        })
        .find_map(|message| message.executable)
        .with_context(|| {
            format!(
                "{} names no executable of the test \"promises\"",
                path.display()
            )
        })
}

/// What to run.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) executable: PathBuf,
    /// Part of the names of those that are wanted.
    pub(super) only: String,
    /// Those that are not wanted.
    pub(super) except: Vec<String>,
    pub(super) kvm: KvmArguments,
    /// Where what the tests say goes.
    pub(super) log: PathBuf,
}

impl Run {
    /// Runs them to their end. `done` is called with the number of those that have ended, and the last. `results` gets
    /// how each ended, also if others did not.
    ///
    /// # Errors
    /// If they cannot be run, or end without having said how each went.
    pub(super) fn run(
        &self,
        results: &mut Vec<PromiseResult>,
        mut done: impl FnMut(usize, &PromiseResult),
    ) -> anyhow::Result<()> {
        let log = File::create(&self.log)
            .with_context(|| format!("cannot write {}", self.log.display()))?;
        let kvm = self.kvm.kvm.and_then(|kvm| kvm.to_possible_value());
        let kvm = kvm.context("no kind of KVM")?;
        let mut command = Command::new(&self.executable);
        command
            .args(["--format", "json"])
            .args((!self.only.is_empty()).then_some(&self.only))
            .args(self.except.iter().flat_map(|name| ["--skip", name]))
            .env(KVM_ENV, kvm.get_name())
            .env_remove(HOST_CPUS_ENV)
            .envs(
                self.kvm
                    .host_cpus
                    .map(|cpus| (HOST_CPUS_ENV, cpus.to_string())),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log);
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot run {}", self.executable.display()))?;
        let pipe = child.stdout.take().context("a child without output")?;
        let (sender, lines) = channel();
        std::thread::Builder::new()
            .name("promises-output".to_owned())
            .spawn(move || {
                for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            })
            .context("cannot start a thread")?;
        let deadline = Instant::now() + DEADLINE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match lines.recv_timeout(left) {
                Ok(line) => {
                    if let Some(result) = result_of(&line) {
                        results.push(result);
                        done(results.len(), &results[results.len() - 1]);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {
                    // It may end in this moment.
                    let _ = child.kill();
                    let _ = child.wait();
                    bail!("they did not end within {} s", DEADLINE.as_secs());
                }
            }
        }
        let status = child::wait(&mut child, END_DEADLINE).context("cannot wait for them")?;
        let broken = results
            .iter()
            .any(|one| one.outcome == PromiseOutcome::Broken);
        let fine = status.is_some_and(|status| status.success());
        ensure!(
            fine || broken,
            "they ended early; {} says why: {}",
            self.log.display(),
            last_line(&self.log)
        );
        Ok(())
    }
}

/// How promises ended over all runs of their part: what earlier runs have shown, and what run number `run` has. One
/// that is kept now keeps its message of the run in which it was broken.
pub(super) fn over_all_runs(
    earlier: Vec<PromiseResult>,
    latest: Vec<PromiseResult>,
    run: u32,
) -> Vec<PromiseResult> {
    let mut all = earlier;
    for mut result in latest {
        result.run = run;
        match all.iter_mut().find(|known| known.name == result.name) {
            Some(known) => {
                let before = known.message.take();
                let before = before.map(|text| format!("in run {}: {text}", known.run));
                result.message = result.message.or(before);
                *known = result;
            }
            None => all.push(result),
        }
    }
    all
}

/// The result that a line tells, if it tells one.
fn result_of(line: &[u8]) -> Option<PromiseResult> {
    let event: TestEvent = serde_json::from_slice(line).ok()?;
    if event.kind != "test" {
        return None;
    }
    let outcome = match event.event?.as_str() {
        "ok" => PromiseOutcome::Kept,
        "failed" => PromiseOutcome::Broken,
        "ignored" => PromiseOutcome::NotTried,
        _ => return None,
    };
    let message = event.stdout.filter(|_| outcome == PromiseOutcome::Broken);
    Some(PromiseResult {
        name: event.name?,
        outcome,
        message: message.map(|text| text.chars().take(MESSAGE_CHARACTERS).collect()),
        run: 1,
    })
}

fn last_line(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    text.lines().last().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_promise_that_is_kept_in_a_later_run_says_how_it_was_broken() {
        let result = |name: &str, outcome, message: Option<&str>, run| PromiseResult {
            name: name.to_owned(),
            outcome,
            message: message.map(str::to_owned),
            run,
        };
        use PromiseOutcome::{Broken, Kept};
        let earlier = vec![
            result("a", Kept, None, 1),
            result("b", Broken, Some("late"), 1),
            result("c", Broken, Some("lost"), 1),
        ];
        let latest = vec![
            result("b", Kept, None, 1),
            result("c", Broken, Some("lost again"), 1),
            result("d", Kept, None, 1),
        ];
        let expected = [
            result("a", Kept, None, 1),
            result("b", Kept, Some("in run 1: late"), 2),
            result("c", Broken, Some("lost again"), 2),
            result("d", Kept, None, 2),
        ];
        assert_eq!(over_all_runs(earlier, latest, 2), expected);
    }

    #[test]
    fn results_are_read_from_the_lines_of_the_tests() {
        let result = |line: &str| result_of(line.as_bytes());
        assert_eq!(result("packing the initramfs"), None);
        assert_eq!(
            result(r#"{"type":"suite","event":"started","test_count":2}"#),
            None
        );
        assert_eq!(
            result(r#"{"type":"test","event":"started","name":"a::b"}"#),
            None
        );
        let kept = result(r#"{"type":"test","name":"a::b","event":"ok"}"#).unwrap();
        assert_eq!((kept.outcome, kept.message), (PromiseOutcome::Kept, None));
        let broken = result(r#"{"type":"test","name":"a::b","event":"failed","stdout":"why"}"#);
        let broken = broken.unwrap();
        assert_eq!(broken.outcome, PromiseOutcome::Broken);
        assert_eq!(broken.message.as_deref(), Some("why"));
        let ignored = result(r#"{"type":"test","name":"a::b","event":"ignored"}"#).unwrap();
        assert_eq!(ignored.outcome, PromiseOutcome::NotTried);
    }

    #[test]
    fn the_executable_is_that_of_the_tests() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"serde"},"executable":null}
{"reason":"compiler-artifact","target":{"name":"tidy"},"executable":"/target/tidy-1"}
{"reason":"compiler-artifact","target":{"name":"promises"},"executable":"/target/promises-2"}
{"reason":"build-finished","success":true}"#;
        fs::write(file.path(), messages).unwrap();
        assert_eq!(
            executable(file.path()).unwrap(),
            Path::new("/target/promises-2")
        );
        fs::write(file.path(), "").unwrap();
        assert!(
            executable(file.path())
                .unwrap_err()
                .to_string()
                .contains("promises")
        );
    }
}
