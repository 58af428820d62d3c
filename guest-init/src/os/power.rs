//! The power of the guest: writes everything to disk, unmounts, and turns the power off. Ending
//! the processes first is the caller's part.

use std::fs;
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount, umount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::sync;

use crate::os::console::say;
use crate::os::mounts;

/// Syncs, unmounts the disks and turns the power off. Only for process 1 of a guest: an ordinary
/// process would turn off the machine it runs on.
pub(crate) fn power_off() -> ! {
    sync();
    release_disks(&fs::read_to_string("/proc/self/mounts").unwrap_or_default());
    sync();
    say("powering off");
    loop {
        let Err(errno) = reboot(RebootMode::RB_POWER_OFF);
        say(format_args!("cannot power off: {errno}"));
        // A guest without a power button can only wait for its VMM to be ended.
        thread::sleep(Duration::from_secs(60));
    }
}

/// Unmounts all block devices, the newest mount first; a busy one is remounted read-only.
fn release_disks(mounts: &str) {
    for (_device, target) in mounts::disk_mounts(mounts).iter().rev() {
        if umount(target.as_str()).is_ok() {
            continue;
        }
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        let none = None::<&str>;
        if let Err(errno) = mount(none, target.as_str(), none, flags, none) {
            say(format_args!(
                "cannot unmount {target} or make it read-only: {errno}"
            ));
        }
    }
}
