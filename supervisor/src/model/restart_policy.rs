//! Whether and when a machine whose VMM ended by itself is started again.

use std::time::Duration;

use machine_api::{MachineConfig, RestartPolicy};

/// Wait before the first restart; doubles up to the second one.
const RESTART_FIRST: Duration = Duration::from_millis(500);
const RESTART_MOST: Duration = Duration::from_secs(60);
/// Restarts in a row with `on-failure` if the configuration names no number: the default that the
/// Fly Machines documentation gives.
const MOST_RETRIES: u32 = 10;
/// After a run of this length restarts are counted from zero again.
const STABLE: Duration = Duration::from_secs(60);

/// Wait before the first autostart after a short run; doubles up to the longest wait.
const AUTOSTART_FIRST: Duration = Duration::from_secs(1);

/// Whether a machine that has run for `ran` since its last start did not end soon.
pub(crate) fn is_stable(ran: Option<Duration>) -> bool {
    ran.is_some_and(|ran| ran > STABLE)
}

/// Whether a connection starts a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Autostart {
    /// At once.
    Now,
    /// Not before this time has passed: its last runs were short.
    After(Duration),
    /// It does not, until a user has started it.
    Never,
}

/// Whether a connection starts a machine that ended so long ago, after so many short runs in a row.
pub(crate) fn autostart(short_runs: u32, ended: Option<Duration>, broken: bool) -> Autostart {
    if broken {
        return Autostart::Never;
    }
    let Some(doublings) = short_runs.checked_sub(1) else {
        return Autostart::Now;
    };
    let wait = AUTOSTART_FIRST
        .saturating_mul(1 << doublings.min(16))
        .min(RESTART_MOST);
    match wait.checked_sub(ended.unwrap_or_default()) {
        Some(left) if !left.is_zero() => Autostart::After(left),
        _ => Autostart::Now,
    }
}

/// Restarts in a row before an end, of a machine that has run for `ran` since its last start.
pub(crate) fn restarts_in_a_row(restarts: u32, ran: Option<Duration>) -> u32 {
    if is_stable(ran) { 0 } else { restarts }
}

/// Wait until the restart policy starts a machine again; none if it does not. `clean` means that
/// the main process succeeded, `restarts` counts those in a row so far.
pub(crate) fn restart_wait(config: &MachineConfig, clean: bool, restarts: u32) -> Option<Duration> {
    let restart = config.restart.clone().unwrap_or_default();
    let wanted = match restart.policy {
        RestartPolicy::No => false,
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => {
            !clean && restarts < restart.max_retries.unwrap_or(MOST_RETRIES)
        }
    };
    wanted.then(|| {
        RESTART_FIRST
            .saturating_mul(1 << restarts.min(16))
            .min(RESTART_MOST)
    })
}

/// Whether the policy would restart the machine, had it not done so too often.
pub(crate) fn is_given_up(config: &MachineConfig, clean: bool, restarts: u32) -> bool {
    let policy = config.restart.as_ref().map(|restart| restart.policy);
    let retries = policy.unwrap_or_default() == RestartPolicy::OnFailure && !clean;
    retries && restart_wait(config, clean, restarts).is_none()
}

#[cfg(test)]
mod tests {
    use machine_api::Restart;

    use super::*;

    fn config(policy: RestartPolicy, max_retries: Option<u32>) -> MachineConfig {
        let restart = Some(Restart {
            policy,
            max_retries,
        });
        MachineConfig {
            restart,
            ..MachineConfig::default()
        }
    }

    #[test]
    fn policies_restart_what_they_should() {
        use RestartPolicy::{Always, No, OnFailure};
        let restarts = |policy, clean| restart_wait(&config(policy, None), clean, 0).is_some();
        assert_eq!([restarts(No, false), restarts(No, true)], [false, false]);
        assert_eq!(
            [restarts(Always, false), restarts(Always, true)],
            [true, true]
        );
        assert_eq!(
            [restarts(OnFailure, false), restarts(OnFailure, true)],
            [true, false]
        );
    }

    #[test]
    fn a_run_that_lasted_begins_the_count_anew() {
        let minutes = |minutes: u64| Some(Duration::from_secs(60 * minutes));
        assert_eq!(restarts_in_a_row(4, minutes(2)), 0);
        assert_eq!(restarts_in_a_row(4, minutes(0)), 4);
        assert_eq!(restarts_in_a_row(4, None), 4);
    }

    #[test]
    fn connections_start_a_machine_that_ends_soon_less_and_less_often() {
        let at_once = Some(Duration::ZERO);
        assert_eq!(autostart(0, at_once, false), Autostart::Now);
        let waits: Vec<_> = (1..9)
            .map(|runs| match autostart(runs, at_once, false) {
                Autostart::After(wait) => wait,
                other => panic!("{other:?} after {runs} short runs"),
            })
            .collect();
        assert_eq!(waits[0], AUTOSTART_FIRST);
        assert!(waits.is_sorted());
        assert_eq!(waits[7], RESTART_MOST);
        assert_eq!(autostart(1, Some(AUTOSTART_FIRST), false), Autostart::Now);
        assert_eq!(autostart(9, Some(RESTART_MOST), false), Autostart::Now);
        assert_eq!(autostart(0, None, true), Autostart::Never);
    }

    #[test]
    fn retries_end_and_waits_grow() {
        let limited = config(RestartPolicy::OnFailure, Some(2));
        assert!(restart_wait(&limited, false, 1).is_some());
        assert!(restart_wait(&limited, false, 2).is_none());
        assert!(is_given_up(&limited, false, 2) && !is_given_up(&limited, true, 2));
        let usual = config(RestartPolicy::OnFailure, None);
        assert!(restart_wait(&usual, false, 9).is_some());
        assert!(restart_wait(&usual, false, 10).is_none());
        let endless = config(RestartPolicy::Always, None);
        let waits: Vec<_> = (0..9)
            .map(|n| restart_wait(&endless, false, n).unwrap())
            .collect();
        assert!(waits.is_sorted());
        assert_eq!(waits[8], RESTART_MOST);
    }
}
