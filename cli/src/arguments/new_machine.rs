//! Arguments that describe a new machine, and the request that creates it.

use machine_api::{CreateMachine, Init, MachineConfig};

use super::machine_flags::MachineFlags;
use crate::error::CommandError;

/// Arguments of a machine that does not exist yet.
#[derive(Debug, clap::Args)]
pub(crate) struct NewMachine {
    /// Image in the store of the host
    #[arg(default_value = "default")]
    image: String,
    /// Name of the machine; the supervisor chooses one if not given
    #[arg(long, short)]
    name: Option<String>,
    /// Destroy the machine when its main process has ended
    #[arg(long)]
    rm: bool,
    /// Accepted for scripts that are written for Fly; a host has one region
    #[arg(long, short, value_name = "REGION")]
    region: Option<String>,
    /// Program and arguments of the main process, if they contain no flags
    #[arg(value_name = "CMD", conflicts_with = "command")]
    words: Vec<String>,
    /// Program and arguments of the main process, after --
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
    // Last, because its help heading applies to all arguments that follow.
    #[command(flatten)]
    flags: MachineFlags,
}

impl NewMachine {
    /// The request that creates the machine.
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
