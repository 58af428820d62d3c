//! How values of the API read in tables and sentences.

use machine_api::{EventRequest, MachineEvent, MachineState, Operation, StartKind};

use crate::output::{Cell, Style};

/// Warm or cold, with the reason.
pub(crate) fn kind_of_start(kind: &StartKind) -> String {
    match kind {
        StartKind::Resumed => "resumed".to_owned(),
        StartKind::Booted => "booted".to_owned(),
        StartKind::ColdBooted { reason } => format!("cold_booted: {reason}"),
        StartKind::SuspendCancelled => "suspend_cancelled".to_owned(),
    }
}

/// The state's name; colour repeats whether it is up, on its way, down, or broken.
pub(crate) fn state_cell(state: MachineState) -> Cell {
    let style = match state {
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
    };
    Cell::new(state.name()).styled(style)
}

/// `256 MiB`, `2 GiB`.
pub(crate) fn memory(mib: u32) -> String {
    if mib >= 1024 && mib.is_multiple_of(1024) {
        format!("{} GiB", mib / 1024)
    } else {
        format!("{mib} MiB")
    }
}

/// RFC 3339 without its fraction.
pub(crate) fn to_second(time: &str) -> String {
    match time.split_once('.') {
        Some((seconds, _)) if time.ends_with('Z') => format!("{seconds}Z"),
        _ => time.to_owned(),
    }
}

/// Name of an operation.
pub(crate) const fn operation(operation: Operation) -> &'static str {
    match operation {
        Operation::Start => "start",
        Operation::Suspend => "suspend",
        Operation::Resume => "resume",
        Operation::Stop => "stop",
    }
}

/// What an event says beyond its kind: warm or cold, how it exited, what was wrong.
pub(crate) fn event_details(event: &MachineEvent) -> String {
    let mut parts = Vec::new();
    parts.extend(event.start.as_ref().map(kind_of_start));
    parts.extend(event.request.as_ref().and_then(exit));
    parts.extend(event.message.clone());
    parts.join("; ")
}

fn exit(request: &EventRequest) -> Option<String> {
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
