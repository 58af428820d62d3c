//! What must be true at any moment of a run.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::Soak;
use crate::site::MACHINES;

/// From each state the ones that a single event may show next.
const STEPS: &[(&str, &str)] = &[
    ("created", "starting updating destroying"),
    (
        "starting",
        "starting started failed suspended stopping destroying",
    ),
    (
        "started",
        "suspending stopped stopping restarting updating destroying",
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
    /// Looks at everything once.
    pub(super) fn check(&self) {
        self.check_vmms();
        // While something is killed the list may be an answer of the one before.
        let _calm = self.calm.read().unwrap();
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
                self.fail(format!("nobody made {name}"));
            }
            self.check_events(machine);
        }
        for (name, known) in before {
            // What was doomed meanwhile may be gone.
            let lost = known.id.is_some() && !names.contains(&name) && !self.is_doomed(&name);
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
        // One may have ended while the list was read: those that still live count.
        let living = self.site.vmms();
        for (machine, pids) in by_machine {
            let both = living.iter().filter(|vmm| pids.contains(&vmm.pid)).count();
            if both > 1 {
                self.fail(format!("machine {machine} has the VMMs {pids:?}"));
            }
        }
    }

    /// Of machines at rest: an image only of suspended ones, sockets only where a VMM answers.
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

    /// Events tell a story that the table of states allows.
    pub(super) fn check_events(&self, machine: &Value) {
        let events = machine["events"].as_array().unwrap();
        let told = |event: &Value| {
            let status = event["status"].as_str().unwrap().to_owned();
            (status, event["timestamp"].as_i64().unwrap())
        };
        // A launch begins a version, whatever state the machine is in.
        let steps = events
            .iter()
            .rev()
            .filter(|event| event["type"] != "launch");
        let mut story: Vec<(String, i64)> = steps.map(told).collect();
        story.retain(|(status, _)| !status.is_empty());
        for pair in story.windows(2) {
            let ((from, earlier), (to, later)) = (&pair[0], &pair[1]);
            let next = STEPS.iter().find(|(state, _)| state == from);
            let legal = from == to
                || next.is_some_and(|(_, next)| next.split(' ').any(|state| state == to));
            if !legal || earlier > later {
                let (id, name) = (&machine["id"], &machine["name"]);
                self.fail(format!("{name} {id} went from {from} to {to}: {story:?}"));
            }
        }
    }
}
