//! The command line as a whole: parses it, resolves the settings, runs the command, and turns its
//! result into output and exit code.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser};

use crate::commands::Command;
use crate::error::{CommandError, EXIT_CODES};
use crate::output::{ColorChoice, Output};
use crate::session::Session;
use crate::settings::{Flags, Settings};

/// Run, suspend and resume machines on this host
#[derive(Debug, Parser)]
#[command(name = "mctl", version, after_help = EXIT_CODES, propagate_version = true)]
#[command(
    subcommand_required = true,
    arg_required_else_help = true,
    max_term_width = 100
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// Address of the supervisor: unix:///path, http://host:port or https://host:port [env:
    /// MCTL_HOST]
    #[arg(long, global = true, value_name = "ADDRESS")]
    host: Option<String>,
    /// Bearer token; in the environment variable it does not show in process lists [env:
    /// MCTL_TOKEN]
    #[arg(long, global = true, value_name = "TOKEN")]
    token: Option<String>,
    /// PEM file with the certificates to trust over https, instead of the system's [env:
    /// MCTL_CA_CERT]
    #[arg(long, global = true, value_name = "FILE")]
    ca_cert: Option<PathBuf>,
    /// App of the machines, on platforms that have several; a host of ours has only this one
    #[arg(long, short, global = true, value_name = "APP", default_value = machine_api::DEFAULT_APP)]
    app: String,
    /// Configuration file [env: MCTL_CONFIG]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How long to wait for a machine to reach a state; 0 does not wait [env: MCTL_WAIT_TIMEOUT]
    #[arg(long, global = true, value_name = "TIME")]
    wait_timeout: Option<String>,
    /// Nonce of the lease that you hold on the machine
    #[arg(
        long,
        global = true,
        value_name = "NONCE",
        env = "MCTL_LEASE",
        hide_env_values = true
    )]
    lease: Option<String>,
    /// Print JSON instead of tables and sentences
    #[arg(long, short = 'j', global = true)]
    json: bool,
    /// When to use colours [env: NO_COLOR]
    #[arg(long, global = true, value_name = "WHEN")]
    color: Option<ColorChoice>,
}

/// Parses `arguments`, runs the command, and reports its failure.
pub(crate) fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let parsed = Cli::command()
        .try_get_matches_from(arguments)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let Cli { global, command } = match parsed {
        Ok(cli) => cli,
        // Help and version go to standard output with code 0, usage errors to standard error with 2.
        Err(error) => error.exit(),
    };
    let own_failure = command.own_failure_code();
    let output = Output::new(global.json, global.color.unwrap_or(ColorChoice::Auto));
    match run_command(global, command, output.clone()) {
        Ok(code) => ExitCode::from(code),
        Err(CommandError::Output(source)) if source.kind() == std::io::ErrorKind::BrokenPipe => {
            ExitCode::from(CommandError::Output(source).kind().exit_code())
        }
        Err(error) => {
            output.error(&error, error.hint().as_deref());
            ExitCode::from(own_failure.unwrap_or_else(|| error.kind().exit_code()))
        }
    }
}

fn run_command(global: Global, command: Command, output: Output) -> Result<u8, CommandError> {
    let flags = Flags {
        config: global.config,
        host: global.host,
        token: global.token,
        ca_cert: global.ca_cert,
        wait_timeout: global.wait_timeout,
        color: global.color,
    };
    let settings = Settings::resolve(flags)?;
    let output = if global.color.is_none() {
        Output::new(output.is_json(), settings.color.value)
    } else {
        output
    };
    let session = Session::new(settings, global.app, global.lease, output);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(command.run(&session, Cli::command));
    // A thread that still reads standard input must not keep the process alive.
    runtime.shutdown_background();
    outcome
}
