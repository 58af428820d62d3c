//! The stream of CPU usage: one sample per interval, until the connection ends.

use std::time::Duration;

use tokio::time::MissedTickBehavior;

use crate::connection::{Connection, ConnectionError};
use crate::console::{chain, say};
use crate::procfs;

/// Sends samples until the connection ends. It is closed or reset long before a next sample
/// would show that, so the connection is watched in between.
pub(crate) async fn serve(
    connection: &Connection,
    interval: Duration,
) -> Result<(), ConnectionError> {
    let mut ticks = tokio::time::interval(interval);
    // A guest that was stopped for a while owes no samples for that time.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _tick = ticks.tick() => match procfs::sample() {
                Ok(sample) => connection.send_json(&sample).await?,
                Err(error) => {
                    say(format_args!("CPU usage ends: {}", chain(&error)));
                    return Ok(());
                }
            },
            ended = connection.stream().ended() => return Ok(ended?),
        }
    }
}
