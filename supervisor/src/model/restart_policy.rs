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

/// Restarts in a row before an end, of a machine that has run for `ran` since its last start.
pub(crate) fn restarts_in_a_row(restarts: u32, ran: Option<Duration>) -> u32 {
    if ran.is_some_and(|ran| ran > STABLE) {
        0
    } else {
        restarts
    }
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
