//! What a guest was told is on its disk is there after a power cut, and a guest that is suspended and
//! resumed meanwhile goes on from there: old memory never runs over a newer disk. Promises that a killed
//! process proves nothing about, as the page cache outlives processes.
//!
//! A supervisor runs on the virtual KVM host's disk, and on it a machine that writes to its own disk.
//! Needs QEMU and, the first time, the network for Debian's packages; without `mmdebstrap` or QEMU
//! it is ignored, with the reason.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "what tests may do, their helpers may"
)]

use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use e2e::artifacts::GuestImage;
use e2e::host::{files_for_guests, parts};
use kvm_host::clock::Clock;
use kvm_host::config::{Config, INSIDE_STATE_DIR, Run};
use kvm_host::disk::Loss;
use kvm_host::emulator::Emulator;
use kvm_host::host::VirtualHost;
use kvm_host::plan::Filesystem;
use kvm_host::storage::{DiskFile, Storage};
use kvm_host::{debian, qemu};
use trials::{Arguments, ignore_if, trials};

/// Longest wait for the next line from the guest, the boot of both hosts included.
const DEADLINE: Duration = Duration::from_secs(300);
/// The power is cut this often, each time with other losses.
const CUTS: u32 = 3;
/// So many more records the guest gets acknowledged before a cut.
const RECORDS: u64 = 25;

/// So many between two cuts of a machine that is suspended and resumed: its cycles take a second or two.
const RECORDS_OVER_CYCLES: std::ops::Range<u64> = 5..40;
/// Cuts of such a machine: few of them hit a resume before it is durable.
const CUTS_OVER_CYCLES: u32 = 5;

/// The guest's main process. It says how many records it finds, then appends one after the other: it
/// acknowledges one when the kernel has told it that the record is on the disk.
const WRITER: &str = r#"
    found=$(awk '$1 != NR { exit } { n = NR } END { print n + 0 }' /data/records 2>/dev/null)
    head -n ${found:=0} /data/records >/data/new 2>/dev/null
    sync && mv /data/new /data/records && sync
    echo "found $found"
    n=$found
    while :; do
        n=$((n + 1))
        echo $n >>/data/records
        sync /data/records
        echo "acknowledged $n"
    done"#;

fn main() -> ExitCode {
    let all = trials![
        acknowledged_writes_of_a_guest_survive_power_cuts,
        old_memory_never_runs_over_a_newer_disk,
    ];
    let no_qemu = qemu::check_installed().err().map(|error| error.to_string());
    let no_debian = debian::check_installed()
        .err()
        .map(|error| error.to_string());
    let all = ignore_if(no_qemu.or(no_debian).as_deref(), all);
    trials::run(&Arguments::from_args(), all).exit_code()
}

/// Suspends and resumes the machine for ever. What fails since the machine is in between is tried again.
const CYCLES: &str = "
        while :; do
            mctl suspend writer >&2
            mctl start writer >&2
            sleep 0.5
        done &";

/// Runs inside. The machine is made the first time; the next time it is there, and is started. Then
/// come `cycles`.
fn script(cycles: &str) -> String {
    format!(
        r#"set -eu
        export MCTL_HOST=unix://{INSIDE_STATE_DIR}/api.sock
        [ -e {INSIDE_STATE_DIR}/guest.img ] || mkfs.ext4 -q {INSIDE_STATE_DIR}/guest.img 32M
        mctl-supervisor --state-dir {INSIDE_STATE_DIR} --start-timeout 300s &
        tries=0
        until mctl list >/dev/null 2>&1; do
            tries=$((tries + 1)) && [ $tries -lt 300 ] && sleep 0.2
        done
        if [ "$(mctl list --quiet)" = "" ]; then
            # The disk's file and its name.
            sync
            mctl run --name writer --memory 128 --disk {INSIDE_STATE_DIR}/guest.img:/data \
                --restart no default -- /bin/sh -c '{writer}'
        else
            mctl start writer
        fi
        {cycles}
        mctl logs --follow --since 1s writer"#,
        writer = WRITER.replace('\'', r"'\''"),
    )
}

fn start(folder: &Path, cycles: &str) -> (VirtualHost, Output) {
    let images = format!("{INSIDE_STATE_DIR}/images");
    let (sender, receiver) = mpsc::channel();
    let packages = ["postgresql".to_owned()];
    let host = VirtualHost::start(&Config {
        parts: parts().unwrap(),
        memory_mib: 2048,
        cpus: 1,
        emulator: Emulator::QemuAmd,
        clock: Clock::Real,
        files: files_for_guests(folder, &[GuestImage::Default], &[], &images).unwrap(),
        storage: Some(Storage {
            // The root that tests of other crates use, so that there is one.
            debian: debian::from_user_cache(&packages, &|step| println!("{step}")).unwrap(),
            programs_in_debian: true,
            disks: vec![DiskFile {
                file: folder.join("disk.img"),
                inside: INSIDE_STATE_DIR.to_owned(),
                size_mib: 1024,
                filesystem: Filesystem::Ext4,
            }],
            memory_disks: Vec::new(),
        }),
        run: Run::Command {
            argv: ["/bin/sh", "-c", &script(cycles)]
                .map(str::to_owned)
                .to_vec(),
            env: Vec::new(),
            stdout: Some(sender),
            export: None,
        },
        log_folder: folder.to_owned(),
    })
    .unwrap();
    let output = Output {
        pieces: receiver,
        unread: String::new(),
    };
    (host, output)
}

/// What the guest writes.
struct Output {
    pieces: Receiver<Vec<u8>>,
    unread: String,
}

impl Output {
    /// The word of `words` that the next line with one of them has, and the number at its end.
    fn next(&mut self, words: &[&'static str]) -> (&'static str, u64) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            while let Some((line, rest)) = self.unread.split_once('\n') {
                let (line, rest) = (line.to_owned(), rest.to_owned());
                self.unread = rest;
                if let Some(word) = words.iter().find(|word| line.contains(**word)) {
                    let number = line.rsplit(' ').next().unwrap();
                    let number = number.parse();
                    return (
                        word,
                        number.unwrap_or_else(|_| panic!("no number in {line:?}")),
                    );
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            let piece = self
                .pieces
                .recv_timeout(left)
                .unwrap_or_else(|error| panic!("no line with {words:?} from the guest: {error}"));
            self.unread.push_str(str::from_utf8(&piece).unwrap());
        }
    }

    fn next_number(&mut self, word: &'static str) -> u64 {
        self.next(&[word]).1
    }
}

fn old_memory_never_runs_over_a_newer_disk() {
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

fn acknowledged_writes_of_a_guest_survive_power_cuts() {
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
