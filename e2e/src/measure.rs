//! Runs chains of cycles where KVM runs Linux guests, several at once where they cannot disturb each
//! other, and shows how they go.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use cycles::{Host, Interruption, RunEnd, Setting};
use tokio::task::JoinSet;

use crate::kvm_place::KvmPlace;
use crate::kvm_process::{KvmProcess, lines};
use crate::output::{self, Bars};
use crate::run_event::{CollectedRun, Collector};
use crate::run_here;
use crate::work::{Vmm, Work};

/// Longest that one cycle may take on average, by this machine's clock. A cycle takes about a second
/// on an idle machine.
const CYCLE_ALLOWANCE: Duration = Duration::from_secs(30);
/// Longest that the rest of a run may take.
const RUN_ALLOWANCE: Duration = Duration::from_secs(300);

/// Tells on which kind of KVM runs take place, and by which clock.
pub fn announce(place: KvmPlace) {
    output::say(&place.sentence());
    let clock = place.clock_of_reports();
    output::say(&format!("latencies are measured in {}", clock.in_words()));
}

/// The setting of a run that began at `started_at`, on `host` if it described itself.
pub fn setting(place: KvmPlace, host: Option<Host>, started_at: &str) -> Setting {
    Setting {
        host: host.unwrap_or_else(|| place.undescribed_host()),
        clock: place.clock_of_reports(),
        started_at: started_at.to_owned(),
    }
}

/// Runs one chain of cycles. Ctrl-C ends it after the present cycle.
///
/// # Errors
/// If the host or the machine cannot be started. A failed cycle is no error but the end of the run.
pub async fn run(
    place: KvmPlace,
    folder: &Path,
    work: Work,
    bars: &Bars,
) -> anyhow::Result<CollectedRun> {
    let folder = folder.to_owned();
    let mut progress = bars.progress(&work.name);
    let peers: Vec<PathBuf> = match &work.vmm {
        Vmm::Mctl => Vec::new(),
        Vmm::Peer { binary, .. } => vec![binary.clone()],
    };
    let process = KvmProcess {
        place,
        host_memory_mib: place.memory_for(work.memory_mib),
        name: &work.name,
        images: &[work.guest],
        other_images: &[],
        programs: &peers,
        folder: &folder,
    };
    let (process, pieces) = process.start(|paths| {
        let mut work = work.clone();
        if let (Vmm::Peer { binary, .. }, Some(inside)) = (&mut work.vmm, paths.programs.first()) {
            binary.clone_from(inside);
        }
        run_here::command_line(&paths.images, &work)
    })?;
    let interrupt = process.interrupter();
    let title = work.name.clone();
    let _interruption = Interruption::by_ctrl_c(move || {
        output::say(&format!(
            "{title}: interrupted, the report will hold the cycles so far"
        ));
        interrupt();
    });
    let deadline = RUN_ALLOWANCE + CYCLE_ALLOWANCE * work.cycles.max(work.most_cycles);
    let collecting = tokio::task::spawn_blocking(move || {
        let mut collector = Collector::default();
        let collected = collector.collect(lines(pieces), &mut progress);
        (collector, collected)
    });
    let waiting = tokio::task::spawn_blocking(move || process.wait(deadline));
    let ended = waiting.await.context("a thread panicked")?;
    let (collector, collected) = collecting.await.context("a thread panicked")?;
    collector.finish(collected.and(ended))
}

/// Runs several chains, as many at a time as the place allows. `done` gets each result with its number as soon
/// as it is there. After an error of `done` or Ctrl-C no further run is started, and those that go on
/// are waited for.
///
/// # Errors
/// The first error of `done`.
pub async fn run_all(
    place: KvmPlace,
    folder: &Path,
    works: Vec<Work>,
    mut done: impl FnMut(usize, anyhow::Result<CollectedRun>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let bars = Bars::new();
    let mut waiting = works.into_iter().enumerate();
    let mut running = JoinSet::new();
    let mut outcome = Ok(());
    let mut go_on = true;
    loop {
        while go_on && running.len() < place.runs_at_once() {
            let Some((number, work)) = waiting.next() else {
                break;
            };
            let (folder, bars) = (folder.to_owned(), bars.clone());
            running.spawn(async move {
                let name = work.name.clone();
                let result = run(place, &folder, work, &bars).await;
                (number, result.with_context(|| format!("cannot run {name}")))
            });
        }
        let Some(ended) = running.join_next().await else {
            return outcome;
        };
        let (number, result) = ended.context("a task panicked")?;
        // Ctrl-C is for all of them.
        go_on &= !result
            .as_ref()
            .is_ok_and(|collected| collected.run.end == RunEnd::Interrupted);
        if let Err(error) = done(number, result) {
            go_on = false;
            outcome = outcome.and(Err(error));
        }
    }
}
