//! This very program as a child process on this machine: the counterpart of running it in a virtual
//! KVM host. Both take the same arguments, so that both ways measure alike.

use std::process::Command;

use anyhow::Context;

/// Runs this program with `arguments` to its end, and returns its exit code: -1 if a signal ended
/// it.
///
/// # Errors
/// If it cannot be run.
pub fn run(arguments: &[String]) -> anyhow::Result<i32> {
    let this = std::env::current_exe().context("cannot find this program's own path")?;
    let status = Command::new(&this)
        .args(arguments)
        .status()
        .with_context(|| format!("cannot run {}", this.display()))?;
    Ok(status.code().unwrap_or(-1))
}
