//! `mctl completion`: the script with which a shell completes command lines of mctl.

use clap_complete::Shell;

use crate::error::CommandError;
use crate::session::Session;

/// Print the completion script for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl completion bash > /etc/bash_completion.d/mctl")]
pub(crate) struct Args {
    /// Shell that the script is for
    shell: Shell,
}

/// `definition` is the command line to complete.
pub(crate) fn run(
    session: &Session,
    args: &Args,
    mut definition: clap::Command,
) -> Result<(), CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut definition, "mctl", &mut script);
    Ok(session.output.raw(&script)?)
}
