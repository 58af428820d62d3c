//! Whether anybody uses a machine: carried connections and running commands.

use tokio::sync::watch;
use tokio::time::Instant;

/// Counts the users of a machine; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Activity {
    use_: watch::Sender<Use>,
}

/// How many use a machine, and since when that is so.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Use {
    users: usize,
    since: Instant,
}

impl Use {
    /// Since when nobody uses it; none while somebody does.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        (self.users == 0).then_some(self.since)
    }
}

impl Activity {
    /// Nobody uses it, from now on.
    pub(crate) fn new() -> Self {
        Self {
            use_: watch::Sender::new(Use {
                users: 0,
                since: Instant::now(),
            }),
        }
    }

    /// Somebody uses it until the answer is dropped.
    pub(crate) fn begin(&self) -> Busy {
        self.change(|users| users + 1);
        Busy {
            activity: self.clone(),
        }
    }

    /// It was just made usable: idle time counts from here.
    pub(crate) fn touch(&self) {
        self.change(|users| users);
    }

    /// Follows the use.
    pub(crate) fn watch(&self) -> watch::Receiver<Use> {
        self.use_.subscribe()
    }

    fn change(&self, count: impl FnOnce(usize) -> usize) {
        self.use_.send_modify(|now| {
            *now = Use {
                users: count(now.users),
                since: Instant::now(),
            };
        });
    }
}

/// A user of a machine.
#[derive(Debug)]
pub(crate) struct Busy {
    activity: Activity,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.activity.change(|users| users.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_machine_is_idle_only_without_users() {
        let activity = Activity::new();
        let watch = activity.watch();
        let (one, two) = (activity.begin(), activity.begin());
        drop(one);
        assert!(watch.borrow().idle_since().is_none());
        drop(two);
        assert!(watch.borrow().idle_since().is_some());
    }
}
