//! A chain of cycles leaves nothing behind. The main job runs hundreds; this is its short form.

use anyhow::ensure;
use cycles::{LeftoverVsocks, MachineSubject, RunEnd, RunOptions, Silent, run_cycles};
use e2e::counter;

use crate::stage::{DEADLINE, Stage};

pub(crate) async fn twenty_cycles_each_need_one_attempt_and_leave_no_socket(
    stage: &mut Stage,
) -> anyhow::Result<()> {
    let machine = stage.boot_counter().await?;
    let file = Some(counter::FILE.to_owned());
    let mut subject = MachineSubject::new(stage.client.clone(), machine, file, DEADLINE);
    let options = RunOptions {
        cycles: 20,
        most_cycles: 0,
        leftover_vsocks: LeftoverVsocks::Fail,
    };
    let run = run_cycles(&mut subject, options, &mut Silent).await;
    ensure!(run.end == RunEnd::Complete, "{:?}", run.end);
    for cycle in &run.cycles {
        ensure!(
            cycle.attempts() == 1,
            "cycle {} took {:?} ms: {:?}, {:?}",
            cycle.cycle,
            cycle.resume_ms,
            cycle.readiness,
            cycle.resume_phases_ms
        );
    }
    Ok(())
}
