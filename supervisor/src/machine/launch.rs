//! The command line of a VMM, from a machine's record and the supervisor's settings.

use clap::ValueEnum;
use machine_api::{PortPolicy as WirePolicy, VsockOptions};

use crate::configuration::{MachineDefaults, PortPolicy};
use crate::images::Image;
use crate::machine::Host;
use crate::paths::MachineDir;
use crate::store::MachineRecord;
use crate::vmm_process::LaunchSpec;

/// The context id of every guest: each has a VMM of its own, so they never meet.
const GUEST_CID: u32 = 3;

/// What a VMM is to do.
#[derive(Debug)]
pub(crate) enum Plan {
    /// Boot this image.
    Boot(Image),
    /// Restore the suspended image of that generation.
    Resume {
        /// Generation that wrote it.
        image_generation: u64,
    },
}

/// A machine's vsock options over the supervisor's.
pub(crate) fn effective(record: &MachineRecord, defaults: &MachineDefaults) -> MachineDefaults {
    overridden(record.config.vsock.as_ref(), defaults)
}

/// Vsock options over the supervisor's.
pub(crate) fn overridden(
    options: Option<&VsockOptions>,
    defaults: &MachineDefaults,
) -> MachineDefaults {
    let options = options.cloned().unwrap_or_default();
    let VsockOptions {
        port_policy,
        eviction,
        monitor_first,
    } = options;
    MachineDefaults {
        port_policy: port_policy.map_or(defaults.port_policy, |policy| match policy {
            WirePolicy::Random => PortPolicy::Random,
            WirePolicy::Continue => PortPolicy::Continue,
            WirePolicy::Fixed => PortPolicy::Fixed,
        }),
        eviction: eviction.unwrap_or(defaults.eviction),
        monitor_first: monitor_first.unwrap_or(defaults.monitor_first),
        ..*defaults
    }
}

/// The launch of `record`'s machine at its present generation.
pub(crate) fn launch_spec(
    host: &Host,
    record: &MachineRecord,
    dir: &MachineDir,
    plan: &Plan,
) -> LaunchSpec {
    let settings = effective(record, &host.configuration.defaults);
    let mut words = Words(Vec::new());
    match plan {
        Plan::Boot(image) => {
            let guest = record.config.guest.clone().unwrap_or_default();
            words.verb("boot");
            words.flag("--kernel", image.kernel.display());
            words.flag("--initramfs", image.initramfs.display());
            if !guest.kernel_args.is_empty() {
                words.flag("--cmdline", guest.kernel_args.join(" "));
            }
            words.flag("--vcpus", guest.cpus);
            words.flag("--memory-mib", guest.memory_mb);
        }
        Plan::Resume { image_generation } => {
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
    // Before the attempt itself is given up, so that the VMM can say which port got no answer.
    let answer = settings.readiness.attempt * 3 / 4;
    words.flag("--vsock-request-timeout-ms", answer.as_millis().max(1));
    for mount in &record.config.mounts {
        let suffix = if mount.read_only { ":ro" } else { "" };
        words.flag("--disk", format!("{}{suffix}", mount.volume));
    }
    LaunchSpec {
        program: host.configuration.vmm.clone(),
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

    /// In two words, except where the value could be taken for a flag.
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
