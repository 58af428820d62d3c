//! The state of the fake VMM, which all of its connections share.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use vmm_control::{ExitReason, ExitReport, Phase};

use crate::image::GuestState;

pub(crate) struct Vmm {
    pub(crate) machine_id: String,
    pub(crate) generation: u64,
    exit_file: PathBuf,
    pub(crate) guest: Mutex<GuestState>,
    /// By path: permission bits and content. Not part of the image.
    pub(crate) files: Mutex<HashMap<String, (u32, Vec<u8>)>>,
    /// Whether it was restored from an image.
    pub(crate) resumed: bool,
    pub(crate) phases: Vec<Phase>,
    /// A power failure would bring the image back that it was restored from, and the supervisor waits until
    /// that is over.
    consumption_pending: AtomicBool,
    /// Local port of the next connection to the guest.
    pub(crate) next_port: AtomicU32,
    /// How many connections to the guest are still refused.
    pub(crate) refusals_left: AtomicU32,
    /// A cancellation of the suspend was requested.
    pub(crate) cancelled: AtomicBool,
    /// A slow suspend is under way, and the guest is paused.
    pub(crate) saving: AtomicBool,
}

impl Vmm {
    pub(crate) fn new(
        machine_id: String,
        generation: u64,
        exit_file: PathBuf,
        guest: GuestState,
        resumed: bool,
        phases: Vec<Phase>,
    ) -> Self {
        let mut words = guest.behaviour.split(' ');
        let refusals = words.find_map(|word| word.strip_prefix("rst=")?.parse().ok());
        let refusals = if resumed { refusals } else { None };
        Self {
            machine_id,
            generation,
            exit_file,
            guest: Mutex::new(guest),
            files: Mutex::default(),
            resumed,
            phases,
            consumption_pending: AtomicBool::new(false),
            next_port: AtomicU32::new(1 << 30),
            refusals_left: AtomicU32::new(refusals.unwrap_or(0)),
            cancelled: AtomicBool::new(false),
            saving: AtomicBool::new(false),
        }
    }

    /// Writes the exit report and ends the process.
    pub(crate) fn end(&self, reason: ExitReason, message: &str) -> ! {
        let report = ExitReport {
            machine_id: self.machine_id.clone(),
            generation: self.generation,
            reason,
            message: message.to_owned(),
        };
        let part = self.exit_file.with_extension("part");
        // If the disk is full there is no report, but the supervisor sees the process end.
        let _ = fs::write(&part, serde_json::to_vec(&report).unwrap())
            .and_then(|()| fs::rename(part, &self.exit_file));
        std::process::exit(0);
    }

    /// Whether the guest has that word in its command line.
    pub(crate) fn behaves(&self, word: &str) -> bool {
        self.guest.lock().unwrap().behaves(word)
    }

    /// Begins with an image whose use is not durable as long as the file `slow-disk` is there. Meanwhile a file
    /// `unsynced` tells what a power failure would undo.
    pub(crate) fn wait_for_the_disk(self: &Arc<Self>) {
        let [slow, unsynced] =
            ["slow-disk", "unsynced"].map(|name| self.exit_file.with_file_name(name));
        if !slow.exists() {
            return;
        }
        // On a full disk there is none, and then nothing is undone.
        let _ = fs::write(&unsynced, "");
        self.consumption_pending.store(true, Ordering::SeqCst);
        let vmm = self.clone();
        thread::spawn(move || {
            while slow.exists() {
                thread::park_timeout(Duration::from_millis(5));
            }
            let _ = fs::remove_file(unsynced);
            vmm.consumption_pending.store(false, Ordering::SeqCst);
        });
    }

    /// Whether no power failure would bring the image back that it was restored from, or nobody is to be told.
    pub(crate) fn is_consumption_durable(&self) -> bool {
        !self.consumption_pending.load(Ordering::SeqCst)
    }

    /// The version of the protocol that guest-init speaks now.
    pub(crate) fn guest_protocol(&self) -> u32 {
        let said = fs::read_to_string(self.exit_file.with_file_name("protocol"));
        said.map_or(guest_protocol::VERSION, |version| version.parse().unwrap())
    }

    /// Whether the guest answers nobody now.
    pub(crate) fn is_deaf(&self) -> bool {
        self.behaves("deaf") || self.exit_file.with_file_name("deaf").exists()
    }
}

/// Now, on CLOCK_MONOTONIC.
pub(crate) fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap()
}
