//! `mctl lease`: the right to change a machine, for a while and alone.

use std::time::Duration;

use clap::Subcommand;
use client::ErrorKind;
use machine_api::{Lease, LeaseRequest};

use crate::error::CommandError;
use crate::output::Table;
use crate::session::Session;
use crate::span::{at_second, parse_duration};
use crate::{machine_ref, transition};

/// Take, refresh, show, release and clear the lease on a machine
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The nonce that `acquire` prints goes into --lease or MCTL_LEASE of later calls.

Example:
  export MCTL_LEASE=$(mctl lease acquire web --ttl 5m)")]
pub(crate) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Take the lease and print its nonce
    #[command(after_help = "Example:\n  mctl lease acquire web --ttl 5m --description deploy")]
    Acquire {
        /// Id, beginning of an id, or name
        machine: String,
        /// How long it lasts
        #[arg(long, default_value = "60s", value_parser = parse_duration)]
        ttl: Duration,
        /// What it is for
        #[arg(long)]
        description: Option<String>,
    },
    /// Prolong the lease that you hold; needs --lease or MCTL_LEASE
    #[command(after_help = "Example:\n  mctl lease refresh web --ttl 5m")]
    Refresh {
        /// Id, beginning of an id, or name
        machine: String,
        /// How long it lasts from now on
        #[arg(long, default_value = "60s", value_parser = parse_duration)]
        ttl: Duration,
    },
    /// Show who holds the lease, and until when
    #[command(after_help = "Example:\n  mctl lease view web")]
    View {
        /// Id, beginning of an id, or name
        machine: String,
    },
    /// Give back the lease that you hold; needs --lease or MCTL_LEASE
    #[command(after_help = "Example:\n  mctl lease release web")]
    Release {
        /// Id, beginning of an id, or name
        machine: String,
    },
    /// Take a machine's lease away from whoever holds it
    #[command(after_help = "Example:\n  mctl lease clear web")]
    Clear {
        /// Id, beginning of an id, or name; may be left out if there is only one machine
        #[arg(value_name = "MACHINE")]
        machines: Vec<String>,
    },
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    match args.verb {
        Verb::Acquire {
            machine,
            ttl,
            description,
        } => take(session, &machine, ttl, description).await,
        Verb::Refresh { machine, ttl } => {
            needs_nonce(session)?;
            take(session, &machine, ttl, None).await
        }
        Verb::View { machine } => {
            let id = machine_ref::find(session, Some(&machine)).await?.id;
            show(session, &session.client.lease(&id).await?)
        }
        Verb::Release { machine } => {
            needs_nonce(session)?;
            let id = machine_ref::find(session, Some(&machine)).await?.id;
            Ok(session.client.release_lease(&id).await?)
        }
        Verb::Clear { machines } => clear(session, &machines).await,
    }
}

async fn clear(session: &Session, machines: &[String]) -> Result<(), CommandError> {
    let machines = machine_ref::find_all(session, machines).await?;
    transition::for_each(session, machines, async |machine| {
        let label = transition::label(&machine);
        let lease = match session.client.lease(&machine.id).await {
            Ok(lease) => lease,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                session.output.note(&format!("{label}: not leased"));
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let holder = session.client.clone().with_lease_nonce(Some(lease.nonce));
        holder.release_lease(&machine.id).await?;
        session.output.note(&format!("{label}: lease cleared"));
        Ok(())
    })
    .await
}

async fn take(
    session: &Session,
    machine: &str,
    ttl: Duration,
    description: Option<String>,
) -> Result<(), CommandError> {
    let id = machine_ref::find(session, Some(machine)).await?.id;
    let ttl = Some(u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX));
    let request = LeaseRequest { ttl, description };
    let lease = session.client.take_lease(&id, &request).await?;
    if session.output.is_json() {
        return Ok(session.output.json(&lease)?);
    }
    let until = at_second(lease.expires_at);
    session.output.note(&format!("held until {until}"));
    Ok(session.output.line(&lease.nonce)?)
}

fn show(session: &Session, lease: &Lease) -> Result<(), CommandError> {
    if session.output.is_json() {
        return Ok(session.output.json(lease)?);
    }
    let mut table = Table::fields();
    table.field("owner", lease.owner.as_str());
    table.field("expires", at_second(lease.expires_at));
    table.field("description", lease.description.as_str());
    table.field("version", lease.version.as_str());
    Ok(session.output.table(&table)?)
}

fn needs_nonce(session: &Session) -> Result<(), CommandError> {
    if session.holds_lease {
        Ok(())
    } else {
        Err(CommandError::NoNonce)
    }
}
