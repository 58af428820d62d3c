//! `mctl man`: manual pages made from the same definition as the help texts.

use std::fs;
use std::path::PathBuf;

use crate::args::definition;
use crate::error::CommandError;
use crate::session::Session;

/// Write the manual pages
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl man --output /usr/local/share/man/man1")]
pub(crate) struct Args {
    /// Folder to write them to; made if it is not there
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
}

pub(crate) fn run(session: &Session, args: &Args) -> Result<(), CommandError> {
    let failed = |what, source| CommandError::File {
        what,
        path: args.output.clone(),
        source,
    };
    fs::create_dir_all(&args.output).map_err(|source| failed("make the folder", source))?;
    clap_mangen::generate_to(definition(), &args.output)
        .map_err(|source| failed("write manual pages to", source))?;
    let folder = args.output.display();
    session
        .output
        .note(&format!("manual pages are in {folder}"));
    Ok(())
}
