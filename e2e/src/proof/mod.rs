//! The proof: the main job and every test on real guests, on each kind of KVM that this machine can
//! offer. Its results are one page, made to be sent to others.

mod earlier;
mod kinds;
mod promises;
mod redact;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::{Context, anyhow, ensure};
use clap::Args;
use cycles::{
    Interruption, Outcome, PromiseOutcome, PromiseResult, Proof, ProofPart, Report, proof_page,
};
use kvm_host::{probe, qemu};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::artifacts::{self, GuestImage};
use crate::ending::Ending;
use crate::kvm_place::{KvmArguments, KvmPlace};
use crate::output::{self, Bars};
use crate::work::{Vmm, Work};
use crate::{measure, report_files};
use kinds::{KINDS, Kind};

/// The name of the files, without ending.
const STEM: &str = "proof";

/// What to prove.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Exit codes: 0 the proof holds, 1 it does not, 2 the command line is not valid, 3 some part is
undecided and none is refuted.")]
pub struct Arguments {
    /// How many cycles on each kind of KVM
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..=i64::from(cycles::MAX_CYCLES)))]
    cycles: u32,
    /// To how many cycles a run goes on while it is undecided
    #[arg(long, value_name = "CYCLES", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..=i64::from(cycles::MAX_CYCLES)))]
    most_cycles: u32,
    /// Only parts whose name contains this, such as "intel"
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Only tests on real guests whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    promises: String,
    /// Keep the parts of an earlier proof in the output folder that hold, of the same programs and options
    #[arg(long = "continue")]
    continues: bool,
    /// What `cargo test --test promises --no-run --message-format json` writes
    #[arg(long, value_name = "FILE")]
    tests: PathBuf,
    /// Folder for proof.html, proof.json, and a folder with reports and logs for each part
    #[arg(long, value_name = "DIR", default_value = "target/proof")]
    output: PathBuf,
}

/// Runs all parts. What a part has measured is kept, whatever becomes of the others.
///
/// # Errors
/// If the tests cannot be found, or the results cannot be written.
pub async fn run(arguments: &Arguments) -> anyhow::Result<Ending> {
    let kinds: Vec<Kind> = KINDS
        .into_iter()
        .filter(|kind| kind.name.contains(&arguments.only))
        .collect();
    ensure!(
        !kinds.is_empty(),
        "no part's name contains {:?}",
        arguments.only
    );
    fs::create_dir_all(&arguments.output)
        .with_context(|| format!("cannot create {}", arguments.output.display()))?;
    let task = Arc::new(PartTask {
        tests: promises::executable(&arguments.tests)?,
        arguments: arguments.clone(),
        processors: Processors::of_this_machine(),
        interrupted: AtomicBool::new(false),
        bars: Bars::new(),
    });
    let interrupted = Arc::clone(&task);
    let _interruption = Interruption::by_ctrl_c(move || {
        interrupted.interrupted.store(true, Ordering::SeqCst);
    });
    let work = work(&task)?;
    let earlier = match arguments.continues {
        true => earlier::read(&arguments.output.join(format!("{STEM}.json")), &work)?,
        false => None,
    };
    let mut proof = Proof {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        work,
        started_at: report_files::now(),
        machine: machine(),
        parts: Vec::new(),
    };
    let mut running = JoinSet::new();
    for (number, kind) in kinds.into_iter().enumerate() {
        let mut part = ProofPart {
            name: kind.name.to_owned(),
            kvm: kind.in_words(),
            left_out: None,
            report: None,
            promises: Vec::new(),
            errors: Vec::new(),
            seconds: 0,
            runs: 1,
        };
        earlier::carry_over(earlier.as_ref(), &mut part);
        match kind.place() {
            Ok(_) if part.holds() => output::say(&format!("{}: holds already", kind.name)),
            Ok(place) => {
                let task = Arc::clone(&task);
                let part = part.clone();
                running.spawn(async move { (number, task.run(kind, place, part).await) });
            }
            Err(error) => {
                output::say(&format!("{}: left out: {error:#}", kind.name));
                part.left_out = Some(format!("{error:#}"));
            }
        }
        proof.parts.push(part);
    }
    while let Some(ended) = running.join_next().await {
        let (number, part) = ended.context("a task panicked")?;
        proof.parts[number] = part;
        write(&arguments.output, &proof)?;
    }
    let page = write(&arguments.output, &proof)?;
    for part in &proof.parts {
        output::print(&summary(part));
    }
    output::print(&format!(
        "page, made to be sent to others: {}",
        page.display()
    ));
    Ok(ending(&proof))
}

/// What the proof is of: programs, and how much is asked of them.
fn work(task: &PartTask) -> anyhow::Result<String> {
    let names = [
        "guest-init",
        "guest-init-leaky",
        "mctl",
        "mctl-e2e",
        "mctl-supervisor",
        "mctl-vmm",
    ];
    let mut programs = vec![task.tests.clone()];
    for name in names {
        programs.push(artifacts::binary(name)?);
    }
    let Arguments {
        cycles,
        most_cycles,
        promises,
        ..
    } = &task.arguments;
    let digest = earlier::digest_of(&programs)?;
    Ok(format!(
        "{digest} {cycles} to {most_cycles} cycles, promises {promises:?}"
    ))
}

fn ending(proof: &Proof) -> Ending {
    let tried = proof.parts.iter().filter(|part| part.left_out.is_none());
    let outcomes: Vec<_> = tried.map(ProofPart::outcome).collect();
    if proof.holds() {
        Ending::Shown
    } else if !outcomes.is_empty()
        && outcomes
            .iter()
            .all(|outcome| matches!(outcome, Some(Outcome::Flat | Outcome::Undecided)))
    {
        Ending::Undecided
    } else {
        Ending::NotShown
    }
}

fn summary(part: &ProofPart) -> String {
    use cycles::PromiseOutcome::{Broken, Kept};
    let result = match (&part.left_out, part.holds()) {
        (Some(reason), _) => return format!("{}: left out: {reason}", part.name),
        (None, true) => "holds",
        (None, false) => "does not hold",
    };
    let verdict = part.report.as_ref().map_or_else(
        || "no cycles".to_owned(),
        |report| {
            let outcome = report.flatness.outcome.name();
            format!("{outcome} after {} cycles", report.cycles.len())
        },
    );
    let late = part.promises.iter();
    let late = late.filter(|one| one.outcome == Kept && one.message.is_some());
    let late = match late.count() {
        0 => String::new(),
        late => format!(" ({late} of them broken before)"),
    };
    let mut text = format!(
        "{} ({}): {result}: {verdict}, {} promises kept{late}, {} broken, in {} min",
        part.name,
        part.kvm,
        part.count(Kept),
        part.count(Broken),
        part.seconds.div_ceil(60)
    );
    for error in &part.errors {
        text.push_str("\n  ");
        text.push_str(error);
    }
    text
}

/// Writes both files without what is private, and returns the page's path.
fn write(folder: &Path, proof: &Proof) -> anyhow::Result<PathBuf> {
    let proof = redact::redacted(proof)?;
    let json = serde_json::to_string_pretty(&proof).context("cannot write the proof as JSON")?;
    let page = folder.join(format!("{STEM}.html"));
    for (path, text) in [
        (folder.join(format!("{STEM}.json")), json + "\n"),
        (page.clone(), proof_page(&proof)),
    ] {
        let temporary = path.with_extension("new");
        fs::write(&temporary, text)
            .and_then(|()| fs::rename(&temporary, &path))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(page)
}

/// What others must know about this machine to make something of the figures, and nothing that names
/// it.
fn machine() -> BTreeMap<String, String> {
    let field = |path: &str, name: &str| {
        let text = fs::read_to_string(path).ok()?;
        text.lines().find_map(|line| {
            let (key, value) = line.split_once([':', '='])?;
            (key.trim() == name).then(|| value.trim().trim_matches('"').to_owned())
        })
    };
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").ok();
    let processors = std::thread::available_parallelism().ok();
    let facts = [
        ("processor", field("/proc/cpuinfo", "model name")),
        ("processors", processors.map(|number| number.to_string())),
        ("memory", field("/proc/meminfo", "MemTotal")),
        ("kernel", kernel.map(|text| text.trim().to_owned())),
        ("system", field("/etc/os-release", "PRETTY_NAME")),
        ("kvm", Some(probe::detect().to_string())),
        ("qemu", qemu::version().ok()),
    ];
    facts
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), value?)))
        .collect()
}

/// The processors of this machine, which parts share. What is measured in real time has all of them
/// for itself.
#[derive(Debug)]
struct Processors {
    free: Semaphore,
    all: u32,
}

impl Processors {
    fn of_this_machine() -> Self {
        let all = std::thread::available_parallelism().map_or(1, usize::from);
        let all = u32::try_from(all).unwrap_or(1);
        Self {
            free: Semaphore::new(all as usize),
            all,
        }
    }

    /// How many a step needs that runs so many hosts at once.
    fn needed(&self, place: KvmPlace, hosts: usize) -> u32 {
        match place.clock() {
            kvm_host::clock::Clock::Real => self.all,
            kvm_host::clock::Clock::Virtual => u32::try_from(hosts).unwrap_or(1).min(self.all),
        }
    }
}

/// What the tasks of all parts share.
#[derive(Debug)]
struct PartTask {
    tests: PathBuf,
    arguments: Arguments,
    processors: Processors,
    interrupted: AtomicBool,
    bars: Bars,
}

impl PartTask {
    async fn run(self: Arc<Self>, kind: Kind, place: KvmPlace, mut part: ProofPart) -> ProofPart {
        let folder = self.arguments.output.join(kind.name);
        if part.report.is_none() {
            match self.cycles(kind, place, &folder).await {
                Ok((report, seconds)) => {
                    part.report = Some(report);
                    part.seconds += seconds;
                }
                Err(error) => part.errors.push(format!("cycles: {error:#}")),
            }
        }
        let kept = part.promises.iter();
        let kept = kept.filter(|one| one.outcome == PromiseOutcome::Kept);
        let kept = kept.map(|one| one.name.clone()).collect();
        let (results, seconds, ended) = self.promises(kind, place, &folder, kept).await;
        part.promises = promises::over_all_runs(part.promises, results, part.runs);
        part.seconds += seconds;
        if let Err(error) = ended {
            part.errors.push(format!("promises: {error:#}"));
        }
        part
    }

    async fn cycles(
        &self,
        kind: Kind,
        place: KvmPlace,
        folder: &Path,
    ) -> anyhow::Result<(Report, u64)> {
        let needed = self.processors.needed(place, 1);
        let _processors = self.processors.free.acquire_many(needed).await?;
        self.check_not_interrupted()?;
        let (started_at, begin) = (report_files::now(), Instant::now());
        let work = Work {
            name: kind.name.to_owned(),
            vmm: Vmm::Mctl,
            cycles: self.arguments.cycles,
            most_cycles: self.arguments.most_cycles,
            memory_mib: 256,
            vcpus: 1,
            guest: GuestImage::Default,
            expects_leaks: false,
            port_policy: None,
            eviction: None,
            monitor_first: false,
        };
        let collected = measure::run(place, folder, work, &self.bars).await?;
        let setting = measure::setting(place, collected.host, &started_at);
        let mut report = Report::of_run(setting, collected.run);
        report.require_first_attempts();
        report_files::write(folder, "report", &report)?;
        Ok((report, begin.elapsed().as_secs()))
    }

    async fn promises(
        &self,
        kind: Kind,
        place: KvmPlace,
        folder: &Path,
        except: Vec<String>,
    ) -> (Vec<PromiseResult>, u64, anyhow::Result<()>) {
        let needed = self.processors.needed(place, place.runs_at_once());
        let Ok(_processors) = self.processors.free.acquire_many(needed).await else {
            return (Vec::new(), 0, Err(anyhow!("no processors")));
        };
        if let Err(interrupted) = self.check_not_interrupted() {
            return (Vec::new(), 0, Err(interrupted));
        }
        let begin = Instant::now();
        let run = promises::Run {
            executable: self.tests.clone(),
            only: self.arguments.promises.clone(),
            except,
            kvm: KvmArguments {
                kvm: Some(kind.choice),
                host_cpus: kind.processors,
            },
            log: folder.join("promises.log"),
        };
        let name = kind.name;
        let ran = tokio::task::spawn_blocking(move || {
            let mut results = Vec::new();
            let ended = run.run(&mut results, |done, result| {
                output::say(&format!("{name}: promise {done}: {}", result.name));
            });
            (results, ended)
        });
        let panicked = |_| (Vec::new(), Err(anyhow!("a thread panicked")));
        let (results, ended) = ran.await.unwrap_or_else(panicked);
        (results, begin.elapsed().as_secs(), ended)
    }

    fn check_not_interrupted(&self) -> anyhow::Result<()> {
        ensure!(!self.interrupted.load(Ordering::SeqCst), "interrupted");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(name: &str) -> ProofPart {
        ProofPart {
            name: name.to_owned(),
            kvm: String::new(),
            left_out: None,
            report: None,
            promises: Vec::new(),
            errors: Vec::new(),
            seconds: 0,
            runs: 1,
        }
    }

    fn proof(parts: Vec<ProofPart>) -> Proof {
        Proof {
            version: String::new(),
            work: String::new(),
            started_at: String::new(),
            machine: machine(),
            parts,
        }
    }

    #[test]
    fn a_proof_of_nothing_shows_nothing() {
        assert_eq!(ending(&proof(Vec::new())), Ending::NotShown);
        let left_out = ProofPart {
            left_out: Some("no Bochs".to_owned()),
            ..part("intel")
        };
        assert_eq!(ending(&proof(vec![left_out])), Ending::NotShown);
        assert_eq!(ending(&proof(vec![part("amd")])), Ending::NotShown);
    }

    #[test]
    fn the_machine_is_described_and_not_named() {
        let facts = machine();
        assert!(
            facts.contains_key("processor") && facts.contains_key("kvm"),
            "{facts:?}"
        );
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        assert!(
            !facts.values().any(|value| value.contains(host.trim())),
            "{facts:?}"
        );
    }
}
