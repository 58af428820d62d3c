//! The commands, a file each with its arguments and its work, and the list of all of them.

mod adopt;
mod bench;
mod clone;
mod completion;
mod config;
mod cordon;
mod cp;
mod create;
mod destroy;
mod doctor;
mod events;
mod exec;
mod lease;
mod list;
mod logs;
mod man;
mod metadata;
mod ps;
mod report;
mod resources;
mod restart;
mod resume;
mod run;
mod set_aside;
mod signal;
mod start;
mod status;
mod stop;
mod suspend;
mod timings;
mod token;
mod top;
mod update;
mod wait;

use clap::Subcommand;

use crate::error::CommandError;
use crate::session::Session;

/// All commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(run::Args),
    Create(create::Args),
    #[command(visible_alias = "ls")]
    List(list::Args),
    Status(status::Args),
    Start(start::Args),
    Stop(stop::Args),
    Suspend(suspend::Args),
    Resume(resume::Args),
    Restart(restart::Args),
    #[command(visible_alias = "rm", alias = "remove")]
    Destroy(destroy::Args),
    Wait(wait::Args),
    Exec(exec::Args),
    Logs(logs::Args),
    Timings(timings::Args),
    Top(top::Args),
    Resources(resources::Args),
    Events(events::Args),
    Cp(cp::Args),
    Ps(ps::Args),
    Signal(signal::Args),
    Kill(signal::KillArgs),
    Update(update::Args),
    Clone(clone::Args),
    Cordon(cordon::Args),
    #[command(
        about = "Resume routing new connections to machines",
        after_help = "Example:\n  mctl uncordon web"
    )]
    Uncordon(cordon::Args),
    Metadata(metadata::Args),
    #[command(alias = "leases")]
    Lease(lease::Args),
    Token(token::Args),
    Bench(bench::Args),
    Report(report::Args),
    Doctor(doctor::Args),
    Adopt(adopt::Args),
    SetAside(set_aside::Args),
    Config(config::Args),
    Completion(completion::Args),
    Man(man::Args),
}

impl Command {
    /// Runs the command; the number is the exit code. `definition` makes the definition of the
    /// whole command line.
    pub(crate) async fn run(
        self,
        session: &Session,
        definition: fn() -> clap::Command,
    ) -> Result<u8, CommandError> {
        match self {
            Self::Exec(args) => return exec::run(session, args).await,
            Self::Run(args) => run::run(session, args).await,
            Self::Create(args) => create::run(session, args).await,
            Self::List(args) => list::run(session, args).await,
            Self::Status(args) => status::run(session, args).await,
            Self::Start(args) => start::run(session, args).await,
            Self::Stop(args) => stop::run(session, args).await,
            Self::Suspend(args) => suspend::run(session, args).await,
            Self::Resume(args) => resume::run(session, args).await,
            Self::Restart(args) => restart::run(session, args).await,
            Self::Destroy(args) => destroy::run(session, args).await,
            Self::Wait(args) => wait::run(session, args).await,
            Self::Logs(args) => logs::run(session, args).await,
            Self::Timings(args) => timings::run(session, args).await,
            Self::Doctor(args) => doctor::run(session, args).await,
            Self::SetAside(args) => set_aside::run(session, args).await,
            Self::Adopt(args) => adopt::run(session, args).await,
            Self::Top(args) => top::run(session, args).await,
            Self::Resources(args) => resources::run(session, args).await,
            Self::Events(args) => events::run(session, args).await,
            Self::Cp(args) => cp::run(session, args).await,
            Self::Ps(args) => ps::run(session, args).await,
            Self::Signal(args) => signal::run(session, args).await,
            Self::Kill(args) => signal::kill(session, args).await,
            Self::Update(args) => update::run(session, args).await,
            Self::Clone(args) => clone::run(session, args).await,
            Self::Cordon(args) => cordon::run(session, args, true).await,
            Self::Uncordon(args) => cordon::run(session, args, false).await,
            Self::Metadata(args) => metadata::run(session, args).await,
            Self::Lease(args) => lease::run(session, args).await,
            Self::Token(args) => token::run(session, args).await,
            Self::Bench(args) => bench::run(session, args).await,
            Self::Report(args) => report::run(session, args),
            Self::Completion(args) => completion::run(session, &args, definition()),
            Self::Man(args) => man::run(session, &args, definition()),
            Self::Config(args) => config::run(session, args),
        }
        .map(|()| 0)
    }

    /// The exit code of mctl's own failures, for a command whose other exit codes are not mctl's.
    pub(crate) const fn own_failure_code(&self) -> Option<u8> {
        match self {
            Self::Exec(_) => Some(125),
            _ => None,
        }
    }
}
