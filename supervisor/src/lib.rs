//! The supervisor: wires configuration, database, machines and API together.
//!
//! The program `mctl-supervisor` only calls [`run`]. It is a library so that fuzz targets reach what reads
//! bytes of others.

#![forbid(unsafe_code)]

mod api;
mod clock;
mod configuration;
mod deadline;
mod disk_usage;
mod duration;
mod error_chain;
mod exhaustion;
mod fail_point;
pub mod fuzzing;
mod guest;
mod ids;
mod images;
mod logs;
mod machine;
mod machine_folder;
mod model;
mod paths;
mod services;
mod store;
mod vmm_process;

use std::fs::File;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use rustix::fs::{FlockOperation, flock};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::configuration::{Arguments, Configuration};
use crate::error_chain::error_chain;
use crate::machine::Registry;
use crate::machine::context::DriverContext;
use crate::paths::create_private_dir;
use crate::store::Store;

/// How long to wait for the lock of the state directory, and the wait between attempts.
const LOCK_LIMIT: Duration = Duration::from_secs(3);
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// Longer than any supervisor runs.
const FOR_GOOD: Duration = Duration::from_secs(10 * 365 * 24 * 3_600);

/// Runs the program with its command line, until it is told to end.
///
/// # Errors
/// What keeps it from serving.
pub fn run() -> anyhow::Result<()> {
    begin_log()?;
    let arguments = Arguments::parse();
    if let Some(name) = arguments.fail_point() {
        fail_point::arm(name);
    }
    let configuration = arguments.resolve()?;
    exhaustion::raise_descriptor_limit();
    // A static binary reads randomness from a file, which stays open after the first use. Later there
    // may be no descriptor for it.
    let _: u64 = rand::RngExt::random(&mut rand::rng());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_keep_alive(FOR_GOOD)
        .build()
        .context("cannot start the runtime")?;
    // One thread for reading files is created now and stays: later the host may be out of threads.
    drop(runtime.spawn_blocking(|| ()));
    runtime.block_on(serve(configuration))
}

/// Logs to stderr what MCTL_LOG selects: a level, or `TARGET=LEVEL` with commas between.
fn begin_log() -> anyhow::Result<()> {
    let selected = std::env::var("MCTL_LOG").unwrap_or_else(|_| "info".to_owned());
    let filter: Targets = selected
        .parse()
        .with_context(|| format!("MCTL_LOG={selected} is not a level or a list of TARGET=LEVEL"))?;
    let stderr = tracing_subscriber::fmt::layer()
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    tracing_subscriber::registry()
        .with(stderr)
        .with(filter)
        .init();
    Ok(())
}

async fn serve(configuration: Configuration) -> anyhow::Result<()> {
    let state_dir = &configuration.state_dir;
    for path in [state_dir.root(), &state_dir.machines()] {
        create_private_dir(path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    // Held until the process ends, so that two supervisors never drive the same machines.
    let _lock = lock(&state_dir.lock()).await?;
    let tls = match &configuration.tls {
        Some((certificate, key)) => Some(Arc::new(api::Tls::load(certificate, key)?)),
        None => None,
    };
    if let Some(tls) = &tls {
        tokio::spawn(reload_on_hangup(tls.clone(), hangups()?));
    }
    let store = Store::open(&state_dir.database())?;
    let known = store.tokens().await?;
    let tokens = api::Tokens::load(configuration.bootstrap_token_file.as_deref(), known)?;
    let context = DriverContext::new(configuration, store).context("cannot watch consoles")?;
    let context = Arc::new(context);
    context.clone().ask_vmm_program();
    let registry = Registry::new(context, services::attach);
    services::reconcile::reconcile(&registry).await?;
    let mut terminated = signal(SignalKind::terminate()).context("cannot await SIGTERM")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("cannot await SIGINT")?;
    let stopped = async {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
        tracing::info!("ending; machines run on");
    };
    api::serve(registry, tokens, tls, stopped).await?;
    Ok(())
}

fn hangups() -> anyhow::Result<Signal> {
    signal(SignalKind::hangup()).context("cannot await SIGHUP")
}

/// Reads certificate and key again whenever SIGHUP comes.
async fn reload_on_hangup(tls: Arc<api::Tls>, mut hangups: Signal) {
    while hangups.recv().await.is_some() {
        match tls.reload() {
            Ok(()) => tracing::info!("certificate and key read again"),
            Err(error) => {
                let error = error_chain(&error);
                tracing::error!(
                    error,
                    "certificate and key could not be read again; the old ones stay"
                );
            }
        }
    }
}

/// Locks the state directory, and waits a little for that: a supervisor that was killed while it
/// launched a VMM leaves a child that holds the lock until it has become that VMM.
async fn lock(path: &Path) -> anyhow::Result<File> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    let deadline = Instant::now() + LOCK_LIMIT;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                sleep(LOCK_PAUSE).await;
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                bail!(
                    "another supervisor uses this state directory ({})",
                    path.display()
                )
            }
            Err(error) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
    }
}
