//! What saving and opening images costs, as figures and as ratios within one run.
//!
//! Acts as the guest by writing to the mapped memory; no KVM. Run with
//! `cargo bench -p vmm --bench image`; `IMAGE_BENCH_DIR` chooses the disk.

use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmm::image::{CpuIdentity, Expectation, OpenImage, SaveRequest, open, save};
use vmm::memory::MachineMemory;
use vmm::page::{PAGE_BYTES, PAGE_LEN};
use vmm_control::SuspendFigures;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

const LARGE_MIB: u32 = 1024;
const SMALL_MIB: u32 = 256;
/// What an idle guest changes between two suspends: 8 MiB, in scattered pages.
const FEW_PAGES: u64 = 2048;
const ROUNDS: usize = 5;

/// A figure next to the bound that it must keep.
struct Verdict {
    what: &'static str,
    ratio: f64,
    at_most: f64,
}

#[expect(clippy::print_stdout, reason = "its output is what a benchmark is for")]
fn main() -> ExitCode {
    match run() {
        Ok(verdicts) => {
            println!();
            let mut code = ExitCode::SUCCESS;
            for Verdict {
                what,
                ratio,
                at_most,
            } in verdicts
            {
                let kept = ratio <= at_most;
                println!(
                    "{} {what}: {ratio:.3} (at most {at_most})",
                    if kept { "ok  " } else { "MISS" }
                );
                if !kept {
                    code = ExitCode::FAILURE;
                }
            }
            code
        }
        Err(error) => {
            println!("the benchmark could not run: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<Vec<Verdict>> {
    let parent =
        std::env::var("IMAGE_BENCH_DIR").unwrap_or_else(|_| env!("CARGO_TARGET_TMPDIR").to_owned());
    let mut verdicts = large_machine(Path::new(&parent))?;
    verdicts.extend(small_machine(Path::new(&parent))?);
    Ok(verdicts)
}

#[expect(clippy::print_stdout, reason = "its output is what a benchmark is for")]
fn large_machine(parent: &Path) -> Outcome<Vec<Verdict>> {
    let directory = tempfile::tempdir_in(parent)?;
    let pages = u64::from(LARGE_MIB) << 8;

    let memory = MachineMemory::anonymous(LARGE_MIB)?;
    touch(&memory, 0..pages, 1)?;
    let (full, figures) = timed_save(directory.path(), &memory, 1)?;
    report("1 GiB, all pages written, first suspend", full, &figures);
    drop(memory);

    let mut few = Vec::new();
    let mut figures = None;
    for round in 0..ROUNDS as u64 {
        let opened = open_image(directory.path())?;
        let memory = opened.map()?;
        opened.consume()?;
        drop(opened);
        touch(
            &memory,
            (0..pages).step_by((pages / FEW_PAGES) as usize),
            round + 2,
        )?;
        let (duration, last) = timed_save(directory.path(), &memory, round + 2)?;
        few.push(duration);
        figures = Some(last);
    }
    let few = median(few);
    let figures = figures.ok_or("no round was run")?;
    report(
        "1 GiB, 8 MiB changed in 2048 places, later suspends (median)",
        few,
        &figures,
    );

    let memory = open_image(directory.path())?.map()?;
    touch(
        &memory,
        (0..pages).step_by((pages / FEW_PAGES) as usize),
        99,
    )?;
    let started = Instant::now();
    let (private, source) = memory.private_pages()?;
    let scan = started.elapsed();
    println!(
        "scan of 1 GiB for {} changed pages by {}: {scan:.1?}",
        private.count(),
        source.name()
    );

    let touched = pages * PAGE_BYTES;
    Ok(vec![
        Verdict {
            what: "later suspend to full write",
            ratio: ratio(few, full),
            at_most: 0.1,
        },
        Verdict {
            what: "image on disk to pages touched (1 GiB)",
            ratio: figures.image_bytes_allocated as f64 / touched as f64,
            at_most: 1.2,
        },
    ])
}

#[expect(clippy::print_stdout, reason = "its output is what a benchmark is for")]
fn small_machine(parent: &Path) -> Outcome<Vec<Verdict>> {
    let directory = tempfile::tempdir_in(parent)?;
    let pages = u64::from(SMALL_MIB) << 8;
    let memory = MachineMemory::anonymous(SMALL_MIB)?;
    // A third of memory, in scattered pieces, as a booted Linux leaves it.
    let touched: Vec<u64> = (0..pages).filter(|page| page / 37 % 3 == 0).collect();
    touch(&memory, touched.iter().copied(), 1)?;
    let (duration, figures) = timed_save(directory.path(), &memory, 1)?;
    report(
        "256 MiB, a third of it written, first suspend",
        duration,
        &figures,
    );
    drop(memory);

    let (mut opens, mut maps) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        let started = Instant::now();
        let opened = open_image(directory.path())?;
        opens.push(started.elapsed());
        let started = Instant::now();
        let memory = opened.map()?;
        maps.push(started.elapsed());
        drop((opened, memory));
    }
    let (opening, mapping) = (median(opens), median(maps));
    println!(
        "256 MiB, warm cache: open and check {opening:.1?}, map {mapping:.1?} (medians of 100)"
    );

    let opened = open_image(directory.path())?;
    let verified = opened.verify_full()?;
    println!(
        "256 MiB, warm cache: verify all of memory {:.1?}",
        verified.duration
    );

    let touched = touched.len() as u64 * PAGE_BYTES;
    Ok(vec![
        Verdict {
            what: "open, check and map 256 MiB to 1 ms",
            ratio: ratio(opening + mapping, Duration::from_millis(1)),
            at_most: 0.5,
        },
        Verdict {
            what: "image on disk to pages touched (256 MiB)",
            ratio: figures.image_bytes_allocated as f64 / touched as f64,
            at_most: 1.2,
        },
    ])
}

fn touch(memory: &MachineMemory, pages: impl Iterator<Item = u64>, mark: u64) -> Outcome<()> {
    let mut bytes = [0x5a; PAGE_LEN];
    for page in pages {
        bytes[..8].copy_from_slice(&(page ^ (mark << 40)).to_le_bytes());
        memory
            .guest
            .write_slice(&bytes, GuestAddress(page * PAGE_BYTES))?;
    }
    Ok(())
}

fn timed_save(
    directory: &Path,
    memory: &MachineMemory,
    generation: u64,
) -> Outcome<(Duration, SuspendFigures)> {
    let started = Instant::now();
    let figures = save(&SaveRequest {
        directory,
        machine_id: "m-bench",
        generation,
        machine: &serde_json::Value::Null,
        cpu: &cpu(),
        state: &[7; 64 << 10],
        disks: &[],
        host_tsc_khz: None,
        memory,
        cancel: &AtomicBool::new(false),
    })?;
    Ok((started.elapsed(), figures))
}

fn open_image(directory: &Path) -> Outcome<OpenImage> {
    let expect = Expectation {
        machine_id: "m-bench",
        generation: None,
        cpu: &cpu(),
    };
    Ok(open(directory, &expect)?)
}

fn cpu() -> CpuIdentity {
    CpuIdentity {
        vendor: "AuthenticAMD".to_owned(),
        family: 25,
        model: 17,
        stepping: 1,
        feature_digest: "bench".to_owned(),
    }
}

#[expect(clippy::print_stdout, reason = "its output is what a benchmark is for")]
fn report(what: &str, duration: Duration, figures: &SuspendFigures) {
    println!("{what}: {duration:.1?}");
    for phase in &figures.phases {
        let ms = (phase.end_ns - phase.start_ns) as f64 / 1e6;
        println!("    {:<13} {ms:>9.2} ms", phase.name);
    }
    println!(
        "    {} pages changed ({}), {} KiB of memory written, {} KiB on disk",
        figures.pages_changed,
        figures.dirty_source,
        figures.memory_bytes_written >> 10,
        figures.image_bytes_allocated >> 10,
    );
}

fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort_unstable();
    durations
        .get(durations.len() / 2)
        .copied()
        .unwrap_or_default()
}

fn ratio(part: Duration, whole: Duration) -> f64 {
    part.as_secs_f64() / whole.as_secs_f64()
}
