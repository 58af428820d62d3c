//! A machine and its guest as the API shows them.

use std::collections::VecDeque;

use guest_protocol::GuestStatus;
use machine_api::{
    CheckStatus, GuestSockets, GuestView, Machine, MachineEvent, MachineState, SocketCount,
};

use crate::clock;
use crate::model::record::MachineRecord;
use crate::model::state::State;

/// The API's name of a state.
pub(crate) fn api_state(state: State) -> MachineState {
    match state {
        State::Created => MachineState::Created,
        State::Starting => MachineState::Starting,
        State::Started => MachineState::Started,
        State::Suspending => MachineState::Suspending,
        State::Suspended => MachineState::Suspended,
        State::Stopping => MachineState::Stopping,
        State::Stopped => MachineState::Stopped,
        State::Restarting => MachineState::Restarting,
        State::Updating => MachineState::Updating,
        State::Destroying => MachineState::Destroying,
        State::Destroyed => MachineState::Destroyed,
        State::Failed => MachineState::Failed,
    }
}

/// A machine with its newest events and the results of its checks.
pub(crate) fn machine(
    record: &MachineRecord,
    events: &VecDeque<MachineEvent>,
    checks: &[CheckStatus],
) -> Machine {
    Machine {
        id: record.id.clone(),
        name: record.name.clone(),
        state: api_state(record.state),
        region: "local".to_owned(),
        instance_id: record.instance_id.clone(),
        config: record.config.clone(),
        image_ref: record.image_ref.clone(),
        private_ip: String::new(),
        created_at: clock::rfc3339_ms(record.created_at_ms),
        updated_at: clock::rfc3339_ms(record.updated_at_ms),
        events: events.iter().cloned().collect(),
        checks: checks.to_vec(),
        host_status: "ok".to_owned(),
        cordoned: record.facts.cordoned,
        generation: record.generation,
        last_start: record.facts.last_start.clone(),
        readiness: record.facts.readiness.clone(),
        warnings: record.facts.warnings.clone(),
        published: record.facts.published.clone(),
        vmm_pid: record
            .vmm
            .as_ref()
            .and_then(|vmm| u32::try_from(vmm.pid).ok()),
        nonce: None,
    }
}

/// A guest, from the status that its guest-init reported.
pub(crate) fn guest(status: &GuestStatus) -> GuestView {
    let sockets = &status.open_vsocks;
    let count = |count: &guest_protocol::VsockCount| SocketCount {
        state: count.state.clone(),
        generation: count.generation,
        count: count.count,
    };
    GuestView {
        boot_id: status.boot_id.clone(),
        generation: status.generation,
        init_version: status.init_version.clone(),
        uptime_ms: status.uptime_ms,
        clock_step_ms: status.clock_step_ms,
        sockets: GuestSockets {
            total: sockets.total,
            older_generations: sockets.older_generations,
            counts: sockets.counts.iter().map(count).collect(),
            source: sockets.source.clone(),
        },
    }
}
