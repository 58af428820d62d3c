//! What could not be stored in the background, kept until it can.
//!
//! The end of a transition is shown at once and stored behind the driver's back. On a full disk
//! that fails; nothing of it may be lost once there is space again.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::store::Change;

/// Wait before it is tried again.
const AGAIN: Duration = Duration::from_secs(2);
/// Events and timings kept at the most; the oldest give way.
const KEPT: usize = 256;

/// Changes on their way back from the database.
#[derive(Debug)]
pub(super) struct Unsaved {
    way_back: mpsc::UnboundedSender<Vec<Change>>,
    returned: mpsc::UnboundedReceiver<Vec<Change>>,
    kept: VecDeque<Change>,
    again_at: Option<Instant>,
}

impl Unsaved {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        let (way_back, returned) = mpsc::unbounded_channel();
        Self {
            way_back,
            returned,
            kept: VecDeque::new(),
            again_at: None,
        }
    }

    /// Where changes go that were not stored.
    pub(super) fn way_back(&self) -> impl FnOnce(Vec<Change>) + Send + use<> {
        let way_back = self.way_back.clone();
        move |changes| {
            // The driver has ended: nobody cares any more.
            let _ = way_back.send(changes);
        }
    }

    /// Resolves when it is time to try again.
    pub(super) async fn due(&mut self) {
        loop {
            let at = self.again_at;
            tokio::select! {
                Some(changes) = self.returned.recv() => self.keep(changes),
                () = super::driver::at(at) => return,
            }
        }
    }

    /// What is to be stored besides the machine as it is now, oldest first.
    pub(super) fn take(&mut self) -> Vec<Change> {
        self.again_at = None;
        self.kept.drain(..).collect()
    }

    fn keep(&mut self, changes: Vec<Change>) {
        // The machine's row is written anew, as it is by then.
        let lasting = |change: &Change| !matches!(change, Change::Machine(_));
        self.kept.extend(changes.into_iter().filter(lasting));
        let surplus = self.kept.len().saturating_sub(KEPT);
        self.kept.drain(..surplus);
        self.again_at = Some(Instant::now() + AGAIN);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::record;

    #[tokio::test(start_paused = true)]
    async fn what_comes_back_is_tried_again_after_a_while_without_the_old_row() {
        let mut unsaved = Unsaved::new();
        let (config, image) = Default::default();
        let row = record::new("default", None, config, image);
        let event = record::event(machine_api::EventType::Start, "begun".to_owned());
        let changes = vec![
            Change::Machine(Box::new(row)),
            Change::Event("m".to_owned(), Box::new(event)),
        ];
        unsaved.way_back()(changes);
        let begun = Instant::now();
        unsaved.due().await;
        assert_eq!(begun.elapsed(), AGAIN);
        assert!(matches!(unsaved.take()[..], [Change::Event(..)]));
        assert!(unsaved.take().is_empty());
    }
}
