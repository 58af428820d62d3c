//! What a machine's vsock figures mean: does its guest leak, and what will that cost?
//!
//! A pure function of what VMM, guest and readiness check have reported.

use std::time::Duration;

use guest_protocol::backoff::JITTER;
use machine_api::{
    Attempt, AttemptOutcome, GuestView, PortPolicy, SocketCount, StartKind, Verdict, VsockDiagnosis,
};

use crate::model::settings::ReadinessLimits;

/// Local ports that the random policy draws from.
const RANDOM_PORTS: f64 = (1_u32 << 30) as f64;
/// Mean of the jitter, by which a wait is multiplied.
const MEAN_JITTER: f64 = f64::midpoint(JITTER.start, JITTER.end);

/// What is known about a machine's vsock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Evidence<'a> {
    /// The guest's view, if init answered.
    pub(crate) guest: Option<&'a GuestView>,
    /// Attempts of the last start or resume.
    pub(crate) readiness: &'a [Attempt],
    /// How that start or resume went.
    pub(crate) last_start: Option<&'a StartKind>,
    /// Where local ports begin.
    pub(crate) port_policy: PortPolicy,
    /// Whether saved pairs are evicted at a resume.
    pub(crate) eviction: bool,
    /// Bounds of the readiness check.
    pub(crate) limits: &'a ReadinessLimits,
}

/// Says what `evidence` means.
pub(crate) fn diagnose(evidence: &Evidence<'_>) -> VsockDiagnosis {
    let Some(guest) = evidence.guest else {
        return VsockDiagnosis {
            verdict: Verdict::Unknown,
            leaked_pairs: 0,
            unclosed_sockets: 0,
            since_generation: None,
            expected_failed_attempts: 0.0,
            expected_delay_ms: 0.0,
            findings: vec![
                "guest-init did not answer, so nothing is known about the guest's sockets; \
                 see `mctl logs` for its console"
                    .to_owned(),
            ],
        };
    };
    let refused = refused_ports(evidence);
    let left_over: Vec<&SocketCount> = guest
        .sockets
        .counts
        .iter()
        .filter(|one| is_left_over(one, guest.generation))
        .collect();
    let sum = |detached: bool| {
        let counts = left_over.iter().filter(|one| is_detached(one) == detached);
        // The guest says them, and may say anything.
        counts.fold(0_u32, |sum, one| sum.saturating_add(one.count))
    };
    let (leaked_pairs, unclosed_sockets) = (sum(false), sum(true));
    let expected = expected_failures(leaked_pairs, evidence.port_policy);
    let verdict = match (leaked_pairs, refused.is_empty()) {
        (0, true) if unclosed_sockets == 0 => Verdict::Healthy,
        // Attempts were refused, but no leaked pair explains that now.
        (0, false) => Verdict::Unknown,
        (_, false) => Verdict::Colliding,
        (_, true) => Verdict::Leaking,
    };
    let mut diagnosis = VsockDiagnosis {
        verdict,
        leaked_pairs,
        unclosed_sockets,
        since_generation: left_over.iter().filter_map(|one| one.generation).min(),
        expected_failed_attempts: expected,
        expected_delay_ms: delay(expected, evidence.limits).as_secs_f64() * 1e3,
        findings: Vec::new(),
    };
    diagnosis.findings = findings(evidence, guest, &diagnosis, &refused);
    diagnosis
}

/// A socket whose other end is gone: opened under an earlier VMM, or reset and never closed by its
/// owner.
fn is_left_over(count: &SocketCount, generation: u64) -> bool {
    count.generation.is_some_and(|opened| opened < generation)
        || count.state == "closed"
        || is_detached(count)
}

/// A socket that its owner has not closed, but that the guest's kernel has taken out of its
/// tables: its pair is free, and no connection can collide with it.
fn is_detached(count: &SocketCount) -> bool {
    count.state == "detached"
}

/// Local ports on which the last resume was refused. A boot does not count: its guest refuses until
/// guest-init listens, whatever its pairs are.
fn refused_ports(evidence: &Evidence<'_>) -> Vec<u32> {
    if evidence.last_start != Some(&StartKind::Resumed) {
        return Vec::new();
    }
    evidence
        .readiness
        .iter()
        .filter(|attempt| attempt.outcome == AttemptOutcome::Reset)
        .filter_map(|attempt| attempt.local_port)
        .collect()
}

/// Failed attempts to expect at the next resume.
///
/// Under the fixed policy leaked pairs are at the front of the range, where earlier resumes began too. A random start meets one of them with probability N / 2^30.
fn expected_failures(leaked_pairs: u32, policy: PortPolicy) -> f64 {
    match policy {
        PortPolicy::Fixed => f64::from(leaked_pairs),
        PortPolicy::Continue => 0.0,
        PortPolicy::Random => f64::from(leaked_pairs) / RANDOM_PORTS,
    }
}

/// What that many failures cost in backoff; fractions count as part of the first failure.
fn delay(failures: f64, limits: &ReadinessLimits) -> Duration {
    let mut total = 0.0;
    let mut pause = limits.backoff.first.as_secs_f64();
    let mut left = failures;
    while left > 0.0 && pause < limits.backoff.longest.as_secs_f64() {
        total += left.min(1.0) * pause * MEAN_JITTER;
        left -= 1.0;
        pause *= 2.0;
    }
    total += left.max(0.0) * limits.backoff.longest.as_secs_f64() * MEAN_JITTER;
    Duration::from_secs_f64(total)
}

fn findings(
    evidence: &Evidence<'_>,
    guest: &GuestView,
    diagnosis: &VsockDiagnosis,
    refused: &[u32],
) -> Vec<String> {
    let mut findings = Vec::new();
    let total = guest.sockets.total;
    let since = diagnosis
        .since_generation
        .map(|generation| format!(", the oldest since generation {generation}"))
        .unwrap_or_default();
    if diagnosis.leaked_pairs > 0 {
        findings.push(format!(
            "{} of the {total} vsock sockets open in the guest have no living other end{since}: \
             a process there does not close connections that a resume has reset",
            diagnosis.leaked_pairs
        ));
    }
    if diagnosis.unclosed_sockets > 0 {
        findings.push(format!(
            "{} of the {total} vsock sockets open in the guest are freed but unclosed{since}: the \
             guest's kernel has freed their pairs, so they cost a resume nothing, but a process \
             there still holds their descriptors",
            diagnosis.unclosed_sockets
        ));
    }
    if findings.is_empty() {
        findings.push(format!(
            "{total} vsock sockets are open in the guest, all of them alive"
        ));
    }
    if let (Some(first), Some(last)) = (refused.iter().min(), refused.iter().max()) {
        let reason = if diagnosis.leaked_pairs > 0 {
            "those pairs are still open in the guest"
        } else {
            "for an unknown reason, since no pair is left open now; init may have closed them since"
        };
        findings.push(format!(
            "the last resume had {} of its {} attempts refused, on local ports {first} to {last}: \
             {reason}",
            refused.len(),
            evidence.readiness.len()
        ));
    }
    if diagnosis.leaked_pairs > 0 {
        findings.push(cost(evidence, diagnosis));
    }
    if diagnosis.leaked_pairs > 0 || diagnosis.unclosed_sockets > 0 {
        findings.push(remedy(evidence, diagnosis));
    }
    findings
}

fn cost(evidence: &Evidence<'_>, diagnosis: &VsockDiagnosis) -> String {
    match evidence.port_policy {
        PortPolicy::Fixed => format!(
            "the next resume will fail about {:.0} attempts and lose about {:.1} s, because local \
             ports begin at 2^30 each time",
            diagnosis.expected_failed_attempts,
            diagnosis.expected_delay_ms / 1e3
        ),
        PortPolicy::Continue => "the next resume loses no time: local ports go on behind the \
                                 leaked pairs"
            .to_owned(),
        PortPolicy::Random => format!(
            "the next resume loses no time, except with a probability of {:.1e}: local ports begin \
             at random",
            diagnosis.expected_failed_attempts
        ),
    }
}

fn remedy(evidence: &Evidence<'_>, diagnosis: &VsockDiagnosis) -> String {
    let close = "wait for errors (EPOLLERR), not only for readability, and close; guest-init does";
    let fix = format!("what to do: fix the process in the guest: {close}");
    if diagnosis.leaked_pairs == 0 {
        return fix;
    }
    // The VMM evicts the connections that it saved, and those of earlier VMMs are not among them.
    let free = "pairs that have leaked already become free only when that process closes them or \
                ends, so restart it, or the machine";
    if evidence.eviction {
        return format!("{fix}; {free}");
    }
    format!(
        "{fix}; until then switch eviction on (`--vsock-eviction on`), which frees the pairs that \
         are open at a suspend whatever the guest does; {free}"
    )
}

#[cfg(test)]
mod tests {
    use guest_protocol::backoff::Backoff;
    use machine_api::GuestSockets;

    use super::*;

    const LIMITS: ReadinessLimits = ReadinessLimits {
        attempt: Duration::from_secs(2),
        backoff: Backoff {
            first: Duration::from_millis(25),
            longest: Duration::from_secs(1),
        },
        total: Duration::from_secs(60),
    };

    fn guest(counts: Vec<SocketCount>) -> GuestView {
        GuestView {
            boot_id: "b".to_owned(),
            generation: 9,
            init_version: "1".to_owned(),
            uptime_ms: 1,
            clock_step_ms: None,
            sockets: GuestSockets {
                total: counts.iter().map(|one| one.count).sum(),
                older_generations: 0,
                counts,
                source: "vsock_diag".to_owned(),
            },
        }
    }

    fn sockets(state: &str, generation: Option<u64>, count: u32) -> SocketCount {
        SocketCount {
            state: state.to_owned(),
            generation,
            count,
        }
    }

    fn attempt(outcome: AttemptOutcome, local_port: u32) -> Attempt {
        Attempt {
            local_port: Some(local_port),
            outcome,
            ms: 1.0,
            message: None,
        }
    }

    fn diagnosed(
        guest: Option<&GuestView>,
        readiness: &[Attempt],
        port_policy: PortPolicy,
    ) -> VsockDiagnosis {
        diagnose(&Evidence {
            last_start: Some(&StartKind::Resumed),
            ..evidence(guest, readiness, port_policy)
        })
    }

    fn evidence<'a>(
        guest: Option<&'a GuestView>,
        readiness: &'a [Attempt],
        port_policy: PortPolicy,
    ) -> Evidence<'a> {
        Evidence {
            guest,
            readiness,
            last_start: None,
            port_policy,
            eviction: false,
            limits: &LIMITS,
        }
    }

    #[test]
    fn living_sockets_of_this_generation_are_healthy() {
        let guest = guest(vec![
            sockets("established", Some(9), 2),
            sockets("established", None, 3),
        ]);
        let diagnosis = diagnosed(Some(&guest), &[], PortPolicy::Fixed);
        assert_eq!(diagnosis.verdict, Verdict::Healthy);
        assert_eq!(diagnosis.leaked_pairs, 0);
        assert_eq!(diagnosis.expected_failed_attempts, 0.0);
        assert_eq!(diagnosis.findings.len(), 1);
    }

    #[test]
    fn counts_that_no_guest_can_have_are_no_problem() {
        let mut guest = guest(vec![sockets("closed", Some(4), u32::MAX)]);
        guest.sockets.counts.push(sockets("closed", Some(5), 2));
        let diagnosis = diagnosed(Some(&guest), &[], PortPolicy::Fixed);
        assert_eq!(diagnosis.leaked_pairs, u32::MAX);
        assert_eq!(diagnosis.verdict, Verdict::Leaking);
    }

    #[test]
    fn sockets_of_older_generations_and_dead_ones_of_anybody_are_leaked() {
        let guest = guest(vec![
            sockets("established", Some(9), 1),
            sockets("closed", Some(4), 3),
            sockets("closed", Some(6), 2),
            sockets("closed", None, 1),
        ]);
        let diagnosis = diagnosed(Some(&guest), &[], PortPolicy::Random);
        assert_eq!(diagnosis.verdict, Verdict::Leaking);
        assert_eq!(diagnosis.leaked_pairs, 6);
        assert_eq!(diagnosis.since_generation, Some(4));
    }

    #[test]
    fn each_policy_pays_its_own_price_for_the_same_leak() {
        let guest = guest(vec![sockets("closed", Some(1), 13)]);
        let of = |policy| diagnosed(Some(&guest), &[], policy).expected_failed_attempts;
        assert_eq!(of(PortPolicy::Fixed), 13.0);
        assert_eq!(of(PortPolicy::Continue), 0.0);
        assert_eq!(of(PortPolicy::Random), 13.0 / RANDOM_PORTS);
    }

    #[test]
    fn refused_attempts_make_it_a_collision_and_name_the_ports() {
        let guest = guest(vec![sockets("closed", Some(1), 2)]);
        let readiness = [
            attempt(AttemptOutcome::Reset, 1 << 30),
            attempt(AttemptOutcome::Reset, (1 << 30) + 1),
            attempt(AttemptOutcome::Ok, (1 << 30) + 2),
        ];
        let diagnosis = diagnosed(Some(&guest), &readiness, PortPolicy::Fixed);
        assert_eq!(diagnosis.verdict, Verdict::Colliding);
        let text = diagnosis.findings.join("\n");
        assert!(text.contains("2 of its 3 attempts"), "{text}");
        assert!(text.contains("1073741824 to 1073741825"), "{text}");
    }

    #[test]
    fn refusals_of_a_booting_guest_are_no_leak() {
        let guest = guest(vec![sockets("established", Some(9), 2)]);
        let readiness = [
            attempt(AttemptOutcome::Reset, 1 << 30),
            attempt(AttemptOutcome::Ok, (1 << 30) + 1),
        ];
        for start in [StartKind::Booted, StartKind::SuspendCancelled] {
            let diagnosis = diagnose(&Evidence {
                last_start: Some(&start),
                ..evidence(Some(&guest), &readiness, PortPolicy::Fixed)
            });
            assert_eq!(diagnosis.verdict, Verdict::Healthy, "{start:?}");
            assert_eq!(diagnosis.findings.len(), 1, "{:?}", diagnosis.findings);
        }
    }

    #[test]
    fn refused_without_a_leak_is_of_unknown_reason_and_no_collision() {
        let guest = guest(vec![sockets("established", Some(9), 2)]);
        let readiness = [attempt(AttemptOutcome::Reset, 1 << 30)];
        let diagnosis = diagnosed(Some(&guest), &readiness, PortPolicy::Fixed);
        assert_eq!(diagnosis.verdict, Verdict::Unknown);
        let text = diagnosis.findings.join("\n");
        assert!(text.contains("unknown reason"), "{text}");
        assert!(!text.contains("what to do"), "{text}");
    }

    #[test]
    fn sockets_whose_pair_is_free_are_reported_but_cost_nothing() {
        let guest = guest(vec![
            sockets("detached", Some(4), 5),
            sockets("closed", Some(6), 2),
        ]);
        let diagnosis = diagnosed(Some(&guest), &[], PortPolicy::Fixed);
        assert_eq!((diagnosis.leaked_pairs, diagnosis.unclosed_sockets), (2, 5));
        assert_eq!(diagnosis.expected_failed_attempts, 2.0);
        let text = diagnosis.findings.join("\n");
        assert!(
            text.contains("5 of the 7") && text.contains("freed but unclosed"),
            "{text}"
        );
    }

    #[test]
    fn sockets_whose_pair_is_free_are_a_leak_of_descriptors_by_themselves() {
        let guest = guest(vec![sockets("detached", Some(4), 5)]);
        let diagnosis = diagnosed(Some(&guest), &[], PortPolicy::Fixed);
        assert_eq!(diagnosis.verdict, Verdict::Leaking);
        assert_eq!(diagnosis.expected_delay_ms, 0.0);
        let text = diagnosis.findings.join("\n");
        assert!(!text.contains("--vsock-eviction"), "{text}");
    }

    #[test]
    fn eviction_does_not_claim_to_free_what_has_leaked_already() {
        let guest = guest(vec![sockets("closed", Some(1), 2)]);
        for eviction in [true, false] {
            let diagnosis = diagnose(&Evidence {
                eviction,
                ..evidence(Some(&guest), &[], PortPolicy::Random)
            });
            let text = diagnosis.findings.join("\n");
            assert!(text.contains("leaked already become free only"), "{text}");
            assert_eq!(text.contains("--vsock-eviction on"), !eviction, "{text}");
        }
    }

    #[test]
    fn a_silent_init_is_unknown_not_healthy() {
        assert_eq!(
            diagnosed(None, &[], PortPolicy::Fixed).verdict,
            Verdict::Unknown
        );
    }

    #[test]
    fn failures_cost_their_doubling_pauses_and_then_the_longest_each() {
        let ms = |failures| delay(failures, &LIMITS).as_secs_f64() * 1e3;
        assert!((ms(1.0) - 18.75).abs() < 0.01);
        assert!((ms(3.0) - (25.0 + 50.0 + 100.0) * 0.75).abs() < 0.01);
        // 25 + 50 + 100 + 200 + 400 + 800, then a second each.
        assert!((ms(8.0) - (1575.0 + 2000.0) * 0.75).abs() < 0.01);
        assert_eq!(ms(0.0), 0.0);
    }
}
