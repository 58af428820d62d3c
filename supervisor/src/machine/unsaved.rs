//! Changes that could not be stored in the background, kept until they can.
//!
//! The end of a transition is shown at once and stored later. On a full disk that fails; nothing
//! is lost once there is space again.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::deadline;
use crate::store::Change;

/// Wait before storing is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Most events and timings that are kept; the oldest are dropped.
const MOST_CHANGES: usize = 256;

/// Changes that the database returned.
#[derive(Debug)]
pub(super) struct Unsaved {
    sender: mpsc::UnboundedSender<Vec<Change>>,
    returned: mpsc::UnboundedReceiver<Vec<Change>>,
    changes: VecDeque<Change>,
    retry_at: Option<Instant>,
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
        }
    }

    /// Takes back changes that were not stored.
    pub(super) fn return_path(&self) -> impl FnOnce(Vec<Change>) + Send + use<> {
        let sender = self.sender.clone();
        move |changes| {
            // Fails if the driver has ended, and then nobody needs them.
            let _ = sender.send(changes);
        }
    }

    /// Resolves when storing should be tried again.
    pub(super) async fn retry_due(&mut self) {
        loop {
            let retry_at = self.retry_at;
            tokio::select! {
                Some(changes) = self.returned.recv() => self.add(changes),
                () = deadline::reached(retry_at) => return,
            }
        }
    }

    /// Removes and returns the changes, oldest first, without the machine's row.
    pub(super) fn drain(&mut self) -> Vec<Change> {
        self.retry_at = None;
        self.changes.drain(..).collect()
    }

    fn add(&mut self, changes: Vec<Change>) {
        // A row is outdated by the time of the retry, which writes the present one.
        let lasting = |change: &Change| !matches!(change, Change::Machine(_));
        self.changes.extend(changes.into_iter().filter(lasting));
        let surplus = self.changes.len().saturating_sub(MOST_CHANGES);
        self.changes.drain(..surplus);
        self.retry_at = Some(Instant::now() + RETRY_AFTER);
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
        unsaved.return_path()(changes);
        let begun = Instant::now();
        unsaved.retry_due().await;
        assert_eq!(begun.elapsed(), RETRY_AFTER);
        assert!(matches!(unsaved.drain()[..], [Change::Event(..)]));
        assert!(unsaved.drain().is_empty());
    }
}
