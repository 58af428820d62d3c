//! Cloud Hypervisor: a snapshot in a folder of its own, which a new process copies into memory.
//!
//! Field names are those of its `vmm/src/api/openapi/cloud-hypervisor.yaml`; the calls are those of
//! `docs/snapshot_restore.md`. Memory is restored in the default way, by copying all of it before the
//! guest runs: a machine restored on demand cannot be suspended until everything has been read
//! ("on-demand memory restore is still in progress"), so cycles cannot follow each other directly.
//! Its system call filters are on unless an argument says otherwise.

use std::ffi::OsString;
use std::path::Path;

use serde_json::{Value, json};

use super::api::ApiCall;
use super::driver::{Driver, GUEST_CID, Guest, KERNEL_ARGUMENTS, PhaseCall};

/// See the module.
#[derive(Debug)]
pub(super) struct CloudHypervisor;

impl Driver for CloudHypervisor {
    fn arguments(&self, api: &Path) -> Vec<OsString> {
        vec!["--api-socket".into(), api.into()]
    }

    fn boot(&self, guest: &Guest) -> Vec<ApiCall> {
        let create = json!({
            "cpus": { "boot_vcpus": guest.vcpus, "max_vcpus": guest.vcpus },
            "memory": { "size": u64::from(guest.memory_mib) << 20 },
            "payload": {
                "kernel": guest.kernel,
                "initramfs": guest.initramfs,
                "cmdline": KERNEL_ARGUMENTS,
            },
            // The guest's console is where that of the other VMMs is: in the process's output.
            "serial": { "mode": "Tty" },
            "console": { "mode": "Off" },
            "vsock": { "cid": GUEST_CID, "socket": guest.vsock },
        });
        vec![
            ApiCall::put("/api/v1/vm.create", create),
            ApiCall::put("/api/v1/vm.boot", Value::Null),
        ]
    }

    fn suspend(&self, folder: &Path) -> Vec<PhaseCall> {
        let destination = json!({ "destination_url": url(folder) });
        vec![
            PhaseCall {
                phase: "pause",
                call: ApiCall::put("/api/v1/vm.pause", Value::Null),
            },
            PhaseCall {
                phase: "create_snapshot",
                call: ApiCall::put("/api/v1/vm.snapshot", destination),
            },
        ]
    }

    fn resume(&self, folder: &Path) -> Vec<PhaseCall> {
        let source = json!({ "source_url": url(folder), "resume": true });
        vec![PhaseCall {
            phase: "load_snapshot",
            call: ApiCall::put("/api/v1/vm.restore", source),
        }]
    }
}

fn url(folder: &Path) -> String {
    format!("file://{}", folder.display())
}
