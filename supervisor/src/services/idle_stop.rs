//! Stops or suspends a machine that nobody has used for a while, if its services say so.

use std::time::Duration;

use machine_api::{Machine, MachineState, Service};
use tokio::time::{Instant, sleep};

use crate::machine::Handle;
use crate::machine::request::{Command, Until};
use crate::model::graceful_stop::GracefulStop;
use crate::{deadline, duration};

/// Idle time of services that name none.
const IDLE: Duration = Duration::from_secs(300);
/// Wait after a refusal: somebody else's transition comes first.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// Watches a machine until it is gone.
pub(super) async fn serve(handle: Handle) {
    let mut view = handle.watch();
    let mut activity = handle.activity().watch();
    loop {
        let machine = view.borrow_and_update().clone();
        if machine.state == MachineState::Destroyed {
            return;
        }
        let idle_since = activity.borrow_and_update().idle_since();
        let idle_stop = idle_since.and_then(|since| IdleStop::of(&machine, since));
        let due_at = idle_stop.as_ref().map(|idle_stop| idle_stop.at);
        tokio::select! {
            changed = view.changed() => if changed.is_err() {
                return;
            },
            _ = activity.changed() => {}
            () = deadline::reached(due_at) => {
                if let Some(IdleStop { command, .. }) = idle_stop {
                    carry_out(&handle, command).await;
                }
            }
        }
    }
}

async fn carry_out(handle: &Handle, command: Command) {
    let verb = match command {
        Command::Suspend => "suspended",
        _ => "stopped",
    };
    handle
        .log()
        .add_note(&format!("idle; the machine is {verb}"));
    let done = handle.request_by_supervisor(command, Until::Completed);
    if let Err(error) = done.await {
        tracing::info!(machine_id = handle.id(), %error, "an idle machine was not {verb}");
        sleep(RETRY_PAUSE).await;
    }
}

/// When an idle machine is stopped or suspended, and which of the two.
#[derive(Debug)]
struct IdleStop {
    at: Instant,
    command: Command,
}

impl IdleStop {
    /// What the services of `machine` want; none if it is not started or none of them wants it.
    fn of(machine: &Machine, idle_since: Instant) -> Option<Self> {
        if machine.state != MachineState::Started {
            return None;
        }
        let stopping =
            |service: &&Service| matches!(service.autostop.as_deref(), Some("stop" | "suspend"));
        let services = || machine.config.services.iter().filter(stopping);
        let idle = |service: &Service| {
            let text = service.idle_timeout.as_deref();
            text.and_then(|text| duration::parse(text).ok())
                .unwrap_or(IDLE)
        };
        let longest = services().map(idle).max()?;
        let stop = services().any(|service| service.autostop.as_deref() == Some("stop"));
        let command = if stop {
            Command::Stop(GracefulStop::configured(&machine.config)?)
        } else {
            Command::Suspend
        };
        Some(Self {
            at: idle_since + longest,
            command,
        })
    }
}

#[cfg(test)]
mod tests {
    use machine_api::MachineConfig;

    use super::*;
    use crate::model::record::MachineRecord;
    use crate::model::state::State;
    use crate::model::view;

    fn machine(autostop: &str, idle: Option<&str>) -> Machine {
        let service = Service {
            autostop: Some(autostop.to_owned()),
            idle_timeout: idle.map(str::to_owned),
            ..Service::default()
        };
        let config = MachineConfig {
            services: vec![service],
            ..MachineConfig::default()
        };
        let mut record =
            MachineRecord::new("default", None, config, machine_api::ImageRef::default());
        record.state = State::Started;
        view::machine(&record, &std::collections::VecDeque::new(), &[])
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_machine_stops_or_suspends_as_its_services_say() {
        let now = Instant::now();
        let idle_stop = IdleStop::of(&machine("suspend", Some("7s")), now).unwrap();
        assert_eq!(idle_stop.at - now, Duration::from_secs(7));
        assert!(matches!(idle_stop.command, Command::Suspend));
        let idle_stop = IdleStop::of(&machine("stop", None), now).unwrap();
        assert_eq!(idle_stop.at - now, IDLE);
        assert!(matches!(idle_stop.command, Command::Stop(_)));
        assert!(IdleStop::of(&machine("off", None), now).is_none());
    }
}
