//! Tests of the loop, with a subject that follows a script.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::*;
use crate::record::{
    Attempt, AttemptOutcome, Clock, Host, KvmKind, Outcome, Phases, Report, Resources, Setting,
};

/// A subject whose every resume shows the next observation of a script.
struct Scripted {
    observations: Vec<GuestObservation>,
    next: usize,
    resume_ms: f64,
    /// How far resumes swing with the load of the host.
    swing_ms: f64,
    fail_suspend_in: Option<usize>,
}

#[derive(Debug, thiserror::Error)]
#[error("the image could not be written")]
struct NoSpace(#[source] std::io::Error);

impl Scripted {
    fn with(observations: Vec<GuestObservation>) -> Self {
        Self {
            observations,
            next: 0,
            resume_ms: 5.0,
            swing_ms: 0.0,
            fail_suspend_in: None,
        }
    }

    /// As good as random.
    fn swing(&self) -> f64 {
        let part = f64::from(u32::try_from(self.next * 7919 % 101).unwrap());
        self.swing_ms * part / 101.0
    }

    fn advance(&mut self) -> GuestObservation {
        let observation = self.observations[self.next].clone();
        self.next += 1;
        observation
    }
}

impl Subject for Scripted {
    type Error = NoSpace;

    fn describe(&self) -> SubjectDescription {
        SubjectDescription {
            name: "scripted".to_owned(),
            ..SubjectDescription::default()
        }
    }

    async fn observe(&mut self) -> Result<GuestObservation, NoSpace> {
        Ok(self.advance())
    }

    async fn suspend(&mut self) -> Result<SuspendOutcome, NoSpace> {
        if self.fail_suspend_in == Some(self.next) {
            return Err(NoSpace(std::io::Error::other("disk full")));
        }
        let phases = Phases::with_remainder([("pause".to_owned(), 1.0)], 3.0);
        Ok(SuspendOutcome {
            total_ms: 3.0,
            phases,
            image_bytes_written: Some(4096),
        })
    }

    async fn resume(&mut self) -> Result<ResumeOutcome, NoSpace> {
        let attempt = Attempt {
            local_port: Some(1 << 30),
            outcome: AttemptOutcome::Ok,
            ms: 1.0,
        };
        Ok(ResumeOutcome {
            total_ms: self.resume_ms + self.swing(),
            phases: Phases::with_remainder([("spawn".to_owned(), 2.0)], 5.0 + self.swing()),
            readiness: vec![attempt],
            guest: self.advance(),
        })
    }

    async fn resources(&mut self) -> Result<Resources, NoSpace> {
        Ok(Resources::from_iter([(
            "observations",
            self.next as u64 % 7,
        )]))
    }
}

fn observed(boot_id: &str, counter: u64, open_vsocks: u32) -> GuestObservation {
    GuestObservation {
        boot_id: Some(boot_id.to_owned()),
        counter: Some(counter),
        open_vsocks: Some(open_vsocks),
    }
}

fn survived(observations: u64) -> Vec<GuestObservation> {
    (0..observations).map(|n| observed("a", n, 2)).collect()
}

/// The scripted subject never waits, so one poll completes it.
fn completed<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a scripted subject never waits"),
    }
}

fn run(subject: &mut Scripted, cycles: u32) -> Run {
    let options = RunOptions {
        cycles,
        most_cycles: 0,
        leftover_vsocks: LeftoverVsocks::Fail,
    };
    completed(run_cycles(subject, options, &mut Silent))
}

fn setting() -> Setting {
    Setting {
        host: Host {
            kvm: KvmKind::Virtual,
            details: std::collections::BTreeMap::new(),
        },
        clock: Clock::Virtual,
        started_at: String::new(),
    }
}

fn failed_check(observations: Vec<GuestObservation>) -> FailedCheck {
    let cycles = u32::try_from(observations.len()).unwrap() - 1;
    run(&mut Scripted::with(observations), cycles)
        .failed_check()
        .unwrap()
        .clone()
}

#[test]
fn a_guest_that_survives_completes_all_cycles() {
    let run = run(&mut Scripted::with(survived(6)), 5);
    assert_eq!(run.end, RunEnd::Complete);
    assert_eq!(
        run.cycles.iter().map(|c| c.cycle).collect::<Vec<_>>(),
        [1, 2, 3, 4, 5]
    );
    assert_eq!(run.cycles[0].resume_phases_ms.ms("unattributed"), Some(3.0));
    // Each cycle has what was in use after its own resume.
    let observations = run.cycles.iter().map(|c| c.resources.get("observations"));
    let expected = [2, 3, 4, 5, 6].map(Some);
    assert_eq!(observations.collect::<Vec<_>>(), expected);
}

#[test]
fn a_changed_boot_id_ends_the_run_and_names_both() {
    let failed = failed_check(vec![
        observed("a", 0, 2),
        observed("a", 1, 2),
        observed("b", 2, 2),
    ]);
    assert_eq!((failed.cycle, failed.check.as_str()), (2, "boot_id"));
    assert!(failed.message.contains("from a to b"), "{}", failed.message);
}

#[test]
fn a_counter_that_goes_back_ends_the_run() {
    let failed = failed_check(vec![
        observed("a", 7, 2),
        observed("a", 9, 2),
        observed("a", 3, 2),
    ]);
    assert_eq!(
        (failed.cycle, failed.check.as_str()),
        (2, "counter_went_back")
    );
    assert!(failed.message.contains("from 9 to 3"), "{}", failed.message);
}

#[test]
fn a_counter_that_stands_still_ends_the_run_after_fifty_cycles() {
    let failed = failed_check(vec![observed("a", 7, 2); 54]);
    assert_eq!(
        (failed.cycle, failed.check.as_str()),
        (50, "counter_stood_still")
    );
}

#[test]
fn a_vsock_left_over_ends_the_run_and_keeps_the_records() {
    let mut subject = Scripted::with(vec![
        observed("a", 0, 1),
        observed("a", 1, 2),
        observed("a", 2, 2),
        observed("a", 3, 3),
        observed("a", 4, 4),
    ]);
    let run = run(&mut subject, 4);
    let failed = run.failed_check().unwrap().clone();
    assert_eq!(
        (failed.cycle, failed.check.as_str()),
        (3, "vsock_left_over")
    );
    assert!(failed.message.contains("1 left over"), "{}", failed.message);
    assert_eq!(run.cycles.len(), 3);
}

#[test]
fn a_leak_on_purpose_is_only_recorded() {
    let leaking = (0..5).map(|n| observed("a", u64::from(n), n)).collect();
    let options = RunOptions {
        cycles: 4,
        most_cycles: 0,
        leftover_vsocks: LeftoverVsocks::Record,
    };
    let run = completed(run_cycles(
        &mut Scripted::with(leaking),
        options,
        &mut Silent,
    ));
    assert_eq!(run.end, RunEnd::Complete);
    assert_eq!(run.cycles[3].guest_open_vsocks, Some(4));
}

#[test]
fn a_failing_suspend_keeps_the_records_and_the_chain_of_causes() {
    let mut subject = Scripted::with(survived(6));
    subject.fail_suspend_in = Some(3);
    let run = run(&mut subject, 5);
    assert_eq!(run.cycles.len(), 2);
    let message = &run.failed_check().unwrap().message;
    assert_eq!(
        message,
        "suspend failed: the image could not be written: disk full"
    );
}

#[test]
fn a_duration_that_is_not_a_number_never_reaches_the_records() {
    let mut subject = Scripted::with(survived(6));
    subject.resume_ms = f64::NAN;
    let run = run(&mut subject, 5);
    assert_eq!(run.failed_check().unwrap().check, "duration");
    assert!(run.cycles.is_empty());
}

#[test]
fn a_value_that_the_guest_stops_reporting_ends_the_run() {
    let silent = GuestObservation {
        counter: None,
        ..observed("a", 0, 2)
    };
    let failed = failed_check(vec![observed("a", 0, 2), silent]);
    assert_eq!(failed.check, "no_longer_reported");
}

#[test]
fn values_that_the_subject_cannot_report_are_not_checked() {
    let run = run(
        &mut Scripted::with(vec![GuestObservation::default(); 13]),
        12,
    );
    assert_eq!(run.end, RunEnd::Complete);
}

#[test]
fn an_observer_can_end_the_run_early() {
    struct StopAfterTwo;
    impl Observer for StopAfterTwo {
        fn cycle_done(&mut self, cycle: &Cycle, _: u32) -> ControlFlow<()> {
            if cycle.cycle == 2 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        }
    }
    let options = RunOptions {
        cycles: 5,
        most_cycles: 0,
        leftover_vsocks: LeftoverVsocks::Fail,
    };
    let run = completed(run_cycles(
        &mut Scripted::with(survived(6)),
        options,
        &mut StopAfterTwo,
    ));
    assert_eq!(
        (run.end.clone(), run.cycles.len()),
        (RunEnd::Interrupted, 2)
    );
    let report = Report::of_run(setting(), run);
    assert_eq!(report.flatness.outcome, Outcome::Undecided);
    let reason = report.flatness.reason;
    assert!(reason.starts_with("interrupted after 2 of 5"), "{reason}");
}

#[test]
fn any_failed_attempt_fails_the_run_of_a_healthy_guest() {
    for outcome in [
        AttemptOutcome::Reset,
        AttemptOutcome::NoReply,
        AttemptOutcome::Closed,
    ] {
        let run = run(&mut Scripted::with(survived(81)), 80);
        let mut report = Report::of_run(setting(), run);
        assert!(report.flatness.is_flat(), "{}", report.flatness.reason);
        report.require_first_attempts();
        assert_eq!(report.failed_check, None);
        report.cycles[3].readiness[0].outcome = outcome;
        report.require_first_attempts();
        let failed = report.failed_check.unwrap();
        assert_eq!(
            (failed.cycle, failed.check.as_str()),
            (4, "readiness_attempts")
        );
        let wanted = format!("1 {} in all", outcome.name());
        assert!(failed.message.contains(&wanted), "{}", failed.message);
        assert_eq!(report.flatness.outcome, Outcome::Undecided);
    }
}

#[test]
fn an_undecided_run_goes_on_until_it_is_decided() {
    let options = |most_cycles| RunOptions {
        cycles: 80,
        most_cycles,
        leftover_vsocks: LeftoverVsocks::Fail,
    };
    let mut quiet = Scripted::with(survived(400));
    let run = completed(run_cycles(&mut quiet, options(400), &mut Silent));
    assert_eq!((run.cycles.len(), run.cycles_wanted), (80, 80));
    assert_eq!(
        (run.looks.as_slice(), run.end),
        (&[80][..], RunEnd::Complete)
    );

    let mut noisy = Scripted::with(survived(400));
    noisy.swing_ms = 5.0;
    let run = completed(run_cycles(&mut noisy, options(240), &mut Silent));
    assert_eq!((run.cycles.len(), run.cycles_wanted), (240, 240));
    assert_eq!(run.looks, [80, 160]);
    let report = Report::of_run(setting(), run);
    assert_eq!(report.flatness.looks, [80, 160, 240]);
}

#[test]
fn a_report_on_a_failed_run_is_not_flat_and_says_which_check_failed() {
    let mut observations = survived(40);
    observations.push(observed("b", 41, 2));
    let run = run(&mut Scripted::with(observations), 40);
    let report = Report::of_run(setting(), run);
    assert_eq!(report.flatness.outcome, Outcome::Undecided);
    assert!(
        report.flatness.reason.contains("cycle 40"),
        "{}",
        report.flatness.reason
    );
    assert_eq!(report.cycles.len(), 40);
}
