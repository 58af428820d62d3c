//! `mctl man`: manual pages, generated from the definition of the command line.

use std::fs;
use std::path::PathBuf;

use crate::error::CommandError;
use crate::session::Session;

/// Write the manual pages
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl man --output /usr/local/share/man/man1")]
pub(crate) struct Args {
    /// Folder for the pages; created if missing
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
}

/// `definition` is the command line to describe.
pub(crate) fn run(
    session: &Session,
    args: &Args,
    definition: clap::Command,
) -> Result<(), CommandError> {
    let failed = |action, source| CommandError::File {
        action,
        path: args.output.clone(),
        source,
    };
    fs::create_dir_all(&args.output).map_err(|source| failed("create the folder", source))?;
    clap_mangen::generate_to(definition, &args.output)
        .map_err(|source| failed("write manual pages to", source))?;
    let folder = args.output.display();
    session
        .output
        .note(&format!("manual pages are in {folder}"));
    Ok(())
}
