//! Figures of all machines in Prometheus's text format, version 0.0.4.
//!
//! Only renders; `metrics` collects. Every family is written once, with HELP and TYPE and all its
//! samples, as the format demands.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use machine_api::{Attempt, AttemptOutcome, MachineState, Timing};
use vmm_control::VsockCounters;

/// The figures of one machine.
#[derive(Debug, Clone)]
pub(crate) struct MachineFigures {
    /// Its id.
    pub(crate) machine: String,
    /// Its name.
    pub(crate) name: String,
    /// Its state.
    pub(crate) state: MachineState,
    /// Its generation.
    pub(crate) generation: u64,
    /// Counters of its VMM, while one runs and answers.
    pub(crate) vsock: Option<VsockCounters>,
    /// Open vsock sockets in the guest by its last status, and those of older generations.
    pub(crate) guest_sockets: Option<(u32, u32)>,
    /// Attempts of the last start or resume.
    pub(crate) readiness: Vec<Attempt>,
    /// The last start or resume.
    pub(crate) last_start: Option<Timing>,
    /// The last suspend.
    pub(crate) last_suspend: Option<Timing>,
}

/// Kinds of metric families.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Counter,
    Gauge,
}

/// One family: name, kind, help, and the samples of a machine.
type Family = (
    &'static str,
    Kind,
    &'static str,
    fn(&MachineFigures) -> Vec<Sample>,
);

/// Further labels of a sample, and its value.
type Sample = (Vec<(&'static str, String)>, f64);

/// Renders all families.
pub(crate) fn render(machines: &[MachineFigures]) -> String {
    let mut text = String::new();
    for (name, kind, help, samples) in FAMILIES {
        let rows: Vec<(&MachineFigures, Sample)> = machines
            .iter()
            .flat_map(|machine| {
                samples(machine)
                    .into_iter()
                    .map(move |sample| (machine, sample))
            })
            .collect();
        if rows.is_empty() {
            continue;
        }
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        // Writing to a String can't fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (machine, (labels, value)) in rows {
            let own = [
                ("machine", machine.machine.clone()),
                ("name", machine.name.clone()),
            ];
            let labels: Vec<String> = own
                .into_iter()
                .chain(labels)
                .map(|(key, value)| format!("{key}=\"{}\"", escaped(&value)))
                .collect();
            let _ = writeln!(text, "{name}{{{}}} {value}", labels.join(","));
        }
    }
    text
}

/// Label values escape backslash, quote and line feed.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

const FAMILIES: &[Family] = &[
    (
        "mctl_machine_state",
        Kind::Gauge,
        "State of a machine; 1 for the one it is in.",
        state,
    ),
    (
        "mctl_machine_generation",
        Kind::Gauge,
        "VMMs launched for a machine so far.",
        |machine| plain(count(machine.generation)),
    ),
    (
        "mctl_vsock_requests_sent_total",
        Kind::Counter,
        "Connection requests sent to the guest.",
        |machine| of_vsock(machine, |vsock| vsock.requests_sent),
    ),
    (
        "mctl_vsock_requests_total",
        Kind::Counter,
        "Connection requests to the guest that have ended, by outcome.",
        requests,
    ),
    (
        "mctl_vsock_last_collided_pairs",
        Kind::Gauge,
        "Pairs that the guest refused under this VMM; the VMM remembers up to 64.",
        |machine| of_vsock(machine, |vsock| length(&vsock.last_collided)),
    ),
    (
        "mctl_vsock_last_collided_local_port",
        Kind::Gauge,
        "Local port of the last pair that the guest refused under this VMM.",
        last_collided,
    ),
    (
        "mctl_vsock_guest_connections_total",
        Kind::Counter,
        "Connections that the guest opened to the host, by outcome.",
        guest_connections,
    ),
    (
        "mctl_vsock_pairs_evicted_total",
        Kind::Counter,
        "Saved pairs freed in the guest before a transport reset.",
        |machine| of_vsock(machine, |vsock| vsock.pairs_evicted),
    ),
    (
        "mctl_vsock_gate_held_packets_total",
        Kind::Counter,
        "Host packets held back while the reset gate was closed.",
        |machine| of_vsock(machine, |vsock| vsock.gate_held_packets),
    ),
    (
        "mctl_vsock_gate_dropped_packets_total",
        Kind::Counter,
        "Guest packets of connections from before the restore, dropped while the reset gate was closed.",
        |machine| of_vsock(machine, |vsock| vsock.gate_dropped_packets),
    ),
    (
        "mctl_vsock_guest_packets_dropped_total",
        Kind::Counter,
        "Malformed or unexpected packets of the guest.",
        |machine| of_vsock(machine, |vsock| vsock.guest_packets_dropped),
    ),
    (
        "mctl_vsock_bytes_total",
        Kind::Counter,
        "Bytes carried over vsock, by direction.",
        bytes,
    ),
    (
        "mctl_vsock_live_connections",
        Kind::Gauge,
        "Connections open now, as the VMM sees them.",
        |machine| of_vsock(machine, |vsock| vsock.live_connections),
    ),
    (
        "mctl_vsock_gate_closed",
        Kind::Gauge,
        "1 while host packets wait for the guest to acknowledge a transport reset.",
        |machine| of_vsock(machine, |vsock| u64::from(vsock.gate_closed)),
    ),
    (
        "mctl_guest_vsock_sockets",
        Kind::Gauge,
        "Open vsock sockets in the guest by its last status; generation=\"older\" are leaked.",
        guest_sockets,
    ),
    (
        "mctl_readiness_attempts",
        Kind::Gauge,
        "Readiness attempts of the last start or resume, by outcome.",
        attempts,
    ),
    (
        "mctl_last_start_seconds",
        Kind::Gauge,
        "Time that the last start or resume took, by phase.",
        |machine| phases(machine.last_start.as_ref()),
    ),
    (
        "mctl_last_suspend_seconds",
        Kind::Gauge,
        "Time that the last suspend took, by phase.",
        |machine| phases(machine.last_suspend.as_ref()),
    ),
    (
        "mctl_last_suspend_bytes",
        Kind::Gauge,
        "Bytes that the last suspend wrote.",
        |machine| {
            let timing = machine.last_suspend.as_ref();
            timing
                .and_then(|timing| timing.image_bytes_written)
                .map_or(Vec::new(), |bytes| plain(count(bytes)))
        },
    ),
];

#[expect(
    clippy::cast_precision_loss,
    reason = "the format's numbers are 64-bit floats"
)]
const fn count(value: u64) -> f64 {
    value as f64
}

fn plain(value: f64) -> Vec<Sample> {
    vec![(Vec::new(), value)]
}

fn labelled(key: &'static str, rows: impl IntoIterator<Item = (&'static str, f64)>) -> Vec<Sample> {
    rows.into_iter()
        .map(|(label, value)| (vec![(key, label.to_owned())], value))
        .collect()
}

fn state(machine: &MachineFigures) -> Vec<Sample> {
    labelled(
        "state",
        MachineState::ALL.map(|one| (one.name(), if one == machine.state { 1.0 } else { 0.0 })),
    )
}

fn of_vsock(machine: &MachineFigures, value: fn(&VsockCounters) -> u64) -> Vec<Sample> {
    machine
        .vsock
        .as_ref()
        .map_or(Vec::new(), |vsock| plain(count(value(vsock))))
}

fn requests(machine: &MachineFigures) -> Vec<Sample> {
    machine.vsock.as_ref().map_or(Vec::new(), |vsock| {
        labelled(
            "outcome",
            [
                ("accepted", count(vsock.requests_accepted)),
                ("reset", count(vsock.requests_reset)),
                ("unanswered", count(vsock.requests_unanswered)),
            ],
        )
    })
}

fn length<T>(list: &[T]) -> u64 {
    u64::try_from(list.len()).unwrap_or(u64::MAX)
}

fn last_collided(machine: &MachineFigures) -> Vec<Sample> {
    let vsock = machine.vsock.as_ref();
    let newest = vsock.and_then(|vsock| vsock.last_collided.last());
    newest.map_or(Vec::new(), |pair| plain(f64::from(pair.local_port)))
}

fn guest_connections(machine: &MachineFigures) -> Vec<Sample> {
    machine.vsock.as_ref().map_or(Vec::new(), |vsock| {
        labelled(
            "outcome",
            [
                ("accepted", count(vsock.guest_connections_accepted)),
                ("refused", count(vsock.guest_connections_refused)),
            ],
        )
    })
}

fn bytes(machine: &MachineFigures) -> Vec<Sample> {
    machine.vsock.as_ref().map_or(Vec::new(), |vsock| {
        labelled(
            "direction",
            [
                ("to_guest", count(vsock.bytes_to_guest)),
                ("from_guest", count(vsock.bytes_from_guest)),
            ],
        )
    })
}

fn guest_sockets(machine: &MachineFigures) -> Vec<Sample> {
    machine.guest_sockets.map_or(Vec::new(), |(total, older)| {
        let present = f64::from(total.saturating_sub(older));
        labelled(
            "generation",
            [("present", present), ("older", f64::from(older))],
        )
    })
}

fn attempts(machine: &MachineFigures) -> Vec<Sample> {
    let mut counts: BTreeMap<&'static str, f64> = BTreeMap::new();
    for attempt in &machine.readiness {
        let outcome = match attempt.outcome {
            AttemptOutcome::Ok => "ok",
            AttemptOutcome::Reset => "reset",
            AttemptOutcome::NoReply => "no_reply",
            AttemptOutcome::Closed => "closed",
            AttemptOutcome::BadReply => "bad_reply",
        };
        *counts.entry(outcome).or_insert(0.0) += 1.0;
    }
    labelled("outcome", counts)
}

fn phases(timing: Option<&Timing>) -> Vec<Sample> {
    timing.map_or(Vec::new(), |timing| {
        timing
            .phases
            .iter()
            .map(|phase| (vec![("phase", phase.name.clone())], phase.ms / 1e3))
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use vmm_control::CollidedPair;

    use super::*;

    fn pair(local_port: u32) -> CollidedPair {
        CollidedPair {
            local_port,
            peer_port: 1024,
            at_ns: 1,
        }
    }

    fn figures(name: &str) -> MachineFigures {
        MachineFigures {
            machine: "0123".to_owned(),
            name: name.to_owned(),
            state: MachineState::Started,
            generation: 3,
            vsock: Some(VsockCounters {
                requests_sent: 5,
                requests_accepted: 3,
                requests_reset: 2,
                gate_dropped_packets: 7,
                last_collided: vec![pair(1 << 30), pair((1 << 30) + 1)],
                ..Default::default()
            }),
            guest_sockets: Some((4, 1)),
            readiness: Vec::new(),
            last_start: None,
            last_suspend: None,
        }
    }

    #[test]
    fn every_family_has_help_and_type_once_and_its_samples_together() {
        let text = render(&[figures("a"), figures("b")]);
        let mut seen = Vec::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let name = rest.split(' ').next().unwrap();
                assert!(!seen.contains(&name), "{name} comes twice");
                seen.push(name);
            } else if !line.starts_with('#') {
                let name = line.split('{').next().unwrap();
                assert_eq!(seen.last(), Some(&name), "{line}");
            }
        }
        assert!(seen.contains(&"mctl_vsock_requests_total"));
        assert_eq!(text.matches("# HELP ").count(), seen.len());
    }

    #[test]
    fn counters_carry_machine_and_outcome() {
        let text = render(&[figures("a")]);
        let line = "mctl_vsock_requests_total{machine=\"0123\",name=\"a\",outcome=\"reset\"} 2";
        assert!(text.lines().any(|one| one == line), "{text}");
        let line = "mctl_guest_vsock_sockets{machine=\"0123\",name=\"a\",generation=\"older\"} 1";
        assert!(text.lines().any(|one| one == line), "{text}");
    }

    #[test]
    fn outcomes_of_requests_sum_to_those_whose_end_is_known() {
        let text = render(&[figures("a")]);
        let values = |name: &str| -> f64 {
            let lines = text
                .lines()
                .filter(|line| line.starts_with(&format!("{name}{{")));
            lines
                .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
                .sum()
        };
        assert_eq!(values("mctl_vsock_requests_total"), 5.0);
        assert_eq!(values("mctl_vsock_requests_sent_total"), 5.0);
    }

    #[test]
    fn the_last_collision_and_the_gate_are_shown() {
        let text = render(&[figures("a")]);
        for (name, value) in [
            ("mctl_vsock_last_collided_pairs", "2"),
            ("mctl_vsock_last_collided_local_port", "1073741825"),
            ("mctl_vsock_gate_dropped_packets_total", "7"),
        ] {
            let line = format!("{name}{{machine=\"0123\",name=\"a\"}} {value}");
            assert!(text.lines().any(|one| one == line), "{line} in {text}");
        }
    }

    #[test]
    fn names_can_not_break_out_of_their_quotes() {
        let text = render(&[figures("a\"} 1\n# evil\\")]);
        assert!(text.contains(r#"name="a\"} 1\n# evil\\""#), "{text}");
    }

    #[test]
    fn a_machine_without_a_vmm_has_no_vsock_counters() {
        let mut machine = figures("a");
        machine.vsock = None;
        assert!(!render(&[machine]).contains("mctl_vsock_"));
    }

    #[test]
    fn no_machines_make_no_families() {
        assert_eq!(render(&[]), "");
    }
}
