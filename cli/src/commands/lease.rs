//! `mctl lease`: the exclusive right to change a machine, for a limited time.

use std::time::Duration;

use clap::Subcommand;
use client::ErrorKind;
use machine_api::{Lease, LeaseRequest};

use crate::arguments::{MachinesArg, RequiredMachineArg};
use crate::each_machine::for_each;
use crate::error::CommandError;
use crate::output::Table;
use crate::parse;
use crate::session::Session;
use crate::units::rfc3339_of_s;
use crate::wording::label;

/// Take, refresh, show and release the lease on a machine
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Give the nonce that `acquire` prints to later calls as --lease or MCTL_LEASE.

Example:
  export MCTL_LEASE=$(mctl lease acquire web --ttl 5m)")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Take the lease and print its nonce
    #[command(after_help = "Example:\n  mctl lease acquire web --ttl 5m --description deploy")]
    Acquire {
        #[command(flatten)]
        machine: RequiredMachineArg,
        /// How long the lease lasts
        #[arg(long, default_value = "60s", value_parser = parse::duration)]
        ttl: Duration,
        /// Purpose of the lease
        #[arg(long)]
        description: Option<String>,
    },
    /// Extend the lease that you hold; needs --lease or MCTL_LEASE
    #[command(after_help = "Example:\n  mctl lease refresh web --ttl 5m")]
    Refresh {
        #[command(flatten)]
        machine: RequiredMachineArg,
        /// How long the lease lasts from now on
        #[arg(long, default_value = "60s", value_parser = parse::duration)]
        ttl: Duration,
    },
    /// Show who holds the lease and when it ends
    #[command(after_help = "Example:\n  mctl lease view web")]
    View {
        #[command(flatten)]
        machine: RequiredMachineArg,
    },
    /// Release the lease that you hold; needs --lease or MCTL_LEASE
    #[command(after_help = "Example:\n  mctl lease release web")]
    Release {
        #[command(flatten)]
        machine: RequiredMachineArg,
    },
    /// Release the leases on machines, whoever holds them
    #[command(after_help = "Example:\n  mctl lease clear web")]
    Clear {
        #[command(flatten)]
        machines: MachinesArg,
    },
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    match args.action {
        Action::Acquire {
            machine,
            ttl,
            description,
        } => take(session, &machine, ttl, description).await,
        Action::Refresh { machine, ttl } => {
            require_nonce(session)?;
            take(session, &machine, ttl, None).await
        }
        Action::View { machine } => {
            let id = machine.find(session).await?.id;
            show(session, &session.client.lease(&id).await?)
        }
        Action::Release { machine } => {
            require_nonce(session)?;
            let id = machine.find(session).await?.id;
            Ok(session.client.release_lease(&id).await?)
        }
        Action::Clear { machines } => clear(session, &machines).await,
    }
}

async fn clear(session: &Session, machines: &MachinesArg) -> Result<(), CommandError> {
    let machines = machines.find(session).await?;
    for_each(session, machines, async |machine| {
        let label = label(&machine);
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
    machine: &RequiredMachineArg,
    ttl: Duration,
    description: Option<String>,
) -> Result<(), CommandError> {
    let id = machine.find(session).await?.id;
    let ttl = Some(u32::try_from(ttl.as_secs()).unwrap_or(u32::MAX));
    let request = LeaseRequest { ttl, description };
    let lease = session.client.take_lease(&id, &request).await?;
    if session.output.is_json() {
        return Ok(session.output.json(&lease)?);
    }
    let until = rfc3339_of_s(lease.expires_at);
    session
        .output
        .note(&format!("the lease lasts until {until}"));
    Ok(session.output.line(&lease.nonce)?)
}

fn show(session: &Session, lease: &Lease) -> Result<(), CommandError> {
    if session.output.is_json() {
        return Ok(session.output.json(lease)?);
    }
    let mut table = Table::fields();
    table.field("owner", lease.owner.as_str());
    table.field("expires", rfc3339_of_s(lease.expires_at));
    table.field("description", lease.description.as_str());
    table.field("version", lease.version.as_str());
    Ok(session.output.table(&table)?)
}

fn require_nonce(session: &Session) -> Result<(), CommandError> {
    if session.holds_lease {
        Ok(())
    } else {
        Err(CommandError::NoNonce)
    }
}
