//! The disk of the state directory is full or read-only. Each test runs itself again in a mount
//! namespace of its own, with a small disk.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Outcome::{Done, Fails};
use super::{Step, try_all};
use crate::site::Site;
use crate::support::{MACHINES, new_folder, poll};

/// Variables with the path of the small disk, inside of the namespace, and its size in MiB.
const DISK: &str = "MCTL_TEST_DISK";
const MIB: &str = "MCTL_TEST_DISK_MIB";
/// The size that is enough for a few machines.
const SMALL_MIB: u32 = 32;
/// Exit code of the shell that mounts, if it fails.
const NO_MOUNT: i32 = 77;

/// A command that runs its further arguments in a mount namespace of its own, with a small disk at
/// `disk`.
fn with_small_disk(disk: &Path, mib: u32) -> Command {
    let mut unshare = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    let script = format!(
        "mount -t tmpfs -o size=\"${MIB}\"m,mode=700 tmpfs \"${DISK}\" || exit {NO_MOUNT}; exec \"$@\""
    );
    let shell = ["--mount", "--propagation", "private", "sh", "-c", &script];
    unshare
        .args(shell)
        .arg("sh")
        .env(DISK, disk)
        .env(MIB, mib.to_string());
    unshare
}

/// Why these tests cannot run here, if they cannot.
pub(crate) fn obstacle() -> Option<String> {
    if std::env::var_os(DISK).is_some() {
        return None;
    }
    let folder = new_folder();
    match with_small_disk(folder.path(), SMALL_MIB)
        .arg("true")
        .output()
    {
        Ok(output) if output.status.success() => None,
        Ok(output) => {
            let error = String::from_utf8_lossy(&output.stderr);
            Some(format!(
                "no small disk can be mounted here: {}",
                error.trim()
            ))
        }
        Err(error) => Some(format!("cannot run unshare: {error}")),
    }
}

/// Returns the small disk inside of the namespace. Outside it runs the test `name` inside, and returns
/// none.
fn small_disk(name: &str) -> Option<PathBuf> {
    small_disk_of(name, SMALL_MIB, |_| {})
}

/// As [`small_disk`], with another size; what the test has said inside is given to `tell`.
pub(crate) fn small_disk_of(name: &str, mib: u32, tell: impl Fn(&str)) -> Option<PathBuf> {
    if let Some(disk) = std::env::var_os(DISK) {
        return Some(disk.into());
    }
    let folder = new_folder();
    let output = with_small_disk(folder.path(), mib)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads", "1"])
        .output()
        .unwrap();
    let text = format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let passed = output.status.success() && text.contains("1 passed");
    assert!(passed, "{name} failed or did not run: {text}");
    tell(&text);
    None
}

/// Uses up all space of the disk.
pub(crate) fn fill(disk: &Path) {
    let mut options = OpenOptions::new();
    let filler = options.create(true).append(true);
    let mut file = filler.open(disk.join("filler")).unwrap();
    for size in [1 << 20, 4096, 1] {
        let piece = vec![0; size];
        while file.write_all(&piece).is_ok() {}
    }
}

/// Frees the space that [`fill`] used up.
pub(crate) fn free(disk: &Path) {
    fs::remove_file(disk.join("filler")).unwrap();
}

pub(crate) fn on_a_full_disk_only_suspends_fail() {
    let name = "exhaustion::space::on_a_full_disk_only_suspends_fail";
    let Some(disk) = small_disk(name) else { return };
    let site = Site::in_folder(disk.clone());
    let steps = [
        // It comes first: other transitions remove files, and that frees some space.
        (Step::Suspend, Fails(&["no space"], "started")),
        (Step::Create, Done),
        (Step::Start, Done),
        (Step::Resume, Done),
        (Step::Stop, Done),
        (Step::Destroy, Done),
    ];
    try_all(&site, &steps, || fill(&disk), || free(&disk));
}

pub(crate) fn if_the_database_cannot_be_written_every_transition_is_refused() {
    let name = "exhaustion::space::if_the_database_cannot_be_written_every_transition_is_refused";
    let Some(disk) = small_disk(name) else { return };
    let site = Site::in_folder(disk.clone());
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
    let exhaust = || {
        // A new supervisor on a full disk. The log is a new file, without the blocks that the first
        // supervisor had reserved.
        site.kill();
        let log = site.state().join("mctl.db-wal");
        let content = fs::read(&log).unwrap();
        fs::remove_file(&log).unwrap();
        fs::write(&log, content).unwrap();
        fill(&disk);
        site.start();
        for machine in site.list() {
            let id = machine["id"].as_str().unwrap();
            // Once the guest has answered, the machine is adopted.
            if machine["state"] == "started" {
                site.boot_id(id);
            }
        }
    };
    try_all(&site, &steps, exhaust, || free(&disk));
}

pub(crate) fn a_stop_that_cannot_be_stored_does_not_interrupt_a_start() {
    let name = "exhaustion::space::a_stop_that_cannot_be_stored_does_not_interrupt_a_start";
    let Some(disk) = small_disk(name) else { return };
    let site = Site::in_folder(disk.clone());
    let (id, other) = (site.create("deaf"), site.create(""));
    site.ask("POST", &format!("{MACHINES}/{id}/start"), None);
    let vmm = poll("the VMM", || site.vmms().first().cloned());
    // Together with the blocks that are reserved for the database.
    fill(&disk);
    fill_database(&site, &other, &id);
    let (status, answer) = site.try_transition(&id, "stop");
    assert_eq!(status, 507, "{answer}");
    assert_eq!(site.machine(&id)["state"], "starting");
    assert_eq!(site.vmms(), [vmm]);
    free(&disk);
    site.transition(&id, "stop");
    assert_eq!(site.machine(&id)["state"], "stopped");
    site.transition(&id, "destroy");
    site.transition(&other, "destroy");
    site.assert_empty();
}

/// On a full disk, stores large changes of the machine `large` and then small ones of the machine
/// `small`, until the blocks that are reserved for the database are used up.
fn fill_database(site: &Site, large: &str, small: &str) {
    let body = serde_json::json!({"value": "v".repeat(4_000)});
    let mut key = 0;
    poll("a large change to be refused", || {
        key = (key + 1) % 250;
        let path = format!("{MACHINES}/{large}/metadata/key{key}");
        (site.call("POST", &path, Some(&body)).0 == 507).then_some(())
    });
    poll("a small change to be refused", || {
        let path = format!("{MACHINES}/{small}/cordon");
        (site.call("POST", &path, None).0 == 507).then_some(())
    });
}

pub(crate) fn an_end_that_could_not_be_stored_is_stored_with_the_step_after_it() {
    let name =
        "exhaustion::space::an_end_that_could_not_be_stored_is_stored_with_the_step_after_it";
    let Some(disk) = small_disk(name) else { return };
    let site = Site::in_folder(disk.clone());
    let (id, other) = (site.create(""), site.create(""));
    site.transition(&id, "start");
    fill(&disk);
    fill_database(&site, &other, &id);
    site.vmms().first().unwrap().kill().unwrap();
    poll("the end of the machine", || {
        (site.machine(&id)["state"] == "stopped").then_some(())
    });
    free(&disk);
    // Before it is tried again to store the end, which is 2 s later.
    let (status, answer) = site.call("POST", &format!("{MACHINES}/{id}/start"), None);
    assert_eq!(status, 200, "{answer}");
    site.kill();
    site.start();
    let machine = site.machine(&id);
    let events = machine["events"].as_array().unwrap().iter();
    let types: Vec<_> = events
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    let start = types.iter().rposition(|kind| *kind == "start").unwrap();
    let exit = types.iter().position(|kind| *kind == "exit");
    assert!(exit.is_some_and(|exit| exit < start), "{types:?}");
    for id in [id, other] {
        site.transition(&id, "destroy");
    }
    site.assert_empty();
}

pub(crate) fn if_directories_are_read_only_each_transition_says_so_and_loses_nothing() {
    let name = "exhaustion::space::\
                if_directories_are_read_only_each_transition_says_so_and_loses_nothing";
    let Some(disk) = small_disk(name) else { return };
    let site = Site::in_folder(disk);
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
    let run = |words: &[&str]| {
        let status = Command::new(words[0]).args(&words[1..]).status().unwrap();
        assert!(status.success(), "{words:?}");
    };
    let exhaust = || {
        run(&["mount", "--bind", &machines, &machines]);
        run(&["mount", "-o", "remount,bind,ro", &machines]);
    };
    try_all(&site, &steps, exhaust, || {
        run(&["umount", "--lazy", &machines]);
    });
}

pub(crate) fn output_of_a_guest_while_the_disk_is_full_is_in_the_log_afterwards() {
    let name = "exhaustion::space::\
                output_of_a_guest_while_the_disk_is_full_is_in_the_log_afterwards";
    let Some(disk) = small_disk(name) else { return };
    let site = Site::in_folder(disk.clone());
    let id = site.create("");
    site.transition(&id, "start");
    let line = |number: usize| format!("{number} {}", "x".repeat(3_000));
    let print = |number: usize| {
        let body = serde_json::json!({"command": ["say", line(number)]});
        site.ask("POST", &format!("{MACHINES}/{id}/exec"), Some(&body));
    };
    print(0);
    fill(&disk);
    // The first of them fill the last page of the log, and one is written in part.
    (1..6).for_each(print);
    poll("the warning about the log", || {
        site.log().contains("cannot write a log").then_some(())
    });
    free(&disk);
    print(6);
    let expected: Vec<String> = (0..7).map(line).collect();
    poll("all lines, once and in order", || {
        let log = site.ask("GET", &format!("{MACHINES}/{id}/logs"), None);
        let lines = log.as_str().unwrap().lines().map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            line["text"].as_str().unwrap().to_owned()
        });
        let lines: Vec<String> = lines.collect();
        assert!(
            !lines.iter().any(|line| line.contains("were lost")),
            "{lines:?}"
        );
        let printed = lines.into_iter().filter(|line| line.contains("xxx"));
        (printed.collect::<Vec<_>>() == expected).then_some(())
    });
    site.transition(&id, "destroy");
    site.assert_empty();
}
