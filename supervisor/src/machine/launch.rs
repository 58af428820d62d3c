//! The command line of a VMM, from a machine's record and the supervisor's settings.

use clap::ValueEnum;
use machine_api::CpuTemplate;
use vmm_control::{ANNOUNCE_CONSUMPTION, Protocols};

use crate::images::Image;
use crate::machine::context::DriverContext;
use crate::model::record::MachineRecord;
use crate::paths::MachineDir;
use crate::vmm_process::LaunchSpec;

/// The CID of every guest. Each has a VMM of its own, so one is enough.
const GUEST_CID: u32 = 3;

/// What a VMM is launched for.
#[derive(Debug)]
pub(crate) enum Launch {
    /// Boots this image.
    Boot(Image),
    /// Restores the machine's image.
    Resume {
        /// Generation that wrote the image.
        image_generation: u64,
    },
}

/// The launch of `record`'s machine in its present generation, by a program that says this of itself.
pub(crate) fn launch_spec(
    context: &DriverContext,
    program: &Protocols,
    record: &MachineRecord,
    dir: &MachineDir,
    launch: &Launch,
) -> LaunchSpec {
    let defaults = &context.configuration.start_settings;
    let settings = defaults.overridden_by(record.config.vsock.as_ref());
    let mut words = Words(Vec::new());
    match launch {
        Launch::Boot(image) => {
            let guest = record.config.guest.clone().unwrap_or_default();
            words.verb("boot");
            words.flag("--kernel", image.kernel.display());
            words.flag("--initramfs", image.initramfs.display());
            if !guest.kernel_args.is_empty() {
                words.flag("--cmdline", guest.kernel_args.join(" "));
            }
            words.flag("--vcpus", guest.cpus);
            words.flag("--memory-mib", guest.memory_mb);
            if guest.cpu_template != CpuTemplate::Host {
                words.flag("--cpu-template", guest.cpu_template.name());
            }
        }
        Launch::Resume { image_generation } => {
            words.verb("restore");
            words.flag("--image", dir.image().display());
            words.flag("--expect-generation", image_generation);
            words.flag("--verify", value_name(&settings.verify));
        }
    }
    words.flag("--machine-id", &record.id);
    words.flag("--generation", record.generation);
    words.flag("--control-fd", 0);
    words.flag("--exit-file", dir.exit_report().display());
    words.flag("--console", dir.console().display());
    words.flag("--vsock-socket", dir.vsock_socket().display());
    words.flag("--vsock-cid", GUEST_CID);
    words.flag("--vsock-port-policy", value_name(&settings.port_policy));
    words.flag(
        "--vsock-eviction",
        if settings.eviction { "on" } else { "off" },
    );
    // Shorter than the deadline of the attempt, so that the VMM can report which port got no answer.
    let answer = settings.readiness.attempt * 3 / 4;
    words.flag("--vsock-request-timeout-ms", answer.as_millis().max(1));
    let mut announces = program.announces.iter();
    if announces.any(|announcement| announcement == ANNOUNCE_CONSUMPTION) {
        words.flag("--announce", ANNOUNCE_CONSUMPTION);
    }
    for mount in &record.config.mounts {
        let suffix = if mount.read_only { ":ro" } else { "" };
        words.flag("--disk", format!("{}{suffix}", mount.volume));
    }
    LaunchSpec {
        program: context.vmm_program.path().to_owned(),
        arguments: words.0,
        machine_id: record.id.clone(),
        generation: record.generation,
        dir: dir.clone(),
    }
}

struct Words(Vec<String>);

impl Words {
    fn verb(&mut self, verb: &str) {
        self.0.push(verb.to_owned());
    }

    /// As two words, unless the value could be taken for a flag.
    fn flag(&mut self, name: &str, value: impl ToString) {
        let value = value.to_string();
        if value.starts_with('-') {
            self.0.push(format!("{name}={value}"));
        } else {
            self.0.extend([name.to_owned(), value]);
        }
    }
}

fn value_name(value: &impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}
