//! `mctl create`: makes a machine without starting it.

use machine_api::{CreateMachine, Init, MachineConfig};

use super::machine_flags::MachineFlags;
use crate::error::CommandError;
use crate::session::Session;
use crate::transition::{label, print};

/// Create a machine without starting it
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl create --name web --memory 512mb --port 8080:80")]
pub(crate) struct Args {
    #[command(flatten)]
    new: NewMachine,
}

/// Arguments of a machine that does not exist yet.
#[derive(Debug, clap::Args)]
pub(crate) struct NewMachine {
    /// Image in this host's store
    #[arg(default_value = "default")]
    image: String,
    /// Name of the machine; chosen for you if not given
    #[arg(long, short)]
    name: Option<String>,
    /// Destroy it once its main process has ended
    #[arg(long)]
    rm: bool,
    #[command(flatten)]
    flags: MachineFlags,
    /// Kept for scripts that are written for Fly: a host is one region
    #[arg(long, short, value_name = "REGION")]
    region: Option<String>,
    /// Command for the main process; behind -- where it has flags of its own
    #[arg(value_name = "CMD", conflicts_with = "command")]
    words: Vec<String>,
    /// Command for the main process
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

impl NewMachine {
    /// The request that makes it.
    pub(crate) fn into_request(self, skip_launch: bool) -> Result<CreateMachine, CommandError> {
        let mut config = MachineConfig::default();
        self.flags.apply(&mut config)?;
        if config.image.is_empty() || self.image != "default" {
            config.image = self.image;
        }
        let command = [self.words, self.command].concat();
        if !command.is_empty() {
            config.init.get_or_insert_with(Init::default).cmd = command;
        }
        config.auto_destroy |= self.rm;
        Ok(CreateMachine {
            name: self.name,
            region: self.region,
            config,
            skip_launch,
            ..CreateMachine::default()
        })
    }
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machine = session.client.create(&args.new.into_request(true)?).await?;
    session.output.note(&format!(
        "{}: created, start it with `mctl start`",
        label(&machine)
    ));
    print(session, &machine)
}
