//! Flags that repeat a command's output.

use std::time::Duration;

use crate::error::CommandError;
use crate::parse;
use crate::session::Session;

/// Whether, and how often, the output is refreshed.
#[derive(Debug, clap::Args)]
pub(crate) struct WatchFlags {
    /// Refresh the output until interrupted
    #[arg(long, short)]
    watch: bool,
    /// Time between refreshes
    #[arg(long, value_name = "TIME", default_value = "2s", value_parser = parse::duration)]
    interval: Duration,
}

impl WatchFlags {
    /// Calls `show` once, or again and again until the user interrupts it. The first error ends it.
    pub(crate) async fn repeat(
        &self,
        session: &Session,
        show: impl AsyncFn() -> Result<(), CommandError>,
    ) -> Result<(), CommandError> {
        if !self.watch {
            return show().await;
        }
        let mut first = true;
        loop {
            session.output.refresh(first)?;
            show().await?;
            first = false;
            tokio::time::sleep(self.interval).await;
        }
    }
}
