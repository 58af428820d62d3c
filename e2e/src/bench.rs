//! What boot, suspend and resume cost on a real guest, against the ledger of the last accepted state;
//! and what a repeated suspend costs, as a ratio to the machine's own first one.
//!
//! In virtual time it measures twice, in two hosts at once, and shows how two runs of one build agree.
//! On hardware the figures hold on that machine only, so there is no ledger; the ratios hold
//! everywhere.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use cycles::{Clock, median};
use kvm_host::qemu;
use kvm_host::rerun::MEMORY_MIB;
use machine_api::Timing;

use crate::artifacts::GuestImage;
use crate::bench_here::{self, Amount};
use crate::figures::{Figures, FilledFigures, OperationFigures, TOTAL};
use crate::kvm_place::KvmPlace;
use crate::kvm_process::KvmProcess;
use crate::ledger::{Ledger, Versions};
use crate::{measure, output};

/// A repeated suspend of an idle machine must take less than this part of the reference.
const MAX_REPEATED_RATIO: f64 = 0.1;
/// The image must occupy at most this many times the bytes of all pages written.
const MAX_ALLOCATED_RATIO: f64 = 1.2;
/// Medians of two runs of one build agree within this share: totals of suspend and resume, which is a
/// condition with enough cycles,
const TOTALS_AGREE: f64 = 0.01;
const ENOUGH_CYCLES: u32 = 100;
/// and phases of more than a millisecond, which is shown and no condition: where one phase of the
/// guest ends and the next begins is partly chance.
const PHASES_AGREE: f64 = 0.02;
const COMPARED_PHASE_MS: f64 = 1.0;
/// Longest that one process may take, by this machine's clock.
const DEADLINE: Duration = Duration::from_secs(7200);

/// What to measure.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    #[command(flatten)]
    amount: Amount,
    /// The ledger to compare with
    #[arg(long, value_name = "FILE", default_value = "bench/ledger.json")]
    ledger: PathBuf,
    /// Write the figures into the ledger, with the reason for what changed
    #[arg(long, value_name = "REASON")]
    accept: Option<String>,
    /// Folder for logs
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    output: PathBuf,
}

/// Measures and prints; true if the ratios are within their bounds, and nothing is dearer than in the
/// ledger.
///
/// # Errors
/// If the host cannot be started, a machine fails a step, or the ledger cannot be used.
pub async fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let place = KvmPlace::of_this_machine();
    measure::announce(place);
    let clock = place.clock_of_reports();
    let (folder, amount) = (arguments.output.clone(), arguments.amount);
    let measured = tokio::task::spawn_blocking(move || measure_all(place, &folder, amount));
    let figures = measured.await.context("a thread panicked")??;
    let first = figures.first().context("nothing was measured")?;
    print_costs(first, clock);
    let mut holds = first
        .filled
        .as_ref()
        .map_or(Ok(true), |filled| print_ratios(filled, clock))?;
    if let [one, other] = figures.as_slice() {
        let agree = print_agreement(one, other);
        holds &= agree || arguments.amount.cycles < ENOUGH_CYCLES;
    }
    if clock == Clock::Virtual {
        holds &= compare_with_ledger(arguments, &figures)?;
    }
    Ok(holds)
}

/// Measures twice at once in virtual time, where the two do not disturb each other; else once.
fn measure_all(place: KvmPlace, folder: &Path, amount: Amount) -> anyhow::Result<Vec<Figures>> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot create {}", folder.display()))?;
    let folder = folder
        .canonicalize()
        .context("cannot resolve the output folder")?;
    let names: &[&str] = match place.clock_of_reports() {
        Clock::Virtual => &["first", "second"],
        Clock::Real => &["only"],
    };
    let mut running = Vec::new();
    for (number, name) in names.iter().enumerate() {
        let process = KvmProcess {
            place,
            host_memory_mib: MEMORY_MIB,
            name,
            images: &[GuestImage::Default],
            other_images: &[],
            programs: &[],
            folder: &folder,
        };
        // The filled machine shows ratios within one run, for which one run is enough.
        let repeats = if number == 0 { amount.repeats } else { 0 };
        let amount = Amount { repeats, ..amount };
        let started = process.start(|paths| {
            Ok(bench_here::command_line(
                &paths.images,
                &paths.results,
                amount,
            ))
        })?;
        running.push((name, started));
    }
    let mut figures = Vec::new();
    for (name, (process, pieces)) in running {
        // Its figures are in a file; the end of its output is that of the process.
        pieces.iter().for_each(drop);
        process
            .wait(DEADLINE)
            .with_context(|| format!("the {name} run failed"))?;
        figures.push(bench_here::read(&folder.join(name))?);
    }
    Ok(figures)
}

fn print_costs(figures: &Figures, clock: Clock) {
    let unit = clock.unit();
    output::print(&figures.work);
    output::print(&format!("{:32} {:>10} {:>10}", unit, "p50", "mean"));
    for operation in &figures.operations {
        let costs = operation.costs();
        for (phase, _) in &operation.phases {
            let Some(cost) = costs.get(phase) else {
                continue;
            };
            let title = if phase == TOTAL {
                operation.name.clone()
            } else {
                format!("  {phase}")
            };
            output::print(&format!(
                "{title:32} {:>10.3} {:>10.3}",
                cost.p50_ms, cost.mean_ms
            ));
        }
    }
    output::print("");
}

/// Prints how two runs of one build agree; true if the totals of suspend and resume do.
fn print_agreement(one: &Figures, other: &Figures) -> bool {
    output::print("two runs of this build (p50, virtual ms)");
    let mut totals_agree = true;
    for (first, second) in one.operations.iter().zip(&other.operations) {
        for (phase, first_ms, second_ms) in compared(first, second) {
            let bound = if phase == TOTAL {
                TOTALS_AGREE
            } else {
                PHASES_AGREE
            };
            let difference = (second_ms - first_ms) / first_ms;
            let agrees = difference.abs() <= bound;
            // There are few boots.
            totals_agree &= agrees || phase != TOTAL || first.name == "boot";
            let mark = if agrees { "" } else { "  differs" };
            output::print(&format!(
                "{:32} {first_ms:>10.3} {second_ms:>10.3} {:>+7.2} %, at most {:.0} %{mark}",
                format!("{} {phase}", first.name),
                difference * 100.0,
                bound * 100.0
            ));
        }
    }
    output::print("");
    totals_agree
}

/// The phases that are long enough to compare, with both medians.
fn compared(first: &OperationFigures, second: &OperationFigures) -> Vec<(String, f64, f64)> {
    let seconds = second.costs();
    first
        .costs()
        .into_iter()
        .filter(|(_, cost)| cost.p50_ms > COMPARED_PHASE_MS)
        .map(|(phase, cost)| {
            let other = seconds.get(&phase).map_or(0.0, |cost| cost.p50_ms);
            (phase, cost.p50_ms, other)
        })
        .collect()
}

/// Prints the figures of filled memory; true if both ratios are within their bounds.
fn print_ratios(filled: &FilledFigures, clock: Clock) -> anyhow::Result<bool> {
    let unit = clock.unit();
    let FilledFigures {
        first,
        repeated,
        resumes,
        memory_mib,
    } = filled;
    let times: Vec<f64> = repeated.iter().map(|timing| timing.total_ms).collect();
    let repeated_ms = median(&times).context("nothing was repeated")?;
    let written = |timing: &Timing| timing.memory_bytes_written.unwrap_or(0);
    let mib = |bytes: u64| bytes / (1 << 20);
    let repeated_bytes = repeated.iter().map(written).max().unwrap_or(0);
    let resume_ms: Vec<f64> = resumes.iter().map(|timing| timing.total_ms).collect();
    let ratio = repeated_ms / first.total_ms;
    let all_written = written(first) + repeated_bytes;
    let allocated = repeated
        .last()
        .and_then(|timing| timing.image_bytes_allocated)
        .unwrap_or(0);
    // Sizes of real machines are far below 2^53 bytes.
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    let allocated_ratio = allocated as f64 / all_written.max(1) as f64;
    output::print(&format!("a guest of {memory_mib} MiB, its memory filled"));
    output::print(&format!(
        "first suspend                  {:8.0} {unit}, {} MiB written",
        first.total_ms,
        mib(written(first))
    ));
    output::print(&format!(
        "repeated suspend, idle (p50)   {repeated_ms:8.0} {unit}, at most {} MiB written",
        mib(repeated_bytes)
    ));
    if let Some(p50) = median(&resume_ms) {
        output::print(&format!("resume (p50)                   {p50:8.0} {unit}"));
    }
    output::print(&format!(
        "repeated / first               {ratio:8.3}, at most {MAX_REPEATED_RATIO}"
    ));
    output::print(&format!(
        "image on disk / pages written  {allocated_ratio:8.3}, at most {MAX_ALLOCATED_RATIO}"
    ));
    output::print("");
    Ok(ratio < MAX_REPEATED_RATIO && allocated_ratio <= MAX_ALLOCATED_RATIO)
}

/// Compares with the ledger, or writes it; true if nothing is dearer than it allows.
fn compare_with_ledger(arguments: &Arguments, figures: &[Figures]) -> anyhow::Result<bool> {
    let path = &arguments.ledger;
    let mut runs = Vec::new();
    for run in figures {
        runs.push(Ledger::of_figures(
            &run.work,
            versions(run)?,
            &run.operations,
        ));
    }
    let [one, other] = runs.as_slice() else {
        bail!("a ledger needs two runs");
    };
    let operations = figures.iter().map(|run| run.operations.clone());
    let now = operations
        .reduce(together)
        .context("nothing was measured")?;
    let accepted = Ledger::read(path)?;
    if let Some(ledger) = &accepted {
        let comparison = ledger.compare(&one.made_with, &now);
        output::print(&comparison.table());
        for difference in &comparison.other_versions {
            output::print(&format!("not enforced: {difference}"));
        }
        if arguments.accept.is_none() {
            for row in comparison.dearer().filter(|_| comparison.is_binding()) {
                output::print(&format!(
                    "{} {} became dearer; if that is meant, accept it with a reason: \
                     ./just bench --accept REASON",
                    row.operation, row.phase
                ));
            }
            return Ok(comparison.holds());
        }
    }
    let Some(reason) = &arguments.accept else {
        bail!(
            "there is no ledger at {}; write one with --accept REASON",
            path.display()
        );
    };
    one.clone()
        .dearer_of(other)
        .accepted(accepted.as_ref(), reason)
        .write(path)?;
    output::print(&format!("ledger: {}", path.display()));
    Ok(true)
}

/// The measurements of two runs of one build, operation by operation.
fn together(one: Vec<OperationFigures>, other: Vec<OperationFigures>) -> Vec<OperationFigures> {
    let pairs = one.into_iter().zip(&other);
    pairs.map(|(one, other)| one.with_those_of(other)).collect()
}

fn versions(figures: &Figures) -> anyhow::Result<Versions> {
    let detail = |name: &str| {
        let value = figures.host.details.get(name)?;
        Some(value.as_str()?.to_owned())
    };
    Ok(Versions {
        host_kernel: detail("kernel").unwrap_or_default(),
        guest_kernel: figures.guest_kernel.clone(),
        qemu: qemu::version().context("cannot ask QEMU for its version")?,
        rustc: env!("MCTL_RUSTC_VERSION").to_owned(),
    })
}
