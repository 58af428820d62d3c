//! Child processes of this program.

use std::io;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

/// Pause between two looks at a child.
const POLL_PAUSE: Duration = Duration::from_millis(10);

/// Waits for the end of `child`; `None` if it still runs after `deadline`.
///
/// # Errors
/// If it cannot be waited for.
pub fn wait(child: &mut Child, deadline: Duration) -> io::Result<Option<ExitStatus>> {
    let end = Instant::now() + deadline;
    loop {
        let status = child.try_wait()?;
        if status.is_some() || Instant::now() >= end {
            return Ok(status);
        }
        std::thread::sleep(POLL_PAUSE);
    }
}
