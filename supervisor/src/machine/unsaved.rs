//! Changes that could not be stored in the background, kept until they can.
//!
//! The end of a transition is shown at once and stored later. On a full disk that fails; nothing
//! is lost once there is space again. On a slow disk a machine has only so many changes in the database's
//! queue, which all machines share; further ones are kept here, and stored together.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::deadline;
use crate::store::{Change, MOST_LATE};

/// Wait before storing is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Most events and timings that are kept; the oldest are dropped.
const MOST_CHANGES: usize = MOST_LATE as usize;
/// Most commits of a machine that wait in the database's queue: half of what it does at once.
const MOST_COMMITS: usize = 32;

/// Changes that the database returned.
#[derive(Debug)]
pub(super) struct Unsaved {
    /// Holds no more than the commits that wait.
    sender: mpsc::UnboundedSender<Vec<Change>>,
    returned: mpsc::UnboundedReceiver<Vec<Change>>,
    changes: VecDeque<Change>,
    retry_at: Option<Instant>,
    /// Has a clone in each commit that waits.
    commits: Arc<()>,
}

impl Unsaved {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        let (sender, returned) = mpsc::unbounded_channel();
        Self {
            sender,
            returned,
            changes: VecDeque::new(),
            retry_at: None,
            commits: Arc::default(),
        }
    }

    /// Whether so many commits wait that this machine must add no more.
    pub(super) fn is_database_behind(&self) -> bool {
        Arc::strong_count(&self.commits) > MOST_COMMITS
    }

    /// Takes back changes that were not stored; dropped once they are.
    pub(super) fn return_path(&self) -> impl FnOnce(Vec<Change>) + Send + use<> {
        let (sender, commit) = (self.sender.clone(), self.commits.clone());
        move |changes| {
            drop(commit);
            // Fails if the driver has ended, and then nobody needs them.
            let _ = sender.send(changes);
        }
    }

    /// Resolves when storing should be tried again.
    pub(super) async fn retry_due(&mut self) {
        loop {
            let retry_at = self.retry_at;
            tokio::select! {
                Some(changes) = self.returned.recv() => self.keep(changes),
                () = deadline::reached(retry_at) => return,
            }
        }
    }

    /// Removes and returns the changes, oldest first, without the machine's row.
    pub(super) fn drain(&mut self) -> Vec<Change> {
        while let Ok(changes) = self.returned.try_recv() {
            self.keep(changes);
        }
        self.retry_at = None;
        self.changes.drain(..).collect()
    }

    /// Keeps changes that the database has not stored, or is not given now.
    pub(super) fn keep(&mut self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        // A row is outdated by the time of the retry, which writes the present one.
        let lasting = |change: &Change| !matches!(change, Change::Machine(_));
        self.changes.extend(changes.into_iter().filter(lasting));
        let surplus = self.changes.len().saturating_sub(MOST_CHANGES);
        self.changes.drain(..surplus);
        let retry_at = Instant::now() + RETRY_AFTER;
        self.retry_at.get_or_insert(retry_at);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event;
    use crate::model::record::MachineRecord;

    #[tokio::test(start_paused = true)]
    async fn returned_changes_are_due_again_after_a_while_without_the_old_row() {
        let mut unsaved = Unsaved::new();
        let (config, image) = Default::default();
        let row = MachineRecord::new("default", None, config, image);
        let changes = vec![
            Change::Machine(Box::new(row)),
            Change::Event("m".to_owned(), Box::new(event::launch())),
        ];
        unsaved.return_path()(changes.clone());
        assert!(matches!(unsaved.drain()[..], [Change::Event(..)]));
        unsaved.return_path()(changes);
        let begun = Instant::now();
        unsaved.retry_due().await;
        assert_eq!(begun.elapsed(), RETRY_AFTER);
        assert!(matches!(unsaved.drain()[..], [Change::Event(..)]));
        assert!(unsaved.drain().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_database_has_few_commits_of_a_machine_in_its_queue_and_gets_the_rest_together()
    {
        let mut unsaved = Unsaved::new();
        let mut waiting = Vec::new();
        let event = || vec![Change::Event("m".to_owned(), Box::new(event::launch()))];
        for _ in 0..1_000 {
            if unsaved.is_database_behind() {
                unsaved.keep(event());
            } else {
                waiting.push(unsaved.return_path());
            }
        }
        assert_eq!(waiting.len(), MOST_COMMITS);
        // The newest of them.
        assert_eq!(unsaved.changes.len(), MOST_CHANGES);
        let begun = Instant::now();
        unsaved.retry_due().await;
        assert_eq!(begun.elapsed(), RETRY_AFTER);
        // One is done, and there is room for another.
        waiting.pop();
        assert!(!unsaved.is_database_behind());
        assert_eq!(unsaved.drain().len(), MOST_CHANGES);
    }
}
