//! Ctrl-C as a request to end a run early, with a report on the cycles so far.

use std::future::pending;

use tokio::task::JoinHandle;

/// Watches for Ctrl-C while it exists.
///
/// Without it, Ctrl-C ends the process. With it, the observer of a run can ask after each cycle
/// whether to end the run: the machine is then started, and the report holds the cycles so far.
#[derive(Debug)]
pub struct Interruption(Option<JoinHandle<()>>);

impl Interruption {
    /// Starts to watch. `announce` is called when Ctrl-C is pressed. Needs a tokio runtime.
    pub fn by_ctrl_c(announce: impl FnOnce() + Send + 'static) -> Self {
        Self(Some(tokio::spawn(async {
            // If the signal cannot be watched, it ends the process as usual.
            if tokio::signal::ctrl_c().await.is_err() {
                pending::<()>().await;
            }
            announce();
        })))
    }

    /// For runs that nobody interrupts.
    pub fn never() -> Self {
        Self(None)
    }

    /// Whether Ctrl-C was pressed since the watch began.
    pub fn is_requested(&self) -> bool {
        self.0.as_ref().is_some_and(JoinHandle::is_finished)
    }
}

impl Drop for Interruption {
    fn drop(&mut self) {
        if let Some(watch) = &self.0 {
            watch.abort();
        }
    }
}
