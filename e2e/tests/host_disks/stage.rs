//! A virtual KVM host with disks, a supervisor on one of them, and a machine whose disk is on the other.

use std::path::Path;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use e2e::artifacts::GuestImage;
use e2e::host::{files_for_guests, parts};
use kvm_host::clock::Clock;
use kvm_host::config::{Config, INSIDE_STATE_DIR, Run};
use kvm_host::debian;
use kvm_host::emulator::Emulator;
use kvm_host::host::VirtualHost;
use kvm_host::plan::Filesystem;
use kvm_host::storage::{DiskFile, Storage};

/// Longest wait for the next line from the guest, the boot of both hosts included.
const DEADLINE: Duration = Duration::from_secs(300);
/// Where the disk with the guest's disk is mounted.
pub(crate) const GUEST_DISKS: &str = "/guest-disks";

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

/// Runs inside. The machine is made the first time; the next time it is there, and is started. Then
/// come `commands`.
fn script(commands: &str) -> String {
    format!(
        r#"set -eu
        export MCTL_HOST=unix://{INSIDE_STATE_DIR}/api.sock
        [ -e {GUEST_DISKS}/guest.img ] || mkfs.ext4 -q {GUEST_DISKS}/guest.img 32M
        mctl-supervisor --state-dir {INSIDE_STATE_DIR} --start-timeout 300s &
        tries=0
        until mctl list >/dev/null 2>&1; do
            tries=$((tries + 1)) && [ $tries -lt 300 ] && sleep 0.2
        done
        if [ "$(mctl list --quiet)" = "" ]; then
            # The disk's file and its name.
            sync
            mctl run --name writer --memory 128 --disk {GUEST_DISKS}/guest.img:/data \
                --restart no default -- /bin/sh -c '{writer}'
        else
            mctl start writer
        fi
        {commands}
        mctl logs --follow --since 1s writer"#,
        writer = WRITER.replace('\'', r"'\''"),
    )
}

/// Starts the host, whose disks are files in `folder`, and `commands` beside the machine.
pub(crate) fn start(folder: &Path, commands: &str) -> (VirtualHost, Output) {
    let images = format!("{INSIDE_STATE_DIR}/images");
    let (sender, receiver) = mpsc::channel();
    let disk = |name: &str, inside: &str, size_mib| DiskFile {
        file: folder.join(name),
        inside: inside.to_owned(),
        size_mib,
        filesystem: Filesystem::Ext4,
    };
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
            disks: vec![
                disk("disk.img", INSIDE_STATE_DIR, 1024),
                disk("guests.img", GUEST_DISKS, 128),
            ],
            memory_disks: Vec::new(),
        }),
        run: Run::Command {
            argv: ["/bin/sh", "-c", &script(commands)]
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
pub(crate) struct Output {
    pieces: Receiver<Vec<u8>>,
    unread: String,
}

impl Output {
    /// The word of `words` that the next line with one of them has, and the number at its end.
    pub(crate) fn next(&mut self, words: &[&'static str]) -> (&'static str, u64) {
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

    /// The number at the end of the next line with that word.
    pub(crate) fn next_number(&mut self, word: &'static str) -> u64 {
        self.next(&[word]).1
    }
}
