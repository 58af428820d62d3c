//! `mctl set-aside`: images that no resume uses any more.

use clap::Subcommand;

use crate::arguments::RequiredMachineArg;
use crate::confirm::confirm;
use crate::error::CommandError;
use crate::output::Table;
use crate::session::Session;
use crate::units::bytes;
use crate::wording::label;

/// Show and remove images that were set aside: damaged ones, and those of cold starts
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl set-aside list")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// List the images; of each machine the newest two are kept
    #[command(after_help = "Example:\n  mctl set-aside list --json")]
    List,
    /// Remove an image
    #[command(
        visible_alias = "rm",
        after_help = "Example:\n  mctl set-aside remove web 7 --yes"
    )]
    Remove {
        #[command(flatten)]
        machine: RequiredMachineArg,
        /// Generation of the image, as listed
        generation: u64,
        /// Do not ask for confirmation
        #[arg(long, short)]
        yes: bool,
    },
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    match args.action {
        Action::List => list(session).await,
        Action::Remove {
            machine,
            generation,
            yes,
        } => {
            let machine = machine.find(session).await?;
            let label = label(&machine);
            if !yes {
                let question = format!("remove the image of generation {generation} of {label}?");
                confirm(session, &question)?;
            }
            let removed = session.client.remove_set_aside(&machine.id, generation);
            removed.await?;
            session.output.note(&format!(
                "{label}: image of generation {generation} removed"
            ));
            Ok(())
        }
    }
}

async fn list(session: &Session) -> Result<(), CommandError> {
    let images = session.client.images_set_aside().await?;
    if session.output.is_json() {
        return Ok(session.output.json(&images)?);
    }
    if images.is_empty() {
        session.output.note("no image is set aside");
        return Ok(());
    }
    let mut table = Table::new(["MACHINE", "GENERATION", "SIZE", "PATH"]);
    for image in images {
        table.row([
            image.machine_id.into(),
            image.generation.to_string().into(),
            bytes(image.bytes).into(),
            image.path.into(),
        ]);
    }
    Ok(session.output.table(&table)?)
}
