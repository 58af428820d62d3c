//! `mctl doctor vsock`: whether a machine leaks vsock connections, what that costs, and what to do.

use machine_api::{Verdict, VsockView};

use crate::arguments::MachineArg;
use crate::error::CommandError;
use crate::output::{Cell, Style, Table};
use crate::readiness::readiness_line;
use crate::session::Session;
use crate::units::milliseconds;

/// Diagnose the vsock connections of a machine
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The exit code is 8 if the machine leaks connections or its resumes collide with leaked ones.

Example:
  mctl doctor vsock web")]
pub(crate) struct Args {
    #[command(flatten)]
    machine: MachineArg,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machine = args.machine.find(session).await?;
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
        // Attempts were refused, but no leaked pair explains that.
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
        let mut text = format!("{} open (counted by {})", sockets.total, sockets.source);
        if !counts.is_empty() {
            text = format!("{text}: {}", counts.join(", "));
        }
        table.field("guest", text);
    }
    if let Some(text) = collided_pairs(&view.host) {
        table.field("refused pairs", text);
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

/// The most collided pairs that are listed; the VMM reports more.
const LISTED_PAIRS: usize = 6;

/// The last pairs on which the guest refused a request, the newest last. None if there are none.
fn collided_pairs(host: &serde_json::Value) -> Option<String> {
    let pairs = host.get("last_collided")?.as_array()?;
    let names: Vec<String> = pairs
        .iter()
        .rev()
        .take(LISTED_PAIRS)
        .rev()
        .map(|pair| format!("{} to {}", pair["local_port"], pair["peer_port"]))
        .collect();
    match pairs.len() {
        0 => None,
        count if count > LISTED_PAIRS => Some(format!(
            "{count} since the VMM started, the last {LISTED_PAIRS} from local port {}",
            names.join(", ")
        )),
        count => Some(format!(
            "{count} since the VMM started, from local port {}",
            names.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn host(pairs: u32) -> serde_json::Value {
        let pair = |n: u32| json!({"local_port": 100 + n, "peer_port": 1024, "at_ns": 5});
        json!({ "last_collided": (0..pairs).map(pair).collect::<Vec<_>>() })
    }

    #[test]
    fn the_last_collided_pairs_are_listed_newest_last() {
        assert_eq!(
            collided_pairs(&host(2)).unwrap(),
            "2 since the VMM started, from local port 100 to 1024, 101 to 1024"
        );
        let many = collided_pairs(&host(9)).unwrap();
        assert!(
            many.starts_with("9 since the VMM started, the last 6 from"),
            "{many}"
        );
        assert!(
            many.ends_with(", 108 to 1024") && !many.contains("102 "),
            "{many}"
        );
    }

    #[test]
    fn without_a_collision_or_a_vmm_no_pairs_are_listed() {
        assert_eq!(collided_pairs(&host(0)), None);
        assert_eq!(collided_pairs(&serde_json::Value::Null), None);
    }
}
