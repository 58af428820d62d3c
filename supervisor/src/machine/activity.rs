//! Who uses a machine: connections to its published ports, commands, file transfers.

use tokio::sync::watch;
use tokio::time::Instant;

/// Counts the users of a machine; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Activity {
    usage: watch::Sender<Usage>,
}

/// How many users a machine has, and since when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    users: usize,
    since: Instant,
}

impl Usage {
    /// Since when it has no users; none while it has some.
    pub(crate) fn idle_since(&self) -> Option<Instant> {
        (self.users == 0).then_some(self.since)
    }
}

impl Activity {
    /// No users, from now on.
    pub(crate) fn new() -> Self {
        Self {
            usage: watch::Sender::new(Usage {
                users: 0,
                since: Instant::now(),
            }),
        }
    }

    /// Adds a user, until the returned value is dropped.
    pub(crate) fn add_user(&self) -> UserGuard {
        self.change(|users| users + 1);
        UserGuard {
            activity: self.clone(),
        }
    }

    /// Idle time counts from now on: the machine has just been started.
    pub(crate) fn restart_idle_time(&self) {
        self.change(|users| users);
    }

    /// Follows the number of users.
    pub(crate) fn watch(&self) -> watch::Receiver<Usage> {
        self.usage.subscribe()
    }

    fn change(&self, count: impl FnOnce(usize) -> usize) {
        self.usage.send_modify(|now| {
            *now = Usage {
                users: count(now.users),
                since: Instant::now(),
            };
        });
    }
}

/// A user of a machine, until it is dropped.
#[derive(Debug)]
pub(crate) struct UserGuard {
    activity: Activity,
}

impl Drop for UserGuard {
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
        let (one, two) = (activity.add_user(), activity.add_user());
        drop(one);
        assert!(watch.borrow().idle_since().is_none());
        drop(two);
        assert!(watch.borrow().idle_since().is_some());
    }
}
