//! Each transition while something is used up: what the answer says, where the machine is
//! afterwards, that nothing leaks, and that all is usable once the cause is gone.

mod descriptors;
mod processes;
mod space;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::site::{DEADLINE, MACHINES, Site, new_machine, poll};

/// What is tried while something is used up.
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
    /// The request, and the state that it leads to.
    fn request(self) -> (&'static str, &'static str) {
        match self {
            Self::Create => ("create", "created"),
            Self::Start | Self::Resume => ("start", "started"),
            Self::Suspend => ("suspend", "suspended"),
            Self::Stop => ("stop", "stopped"),
            Self::Destroy => ("destroy", "destroyed"),
        }
    }

    /// A machine in the state that the step begins in.
    fn prepare(self, site: &Site) -> Option<String> {
        if self == Self::Create {
            return None;
        }
        let id = site.created("");
        site.bring(&id, "start");
        match self {
            Self::Start => site.bring(&id, "stop"),
            Self::Resume => site.bring(&id, "suspend"),
            _ => {}
        }
        Some(id)
    }
}

/// What has to come of a step.
#[derive(Debug)]
enum Outcome {
    /// It succeeds all the same.
    Done,
    /// It fails with words that say what is used up; where the machine is then.
    Fails(&'static [&'static str], &'static str),
}

/// A machine that a step was tried with.
struct Tried {
    step: Step,
    id: String,
    state: &'static str,
    boot: Option<String>,
}

/// Tries all `steps`, each with a machine of its own, between `take` and `give`, which make the
/// cause come and go.
fn try_all(site: &Site, steps: &[(Step, Outcome)], take: impl FnOnce(), give: impl FnOnce()) {
    // What the supervisor opens with its first machine, such as a source of randomness, stays.
    let first = site.created("");
    site.bring(&first, "start");
    site.bring(&first, "destroy");
    let before = site.descriptors().len();
    let mut machines = Vec::new();
    for (step, _) in steps {
        let id = step.prepare(site);
        let boot = id.as_ref().filter(|_| *step == Step::Suspend);
        let boot = boot.map(|id| site.boot_id(id));
        machines.push((id, boot));
    }
    take();
    let mut tried = Vec::new();
    for ((step, outcome), (id, boot)) in steps.iter().zip(machines) {
        let left = attempt(site, *step, outcome, id);
        tried.extend(left.map(|(id, state)| Tried {
            step: *step,
            id,
            state,
            boot,
        }));
    }
    give();
    for one in tried {
        finish(site, &one);
    }
    site.assert_empty();
    // Nothing that a machine needed is held after its end.
    let begun = Instant::now();
    loop {
        let now = site.descriptors();
        // One may be the connection of the request before.
        if now.len() <= before {
            break;
        }
        assert!(
            begun.elapsed() < DEADLINE,
            "{before} were open, now {now:?}"
        );
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// One step under want; the machine that there is afterwards, and its state.
fn attempt(
    site: &Site,
    step: Step,
    outcome: &Outcome,
    id: Option<String>,
) -> Option<(String, &'static str)> {
    let (status, answer) = match &id {
        None => site.call("POST", MACHINES, Some(&new_machine(""))),
        Some(id) => site.ask(id, step.request().0),
    };
    let state = match outcome {
        Outcome::Done => {
            assert_eq!(status, 200, "{step:?}: {answer}");
            step.request().1
        }
        Outcome::Fails(words, state) => {
            let text = answer["error"].as_str().unwrap_or_default();
            assert!((400..600).contains(&status), "{step:?}: {status} {answer}");
            assert_ne!(status, 500, "{step:?}: {answer}");
            for word in *words {
                assert!(text.contains(word), "{step:?} says {word:?}: {text}");
            }
            state
        }
    };
    let id = id.or_else(|| answer["id"].as_str().map(str::to_owned));
    let Some(id) = id else {
        let known: BTreeSet<String> = listed(site);
        assert_eq!(site.directories(), known, "a create that failed");
        return None;
    };
    let machine = site.machine(&id);
    assert_eq!(machine["state"], state, "{step:?}: {machine}");
    let vmms = site.vmms().iter().filter(|vmm| vmm.machine == id).count();
    assert_eq!(vmms, usize::from(state == "started"), "{step:?}: VMMs");
    (state != "destroyed").then_some((id, state))
}

fn listed(site: &Site) -> BTreeSet<String> {
    let list = site.list();
    list.iter()
        .map(|machine| machine["id"].as_str().unwrap().to_owned())
        .collect()
}

/// The cause is gone: the step succeeds, the machine is usable, and goes without a trace.
fn finish(site: &Site, tried: &Tried) {
    let Tried {
        step,
        id,
        state,
        boot,
    } = tried;
    if *state == "destroying" {
        // It is tried again without anybody asking.
        poll("the end of a destroy", || {
            (site.machine(id)["state"] == "destroyed").then_some(())
        });
        return;
    }
    if *step == Step::Destroy {
        site.bring(id, "destroy");
        return;
    }
    if *step != Step::Create {
        site.bring(id, step.request().0);
        assert_eq!(site.machine(id)["state"], step.request().1, "{step:?}");
    }
    site.bring(id, "start");
    let now = site.boot_id(id);
    if let Some(boot) = boot {
        assert_eq!(now, *boot, "the guest is the one that was suspended");
    }
    site.bring(id, "destroy");
}
