//! No further process or thread can be made.

use rustix::process::{Resource, getrlimit};

use super::Outcome::{Done, Fails};
use super::{Step, try_all};
use crate::site::{MACHINES, Site};

/// Nobody's, so that the limit counts our processes only.
const USER: u32 = 61_473;

#[test]
fn without_processes_a_start_says_so_and_everything_else_goes_on() {
    let site = Site::unprivileged(USER);
    let usual = getrlimit(Resource::Nproc).current;
    let usual = usual.map_or("unlimited".to_owned(), |most| most.to_string());
    let words: &[&str] = &["no further process can be made", "pids.max"];
    let steps = [
        (Step::Create, Done),
        (Step::Start, Fails(words, "failed")),
        (Step::Resume, Fails(words, "suspended")),
        (Step::Suspend, Done),
        (Step::Stop, Done),
        (Step::Destroy, Done),
    ];
    let take = || {
        // The limit does not count for root, which the supervisor is not.
        site.limit("nproc", "1");
    };
    let give = || {
        // Nor may what reads files wait for a thread that can't be made.
        for machine in site.list() {
            let id = machine["id"].as_str().unwrap();
            let (status, _) = site.call("GET", &format!("{MACHINES}/{id}/logs"), None);
            assert_eq!(status, 200);
        }
        site.limit("nproc", &usual);
    };
    try_all(&site, &steps, take, give);
}
