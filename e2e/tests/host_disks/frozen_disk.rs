//! A disk of the host that does not answer: nothing of the machine is lost, and it is used again afterwards.

use crate::stage::{GUEST_DISKS, start};

/// The guest acknowledges so many records before its disk is frozen, and after.
const RECORDS: u64 = 5;

/// Waits until the guest writes, freezes the file system of its disk, and tries to suspend it. Then thaws, and
/// suspends and resumes it.
fn commands() -> String {
    format!(
        r#"
        (
            until mctl logs writer | grep -q "acknowledged {RECORDS}$"; do sleep 0.2; done
            fsfreeze --freeze {GUEST_DISKS}
            if mctl suspend writer >/suspend.log 2>&1; then echo "verdict suspended 0"; fi
            grep -q "disk" /suspend.log && echo "verdict named 1"
            cat /suspend.log >&2
            mctl list --json | grep -q '"started"' && echo "verdict started 2"
            fsfreeze --unfreeze {GUEST_DISKS}
            before=$(mctl logs writer | grep -c acknowledged)
            until [ $(mctl logs writer | grep -c acknowledged) -gt $((before + {RECORDS})) ]; do sleep 0.2; done
            mctl suspend writer >&2 && mctl start writer >&2 && echo "verdict resumed 3"
        ) &"#
    )
}

pub(crate) fn a_disk_that_does_not_answer_fails_the_suspend_and_the_guest_runs_on() {
    let folder = tempfile::tempdir().unwrap();
    let (host, mut output) = start(folder.path(), &commands());
    assert_eq!(output.next_number("found"), 0);
    let mut acknowledged = 0;
    let mut verdicts = Vec::new();
    while verdicts.last() != Some(&3) {
        match output.next(&["found", "acknowledged", "verdict"]) {
            ("verdict", number) => verdicts.push(number),
            ("acknowledged", number) => {
                assert_eq!(
                    number,
                    acknowledged + 1,
                    "a record was lost, or written twice"
                );
                acknowledged = number;
            }
            (word, _) => panic!("{word}: the guest was booted again"),
        }
    }
    // Not suspended while the disk was frozen, which the error names; started all the time; then resumed.
    assert_eq!(verdicts, [1, 2, 3]);
    assert!(acknowledged > 2 * RECORDS, "{acknowledged}");
    host.shutdown().unwrap();
}
