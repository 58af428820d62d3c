//! A VMM without a machine, for tests of the whole supervisor: it takes the command line of mctl-vmm,
//! speaks its control protocol, and answers as guest-init behind the vsock socket.
//!
//! The guest's state (boot id, output) is in the image, so that tests can tell a resume from a boot.
//! Words in the kernel's command line make it misbehave. A boot gets them, and the image keeps them:
//!
//! - `fail-suspend`: each suspend fails.
//! - `slow-suspend`: a suspend takes 20 s unless it is cancelled. A cancelled one fails; with
//!   `fail-cancel` it fails for another reason, with `commit-late` it completes.
//! - `refuse-image`: no image is restored.
//! - `rst=N`: after a restore it refuses the first N connections to the guest.
//! - `deaf`: the guest does not answer. A file `deaf` in the machine's directory has the same effect.
//! - A file `fail-boots` in the state directory: every boot fails, as if the host had no KVM.
//! - A file `slow-disk` in the machine's directory: as long as it is there, it is not durable that the image
//!   of a restored guest was used. Meanwhile there is a file `unsynced`.
//! - A file `protocol` in the machine's directory: guest-init speaks that version of its protocol, and the
//!   one before.
//! - `stubborn`: the main process does not end on SIGINT.
//! - `hostile`: output, console, samples and answers without an end; see `hostile`.
//!
//! `control` and `guest` serve one connection each, `connection` has the frames of guest-init, `vmm` the
//! state that connections share, `image` what a suspend keeps.

#![expect(clippy::unwrap_used, reason = "a fake for tests: it may fail loudly")]

mod connection;
mod control;
mod guest;
mod hostile;
mod image;
mod vmm;

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use vmm_control::{ExitReason, ExitReport, Phase};

use image::GuestState;
use vmm::{Vmm, now_ns};

fn main() {
    let start_ns = now_ns();
    let mut words = std::env::args().skip(1);
    let verb = words.next().expect("boot or restore");
    if verb == "protocols" {
        let protocols = vmm_control::Protocols {
            control: vmm_control::VERSION,
            image: 1,
            announces: vec![vmm_control::ANNOUNCE_CONSUMPTION.to_owned()],
        };
        #[expect(clippy::print_stdout, reason = "the answer to a question")]
        {
            println!("{}", serde_json::to_string(&protocols).unwrap());
        }
        std::process::exit(0);
    }
    let mut flags = HashMap::new();
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        flags.insert(name, value);
    }
    let flag = |name: &str| flags.get(name).cloned().unwrap_or_default();
    let generation: u64 = flag("--generation").parse().expect("a generation");
    let machine_id = flag("--machine-id");
    let exit_file = PathBuf::from(flag("--exit-file"));
    let end = |reason, message| -> ! {
        let report = ExitReport {
            machine_id: machine_id.clone(),
            generation,
            reason,
            message,
        };
        let _ = fs::write(&exit_file, serde_json::to_vec(&report).unwrap());
        use vmm_control::exit_code;
        std::process::exit(match reason {
            ExitReason::ImageRefused => exit_code::IMAGE_REFUSED,
            ExitReason::ImageUnfit => exit_code::IMAGE_UNFIT,
            _ => exit_code::HOST_REFUSED,
        });
    };
    let state_dir = exit_file.ancestors().nth(3).unwrap();
    if verb == "boot" && state_dir.join("fail-boots").exists() {
        end(ExitReason::HostFailed, "cannot open /dev/kvm".to_owned());
    }
    let guest = match verb.as_str() {
        "boot" => GuestState {
            boot_id: format!("boot-{generation}"),
            behaviour: flag("--cmdline"),
            ..GuestState::default()
        },
        _ => match image::restore(Path::new(&flag("--image")), &flag("--expect-generation")) {
            Ok(guest) => guest,
            Err((reason, message)) => end(reason, message),
        },
    };
    let host_socket = UnixListener::bind(flag("--vsock-socket")).expect("the vsock socket");
    let console = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(flag("--console"));
    if let Ok(mut console) = console {
        // A guest runs on even if the disk is full.
        let _ = writeln!(console, "generation {generation} runs");
    }
    let phase = |name: &str, start_ns, end_ns| Phase {
        name: name.to_owned(),
        start_ns,
        end_ns,
    };
    let phases = vec![
        phase("vmm_start", start_ns, start_ns + 1_000),
        phase("first_entry", start_ns + 1_000, now_ns()),
    ];
    let vmm = Arc::new(Vmm::new(
        machine_id,
        generation,
        exit_file,
        guest,
        verb == "restore",
        phases,
    ));
    if verb == "restore" && flag("--announce") == vmm_control::ANNOUNCE_CONSUMPTION {
        vmm.wait_for_the_disk();
    }
    if vmm.behaves("hostile") {
        hostile::flood_console(PathBuf::from(flag("--console")));
    }
    serve(&vmm, host_socket);
}

/// Serves connections to the guest and to the control socket, each in a thread of its own.
fn serve(vmm: &Arc<Vmm>, host_socket: UnixListener) {
    let shared = vmm.clone();
    thread::spawn(move || {
        for stream in host_socket.incoming().flatten() {
            let vmm = shared.clone();
            thread::spawn(move || guest::serve(&vmm, stream));
        }
    });
    // The control socket is the standard input.
    let stdin = std::io::stdin();
    let control = UnixListener::from(stdin.as_fd().try_clone_to_owned().expect("descriptor 0"));
    for stream in control.incoming().flatten() {
        let vmm = vmm.clone();
        thread::spawn(move || control::serve(&vmm, &stream));
    }
}
