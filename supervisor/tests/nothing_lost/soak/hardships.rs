//! What happens to the supervisor and to VMMs during a run.

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;

use rand::RngExt;
use rand::rngs::SmallRng;

use super::{Soak, pause};
use crate::exhaustion::{descriptors, space};
use crate::support::poll;

impl Soak {
    /// Kills and exhausts at random until the run ends.
    pub(super) fn make_hard(&self, mut rng: SmallRng) {
        while self.is_running() {
            pause(rng.random_range(100..1_500));
            match rng.random_range(0..14_u32) {
                0..=9 => self.kill(&mut rng),
                10..=11 => self.lose_power(&mut rng),
                12 => self.fill_the_disk(&mut rng),
                _ => self.use_up_descriptors(&mut rng),
            }
        }
    }

    fn kill(&self, rng: &mut SmallRng) {
        let _kills = self.kills.write().unwrap();
        match rng.random_range(0..10_u32) {
            0..=4 => self.kill_vmm(rng),
            5..=7 => self.replace_supervisor(rng, 0),
            _ => {
                let deaths = rng.random_range(1..4);
                self.replace_supervisor(rng, deaths);
            }
        }
    }

    fn kill_vmm(&self, rng: &mut SmallRng) {
        let vmms = self.site.vmms();
        if vmms.is_empty() {
            return;
        }
        let vmm = &vmms[rng.random_range(0..vmms.len())];
        // Its pid may belong to another process by now.
        if self.site.vmms().contains(vmm) {
            let _ = vmm.kill();
            self.count("VMMs killed");
        }
    }

    /// Ends the supervisor, kills so many VMMs while there is none, and starts the next supervisor.
    fn replace_supervisor(&self, rng: &mut SmallRng, vmms: u32) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        if rng.random_bool(0.2) {
            // An orderly end, which does not end machines either.
            self.site.terminate();
        } else {
            self.site.kill();
        }
        for _ in 0..vmms {
            self.kill_vmm(rng);
        }
        pause(rng.random_range(0..200));
        self.site.start();
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.count("supervisors killed");
    }

    /// All processes end at once. What was not durable may be as it was before: exit reports are gone, and images
    /// are back whose use was not durable.
    fn lose_power(&self, rng: &mut SmallRng) {
        let _kills = self.kills.write().unwrap();
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.site.kill();
        poll("the end of all VMMs", || {
            let vmms = self.site.vmms();
            for vmm in &vmms {
                // It may have ended by itself.
                let _ = vmm.kill();
            }
            vmms.is_empty().then_some(())
        });
        for name in self.site.machine_dirs() {
            let folder = self.site.state().join("machines").join(name);
            if rng.random_bool(0.5) {
                let _ = fs::remove_file(folder.join("exit.json"));
            }
            let unsynced = fs::remove_file(folder.join("unsynced")).is_ok();
            let _ = fs::remove_file(folder.join("slow-disk"));
            if unsynced && rng.random_bool(0.5) {
                self.bring_image_back(&folder);
            }
        }
        self.site.start();
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.count("power failures");
    }

    fn bring_image_back(&self, folder: &Path) {
        let image = folder.join("image");
        let (used, whole) = (image.join("manifest.consumed"), image.join("manifest.json"));
        // The guest may have been saved again, and then its image is newer.
        if !whole.exists() && fs::rename(used, whole).is_ok() {
            self.count("images back after a power failure");
        }
    }

    /// Makes a request while the disk of that machine makes nothing durable for so long.
    pub(super) fn on_a_slow_disk<T>(&self, id: &str, ms: u64, request: impl FnOnce() -> T) -> T {
        let file = self
            .site
            .state()
            .join("machines")
            .join(id)
            .join("slow-disk");
        // It fails if the machine is gone, or the disk is full.
        let _ = fs::write(&file, "");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                pause(ms);
                let _ = fs::remove_file(&file);
            });
            request()
        })
    }

    fn fill_the_disk(&self, rng: &mut SmallRng) {
        let Some(disk) = &self.disk else {
            return;
        };
        self.exhaustions.fetch_add(1, Ordering::SeqCst);
        space::fill(disk);
        pause(rng.random_range(100..1_500));
        self.kill(rng);
        pause(rng.random_range(100..1_500));
        space::free(disk);
        self.exhaustions.fetch_add(1, Ordering::SeqCst);
        self.count("times the disk was full");
    }

    fn use_up_descriptors(&self, rng: &mut SmallRng) {
        // A new supervisor would have the limit of all processes.
        let _kills = self.kills.read().unwrap();
        self.exhaustions.fetch_add(1, Ordering::SeqCst);
        let open = self.site.descriptors();
        let mut unused = (0_u64..).filter(|number| !open.contains_key(number));
        let limit = unused.nth(rng.random_range(0..6)).unwrap_or(64);
        self.site.set_limit("nofile", &limit.to_string());
        pause(rng.random_range(100..2_000));
        descriptors::restore_limit(&self.site);
        self.exhaustions.fetch_add(1, Ordering::SeqCst);
        self.count("times descriptors were used up");
    }

    /// Whether something has been used up at any time since there were so many beginnings and ends.
    pub(super) fn was_exhausted_since(&self, before: u64) -> bool {
        !before.is_multiple_of(2) || self.exhaustions.load(Ordering::SeqCst) != before
    }
}
