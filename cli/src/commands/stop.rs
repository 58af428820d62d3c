//! `mctl stop`: ends the main process, then the machine.

use machine_api::{MachineState, StopRequest};

use crate::error::CommandError;
use crate::session::Session;
use crate::span::parse_duration;
use crate::{machine_ref, transition};

/// Stop machines: a signal, then a deadline, then the end
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl stop web --signal SIGTERM --timeout 10s")]
pub(crate) struct Args {
    /// Id, beginning of an id, or name; may be left out if there is only one machine
    #[arg(value_name = "MACHINE")]
    machines: Vec<String>,
    #[command(flatten)]
    how: How,
}

/// How the main process is ended.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct How {
    /// Signal for the main process
    #[arg(long, short, value_name = "SIGNAL", value_parser = signal_name)]
    signal: Option<String>,
    /// How long it may take before it is killed, such as 10s
    #[arg(long, alias = "time", value_name = "TIME", value_parser = wire_duration)]
    timeout: Option<String>,
}

impl How {
    pub(crate) fn request(&self) -> StopRequest {
        StopRequest {
            signal: self.signal.clone(),
            timeout: self.timeout.clone(),
        }
    }
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machines = machine_ref::find_all(session, &args.machines).await?;
    let request = args.how.request();
    transition::for_each(session, machines, async |machine| {
        session.client.stop(&machine.id, &request).await?;
        // One that does not outlive its main process is gone right behind its stop.
        let wanted = if machine.config.auto_destroy {
            MachineState::Destroyed
        } else {
            MachineState::Stopped
        };
        transition::await_and_report(session, &machine, wanted).await
    })
    .await
}

/// `term`, `SIGTERM` → `SIGTERM`; a number stays one.
pub(crate) fn signal_name(text: &str) -> Result<String, String> {
    let upper = text.to_ascii_uppercase();
    if upper
        .parse::<u8>()
        .is_ok_and(|number| (1..=64).contains(&number))
        || (upper.starts_with("SIG") && upper.len() > 3)
    {
        return Ok(upper);
    }
    if !upper.is_empty() && upper.chars().all(|c| c.is_ascii_alphanumeric()) && !is_number(&upper) {
        return Ok(format!("SIG{upper}"));
    }
    Err("write it as SIGTERM, TERM or 15".to_owned())
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A duration as that API writes it. A bare number means seconds, as with every other flag.
fn wire_duration(text: &str) -> Result<String, String> {
    let duration = parse_duration(text)?;
    Ok(match duration.subsec_millis() {
        0 => format!("{}s", duration.as_secs()),
        _ => format!("{}ms", duration.as_millis()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_may_be_written_in_three_ways() {
        let names = ["SIGTERM", "int", "9"].map(|text| signal_name(text).unwrap());
        assert_eq!(names, ["SIGTERM", "SIGINT", "9"]);
        assert!(
            ["", "0", "65", "a b"]
                .iter()
                .all(|text| signal_name(text).is_err())
        );
    }

    #[test]
    fn durations_go_out_with_their_unit() {
        let wire = ["5", "1m", "500ms"].map(|text| wire_duration(text).unwrap());
        assert_eq!(wire, ["5s", "60s", "500ms"]);
    }
}
