//! Streams CPU usage: one sample per interval, until the connection ends.

use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::connection::{Connection, ConnectionError};
use crate::os::console::say;
use crate::os::procfs;

/// Sends samples until the connection ends. Watches the connection between samples, so that its end
/// is noticed at once and not by the next sample.
pub(crate) async fn serve(
    connection: Connection,
    interval: Duration,
) -> Result<(), ConnectionError> {
    let mut ticks = tokio::time::interval(interval);
    // Samples that were missed during a suspend are skipped.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _tick = ticks.tick() => match procfs::sample() {
                Ok(sample) => connection.send_json(&sample).await?,
                Err(error) => {
                    say(format_args!("cannot stream CPU usage any further: {}", error_text::with_causes(&error)));
                    return Ok(());
                }
            },
            ended = connection.stream().ended() => return Ok(ended?),
        }
    }
}
