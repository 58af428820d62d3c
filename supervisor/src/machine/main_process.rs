//! The call that starts a machine's main process, from its configuration.

use guest_protocol::{ExecSpec, LaunchFile, Request, TerminalSize};
use machine_api::MachineConfig;

/// Whether guest-init is told to start a main process. Without one there is no output to read either.
pub(crate) fn has_main_process(config: &MachineConfig) -> bool {
    let init = config.init.as_ref();
    let names_program = init.is_some_and(|init| {
        let words = [&init.exec, &init.entrypoint, &init.cmd];
        words.into_iter().any(|words| !words.is_empty())
    });
    // Disks are mounted and files written by the same call.
    names_program || !config.mounts.is_empty() || !config.files.is_empty()
}

/// The call that starts the main process, if there is one.
pub(crate) fn launch_request(config: &MachineConfig, hostname: &str) -> Option<Request> {
    if !has_main_process(config) {
        return None;
    }
    let init = config.init.clone().unwrap_or_default();
    let argv: Vec<String> = if init.exec.is_empty() {
        init.entrypoint.into_iter().chain(init.cmd).collect()
    } else {
        init.exec
    };
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
