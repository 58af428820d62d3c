//! `mctl events`: the events of a machine.

use machine_api::MachineEvent;

use crate::arguments::MachineArg;
use crate::error::CommandError;
use crate::session::Session;
use crate::units::{milliseconds, rfc3339_of_ms};
use crate::wording::{event_details, event_name, events_table};

/// Show the events of a machine, oldest first
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl events web --follow")]
pub(crate) struct Args {
    #[command(flatten)]
    machine: MachineArg,
    /// Print new events, too, until the machine is destroyed
    #[arg(long, short)]
    follow: bool,
    /// Number of past events to show
    #[arg(long, short = 'n', value_name = "N", default_value_t = 50)]
    limit: u32,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let id = args.machine.find(session).await?.id;
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
        rfc3339_of_ms(event.timestamp),
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
