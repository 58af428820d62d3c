//! One line that explains how the supervisor reached a machine's init after a start or resume.

use machine_api::{Attempt, AttemptOutcome, StartKind};

use crate::span::milliseconds;

/// Explains the `attempts` of a `start`; none if there were none.
///
/// For a machine whose resumes run into leaked pairs: "14 attempts, 13 reset on ports 1073741824
/// to 1073741836: those pairs are still open in the guest".
pub(crate) fn readiness_line(attempts: &[Attempt], start: Option<&StartKind>) -> Option<String> {
    let last = attempts.last()?;
    let total_ms = milliseconds(attempts.iter().map(|attempt| attempt.ms).sum());
    if attempts.len() == 1 && last.outcome == AttemptOutcome::Ok {
        return Some(format!(
            "1 attempt, ok{} after {total_ms}",
            on_ports(&[last])
        ));
    }
    let mut parts = Vec::new();
    let mut meaning = None;
    for (outcome, name, what_it_means) in FAILURES {
        let these: Vec<&Attempt> = attempts.iter().filter(|a| a.outcome == outcome).collect();
        if !these.is_empty() {
            parts.push(format!("{} {name}{}", these.len(), on_ports(&these)));
            let booted = start.is_some_and(|start| *start != StartKind::Resumed);
            let what_it_means = match outcome {
                // A new guest has no connections of before that could be in the way.
                AttemptOutcome::Reset if booted => "init did not listen yet",
                _ => what_it_means,
            };
            meaning = meaning.or(Some(what_it_means));
        }
    }
    let count = attempts.len();
    let noun = if count == 1 { "attempt" } else { "attempts" };
    let mut line = format!("{count} {noun}, {}", parts.join(", "));
    if let Some(meaning) = meaning {
        line = format!("{line}: {meaning}");
    }
    if last.outcome != AttemptOutcome::Ok {
        line.push_str("; none succeeded");
    }
    Some(line)
}

/// What is said of each outcome that is not a success; the first that occurs explains the line.
const FAILURES: [(AttemptOutcome, &str, &str); 4] = [
    (
        AttemptOutcome::Reset,
        "reset",
        "those pairs are still open in the guest",
    ),
    (
        AttemptOutcome::NoReply,
        "without a reply",
        "the guest did not answer in time",
    ),
    (
        AttemptOutcome::Closed,
        "closed",
        "the connection broke after it was made",
    ),
    (
        AttemptOutcome::BadReply,
        "with a bad reply",
        "something else than this init answered",
    ),
];

/// ` on port 5`, ` on ports 5 to 9`, ` on 3 ports between 5 and 99`, or nothing if none is known.
fn on_ports(attempts: &[&Attempt]) -> String {
    let mut ports: Vec<u32> = attempts
        .iter()
        .filter_map(|attempt| attempt.local_port)
        .collect();
    ports.sort_unstable();
    ports.dedup();
    match ports[..] {
        [] => String::new(),
        [port] => format!(" on port {port}"),
        [first, .., last] if (last - first) as usize == ports.len() - 1 => {
            format!(" on ports {first} to {last}")
        }
        [first, .., last] => format!(" on {} ports between {first} and {last}", ports.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESUMED: Option<&StartKind> = Some(&StartKind::Resumed);

    fn attempt(local_port: u32, outcome: AttemptOutcome) -> Attempt {
        Attempt {
            local_port: Some(local_port),
            outcome,
            ms: 1.5,
            message: None,
        }
    }

    #[test]
    fn leaked_pairs_are_named_as_in_the_report() {
        let mut attempts: Vec<Attempt> = (1_073_741_824..=1_073_741_836)
            .map(|port| attempt(port, AttemptOutcome::Reset))
            .collect();
        attempts.push(attempt(1_073_741_837, AttemptOutcome::Ok));
        assert_eq!(
            readiness_line(&attempts, RESUMED).unwrap(),
            "14 attempts, 13 reset on ports 1073741824 to 1073741836: those pairs are still open \
             in the guest"
        );
    }

    #[test]
    fn a_healthy_machine_needs_one_attempt() {
        let line = readiness_line(&[attempt(77, AttemptOutcome::Ok)], RESUMED).unwrap();
        assert_eq!(line, "1 attempt, ok on port 77 after 1.50 ms");
    }

    #[test]
    fn scattered_ports_are_not_called_a_range() {
        let attempts = [3, 9, 40].map(|port| attempt(port, AttemptOutcome::Reset));
        let line = readiness_line(&attempts, RESUMED).unwrap();
        assert_eq!(
            line,
            "3 attempts, 3 reset on 3 ports between 3 and 40: those pairs are still open in the \
             guest; none succeeded"
        );
    }

    #[test]
    fn different_failures_are_counted_apart() {
        let attempts = [
            attempt(1, AttemptOutcome::NoReply),
            attempt(2, AttemptOutcome::Reset),
            attempt(3, AttemptOutcome::Ok),
        ];
        let line = readiness_line(&attempts, RESUMED).unwrap();
        assert_eq!(
            line,
            "3 attempts, 1 reset on port 2, 1 without a reply on port 1: those pairs are still \
             open in the guest"
        );
    }

    #[test]
    fn a_booting_guest_that_refuses_is_not_said_to_hold_pairs() {
        let attempts = [
            attempt(1, AttemptOutcome::Reset),
            attempt(2, AttemptOutcome::Ok),
        ];
        let line = readiness_line(&attempts, Some(&StartKind::Booted)).unwrap();
        assert_eq!(
            line,
            "2 attempts, 1 reset on port 1: init did not listen yet"
        );
    }

    #[test]
    fn nothing_is_said_of_a_machine_that_never_started() {
        assert_eq!(readiness_line(&[], None), None);
    }
}
