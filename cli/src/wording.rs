//! Machines, states, starts and events as tables and sentences show them.

use machine_api::{
    EventRequest, Machine, MachineEvent, MachineState, Port, PublishedPort, StartKind,
};

use crate::output::{Cell, Style, Table};
use crate::units::{milliseconds, rfc3339_of_ms};

/// Name and id of a machine, as sentences show them.
pub(crate) fn label(machine: &Machine) -> String {
    format!("{} ({})", machine.name, machine.id)
}

/// Warm or cold, with the reason.
pub(crate) fn start_kind(kind: &StartKind) -> String {
    match kind {
        StartKind::Resumed => "resumed".to_owned(),
        StartKind::Booted => "booted".to_owned(),
        StartKind::ColdBooted { reason } => format!("cold_booted: {reason}"),
        StartKind::SuspendCancelled => "suspend_cancelled".to_owned(),
    }
}

/// The style that repeats what a state's name says: up, in transition, down, or failed.
pub(crate) const fn state_style(state: MachineState) -> Style {
    match state {
        MachineState::Started => Style::Good,
        MachineState::Starting
        | MachineState::Suspending
        | MachineState::Stopping
        | MachineState::Restarting
        | MachineState::Updating
        | MachineState::Destroying => Style::Busy,
        MachineState::Failed => Style::Bad,
        MachineState::Destroyed => Style::Faint,
        MachineState::Created | MachineState::Suspended | MachineState::Stopped => Style::Plain,
    }
}

/// The name of a state in its style.
pub(crate) fn state_cell(state: MachineState) -> Cell {
    Cell::new(state.name()).styled(state_style(state))
}

/// The published ports of a machine: `8080->80, 10.0.0.7:8443->443`. For a port 0, the one that the
/// host chose.
pub(crate) fn ports(machine: &Machine) -> String {
    let services = &machine.config.services;
    let requested: Vec<u16> = services
        .iter()
        .flat_map(|service| service.ports.iter().map(|port| port.port))
        .collect();
    let number = |one: &PublishedPort| one.address.rsplit_once(':')?.1.parse::<u16>().ok();
    let is_chosen =
        |one: &&PublishedPort| number(one).is_some_and(|port| !requested.contains(&port));
    let mut chosen: Vec<&PublishedPort> = machine.published.iter().filter(is_chosen).collect();
    let mut host_port = |port: &Port, internal_port: u16| {
        let found = chosen
            .iter()
            .position(|one| port.port == 0 && one.internal_port == internal_port);
        let found = found.and_then(|index| number(chosen.remove(index)));
        found.unwrap_or(port.port)
    };
    let mut shown = Vec::new();
    for service in services {
        let internal = service.internal_port;
        for port in &service.ports {
            let number = host_port(port, internal);
            shown.push(match &port.address {
                Some(address) => format!("{address}:{number}->{internal}"),
                None => format!("{number}->{internal}"),
            });
        }
    }
    if shown.is_empty() {
        "-".to_owned()
    } else {
        shown.join(", ")
    }
}

/// Events, in the order in which they are given.
pub(crate) fn events_table<'a>(events: impl Iterator<Item = &'a MachineEvent>) -> Table {
    let mut table = Table::new(["TIME", "EVENT", "STATE", "SOURCE", ">DURATION", "DETAILS"]);
    for event in events {
        table.row([
            rfc3339_of_ms(event.timestamp).into(),
            event_name(event).into(),
            event.status.as_str().into(),
            event.source.as_str().into(),
            event
                .duration_ms
                .map_or("-".to_owned(), milliseconds)
                .into(),
            event_details(event).into(),
        ]);
    }
    table
}

/// The type of an event, as the API names it.
pub(crate) fn event_name(event: &MachineEvent) -> String {
    match serde_json::to_value(event.kind) {
        Ok(serde_json::Value::String(name)) => name,
        _ => String::new(),
    }
}

/// What an event says beyond its type: warm or cold, how the main process ended, its message.
pub(crate) fn event_details(event: &MachineEvent) -> String {
    let mut parts = Vec::new();
    parts.extend(event.start.as_ref().map(start_kind));
    parts.extend(event.request.as_ref().and_then(exit_details));
    parts.extend(event.message.clone());
    parts.join("; ")
}

fn exit_details(request: &EventRequest) -> Option<String> {
    let exit = request.exit_event.as_ref()?;
    let mut text = match (exit.signal, exit.exit_code) {
        (0, code) => format!("exit code {code}"),
        (-1, code) if code >= 0 => format!("exit code {code}"),
        (-1, _) => "exit code not known".to_owned(),
        (signal, _) => format!("killed by signal {signal}"),
    };
    if exit.oom_killed {
        text.push_str(", out of memory");
    }
    if exit.requested_stop {
        text.push_str(", as requested");
    }
    if exit.restarting {
        match request.restart_count {
            Some(count) => text.push_str(&format!(", restarting (restart {})", count + 1)),
            None => text.push_str(", restarting"),
        }
    }
    Some(text)
}
