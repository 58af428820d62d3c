//! Waiting until a machine is in a state.

use axum::Json;
use machine_api::{ErrorBody, EventType, Machine, MachineState, Ok as Done};
use tokio::time::timeout;

use crate::api::error::ApiError;
use crate::api::handlers::WAIT_MOST;
use crate::api::handlers::machines::state;
use crate::api::request::extract::{PairParams, Target, seconds};
use crate::machine::MachineError;

/// Stands for all states that are no transition.
pub(crate) const SETTLED: &str = "settled";

/// What is waited for.
#[derive(Debug, Default)]
struct Goal {
    states: Vec<MachineState>,
    settled: bool,
    instance: Option<String>,
    /// Only later events count; the machine may have left that state again.
    after_event: Option<String>,
}

impl Goal {
    fn parse(pairs: &[(String, String)]) -> Result<Self, ApiError> {
        let mut goal = Self::default();
        for (name, value) in pairs {
            match name.as_str() {
                "state" if value == SETTLED => goal.settled = true,
                "state" => {
                    let state = state(value);
                    let unknown = || ApiError::invalid(format!("no state {value:?}"));
                    goal.states.push(state.ok_or_else(unknown)?);
                }
                // The older name is used if both are given.
                "instance_id" if !value.is_empty() => goal.instance = Some(value.clone()),
                "version" if !value.is_empty() => {
                    goal.instance.get_or_insert_with(|| value.clone());
                }
                "from_event_id" if !value.is_empty() => goal.after_event = Some(value.clone()),
                _ => {}
            }
        }
        if goal.states.is_empty() && !goal.settled {
            goal.states.push(MachineState::Started);
        }
        Ok(goal)
    }

    fn wants(&self, state: MachineState) -> bool {
        self.states.contains(&state) || (self.settled && is_settled(state))
    }

    fn is_reached(&self, machine: &Machine) -> bool {
        let version = self.instance.as_ref();
        if version.is_some_and(|version| machine.instance_id != *version) {
            return false;
        }
        let Some(event) = &self.after_event else {
            return self.wants(machine.state);
        };
        // Ids sort by time, so an event that is not shown any more is older than all that are.
        let later = machine.events.iter().take_while(|one| one.id != *event);
        later
            // A launch begins a version and says nothing about the state.
            .filter(|one| one.id > *event && one.kind != EventType::Launch)
            .any(|one| state(&one.status).is_some_and(|state| self.wants(state)))
    }

    fn in_words(&self) -> String {
        let settled = self.settled.then_some(SETTLED);
        let names = self.states.iter().map(|state| state.name());
        names.chain(settled).collect::<Vec<_>>().join(" or ")
    }
}

fn is_settled(state: MachineState) -> bool {
    use MachineState as S;
    match state {
        S::Created | S::Started | S::Suspended | S::Stopped | S::Destroyed | S::Failed => true,
        S::Starting | S::Suspending | S::Stopping | S::Restarting | S::Updating | S::Destroying => {
            false
        }
    }
}

/// Waits until a machine is in one of the states `state` (default `started`; `settled` stands for all
/// that are no transition), and of version `version` if that is given. `timeout` is in seconds, 60 by
/// default. With `from_event_id` it is enough that the machine has been in the state since that event.
#[utoipa::path(get, operation_id = "Machines_wait", path = "/v1/apps/{app}/machines/{machine}/wait", tag = "lifecycle",
    params(("app" = String, Path), ("machine" = String, Path),
        ("state" = Option<Vec<String>>, Query), ("instance_id" = Option<String>, Query),
        ("version" = Option<String>, Query), ("from_event_id" = Option<String>, Query),
        ("timeout" = Option<String>, Query)),
    responses((status = 200, body = Done), (status = "default", body = ErrorBody)))]
pub(crate) async fn wait(
    Target(handle): Target,
    PairParams(pairs): PairParams,
) -> Result<Json<Done>, ApiError> {
    let goal = Goal::parse(&pairs)?;
    let limit = pairs.iter().find(|(name, _)| name == "timeout");
    let limit = seconds(limit.map_or("60", |(_, text)| text))?.min(WAIT_MOST);
    let mut view = handle.watch();
    let reached = view.wait_for(|machine| goal.is_reached(machine));
    match timeout(limit, reached).await {
        Ok(Ok(_)) => Ok(Json(Done { ok: true })),
        // At the deadline; or the driver has ended, and nothing changes any more.
        Ok(Err(_)) | Err(_) => Err(MachineError::WaitDeadline {
            id: handle.id().to_owned(),
            wanted: goal.in_words(),
            state: handle.view().state,
            seconds: limit.as_secs(),
        }
        .into()),
    }
}
