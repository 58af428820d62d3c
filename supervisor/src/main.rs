//! `mctl-supervisor`: wires configuration, database, machines and API together.

#![forbid(unsafe_code)]

mod checks;
mod clock;
mod configuration;
mod diagnosis;
mod duration;
mod fail_point;
mod guest;
mod http;
mod images;
mod logs;
mod machine;
mod metrics;
mod network;
mod paths;
mod reconcile;
mod store;
mod vmm_process;

use std::fs::File;
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Parser;
use rustix::fs::{FlockOperation, flock};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::configuration::{Arguments, Configuration};
use crate::machine::Host;
use crate::machine::registry::make_directory;
use crate::store::Store;

fn main() -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_env("MCTL_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let arguments = Arguments::parse();
    if let Some(name) = arguments.fail_point() {
        fail_point::arm(name);
    }
    let configuration = arguments.resolve()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(run(configuration))
}

async fn run(configuration: Configuration) -> anyhow::Result<()> {
    let state_dir = &configuration.state_dir;
    for path in [state_dir.root(), &state_dir.machines()] {
        make_directory(path).with_context(|| format!("cannot make {}", path.display()))?;
    }
    // Held until the process ends: two supervisors would drive the same machines.
    let _lock = lock(&state_dir.lock())?;
    let tls = match &configuration.tls {
        Some((certificate, key)) => Some(Arc::new(http::Tls::load(certificate, key)?)),
        None => None,
    };
    if let Some(tls) = &tls {
        tokio::spawn(reload_on_hangup(tls.clone(), hangups()?));
    }
    let store = Store::open(&state_dir.database())?;
    let known = store.tokens().await?;
    let tokens = http::Tokens::load(configuration.bootstrap_token_file.as_deref(), known)?;
    let host = Arc::new(Host::new(configuration, store).context("cannot watch consoles")?);
    let registry = reconcile::reconcile(&host).await?;
    let mut terminated = signal(SignalKind::terminate()).context("cannot await SIGTERM")?;
    let mut interrupted = signal(SignalKind::interrupt()).context("cannot await SIGINT")?;
    let stopped = async {
        tokio::select! {
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
        }
        tracing::info!("ending; machines run on");
    };
    http::serve(registry, tokens, tls, stopped).await?;
    Ok(())
}

fn hangups() -> anyhow::Result<Signal> {
    signal(SignalKind::hangup()).context("cannot await SIGHUP")
}

/// Reads certificate and key again whenever SIGHUP comes.
async fn reload_on_hangup(tls: Arc<http::Tls>, mut hangups: Signal) {
    while hangups.recv().await.is_some() {
        match tls.reload() {
            Ok(()) => tracing::info!("certificate and key read again"),
            Err(error) => {
                let error = machine::readiness::chain(&error);
                tracing::error!(
                    error,
                    "certificate and key could not be read again; the old ones stay"
                );
            }
        }
    }
}

fn lock(path: &Path) -> anyhow::Result<File> {
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            bail!(
                "another supervisor works in this state directory ({})",
                path.display()
            )
        }
        Err(error) => Err(error).with_context(|| format!("cannot lock {}", path.display())),
    }
}
