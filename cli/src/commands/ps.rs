//! `mctl ps`: the processes of a guest.

use crate::arguments::MachineArg;
use crate::error::CommandError;
use crate::output::Table;
use crate::session::Session;
use crate::units::bytes;

/// List the processes in a machine
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl ps web")]
pub(crate) struct Args {
    #[command(flatten)]
    machine: MachineArg,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machine = args.machine.find(session).await?;
    let processes = session.client.processes(&machine.id).await?;
    if session.output.is_json() {
        return Ok(session.output.json(&processes)?);
    }
    let mut table = Table::new([">PID", ">CPU", ">MEMORY", "LISTENS", "COMMAND"]);
    for process in processes {
        let sockets = process.listen_sockets.iter();
        let sockets: Vec<&str> = sockets.map(|socket| socket.address.as_str()).collect();
        table.row([
            process.pid.to_string().into(),
            format!("{}s", process.cpu).into(),
            bytes(process.rss).into(),
            sockets.join(",").into(),
            process.command.into(),
        ]);
    }
    Ok(session.output.table(&table)?)
}
