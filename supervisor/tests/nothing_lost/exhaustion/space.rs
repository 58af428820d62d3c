//! The disk of the state directory is full, or read-only. Each test runs itself again in a mount
//! namespace of its own, on a small disk.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Outcome::{Done, Fails};
use super::{Step, try_all};
use crate::site::{MACHINES, Site, poll, temporary};

/// Set inside: the small disk.
const DISK: &str = "MCTL_TEST_DISK";
/// Exit code of a shell that could not mount.
const NO_MOUNT: i32 = 77;

/// The small disk, inside. Outside: runs the test `name` inside, and then there is none.
fn small_disk(name: &str) -> Option<PathBuf> {
    if let Some(disk) = std::env::var_os(DISK) {
        return Some(disk.into());
    }
    let folder = temporary();
    let mut unshare = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    let script = format!(
        "mount -t tmpfs -o size=32m,mode=700 tmpfs \"${DISK}\" || exit {NO_MOUNT}; exec \"$@\""
    );
    let output = unshare
        .args([
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            &script,
            "sh",
        ])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads", "1"])
        .env(DISK, folder.path())
        .output();
    let said = |output: &std::process::Output| {
        let out = String::from_utf8_lossy(&output.stdout);
        format!("{out}\n{}", String::from_utf8_lossy(&output.stderr))
    };
    match output {
        Ok(output) if output.status.success() => {
            let text = said(&output);
            assert!(text.contains("1 passed"), "{name} did not run: {text}");
        }
        Ok(output) if output.status.code() != Some(101) => {
            // The test itself fails with 101; all else is a namespace that can't be had.
            eprintln!(
                "SKIPPED {name}: no small disk can be mounted here: {}",
                said(&output)
            );
        }
        Ok(output) => panic!("{}", said(&output)),
        Err(error) => eprintln!("SKIPPED {name}: unshare can't be run: {error}"),
    }
    None
}

/// Takes all space of the disk.
fn fill(disk: &Path) {
    let mut options = OpenOptions::new();
    let filler = options.create(true).append(true);
    let mut file = filler.open(disk.join("filler")).unwrap();
    for size in [1 << 20, 4096, 1] {
        let piece = vec![0; size];
        while file.write_all(&piece).is_ok() {}
    }
}

fn empty(disk: &Path) {
    fs::remove_file(disk.join("filler")).unwrap();
}

#[test]
fn on_a_full_disk_only_a_suspend_fails_and_machines_can_be_stopped_and_destroyed() {
    let name = "exhaustion::space::\
                on_a_full_disk_only_a_suspend_fails_and_machines_can_be_stopped_and_destroyed";
    let Some(disk) = small_disk(name) else { return };
    let site = Site::within(disk.clone());
    let steps = [
        // First: other transitions remove a file or two and with them give some space back.
        (Step::Suspend, Fails(&["no space"], "started")),
        (Step::Create, Done),
        (Step::Start, Done),
        (Step::Resume, Done),
        (Step::Stop, Done),
        (Step::Destroy, Done),
    ];
    try_all(&site, &steps, || fill(&disk), || empty(&disk));
}

#[test]
fn where_not_even_the_database_can_be_written_nothing_begins() {
    let name = "exhaustion::space::where_not_even_the_database_can_be_written_nothing_begins";
    let Some(disk) = small_disk(name) else { return };
    let site = Site::within(disk.clone());
    let words: &[&str] = &[
        "no space is left on the disk of the state directory",
        "free some",
    ];
    let steps = [
        (Step::Create, Fails(words, "")),
        (Step::Start, Fails(words, "stopped")),
        (Step::Resume, Fails(words, "suspended")),
        (Step::Suspend, Fails(words, "started")),
        (Step::Stop, Fails(words, "started")),
        (Step::Destroy, Fails(words, "started")),
    ];
    let take = || {
        // A new supervisor on a full disk, without the space that an earlier one had set aside.
        site.kill();
        let log = site.state().join("mctl.db-wal");
        let content = fs::read(&log).unwrap();
        fs::remove_file(&log).unwrap();
        fs::write(&log, content).unwrap();
        fill(&disk);
        site.start();
        for machine in site.list() {
            let id = machine["id"].as_str().unwrap().to_owned();
            if machine["state"] == "started" {
                let (status, answer) = site.call("GET", &format!("{MACHINES}/{id}/vsock"), None);
                assert_eq!(status, 200, "{answer}");
            }
        }
    };
    try_all(&site, &steps, take, || empty(&disk));
}

#[test]
fn a_stop_that_can_not_be_stored_does_not_break_a_start_off() {
    let name = "exhaustion::space::a_stop_that_can_not_be_stored_does_not_break_a_start_off";
    let Some(disk) = small_disk(name) else { return };
    let site = Site::within(disk.clone());
    let (id, other) = (site.created("deaf"), site.created(""));
    let path = format!("{MACHINES}/{id}/start");
    assert_eq!(site.call("POST", &path, None).0, 200);
    let vmm = poll("its VMM", || site.vmms().first().cloned());
    // The space that was set aside is used up too.
    fill(&disk);
    use_up(&site, &other, &id);
    let (status, answer) = site.ask(&id, "stop");
    assert_eq!(status, 507, "{answer}");
    assert_eq!(site.machine(&id)["state"], "starting");
    assert_eq!(site.vmms(), [vmm]);
    empty(&disk);
    site.bring(&id, "stop");
    assert_eq!(site.machine(&id)["state"], "stopped");
    site.bring(&id, "destroy");
    site.bring(&other, "destroy");
    site.assert_empty();
}

/// Writes changes on a full disk, large ones of `machine` and then small ones of `small`, until
/// what was set aside for them is used up.
fn use_up(site: &Site, machine: &str, small: &str) {
    let body = serde_json::json!({"value": "v".repeat(4_000)});
    let mut key = 0;
    poll("the database to be full", || {
        key = (key + 1) % 250;
        let path = format!("{MACHINES}/{machine}/metadata/key{key}");
        (site.call("POST", &path, Some(&body)).0 == 507).then_some(())
    });
    // Smaller ones must not fit any more either.
    poll("the last bit", || {
        let path = format!("{MACHINES}/{small}/cordon");
        (site.call("POST", &path, None).0 == 507).then_some(())
    });
}

#[test]
fn with_read_only_directories_each_transition_says_so_and_loses_nothing() {
    let name = "exhaustion::space::\
                with_read_only_directories_each_transition_says_so_and_loses_nothing";
    let Some(disk) = small_disk(name) else { return };
    let site = Site::within(disk);
    let machines = site.state().join("machines").display().to_string();
    let words: &[&str] = &["read-only", "remount"];
    let steps = [
        (Step::Create, Fails(words, "")),
        (Step::Start, Fails(words, "failed")),
        (Step::Resume, Fails(words, "suspended")),
        (Step::Suspend, Fails(&["Read-only"], "started")),
        (Step::Stop, Done),
        (Step::Destroy, Fails(words, "destroying")),
    ];
    let mount = |words: &[&str]| {
        let done = Command::new(words[0]).args(&words[1..]).status().unwrap();
        assert!(done.success(), "{words:?}");
    };
    let take = || {
        mount(&["mount", "--bind", &machines, &machines]);
        mount(&["mount", "-o", "remount,bind,ro", &machines]);
    };
    try_all(&site, &steps, take, || {
        mount(&["umount", "--lazy", &machines]);
    });
}

#[test]
fn what_a_guest_says_while_the_disk_is_full_is_in_the_log_afterwards() {
    let name = "exhaustion::space::\
                what_a_guest_says_while_the_disk_is_full_is_in_the_log_afterwards";
    let Some(disk) = small_disk(name) else { return };
    let site = Site::within(disk.clone());
    let id = site.created("");
    site.bring(&id, "start");
    let path = format!("{MACHINES}/{id}/exec");
    let say = |text: &str| {
        let body = serde_json::json!({"command": ["say", text]});
        let (status, answer) = site.call("POST", &path, Some(&body));
        assert_eq!(status, 200, "{answer}");
    };
    let long = |number: usize| format!("{number} {}", "x".repeat(3_000));
    say(&long(0));
    fill(&disk);
    // The first of them fill the last page of the log, and one is cut off.
    (1..6).for_each(|number| say(&long(number)));
    poll("the log's complaint", || {
        site.log().contains("cannot write a log").then_some(())
    });
    empty(&disk);
    say(&long(6));
    let expected: Vec<String> = (0..7).map(long).collect();
    poll("all lines, once and in order", || {
        let (status, text) = site.call("GET", &format!("{MACHINES}/{id}/logs"), None);
        assert_eq!(status, 200, "{text}");
        let text = text.as_str().unwrap();
        let lines = text.lines().map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["text"].as_str().unwrap().to_owned()
        });
        let lines: Vec<String> = lines.collect();
        assert!(
            !lines.iter().any(|line| line.contains("were lost")),
            "{lines:?}"
        );
        let said: Vec<String> = lines
            .into_iter()
            .filter(|line| line.contains("xxx"))
            .collect();
        (said == expected).then_some(())
    });
    site.bring(&id, "destroy");
    site.assert_empty();
}
