//! The call that starts a machine's main process, from its configuration.

use guest_protocol::{ExecSpec, LaunchFile, Request, TerminalSize};
use machine_api::MachineConfig;

/// The call that starts the main process; none where the configuration names no program.
pub(crate) fn launch_request(config: &MachineConfig, hostname: &str) -> Option<Request> {
    let init = config.init.clone().unwrap_or_default();
    let argv = if init.exec.is_empty() {
        init.entrypoint.into_iter().chain(init.cmd).collect()
    } else {
        init.exec
    };
    if argv.is_empty() && config.mounts.is_empty() && config.files.is_empty() {
        return None;
    }
    let mounts = config
        .mounts
        .iter()
        .zip('a'..='z')
        .map(|(mount, letter)| {
            (
                format!("/dev/vd{letter}"),
                mount.path.clone(),
                mount.read_only,
            )
        })
        .collect();
    let main = ExecSpec {
        argv: if argv.is_empty() {
            vec!["sleep".to_owned(), "infinity".to_owned()]
        } else {
            argv
        },
        env: config.env.clone(),
        cwd: None,
        terminal: init.tty.then_some(TerminalSize {
            columns: 80,
            rows: 24,
        }),
    };
    let files = config.files.iter().map(|file| LaunchFile {
        path: file.guest_path.clone(),
        mode: if file.mode == 0 { 0o644 } else { file.mode },
        content: file.raw_value.clone(),
    });
    Some(Request::Launch {
        main,
        mounts,
        files: files.collect(),
        hostname: hostname.to_owned(),
    })
}
