//! `mctl ps`: the processes of a guest.

use crate::error::CommandError;
use crate::machine_ref;
use crate::output::Table;
use crate::session::Session;
use crate::span::bytes;

/// List the processes in a machine
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  mctl ps web")]
pub(crate) struct Args {
    /// Id, beginning of an id, or name; may be left out if there is only one machine
    machine: Option<String>,
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    let machine = machine_ref::find(session, args.machine.as_deref()).await?;
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
