//! Machines for runs and benchmarks.

use std::time::Duration;

use anyhow::Context;
use client::Client;
use machine_api::{
    CreateMachine, Guest, Init, Machine, MachineConfig, MachineState, Restart, RestartPolicy,
    VsockOptions,
};

use crate::artifacts::GuestImage;

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
    /// The main process.
    pub command: Vec<String>,
}

/// Creates a machine, and waits until it is started.
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
            exec: spec.command.clone(),
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
