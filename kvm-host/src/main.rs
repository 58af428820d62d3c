//! `mctl-kvm-host`: starts the virtual KVM host from the command line.
//!
//! Only wires arguments to the library.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use kvm_host::clock::Clock;
use kvm_host::host::{Config, INSIDE_STATE_DIR, Run, VirtualHost};
use kvm_host::pack::{self, HostFile, Parts};
use kvm_host::probe;
use rootfs::cache::Cache;

mod doctor;
mod output;

/// Run a complete KVM host on any Linux, emulated by QEMU
#[derive(Debug, Parser)]
#[command(name = "mctl-kvm-host", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a supervisor inside and forward its API, until Ctrl-C
    Run(RunArgs),
    /// Run one static program inside and exit with its code
    Exec(ExecArgs),
    /// Open a shell inside
    Shell(HostArgs),
    /// Show the kind of KVM that this host has
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct HostArgs {
    /// Memory of the virtual host
    #[arg(long, value_name = "MIB", default_value_t = 4096)]
    memory_mib: u32,
    /// Processors of the virtual host; they share one of this host's, so more do not make it faster
    #[arg(long, value_name = "N", default_value_t = 1)]
    cpus: u32,
    /// File to copy inside, as an executable; may be given several times
    #[arg(long = "file", value_name = "PATH:INSIDE", value_parser = parse_file)]
    files: Vec<HostFile>,
    /// Folder for logs
    #[arg(long, value_name = "DIR", default_value = "target/kvm-host")]
    log_folder: PathBuf,
    /// Folder for downloaded packages [default: ~/.cache/mctl]
    #[arg(long, value_name = "DIR", env = "MCTL_CACHE")]
    cache: Option<PathBuf>,
    /// First process inside [default: `kvm-host-init` beside this program]
    #[arg(long, value_name = "PATH")]
    init: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct RunArgs {
    #[command(flatten)]
    host: HostArgs,
    /// Port of 127.0.0.1 for the API [default: a free one]
    #[arg(long)]
    port: Option<u16>,
    /// Folder with the guest image
    #[arg(long, value_name = "DIR")]
    image: PathBuf,
    /// Folder with mctl-supervisor and mctl-vmm [default: that of this program]
    #[arg(long, value_name = "DIR")]
    programs: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct ExecArgs {
    #[command(flatten)]
    host: HostArgs,
    /// Clock of the virtual host: "real", or "virtual", where an instruction takes a nanosecond and
    /// waiting takes no time
    #[arg(long, value_name = "CLOCK", default_value = "real", value_parser = parse_clock)]
    clock: Clock,
    /// Longest that the program may take, in seconds of this host's clock
    #[arg(long, value_name = "S", default_value_t = 600)]
    timeout_s: u64,
    /// Folder inside to copy out at the end
    #[arg(long, value_name = "INSIDE:DIR", value_parser = parse_export)]
    export: Option<(String, PathBuf)>,
    /// Program and arguments
    #[arg(required = true, trailing_var_arg = true)]
    argv: Vec<String>,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run(args),
        Command::Exec(args) => exec(args),
        Command::Shell(args) => shell(args),
        Command::Doctor { json } => doctor::report(probe::detect(), json),
    };
    result.unwrap_or_else(|error| {
        output::error(&error);
        ExitCode::FAILURE
    })
}

fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let programs = match args.programs {
        Some(folder) => folder,
        None => own_folder()?,
    };
    let mut host = args.host;
    for name in ["mctl-supervisor", "mctl-vmm"] {
        host.files.push(HostFile::program(
            existing(&programs, name)?,
            format!("/usr/bin/{name}"),
        ));
    }
    for name in ["image.json", "kernel", "initramfs"] {
        let inside = format!("{INSIDE_STATE_DIR}/images/default/{name}");
        host.files
            .push(HostFile::data(existing(&args.image, name)?, inside));
    }
    let token = hex::encode(rand::random::<[u8; 16]>());
    let env_path = host.log_folder.join("env");
    output::step("starting the virtual KVM host (QEMU emulates an AMD CPU with SVM)");
    let supervisor = Run::Supervisor {
        token: token.clone(),
        port: args.port,
    };
    let config = config(host, Clock::Real, supervisor)?;
    let host = VirtualHost::start(&config)?;
    host.wait_ready(Duration::from_secs(120))?;
    let url = host
        .api_url()
        .context("the virtual host has no API address")?;
    // With the programs in PATH, a plain `mctl` is the one of this build.
    let path = format!("PATH='{}':\"$PATH\"", programs.display());
    let export = format!("export MCTL_HOST={url} MCTL_TOKEN={token} {path}");
    write_private(&env_path, &export)?;
    output::data(&export);
    output::step(&format!(
        "ready; paste the line above or `. {}`, then use mctl. Ctrl-C ends the host",
        env_path.display()
    ));
    host.wait_end()?;
    bail!(
        "the virtual host has ended; its console is in {}",
        config.log_folder.display()
    )
}

fn exec(args: ExecArgs) -> anyhow::Result<ExitCode> {
    let run = Run::Command {
        argv: args.argv,
        env: Vec::new(),
        stdout: None,
        export: args.export,
    };
    let host = VirtualHost::start(&config(args.host, args.clock, run)?)?;
    let code = host.wait_command(Duration::from_secs(args.timeout_s))?;
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn shell(args: HostArgs) -> anyhow::Result<ExitCode> {
    VirtualHost::start(&config(args, Clock::Real, Run::Shell)?)?.wait_end()?;
    Ok(ExitCode::SUCCESS)
}

fn config(args: HostArgs, clock: Clock, run: Run) -> anyhow::Result<Config> {
    let cache = match &args.cache {
        Some(path) => Cache::open(path)?,
        None => Cache::of_user()?,
    };
    let init = match args.init {
        Some(path) => path,
        None => pack::find_init()?,
    };
    Ok(Config {
        parts: Parts::gather(&cache, &init, &output::step)?,
        memory_mib: args.memory_mib,
        cpus: args.cpus,
        clock,
        files: args.files,
        run,
        log_folder: args.log_folder,
    })
}

fn own_folder() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("cannot find this program's own path")?;
    Ok(program.parent().unwrap_or(&program).to_owned())
}

fn existing(folder: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let path = folder.join(name);
    if !path.is_file() {
        bail!("{} does not exist; build it first", path.display());
    }
    Ok(path)
}

fn write_private(path: &Path, line: &str) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let mut file = std::fs::File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(failed)?;
    writeln!(file, "{line}").with_context(failed)
}

fn parse_file(text: &str) -> Result<HostFile, String> {
    let (source, inside) = split_pair(text)?;
    Ok(HostFile::program(source, inside))
}

fn parse_export(text: &str) -> Result<(String, PathBuf), String> {
    let (inside, folder) = split_pair(text)?;
    Ok((inside.to_owned(), folder.into()))
}

fn parse_clock(text: &str) -> Result<Clock, String> {
    Clock::of_name(text).ok_or_else(|| "expected real or virtual".to_owned())
}

fn split_pair(text: &str) -> Result<(&str, &str), String> {
    text.split_once(':')
        .ok_or_else(|| "expected two paths with a colon between them".to_owned())
}
