//! Runs this very program inside a virtual KVM host, where this machine's KVM can't run Linux.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use kvm_host::host::{Config, Run, VirtualHost};
use kvm_host::pack::HostFile;

use crate::host::{VIRTUAL_CPUS, VIRTUAL_ENV, VIRTUAL_MEMORY_MIB, parts};

/// A folder inside that is copied out at the end.
pub const EXPORT: &str = "/export";

/// What to run inside.
#[derive(Debug)]
pub struct Inside<'a> {
    /// Arguments of this program, without its name.
    pub arguments: Vec<String>,
    /// Added to its environment.
    pub environment: Vec<(String, String)>,
    /// What it needs there.
    pub files: Vec<HostFile>,
    /// A folder inside, such as [`EXPORT`], and where it goes at the end.
    pub export: Option<(&'a str, &'a Path)>,
    /// Where the host's console goes.
    pub logs: PathBuf,
    /// Longest that it may take.
    pub deadline: Duration,
}

/// Runs it to its end; the exit code tells how it went.
pub fn run(inside: Inside<'_>) -> anyhow::Result<i32> {
    let this = std::env::current_exe().context("cannot find this program's own path")?;
    let name = this
        .file_name()
        .context("this program has no name")?
        .to_string_lossy();
    let program = format!("/usr/bin/{name}");
    let mut environment = inside.environment;
    environment.push((VIRTUAL_ENV.to_owned(), "1".to_owned()));
    let mut files = inside.files;
    files.push(HostFile::program(this, program.clone()));
    let argv = std::iter::once(program).chain(inside.arguments).collect();
    let host = VirtualHost::start(&Config {
        parts: parts()?,
        memory_mib: VIRTUAL_MEMORY_MIB,
        cpus: VIRTUAL_CPUS,
        files,
        run: Run::Command {
            argv,
            env: environment,
            export: inside
                .export
                .map(|(inside, outside)| (inside.to_owned(), outside.to_owned())),
        },
        log_folder: inside.logs,
    })?;
    let code = host.wait_command(inside.deadline)?;
    // What it exported came before its exit code, so a host that does not end by itself may be killed.
    host.shutdown();
    Ok(code)
}
