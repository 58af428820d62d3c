//! `mctl events`: what happened to a machine.

use machine_api::MachineEvent;

use super::status::{event_name, events_table};
use crate::error::CommandError;
use crate::machine_ref;
use crate::session::Session;
use crate::span::{at_millisecond, milliseconds};
use crate::wording::event_details;

/// Show what happened to a machine, oldest first
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl events web --follow")]
pub(crate) struct Args {
    /// Id, beginning of an id, or name; may be left out if there is only one machine
    machine: Option<String>,
    /// Go on with new events until the machine is destroyed
    #[arg(long, short)]
    follow: bool,
    /// So many of the newest
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50)]
    limit: u32,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let id = machine_ref::find(session, args.machine.as_deref())
        .await?
        .id;
    if args.follow {
        let mut events = session.client.follow_events(&id, args.limit).await?;
        while let Some(event) = events.next().await? {
            print(session, &event)?;
        }
        return Ok(());
    }
    let mut events = session.client.events(&id, Some(args.limit)).await?;
    events.reverse();
    if session.output.is_json() {
        return Ok(session.output.json(&events)?);
    }
    Ok(session.output.table(&events_table(events.iter()))?)
}

fn print(session: &Session, event: &MachineEvent) -> Result<(), CommandError> {
    if session.output.is_json() {
        return Ok(session.output.json_line(event)?);
    }
    let mut line = format!(
        "{} {} {} by {}",
        at_millisecond(event.timestamp),
        event_name(event),
        event.status,
        event.source
    );
    if let Some(ms) = event.duration_ms {
        line = format!("{line} in {}", milliseconds(ms));
    }
    let details = event_details(event);
    if !details.is_empty() {
        line = format!("{line}: {details}");
    }
    Ok(session.output.line(&session.output.harmless(&line))?)
}
