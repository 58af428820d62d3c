//! The supervisor cannot create another process or thread.

use rustix::process::Resource;

use super::Outcome::{Done, Fails};
use super::{Step, limit_text, try_all};
use crate::site::Site;
use crate::support::MACHINES;

/// An unused user id: the limit counts all processes of a user.
const USER: u32 = 61_473;

pub(crate) fn when_out_of_processes_only_starts_fail_and_say_so() {
    let site = Site::unprivileged(USER);
    let usual_limit = limit_text(Resource::Nproc);
    let words: &[&str] = &["no further process can be created", "pids.max"];
    let steps = [
        (Step::Create, Done),
        (Step::Start, Fails(words, "failed")),
        (Step::Resume, Fails(words, "suspended")),
        (Step::Suspend, Done),
        (Step::Stop, Done),
        (Step::Destroy, Done),
    ];
    let exhaust = || {
        // It limits the supervisor, which does not run as root.
        site.set_limit("nproc", "1");
    };
    let restore = || {
        // Requests that read files do not wait for a thread that cannot be created.
        for machine in site.list() {
            let id = machine["id"].as_str().unwrap();
            let (status, _) = site.call("GET", &format!("{MACHINES}/{id}/logs"), None);
            assert_eq!(status, 200);
        }
        site.set_limit("nproc", &usual_limit);
    };
    try_all(&site, &steps, exhaust, restore);
}
