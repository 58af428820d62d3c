//! `mctl clone`: another machine of the same configuration.

use machine_api::{CreateMachine, MachineState};

use super::machine_flags::{MachineFlags, words};
use crate::error::CommandError;
use crate::session::Session;
use crate::{machine_ref, transition};

/// Create another machine with the configuration of an existing one
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Memory is not cloned: the new machine boots. Published ports of the host are taken already: the
host chooses other ones, which `mctl status` shows, unless --port gives them all.

Example:
  mctl clone web --name web2")]
pub(crate) struct Args {
    /// Id, beginning of an id, or name; may be left out if there is only one machine
    machine: Option<String>,
    /// Name of the new machine; chosen for you if not given
    #[arg(long, short)]
    name: Option<String>,
    /// Do not start it
    #[arg(long)]
    skip_start: bool,
    /// Another command for the main process, in one string
    #[arg(long, value_name = "CMD")]
    override_cmd: Option<String>,
    /// Without a command of its own, so that the image's runs
    #[arg(long, conflicts_with = "override_cmd")]
    clear_cmd: bool,
    /// Keep the new machine once its main process has ended
    #[arg(long)]
    clear_auto_destroy: bool,
    #[command(flatten)]
    flags: MachineFlags,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let model = machine_ref::find(session, args.machine.as_deref()).await?;
    let mut config = model.config;
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
        config.init.get_or_insert_default().cmd = words("--override-cmd", line)?;
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
        let label = transition::label(&machine);
        session.output.note(&format!("{label}: created"));
        return transition::print(session, &machine);
    }
    transition::await_and_report(session, &machine, MachineState::Started).await
}
