//! `mctl-kvm-host doctor`: prints the kind of KVM that this host has.
//!
//! `kvm_host::probe` measures it.

use std::process::ExitCode;

use anyhow::Context;
use kvm_host::probe::KvmKind;
use serde_json::json;

use crate::output;

/// Prints the kind of KVM and what to do about it; the exit code is a failure where Linux guests do
/// not run on this host directly.
pub(crate) fn report(kvm: &KvmKind, as_json: bool) -> anyhow::Result<ExitCode> {
    if as_json {
        let (kind, instructions_per_second, reason) = match kvm {
            KvmKind::Hardware {
                instructions_per_second,
            } => ("hardware", Some(instructions_per_second), None),
            KvmKind::Software {
                instructions_per_second,
            } => ("software", Some(instructions_per_second), None),
            KvmKind::Missing { reason } => ("missing", None, Some(reason)),
        };
        let report = json!({
            "kvm": kind,
            "instructions_per_second": instructions_per_second,
            "reason": reason,
        });
        output::data(&serde_json::to_string(&report).context("cannot print JSON")?);
    } else {
        output::data(&kvm.to_string());
        if !kvm.runs_linux() {
            output::step("Linux guests need the virtual KVM host here: `./just kvm-host`");
        }
    }
    Ok(if kvm.runs_linux() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
