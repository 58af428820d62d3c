//! `mctl completion`: what a shell needs to complete command lines.

use clap_complete::Shell;

use crate::args::definition;
use crate::error::CommandError;
use crate::session::Session;

/// Print the completion script of a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl completion bash > /etc/bash_completion.d/mctl")]
pub(crate) struct Args {
    /// Which shell
    shell: Shell,
}

pub(crate) fn run(session: &Session, args: &Args) -> Result<(), CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut definition(), "mctl", &mut script);
    Ok(session.output.raw(&script)?)
}
