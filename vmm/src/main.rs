//! `mctl-vmm`: parses its command line, builds or restores the machine, runs it, reports its end.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use vmm::clock::monotonic_ns;
use vmm::command_line::{
    AnnounceArg, BootArgs, Command, CommandLine, CommonArgs, RestoreArgs, Switch,
};
use vmm::control::ControlListener;
use vmm::devices::serial::ConsoleOutput;
use vmm::log;
use vmm::machine::build::{BootSource, boot};
use vmm::machine::configuration::{HostSide, Identity, MachineConfiguration, VsockHost};
use vmm::machine::ending::{Ending, write_report};
use vmm::machine::restore::{RestoreSource, restore};
use vmm::machine::run::run;
use vmm::phases::Phases;
use vmm::process::{PreparationError, prepare};
use vmm_control::{ExitReason, Protocols};

/// The address without `--vsock-cid`. It has to be unique among the machines of one VMM, which has one.
const DEFAULT_VSOCK_CID: u32 = 3;

fn main() -> ExitCode {
    let start_ns = monotonic_ns();
    let command = CommandLine::parse().command;
    let common = match &command {
        Command::Boot(args) => &args.common,
        Command::Restore(args) => &args.common,
        Command::Protocols => return print_protocols(),
    };
    let identity = Identity {
        machine_id: common.machine_id.clone(),
        generation: common.generation,
    };
    let exit_file = common.exit_file.clone();
    let phases = Phases::starting_at(start_ns);
    let ending = match command {
        Command::Boot(args) => boot_and_run(identity.clone(), args, phases),
        Command::Restore(args) => restore_and_run(identity.clone(), args, phases),
        Command::Protocols => return print_protocols(),
    };
    finish(&identity, &ending, exit_file)
}

#[expect(clippy::print_stdout, reason = "the answer to a question")]
fn print_protocols() -> ExitCode {
    let protocols = Protocols {
        control: vmm_control::VERSION,
        image: vmm::image::format::VERSION,
        announces: AnnounceArg::names(),
    };
    match serde_json::to_string(&protocols) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(_) => ExitCode::FAILURE,
    }
}

fn finish(identity: &Identity, ending: &Ending, exit_file: Option<PathBuf>) -> ExitCode {
    log::last_line(format_args!("{:?}: {}", ending.reason, ending.message));
    if let Some(path) = exit_file
        && let Err(error) = write_report(&path, &ending.report(identity))
    {
        log::last_line(format_args!("cannot write {}: {error}", path.display()));
    }
    // The process holds nothing that needs an orderly end.
    std::process::exit(ending.exit_code())
}

fn boot_and_run(identity: Identity, args: BootArgs, phases: Phases) -> Ending {
    let refused = |error: &dyn std::error::Error| {
        Ending::new(ExitReason::HostFailed, error_text::with_causes(error))
    };
    let (control, host) = match host_side(&identity, &args.common) {
        Ok(sides) => sides,
        Err(error) => return refused(error.as_ref()),
    };
    let vsock = args.common.vsock_socket.is_some();
    let configuration = MachineConfiguration {
        vcpus: args.vcpus,
        memory_mib: args.memory_mib,
        disks: args.common.disks,
        vsock_cid: vsock.then(|| args.common.vsock_cid.unwrap_or(DEFAULT_VSOCK_CID)),
    };
    let source = BootSource {
        kernel: args.kernel,
        initramfs: args.initramfs,
        cmdline: args.cmdline,
        cpu_template: args.cpu_template.into(),
    };
    match boot(identity, configuration, &source, host, phases) {
        Ok(machine) => run(machine, control),
        Err(error) => refused(&error),
    }
}

fn restore_and_run(identity: Identity, args: RestoreArgs, phases: Phases) -> Ending {
    let (control, host) = match host_side(&identity, &args.common) {
        Ok(sides) => sides,
        Err(error) => {
            return Ending::new(
                ExitReason::HostFailed,
                error_text::with_causes(error.as_ref()),
            );
        }
    };
    let source = RestoreSource {
        image: args.image,
        expected_generation: args.expect_generation,
        verify: args.verify.into(),
        disks: args.common.disks,
        vsock_cid: args.common.vsock_cid,
    };
    #[cfg(feature = "leaks")]
    if let Err(error) = vmm::leaks::leak_one_of_each(identity.generation) {
        log::line(format_args!("cannot leak: {error}"));
    }
    match restore(identity, &source, host, phases) {
        Ok(machine) => run(machine, control),
        Err(error) => Ending::new(error.exit_reason(), error_text::with_causes(&error)),
    }
}

/// Prepares the process and opens what both commands need of the host.
fn host_side(
    identity: &Identity,
    common: &CommonArgs,
) -> Result<(Option<ControlListener>, HostSide), Box<dyn std::error::Error>> {
    let memory_error = Ending::memory_error().report(identity);
    let exit_file = common.exit_file.as_deref();
    prepare(exit_file.map(|path| (path, &memory_error)))?;
    let control = match (&common.control, common.control_fd) {
        (Some(path), _) => Some(ControlListener::bind(path)?),
        (None, Some(_)) => Some(ControlListener::inherited()?),
        (None, None) => None,
    };
    let console = match &common.console {
        Some(path) => File::options().create(true).append(true).open(path),
        None => std::io::stdout()
            .as_fd()
            .try_clone_to_owned()
            .map(File::from),
    };
    let console = console
        .and_then(ConsoleOutput::new)
        .map_err(PreparationError::Console)?;
    let vsock = common.vsock_socket.clone().map(|socket| VsockHost {
        socket,
        port_policy: common.vsock_port_policy.into(),
        eviction: common.vsock_eviction == Switch::On,
        request_timeout: Duration::from_millis(common.vsock_request_timeout_ms.into()),
    });
    Ok((
        control,
        HostSide {
            console,
            vsock,
            sandbox: !common.no_sandbox,
            announces_consumption: common.announce.contains(&AnnounceArg::Consumption),
        },
    ))
}
