//! Stops or suspends a machine that nobody has used for a while, if its services say so.

use std::time::Duration;

use machine_api::{Machine, MachineState, Service};
use tokio::time::Instant;

use crate::error_chain::error_chain;
use crate::machine::request::{Command, LeaseCheck, Until};
use crate::machine::{Handle, MachineError};
use crate::model::event;
use crate::model::graceful_stop::GracefulStop;
use crate::{deadline, duration};

/// Idle time of services that name none.
const IDLE: Duration = Duration::from_secs(300);
/// Wait after the first failure; doubles with each.
const RETRY_FIRST: Duration = Duration::from_secs(2);
/// After so many failures in a row the machine stays as it is, until it has been used again.
const MOST_FAILURES: u32 = 5;

/// Watches a machine until it is gone.
pub(super) async fn serve(handle: Handle) {
    let mut view = handle.watch();
    let mut activity = handle.activity().watch();
    let mut failures = Failures::default();
    loop {
        let machine = view.borrow_and_update().clone();
        if machine.state == MachineState::Destroyed {
            return;
        }
        let idle_since = activity.borrow_and_update().idle_since();
        let idle_stop = idle_since.and_then(|since| IdleStop::of(&machine, since));
        let due_at = idle_stop
            .as_ref()
            .zip(idle_since)
            .and_then(|(idle_stop, since)| failures.postpone(since, idle_stop.at));
        tokio::select! {
            changed = view.changed() => if changed.is_err() {
                return;
            },
            _ = activity.changed() => {}
            () = deadline::reached(due_at) => {
                if let Some((IdleStop { command, .. }, since)) = idle_stop.zip(idle_since)
                    && let Err(error) = carry_out(&handle, command).await
                    && failures.add(since, Instant::now()) == MOST_FAILURES
                {
                    give_up(&handle, &error).await;
                }
            }
        }
    }
}

/// Failures in a row to stop a machine in one time of idleness.
#[derive(Debug, Default)]
struct Failures {
    idle_since: Option<Instant>,
    count: u32,
    last: Option<Instant>,
}

impl Failures {
    /// When a stop that is due `at` is tried; none once it is given up.
    fn postpone(&self, idle_since: Instant, at: Instant) -> Option<Instant> {
        let (Some(last), true) = (self.last, self.idle_since == Some(idle_since)) else {
            return Some(at);
        };
        let wait = RETRY_FIRST * (1 << self.count.saturating_sub(1).min(16));
        (self.count < MOST_FAILURES).then(|| at.max(last + wait))
    }

    /// Adds one; returns how many there are.
    fn add(&mut self, idle_since: Instant, now: Instant) -> u32 {
        if self.idle_since != Some(idle_since) {
            self.idle_since = Some(idle_since);
            self.count = 0;
        }
        self.count += 1;
        self.last = Some(now);
        self.count
    }
}

async fn carry_out(handle: &Handle, command: Command) -> Result<(), MachineError> {
    let verb = match command {
        Command::Suspend => "suspended",
        _ => "stopped",
    };
    handle
        .log()
        .add_note(&format!("idle; the machine is {verb}"));
    let done = handle
        .request_by_supervisor(command, Until::Completed)
        .await;
    done.map(drop).inspect_err(|error| {
        tracing::info!(machine_id = handle.id(), %error, "an idle machine was not {verb}");
    })
}

/// Tells, once, that the machine stays awake.
async fn give_up(handle: &Handle, error: &MachineError) {
    let message = format!(
        "idle, and {MOST_FAILURES} attempts to stop or suspend it have failed ({}); it stays awake \
         until it has been used again",
        error_chain(error)
    );
    let told = handle.edit(LeaseCheck::Skip, |record| {
        Ok(((), Some(event::warning(record.state, message))))
    });
    // It fails only if the driver has ended.
    let _ = told.await;
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
    async fn failures_are_retried_later_and_later_and_given_up_until_the_next_use() {
        let since = Instant::now();
        let due = since + Duration::from_secs(7);
        let mut failures = Failures::default();
        assert_eq!(failures.postpone(since, due), Some(due));
        let mut waits = Vec::new();
        for count in 1..MOST_FAILURES {
            assert_eq!(failures.add(since, due), count);
            waits.push(failures.postpone(since, due).unwrap() - due);
        }
        assert_eq!(waits, [2, 4, 8, 16].map(Duration::from_secs));
        assert_eq!(failures.add(since, due), MOST_FAILURES);
        assert_eq!(failures.postpone(since, due), None);
        let used_again = since + Duration::from_secs(100);
        assert_eq!(failures.postpone(used_again, due), Some(due));
        assert_eq!(failures.add(used_again, due), 1);
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
