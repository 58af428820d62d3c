//! `mctl doctor vsock`: whether a machine leaks vsock connections, what that costs, what to do.

use machine_api::{Verdict, VsockView};

use crate::error::CommandError;
use crate::machine_ref;
use crate::output::{Cell, Style, Table};
use crate::readiness::readiness_line;
use crate::session::Session;
use crate::span::milliseconds;

/// Diagnose the vsock connections of a machine
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The exit code is 8 if the machine leaks or its resumes collide with leaked pairs.

Example:
  mctl doctor vsock web")]
pub(crate) struct Args {
    /// Id, beginning of an id, or name; may be left out if there is only one machine
    machine: Option<String>,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machine = machine_ref::find(session, args.machine.as_deref()).await?;
    let view = session.client.vsock(&machine.id).await?;
    if session.output.is_json() {
        session.output.json(&view)?;
    } else {
        session.output.table(&facts(&view))?;
        for finding in &view.diagnosis.findings {
            session
                .output
                .line(&format!("- {}", session.output.harmless(finding)))?;
        }
    }
    match view.diagnosis.verdict {
        Verdict::Healthy => Ok(()),
        Verdict::Leaking => Err(CommandError::Leaks {
            sockets: view.diagnosis.leaked_pairs + view.diagnosis.unclosed_sockets,
        }),
        Verdict::Colliding => Err(CommandError::Collides),
        // Something was refused, but nothing that is left over now.
        Verdict::Unknown if view.guest.is_some() => Ok(()),
        Verdict::Unknown => Err(CommandError::InitSilent),
    }
}

fn facts(view: &VsockView) -> Table {
    let diagnosis = &view.diagnosis;
    let (verdict, style) = match diagnosis.verdict {
        Verdict::Healthy => ("healthy", Style::Good),
        Verdict::Leaking => ("leaking", Style::Busy),
        Verdict::Colliding => ("colliding", Style::Bad),
        Verdict::Unknown => ("unknown", Style::Busy),
    };
    let mut table = Table::fields();
    table.field("verdict", Cell::new(verdict).styled(style));
    table.field("leaked pairs", diagnosis.leaked_pairs.to_string());
    if diagnosis.unclosed_sockets > 0 {
        let text = format!("{}, their pairs are free", diagnosis.unclosed_sockets);
        table.field("unclosed sockets", text);
    }
    if let Some(generation) = diagnosis.since_generation {
        table.field("leaking since", format!("generation {generation}"));
    }
    let attempts = diagnosis.expected_failed_attempts;
    let delay = milliseconds(diagnosis.expected_delay_ms);
    table.field(
        "next resume",
        format!("{attempts:.1} failed attempts expected, {delay}"),
    );
    if let Some(line) = readiness_line(&view.last_readiness, view.last_start.as_ref()) {
        table.field("readiness", line);
    }
    if let Some(guest) = &view.guest {
        let sockets = &guest.sockets;
        let counts = sockets.counts.iter().map(|count| match count.generation {
            Some(generation) => format!("{} {} of {generation}", count.count, count.state),
            None => format!("{} {}", count.count, count.state),
        });
        let counts: Vec<String> = counts.collect();
        let mut text = format!("{} open (by {})", sockets.total, sockets.source);
        if !counts.is_empty() {
            text = format!("{text}: {}", counts.join(", "));
        }
        table.field("guest", text);
    }
    for (name, value) in view.host.as_object().into_iter().flatten() {
        if !value.is_array() && !value.is_object() {
            let value = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            table.field(&format!("host {}", name.replace('_', " ")), value);
        }
    }
    table
}
