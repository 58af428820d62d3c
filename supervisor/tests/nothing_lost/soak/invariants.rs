//! What must be true at every moment of a run.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Soak;
use crate::support::MACHINES;

/// Each state, and the states that the next event may show.
const STEPS: &[(&str, &str)] = &[
    ("created", "starting updating destroying"),
    (
        "starting",
        "starting started failed suspended stopping destroying",
    ),
    // Suspended again, after a power failure that has undone its resume.
    (
        "started",
        "suspended suspending stopped stopping restarting updating destroying",
    ),
    (
        "suspending",
        "suspended started stopped stopping destroying",
    ),
    (
        "suspended",
        "starting stopping restarting updating destroying",
    ),
    ("stopping", "stopped destroying"),
    ("stopped", "starting updating destroying"),
    ("restarting", "starting stopping destroying"),
    ("updating", "starting stopped destroying"),
    ("destroying", "destroyed"),
    ("failed", "starting stopping updating destroying"),
];

impl Soak {
    /// Checks everything once.
    pub(super) fn check(&self) {
        self.check_vmms();
        // Nothing is killed between the two, so that the list is that of the present supervisor.
        let _kills = self.kills.read().unwrap();
        let before = self.known.lock().unwrap().clone();
        let Some((200, list)) = self.call("GET", MACHINES, None) else {
            return;
        };
        self.count("checks");
        let mut names = BTreeSet::new();
        for machine in list.as_array().unwrap() {
            let name = machine["name"].as_str().unwrap();
            if !names.insert(name.to_owned()) {
                self.fail(format!("two machines are named {name}"));
            }
            if !self.known.lock().unwrap().contains_key(name) {
                self.fail(format!("no client created {name}"));
            }
            self.check_events(machine);
        }
        for (name, known) in before {
            // A destroy may have been requested meanwhile.
            let lost = known.id.is_some() && !names.contains(&name) && !self.may_disappear(&name);
            if lost {
                self.fail(format!("{name} is lost: {known:?}"));
            }
        }
    }

    /// No machine has two VMMs.
    fn check_vmms(&self) {
        let mut by_machine: BTreeMap<String, Vec<i32>> = BTreeMap::new();
        for vmm in self.site.vmms() {
            by_machine.entry(vmm.machine).or_default().push(vmm.pid);
        }
        by_machine.retain(|_, pids| pids.len() > 1);
        if by_machine.is_empty() {
            return;
        }
        // One may have ended while the processes were read, so it must be found twice.
        let vmms = self.site.vmms();
        for (machine, pids) in by_machine {
            let still = vmms.iter().filter(|vmm| pids.contains(&vmm.pid)).count();
            if still > 1 {
                self.fail(format!("machine {machine} has the VMMs {pids:?}"));
            }
        }
    }

    /// Checks machines in resting states: only a suspended one has an image, only a started one has
    /// sockets and a VMM.
    pub(super) fn check_files(&self, list: &[Value]) {
        for machine in list {
            let (id, state) = (
                machine["id"].as_str().unwrap(),
                machine["state"].as_str().unwrap(),
            );
            let folder = self.site.state().join("machines").join(id);
            let image = folder.join("image/manifest.json").exists();
            let sockets = ["c.sock", "v.sock"].map(|name| folder.join(name).exists());
            let vmms = self.site.vmms();
            let vmms = vmms.iter().filter(|vmm| vmm.machine == id).count();
            if machine["config"]["auto_destroy"] == true && state == "stopped" {
                self.fail(format!("{id} has ended and was not removed"));
            }
            let started = state == "started";
            let found = (image, sockets, vmms);
            let expected = (state == "suspended", [started; 2], usize::from(started));
            if found != expected {
                self.fail(format!(
                    "{id} is {state} and has {found:?}, not {expected:?}"
                ));
            }
        }
    }

    /// Checks that the events of a machine follow each other as [`STEPS`] allows.
    pub(super) fn check_events(&self, machine: &Value) {
        let events = machine["events"].as_array().unwrap();
        let status_and_time = |event: &Value| {
            let status = event["status"].as_str().unwrap().to_owned();
            (status, event["timestamp"].as_i64().unwrap())
        };
        // The launch event of a new version may come in any state.
        let steps = events
            .iter()
            .rev()
            .filter(|event| event["type"] != "launch");
        let mut steps: Vec<(String, i64)> = steps.map(status_and_time).collect();
        steps.retain(|(status, _)| !status.is_empty());
        for pair in steps.windows(2) {
            let ((from, earlier), (to, later)) = (&pair[0], &pair[1]);
            let next = STEPS.iter().find(|(state, _)| state == from);
            let legal = from == to
                || next.is_some_and(|(_, next)| next.split(' ').any(|state| state == to));
            if !legal || earlier > later {
                let (id, name) = (&machine["id"], &machine["name"]);
                self.fail(format!("{name} {id} went from {from} to {to}: {steps:?}"));
            }
        }
    }
}
