//! One line that explains the readiness attempts of a machine's last start or resume.

use machine_api::{Attempt, AttemptOutcome, StartKind};

use crate::units::milliseconds;

/// Explains the `attempts` of a `start`. None if there were no attempts.
///
/// An example of a machine whose resumes collide with leaked pairs: "14 attempts, 13 reset on ports 1073741824
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
    let mut cause = None;
    for (outcome, name, usual_cause) in FAILURES {
        let failed: Vec<&Attempt> = attempts.iter().filter(|a| a.outcome == outcome).collect();
        if !failed.is_empty() {
            parts.push(format!("{} {name}{}", failed.len(), on_ports(&failed)));
            let booted = start.is_some_and(|start| *start != StartKind::Resumed);
            let likely_cause = match outcome {
                // A guest that has just booted has no leaked pairs.
                AttemptOutcome::Reset if booted => "guest-init did not listen yet",
                _ => usual_cause,
            };
            cause = cause.or(Some(likely_cause));
        }
    }
    let count = attempts.len();
    let noun = if count == 1 { "attempt" } else { "attempts" };
    let mut line = format!("{count} {noun}, {}", parts.join(", "));
    if let Some(cause) = cause {
        line = format!("{line}: {cause}");
    }
    if last.outcome != AttemptOutcome::Ok {
        line.push_str("; none succeeded");
    }
    Some(line)
}

/// Name and usual cause of each failure. The line gives the cause of the first one that occurs.
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
        "another program than guest-init answered",
    ),
];

/// ` on port 5`, ` on ports 5 to 9`, ` on 3 ports between 5 and 99`; empty if no port is known.
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
    fn resets_of_a_resume_are_explained_by_leaked_pairs() {
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
    fn resets_of_a_boot_are_not_explained_by_leaked_pairs() {
        let attempts = [
            attempt(1, AttemptOutcome::Reset),
            attempt(2, AttemptOutcome::Ok),
        ];
        let line = readiness_line(&attempts, Some(&StartKind::Booted)).unwrap();
        assert_eq!(
            line,
            "2 attempts, 1 reset on port 1: guest-init did not listen yet"
        );
    }

    #[test]
    fn without_attempts_there_is_no_line() {
        assert_eq!(readiness_line(&[], None), None);
    }
}
