//! Firecracker: a full snapshot, which a new process maps privately.
//!
//! Field names are those of its `src/firecracker/swagger/firecracker.yaml`; the order of calls is that
//! of `docs/snapshotting/snapshot-support.md`. Its system call filters are those that its binary has:
//! there is no argument for them.

use std::ffi::OsString;
use std::path::Path;

use hyper::Method;
use serde_json::json;

use super::api::ApiCall;
use super::driver::{Driver, GUEST_CID, Guest, KERNEL_ARGUMENTS, PhaseCall};

/// See the module.
#[derive(Debug)]
pub(super) struct Firecracker;

impl Driver for Firecracker {
    fn arguments(&self, api: &Path) -> Vec<OsString> {
        vec!["--api-sock".into(), api.into()]
    }

    fn boot(&self, guest: &Guest) -> Vec<ApiCall> {
        let source = json!({
            "kernel_image_path": guest.kernel,
            "initrd_path": guest.initramfs,
            "boot_args": KERNEL_ARGUMENTS,
        });
        let machine = json!({ "vcpu_count": guest.vcpus, "mem_size_mib": guest.memory_mib });
        let vsock = json!({ "guest_cid": GUEST_CID, "uds_path": guest.vsock });
        vec![
            ApiCall::put("/boot-source", source),
            ApiCall::put("/machine-config", machine),
            ApiCall::put("/vsock", vsock),
            ApiCall::put("/actions", json!({ "action_type": "InstanceStart" })),
        ]
    }

    fn suspend(&self, folder: &Path) -> Vec<PhaseCall> {
        let pause = ApiCall {
            method: Method::PATCH,
            path: "/vm",
            body: json!({ "state": "Paused" }),
        };
        let create = json!({
            "snapshot_type": "Full",
            "snapshot_path": folder.join("state"),
            "mem_file_path": folder.join("memory"),
        });
        vec![
            PhaseCall {
                phase: "pause",
                call: pause,
            },
            PhaseCall {
                phase: "create_snapshot",
                call: ApiCall::put("/snapshot/create", create),
            },
        ]
    }

    fn resume(&self, folder: &Path) -> Vec<PhaseCall> {
        let load = json!({
            "snapshot_path": folder.join("state"),
            "mem_backend": { "backend_path": folder.join("memory"), "backend_type": "File" },
            "resume_vm": true,
        });
        vec![PhaseCall {
            phase: "load_snapshot",
            call: ApiCall::put("/snapshot/load", load),
        }]
    }
}
