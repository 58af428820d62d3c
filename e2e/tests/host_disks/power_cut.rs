//! What a guest was told is on its disk is there after a power cut, and a guest that is suspended and
//! resumed meanwhile goes on from there: old memory never runs over a newer disk. Promises that a killed
//! process proves nothing about, as the page cache outlives processes.

use std::time::Instant;

use kvm_host::disk::Loss;

use crate::stage::start;

/// The power is cut this often, each time with other losses.
const CUTS: u32 = 3;
/// So many more records the guest gets acknowledged before a cut.
const RECORDS: u64 = 25;

/// So many between two cuts of a machine that is suspended and resumed: its cycles take a second or two.
const RECORDS_OVER_CYCLES: std::ops::Range<u64> = 5..40;
/// Cuts of such a machine: few of them hit a resume before it is durable.
const CUTS_OVER_CYCLES: u32 = 5;

/// Suspends and resumes the machine for ever. What fails since the machine is in between is tried again.
const CYCLES: &str = "
        while :; do
            mctl suspend writer >&2
            mctl start writer >&2
            sleep 0.5
        done &";

pub(crate) fn old_memory_never_runs_over_a_newer_disk() {
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for cut in 1..=CUTS_OVER_CYCLES + 1 {
        let (host, mut output) = start(folder.path(), CYCLES);
        // A guest that was resumed says nothing of what it finds; it goes on.
        let (word, number) = output.next(&["found", "acknowledged"]);
        println!("boot {cut}: {word} {number}, and {acknowledged} were acknowledged");
        assert!(
            number >= acknowledged + u64::from(word == "acknowledged"),
            "records are lost, or written again"
        );
        let begin = number;
        if cut > CUTS_OVER_CYCLES {
            host.shutdown().unwrap();
            return;
        }
        acknowledged = acknowledged.max(number);
        let records = rand::random_range(RECORDS_OVER_CYCLES);
        while acknowledged < begin + records {
            let (word, number) = output.next(&["found", "acknowledged"]);
            assert!(word == "acknowledged", "the guest was booted again");
            assert!(
                number == acknowledged + 1 || number == begin + 1,
                "{number}"
            );
            acknowledged = number;
        }
        let seed = rand::random();
        println!("power cut {cut} after {acknowledged} loses the sectors of the seed {seed}");
        host.cut_power(Loss::Random { seed }).unwrap();
    }
}

pub(crate) fn acknowledged_writes_of_a_guest_survive_power_cuts() {
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for cut in 1..=CUTS + 1 {
        let begin = Instant::now();
        let (host, mut output) = start(folder.path(), "");
        let found = output.next_number("found");
        println!(
            "boot {cut}: {found} records found, {acknowledged} acknowledged, after {:.1} s",
            begin.elapsed().as_secs_f64()
        );
        assert!(found >= acknowledged, "records are lost");
        if cut > CUTS {
            host.shutdown().unwrap();
            return;
        }
        while acknowledged < found + RECORDS {
            acknowledged = output.next_number("acknowledged");
        }
        let seed = rand::random();
        println!("power cut {cut} loses the sectors of the seed {seed}");
        host.cut_power(Loss::Random { seed }).unwrap();
    }
}
