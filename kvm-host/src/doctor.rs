//! `mctl-kvm-host doctor`: prints the kind of KVM that this host has, and which virtual hosts it can run.
//!
//! `kvm_host::probe` measures it.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Context;
use kvm_host::emulator::Emulator;
use kvm_host::host::check_installed;
use kvm_host::probe::KvmKind;
use serde_json::json;

use crate::output;

/// Prints the kind of KVM, the kinds of virtual hosts and what to do; the exit code is a failure where
/// Linux guests do not run on this host directly, or where the wanted kind of host cannot be run.
pub(crate) fn report(
    kvm: &KvmKind,
    wanted: Option<Emulator>,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let emulators: Vec<(Emulator, Option<String>)> = Emulator::ALL
        .into_iter()
        .map(|kind| {
            let problem = check_installed(kind).err();
            (kind, problem.map(|error| error_text::with_causes(&error)))
        })
        .collect();
    if as_json {
        let (kind, instructions_per_second, reason) = match kvm {
            KvmKind::Hardware {
                instructions_per_second,
            } => ("hardware", Some(instructions_per_second), None),
            KvmKind::Virtual {
                instructions_per_second,
                ..
            } => ("virtual", Some(instructions_per_second), None),
            KvmKind::Software {
                instructions_per_second,
            } => ("software", Some(instructions_per_second), None),
            KvmKind::Missing { reason } => ("missing", None, Some(reason)),
        };
        let report = json!({
            "kvm": kind,
            "instructions_per_second": instructions_per_second,
            "reason": reason,
            "virtual_hosts": emulators
                .iter()
                .map(|(kind, problem)| (kind.name(), problem))
                .collect::<BTreeMap<_, _>>(),
        });
        output::data(&serde_json::to_string(&report).context("cannot print JSON")?);
    } else {
        output::data(&kvm.to_string());
        if !kvm.runs_linux() {
            output::step("Linux guests need the virtual KVM host here: `./just kvm-host`");
        }
        for (kind, problem) in &emulators {
            let state = problem.as_deref().unwrap_or("ready");
            output::data(&format!("virtual host {} ({kind}): {state}", kind.name()));
        }
    }
    let is_fine = match wanted {
        None => kvm.runs_linux(),
        Some(wanted) => emulators
            .iter()
            .any(|(kind, problem)| *kind == wanted && problem.is_none()),
    };
    Ok(if is_fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
