//! `mctl-kvm-host`: starts the virtual KVM host from the command line.
//!
//! Only wires arguments to the library.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Parser;
use kvm_host::config::{Config, INSIDE_STATE_DIR, Run};
use kvm_host::host::VirtualHost;
use kvm_host::pack::{self, HostFile, Parts};
use kvm_host::storage::Storage;
use kvm_host::{debian, probe};
use rootfs::cache::Cache;

mod command_line;
mod doctor;
mod output;

use command_line::{Cli, Command, ExecArgs, HostArgs, RootName, RunArgs};

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Run(args) => run(args),
        Command::Exec(args) => exec(args),
        Command::Shell(args) => shell(args),
        Command::Doctor { kvm, json } => doctor::report(probe::detect(), kvm, json),
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
    let config = config(host, supervisor)?;
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
    let host = VirtualHost::start(&config(args.host, run)?)?;
    let code = host.wait_command(Duration::from_secs(args.timeout_s))?;
    host.shutdown()?;
    Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn shell(args: HostArgs) -> anyhow::Result<ExitCode> {
    VirtualHost::start(&config(args, Run::Shell)?)?.wait_end()?;
    Ok(ExitCode::SUCCESS)
}

fn config(args: HostArgs, run: Run) -> anyhow::Result<Config> {
    let cache = match &args.cache {
        Some(path) => Cache::open(path)?,
        None => Cache::of_user()?,
    };
    let init = match args.init {
        Some(path) => path,
        None => pack::find_init()?,
    };
    let storage = if args.storage.is_empty() {
        None
    } else {
        let storage = args.storage;
        Some(Storage {
            debian: debian::root_image(&cache, &storage.packages, &output::step)?,
            programs_in_debian: storage.root == Some(RootName::Debian),
            disks: storage.disks,
            memory_disks: storage.memory_disks,
        })
    };
    Ok(Config {
        parts: Parts::gather(&cache, &init, &output::step)?,
        memory_mib: args.memory_mib,
        cpus: args.cpus,
        emulator: args.kvm,
        clock: args.clock.unwrap_or_else(|| args.kvm.default_clock()),
        files: args.files,
        storage,
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
