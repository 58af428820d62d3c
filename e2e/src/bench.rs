//! What a suspend costs on a real guest, as ratios within one run.
//!
//! The reference is the machine's own first suspend with its memory filled, which writes nearly all
//! of it. Absolute times only hold on the host where they were measured; ratios hold on others, too.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::Args;
use client::Client;
use cycles::{median, quantile, recorded_timing};
use machine_api::{ExecRequest, MachineState, Operation, Timing};

use crate::artifacts::GuestImage;
use crate::host::KvmHost;
use crate::machine::{MachineSpec, STEP_DEADLINE, boot};
use crate::output;

/// How much of the guest's memory is filled before the reference suspend.
const FILL_PERCENT: u32 = 80;
/// A repeated suspend of an idle machine must take less than this part of the reference.
const MAX_REPEATED_RATIO: f64 = 0.1;
/// The image must occupy at most this many times the bytes of all pages written.
const MAX_ALLOCATED_RATIO: f64 = 1.2;

/// What to measure.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// Memory of the guest, in MiB
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(256..=4096))]
    memory_mib: u32,
    /// Suspends after the first one
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeats: u32,
    /// Folder for logs
    #[arg(long, value_name = "DIR", default_value = "target/bench")]
    output: PathBuf,
}

/// Measures and prints; true if both ratios are within their bounds.
///
/// # Errors
/// If the host cannot be started, or the machine fails a step.
pub async fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let host = KvmHost::start(&arguments.output, &[GuestImage::Default]).await?;
    let client = host.client();
    let spec = MachineSpec {
        name: "bench".to_owned(),
        image: GuestImage::Default,
        memory_mib: arguments.memory_mib,
        vcpus: 1,
        vsock: None,
    };
    let machine = boot(client, &spec).await?;
    fill(
        client,
        &machine.id,
        arguments.memory_mib * FILL_PERCENT / 100,
    )
    .await?;
    let mut suspends = Vec::new();
    let mut resumes = Vec::new();
    for number in 0..=arguments.repeats {
        output::say(&format!(
            "suspend {} of {}",
            number + 1,
            arguments.repeats + 1
        ));
        suspends.push(step(client, &machine.id, MachineState::Suspended).await?);
        resumes.push(step(client, &machine.id, MachineState::Started).await?);
    }
    client.destroy(&machine.id, true).await?;
    host.stop()?;
    print_and_judge(&suspends, &resumes)
}

/// Fills guest memory with random bytes, which every VMM has to write.
async fn fill(client: &Client, id: &str, mib: u32) -> anyhow::Result<()> {
    output::say(&format!("filling {mib} MiB of the guest's memory"));
    let script = format!(
        "mkdir -p /fill && mount -t tmpfs -o size={mib}m fill /fill && \
         dd if=/dev/urandom of=/fill/bytes bs=1M count={mib} 2>&1; sync; free -m"
    );
    let request = ExecRequest {
        command: vec!["/bin/sh".to_owned(), "-c".to_owned(), script],
        timeout: Some(900),
        ..ExecRequest::default()
    };
    let answer = client
        .exec(id, &request)
        .await
        .context("cannot fill the guest's memory")?;
    ensure!(
        answer.exit_code == 0,
        "filling the guest's memory failed: {}",
        answer.stderr
    );
    Ok(())
}

/// Suspends or resumes until the machine is in the state `wanted`.
async fn step(client: &Client, id: &str, wanted: MachineState) -> anyhow::Result<Timing> {
    let operation = if wanted == MachineState::Suspended {
        client.suspend(id).await?;
        Operation::Suspend
    } else {
        client.start(id).await?;
        Operation::Resume
    };
    let machine = client.reach(id, wanted, STEP_DEADLINE).await?;
    Ok(recorded_timing(client, id, operation, machine.generation, STEP_DEADLINE).await?)
}

/// Prints the figures; true if both ratios are within their bounds.
fn print_and_judge(suspends: &[Timing], resumes: &[Timing]) -> anyhow::Result<bool> {
    let (first, repeated) = suspends.split_first().context("nothing was measured")?;
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
    output::print(&format!(
        "first suspend, memory filled   {:8.0} ms, {} MiB written",
        first.total_ms,
        mib(written(first))
    ));
    output::print(&format!(
        "repeated suspend, idle (p50)   {repeated_ms:8.0} ms, at most {} MiB written",
        mib(repeated_bytes)
    ));
    if let (Some(p50), Some(worst)) = (median(&resume_ms), quantile(&resume_ms, 1.0)) {
        output::print(&format!(
            "resume (p50, max)              {p50:8.0} ms, {worst:.0} ms"
        ));
    }
    output::print(&format!(
        "repeated / first               {ratio:8.3}, at most {MAX_REPEATED_RATIO}"
    ));
    output::print(&format!(
        "image on disk / pages written  {allocated_ratio:8.3}, at most {MAX_ALLOCATED_RATIO}"
    ));
    Ok(ratio < MAX_REPEATED_RATIO && allocated_ratio <= MAX_ALLOCATED_RATIO)
}
