//! `mctl events`: what happened to a machine.

use std::collections::HashSet;
use std::time::Duration;

use machine_api::MachineEvent;

use super::status::{event_name, events_table};
use crate::error::CommandError;
use crate::machine_ref;
use crate::session::Session;
use crate::span::{at_millisecond, milliseconds};
use crate::wording::event_details;

/// Time between looks for new events; they are stored, so none is missed in between.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Events looked through at each look.
const NEWEST: u32 = 200;

/// Show what happened to a machine, oldest first
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl events web --follow")]
pub(crate) struct Args {
    /// Id, beginning of an id, or name; may be left out if there is only one machine
    machine: Option<String>,
    /// Go on with new events
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
    let mut events = session.client.events(&id, Some(args.limit)).await?;
    events.reverse();
    if !args.follow {
        if session.output.is_json() {
            return Ok(session.output.json(&events)?);
        }
        return Ok(session.output.table(&events_table(events.iter()))?);
    }
    let mut shown = HashSet::new();
    loop {
        for event in &events {
            if !shown.contains(&event.id) {
                print(session, event)?;
            }
        }
        // Only what is looked at next can come again.
        shown = events.into_iter().map(|event| event.id).collect();
        tokio::time::sleep(LOOK_AGAIN).await;
        events = session
            .client
            .events(&id, Some(NEWEST.max(args.limit)))
            .await?;
        events.reverse();
    }
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
