//! Each transition while the supervisor is out of something: the answer, the state of the machine
//! afterwards, that nothing leaks, and that every machine can be used again when the exhaustion is over.

pub(crate) mod descriptors;
pub(crate) mod processes;
pub(crate) mod space;

use std::collections::{BTreeMap, BTreeSet};

use rustix::process::{Resource, getrlimit};

use crate::site::{Site, new_machine};
use crate::support::{DEADLINE, MACHINES, poll, poll_within};

/// A transition that is tried during the exhaustion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Create,
    Start,
    Suspend,
    Resume,
    Stop,
    Destroy,
}

impl Step {
    /// The verb of its request, and the state that it leads to.
    fn verb_and_state(self) -> (&'static str, &'static str) {
        match self {
            Self::Create => ("create", "created"),
            Self::Start | Self::Resume => ("start", "started"),
            Self::Suspend => ("suspend", "suspended"),
            Self::Stop => ("stop", "stopped"),
            Self::Destroy => ("destroy", "destroyed"),
        }
    }

    /// Creates a machine in the state in which the step begins; none for a create.
    fn prepare(self, site: &Site) -> Option<String> {
        if self == Self::Create {
            return None;
        }
        let id = site.create("");
        site.transition(&id, "start");
        match self {
            Self::Start => site.transition(&id, "stop"),
            Self::Resume => site.transition(&id, "suspend"),
            _ => {}
        }
        Some(id)
    }
}

/// How a step has to end during the exhaustion.
#[derive(Debug)]
enum Outcome {
    /// It succeeds.
    Done,
    /// It fails. The words that the error must contain, and the state of the machine afterwards.
    Fails(&'static [&'static str], &'static str),
}

/// A machine with which a step was tried.
struct TriedMachine {
    step: Step,
    id: String,
    state: &'static str,
    /// The boot id of the guest that was suspended.
    boot_id: Option<String>,
}

/// The soft limit with which processes begin here, as prlimit writes it.
fn limit_text(resource: Resource) -> String {
    let limit = getrlimit(resource).current;
    limit.map_or("unlimited".to_owned(), |limit| limit.to_string())
}

/// Tries all `steps`, each with a machine of its own, between `exhaust` and `restore`, which begin and
/// end the exhaustion.
fn try_all(site: &Site, steps: &[(Step, Outcome)], exhaust: impl FnOnce(), restore: impl FnOnce()) {
    // With its first machine the supervisor opens descriptors that stay open, such as a source of
    // randomness.
    let first = site.create("");
    site.transition(&first, "start");
    site.transition(&first, "destroy");
    let before = site.descriptors().len();
    let mut machines = Vec::new();
    for (step, _) in steps {
        let id = step.prepare(site);
        let guest = id.as_ref().filter(|_| *step == Step::Suspend);
        let boot_id = guest.map(|id| site.boot_id(id));
        machines.push((id, boot_id));
    }
    exhaust();
    let mut tried = Vec::new();
    for ((step, outcome), (id, boot_id)) in steps.iter().zip(machines) {
        let machine = attempt(site, *step, outcome, id);
        tried.extend(machine.map(|(id, state)| TriedMachine {
            step: *step,
            id,
            state,
            boot_id,
        }));
    }
    restore();
    for machine in tried {
        finish(site, &machine);
    }
    site.assert_empty();
    // The destroyed machines hold no descriptors. The last request's connection may take a moment.
    let mut open = BTreeMap::new();
    let closed = poll_within(DEADLINE, || {
        open = site.descriptors();
        (open.len() <= before).then_some(())
    });
    assert!(closed.is_some(), "{before} were open before, now {open:?}");
}

/// Tries one step during the exhaustion. Returns the machine that exists afterwards, and its state.
fn attempt(
    site: &Site,
    step: Step,
    outcome: &Outcome,
    id: Option<String>,
) -> Option<(String, &'static str)> {
    let (status, answer) = match &id {
        None => site.call("POST", MACHINES, Some(&new_machine(""))),
        Some(id) => site.try_transition(id, step.verb_and_state().0),
    };
    let state = match outcome {
        Outcome::Done => {
            assert_eq!(status, 200, "{step:?}: {answer}");
            step.verb_and_state().1
        }
        Outcome::Fails(words, state) => {
            let text = answer["error"].as_str().unwrap_or_default();
            assert!((400..600).contains(&status), "{step:?}: {status} {answer}");
            assert_ne!(status, 500, "{step:?}: {answer}");
            for word in *words {
                assert!(
                    text.contains(word),
                    "{step:?} does not say {word:?}: {text}"
                );
            }
            state
        }
    };
    let id = id.or_else(|| answer["id"].as_str().map(str::to_owned));
    let Some(id) = id else {
        assert_eq!(site.machine_dirs(), ids(site), "after a failed create");
        return None;
    };
    let machine = site.machine(&id);
    assert_eq!(machine["state"], state, "{step:?}: {machine}");
    let vmms = site.vmms().iter().filter(|vmm| vmm.machine == id).count();
    assert_eq!(vmms, usize::from(state == "started"), "{step:?}: VMMs");
    (state != "destroyed").then_some((id, state))
}

/// The ids of all machines.
fn ids(site: &Site) -> BTreeSet<String> {
    let list = site.list();
    list.iter()
        .map(|machine| machine["id"].as_str().unwrap().to_owned())
        .collect()
}

/// After the exhaustion: the step succeeds, the machine can be used, and its destroy leaves nothing.
fn finish(site: &Site, machine: &TriedMachine) {
    let TriedMachine {
        step,
        id,
        state,
        boot_id,
    } = machine;
    if *state == "destroying" {
        // The supervisor tries it again by itself.
        poll("the end of the destroy", || {
            (site.machine(id)["state"] == "destroyed").then_some(())
        });
        return;
    }
    if *step == Step::Destroy {
        site.transition(id, "destroy");
        return;
    }
    if *step != Step::Create {
        site.transition(id, step.verb_and_state().0);
        assert_eq!(
            site.machine(id)["state"],
            step.verb_and_state().1,
            "{step:?}"
        );
    }
    site.transition(id, "start");
    let found = site.boot_id(id);
    if let Some(boot_id) = boot_id {
        assert_eq!(found, *boot_id, "not the guest that was suspended");
    }
    site.transition(id, "destroy");
}
