//! `mctl clone`: creates a machine with the configuration of another one.

use machine_api::{CreateMachine, MachineState};

use crate::arguments::{MachineArg, MachineFlags};
use crate::error::CommandError;
use crate::parse;
use crate::session::Session;
use crate::transition::{await_and_report, print_machine};
use crate::wording::label;

/// Create a machine with the configuration of another one
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Memory is not cloned: the new machine boots. The host chooses new published ports, because the
original machine has its own; `mctl status` shows them. --port replaces all of them.

Example:
  mctl clone web --name web2")]
pub(crate) struct Args {
    #[command(flatten)]
    machine: MachineArg,
    /// Name of the new machine; the supervisor chooses one if not given
    #[arg(long, short)]
    name: Option<String>,
    /// Do not start the new machine
    #[arg(long)]
    skip_start: bool,
    /// Program and arguments of the main process, in one string
    #[arg(long, value_name = "CMD")]
    override_cmd: Option<String>,
    /// Remove the command, so that the image's command runs
    #[arg(long, conflicts_with = "override_cmd")]
    clear_cmd: bool,
    /// Keep the new machine when its main process has ended
    #[arg(long)]
    clear_auto_destroy: bool,
    #[command(flatten)]
    flags: MachineFlags,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let original = args.machine.find(session).await?;
    let mut config = original.config;
    if args.flags.publishes() {
        config.services.clear();
    }
    let services = config.services.iter_mut();
    for port in services.flat_map(|service| &mut service.ports) {
        port.port = 0;
    }
    if args.clear_cmd {
        config.init.get_or_insert_default().cmd.clear();
    }
    if let Some(line) = &args.override_cmd {
        config.init.get_or_insert_default().cmd =
            parse::words(line).map_err(CommandError::of_argument("--override-cmd"))?;
    }
    config.auto_destroy &= !args.clear_auto_destroy;
    args.flags.apply(&mut config)?;
    let request = CreateMachine {
        name: args.name,
        config,
        skip_launch: args.skip_start,
        ..CreateMachine::default()
    };
    let machine = session.client.create(&request).await?;
    if args.skip_start {
        session
            .output
            .note(&format!("{}: created", label(&machine)));
        return print_machine(session, &machine);
    }
    await_and_report(session, &machine, MachineState::Started).await
}
