//! Machines for runs and benchmarks: boots one whose main process counts, and puts it through
//! cycles.

use std::time::Duration;

use anyhow::Context;
use client::Client;
use cycles::{Interruption, MachineSubject, Run, RunOptions, run_cycles};
use machine_api::{
    CreateMachine, Guest, Init, Machine, MachineConfig, MachineState, Restart, RestartPolicy,
    VsockOptions,
};

use crate::artifacts::GuestImage;
use crate::counter;
use crate::output::{self, Progress};

/// Longest that a start, a suspend or a resume may take, on an emulated host, too.
pub const STEP_DEADLINE: Duration = Duration::from_secs(120);

/// What a machine is created with.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    pub name: String,
    pub image: GuestImage,
    pub memory_mib: u32,
    pub vcpus: u32,
    pub vsock: Option<VsockOptions>,
}

/// Creates a machine with the counter as its main process, and waits until it is started.
///
/// # Errors
/// If it cannot be created or does not start.
pub async fn boot(client: &Client, spec: &MachineSpec) -> anyhow::Result<Machine> {
    let config = MachineConfig {
        image: spec.image.name().to_owned(),
        guest: Some(Guest {
            cpus: spec.vcpus,
            memory_mb: spec.memory_mib,
            ..Guest::default()
        }),
        init: Some(Init {
            exec: counter::command(),
            ..Init::default()
        }),
        restart: Some(Restart {
            policy: RestartPolicy::No,
            max_retries: None,
        }),
        vsock: spec.vsock.clone(),
        ..MachineConfig::default()
    };
    let request = CreateMachine {
        name: Some(spec.name.clone()),
        config,
        ..CreateMachine::default()
    };
    let machine = client
        .create(&request)
        .await
        .context("cannot create the machine")?;
    let started = client
        .reach(&machine.id, MachineState::Started, STEP_DEADLINE)
        .await;
    started.context("cannot boot the machine")
}

/// Boots a machine, puts it through its cycles, and destroys it. Ctrl-C ends the run after the
/// present cycle.
///
/// # Errors
/// If the machine cannot be booted, observed or destroyed. A failed cycle is no error but the end
/// of the run.
pub async fn run_on_new_machine(
    client: &Client,
    spec: &MachineSpec,
    options: RunOptions,
) -> anyhow::Result<Run> {
    let machine = boot(client, spec).await?;
    let id = machine.id.clone();
    let file = Some(counter::FILE.to_owned());
    let mut subject = MachineSubject::new(client.clone(), machine, file, STEP_DEADLINE);
    subject
        .wait_for_counter()
        .await
        .context("cannot read the counter in the guest")?;
    let interruption = Interruption::by_ctrl_c(|| {
        output::say("interrupted: the report will hold the cycles so far");
    });
    let mut progress = Progress::new(&spec.name, interruption);
    let run = run_cycles(&mut subject, options, &mut progress).await;
    drop(progress);
    client
        .destroy(&id, true)
        .await
        .context("cannot destroy the machine")?;
    Ok(run)
}
