//! Where guests run: on this machine's own KVM, or in a virtual KVM host of one kind.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use anyhow::{bail, ensure};
use clap::{Args, ValueEnum};
use cycles::{Clock, Host, KvmKind};
use kvm_host::emulator::Emulator;
use kvm_host::probe;
use kvm_host::qemu::{self, QemuError};
use kvm_host::rerun::MEMORY_MIB;

use crate::output;

/// Virtual hosts that run at once, at most: each takes up to 8 GiB of memory.
const MOST_AT_ONCE: usize = 4;

/// A place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvmPlace {
    /// This machine, whose KVM runs Linux. It may itself be a virtual host.
    Here,
    /// A virtual KVM host.
    Virtual {
        /// Its kind.
        emulator: Emulator,
        /// Its processors.
        cpus: u32,
    },
}

/// The flags that choose a place.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct KvmArguments {
    /// Which KVM the guests run on [default: hardware if this machine has it, else amd]
    #[arg(long, value_enum, value_name = "KIND", env = KVM_ENV)]
    pub kvm: Option<KvmChoice>,
    /// Processors of the host that is emulated; more than one only in Bochs
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=8), env = HOST_CPUS_ENV)]
    pub host_cpus: Option<u32>,
}

/// The variables with the same meaning, for tests, which have no flags.
pub const KVM_ENV: &str = "MCTL_E2E_KVM";
/// See [`KVM_ENV`].
pub const HOST_CPUS_ENV: &str = "MCTL_E2E_HOST_CPUS";

/// A KVM that can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvmChoice {
    /// This machine's own
    Hardware,
    /// `kvm_amd` on a processor that QEMU emulates
    Amd,
    /// `kvm_intel` on a processor that Bochs emulates
    Intel,
    /// `kvm_amd` on a processor that Bochs emulates
    BochsAmd,
}

impl KvmArguments {
    /// The flags as the variables have them.
    ///
    /// # Errors
    /// If a variable has no valid value.
    pub fn from_environment() -> anyhow::Result<Self> {
        #[derive(Debug, clap::Parser)]
        struct Flags {
            #[command(flatten)]
            kvm: KvmArguments,
        }
        let flags = <Flags as clap::Parser>::try_parse_from(["flags"])?;
        Ok(flags.kvm)
    }

    /// The place that is asked for.
    ///
    /// # Errors
    /// If this machine cannot offer it.
    pub fn place(self) -> anyhow::Result<KvmPlace> {
        let emulator = match self.kvm {
            None => match KvmPlace::of_this_machine() {
                KvmPlace::Here => None,
                KvmPlace::Virtual { emulator, .. } => Some(emulator),
            },
            Some(KvmChoice::Hardware) => {
                let found = probe::detect();
                ensure!(
                    found.runs_linux(),
                    "this machine has no KVM that runs Linux guests: {found}"
                );
                None
            }
            Some(KvmChoice::Amd) => Some(Emulator::QemuAmd),
            Some(KvmChoice::Intel) => Some(Emulator::BochsIntel),
            Some(KvmChoice::BochsAmd) => Some(Emulator::BochsAmd),
        };
        let cpus = self.host_cpus.unwrap_or(1);
        match emulator {
            None if self.host_cpus.is_some() => {
                bail!(
                    "this machine has the processors that it has: --host-cpus is for emulated hosts"
                )
            }
            None => Ok(KvmPlace::Here),
            Some(Emulator::QemuAmd) if cpus > 1 => {
                bail!(
                    "QEMU runs all processors of a host by turns: --host-cpus needs Bochs, such as --kvm intel"
                )
            }
            Some(emulator) => Ok(KvmPlace::Virtual { emulator, cpus }),
        }
    }
}

impl KvmPlace {
    /// This machine if its KVM runs Linux, else the fastest virtual host.
    pub fn of_this_machine() -> Self {
        if probe::detect().runs_linux() {
            Self::Here
        } else {
            Self::Virtual {
                emulator: Emulator::QemuAmd,
                cpus: 1,
            }
        }
    }

    /// The kind of KVM there.
    pub fn kind(self) -> KvmKind {
        match (self, probe::detect()) {
            (Self::Virtual { .. }, _) | (Self::Here, probe::KvmKind::Virtual { .. }) => {
                KvmKind::Virtual
            }
            (Self::Here, _) => KvmKind::Hardware,
        }
    }

    /// The clock there.
    pub fn clock(self) -> kvm_host::clock::Clock {
        match self {
            Self::Here => kvm_host::clock::Clock::of_this_host(),
            Self::Virtual {
                emulator: Emulator::QemuAmd,
                ..
            } => clock_of_qemu(),
            Self::Virtual { .. } => kvm_host::clock::Clock::Virtual,
        }
    }

    /// The clock, as reports have it.
    pub fn clock_of_reports(self) -> Clock {
        match self.clock() {
            kvm_host::clock::Clock::Real => Clock::Real,
            kvm_host::clock::Clock::Virtual => Clock::Virtual,
        }
    }

    /// The host of a report, as far as it is known without asking it.
    pub fn undescribed_host(self) -> Host {
        let detail = match self {
            Self::Here => probe::detect().to_string(),
            Self::Virtual { emulator, .. } => emulator.to_string(),
        };
        Host {
            kvm: self.kind(),
            details: BTreeMap::from([("kvm_detail".to_owned(), detail.into())]),
        }
    }

    /// What this machine has, and where guests run therefore.
    pub fn sentence(self) -> String {
        let found = probe::detect();
        match self {
            Self::Here => format!("{found}: Linux guests run directly on this machine"),
            Self::Virtual { emulator, cpus } => {
                let processors = match cpus {
                    1 => String::new(),
                    cpus => format!(" and {cpus} processors"),
                };
                format!(
                    "Linux guests run in a virtual KVM host: {emulator}{processors} (this machine has {found})"
                )
            }
        }
    }

    /// Memory of a virtual host in which one guest with this memory goes through cycles: it has room for
    /// the guest, its image and a peer's snapshots. In Bochs each GiB more costs seconds of the boot.
    pub fn memory_for(self, guest_mib: u32) -> u32 {
        match self {
            Self::Virtual { emulator, .. } if emulator.is_bochs() => guest_mib
                .saturating_mul(4)
                .saturating_add(1024)
                .clamp(2048, MEMORY_MIB),
            Self::Virtual { .. } | Self::Here => MEMORY_MIB,
        }
    }

    /// How many runs may go on at once: as many as there are processors in virtual time, where they
    /// do not disturb each other; otherwise one.
    pub fn runs_at_once(self) -> usize {
        match self.clock() {
            kvm_host::clock::Clock::Real => 1,
            kvm_host::clock::Clock::Virtual => std::thread::available_parallelism()
                .map_or(1, usize::from)
                .min(MOST_AT_ONCE),
        }
    }
}

/// The clock of QEMU's hosts in which nobody outside takes part: virtual time, unless this machine's
/// QEMU cannot run guests in it.
fn clock_of_qemu() -> kvm_host::clock::Clock {
    static FOUND: OnceLock<kvm_host::clock::Clock> = OnceLock::new();
    *FOUND.get_or_init(|| match qemu::check_virtual_time() {
        Err(error @ QemuError::Fix(_)) => {
            output::say(&format!(
                "{:#}; latencies are in real time, which measures the emulator, too, and depends \
                 on what else this machine does",
                anyhow::Error::from(error)
            ));
            kvm_host::clock::Clock::Real
        }
        // Without QEMU no host can be started on either clock, and whoever starts one is told.
        Ok(()) | Err(_) => kvm_host::clock::Clock::Virtual,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(kvm: KvmChoice, host_cpus: Option<u32>) -> anyhow::Result<KvmPlace> {
        let kvm = Some(kvm);
        KvmArguments { kvm, host_cpus }.place()
    }

    #[test]
    fn each_kind_of_virtual_host_can_be_asked_for_on_any_machine() {
        for (choice, emulator) in [
            (KvmChoice::Amd, Emulator::QemuAmd),
            (KvmChoice::Intel, Emulator::BochsIntel),
            (KvmChoice::BochsAmd, Emulator::BochsAmd),
        ] {
            let found = place(choice, None).unwrap();
            assert_eq!(found, KvmPlace::Virtual { emulator, cpus: 1 });
            assert_eq!(found.kind(), KvmKind::Virtual);
            let host = found.undescribed_host();
            assert_eq!(host.details["kvm_detail"], emulator.to_string());
            assert!(found.sentence().contains(&emulator.to_string()));
        }
    }

    #[test]
    fn several_processors_are_bochs_only() {
        let (emulator, cpus) = (Emulator::BochsIntel, 2);
        let two = place(KvmChoice::Intel, Some(2)).unwrap();
        assert_eq!(two, KvmPlace::Virtual { emulator, cpus });
        let error = place(KvmChoice::Amd, Some(2)).unwrap_err().to_string();
        assert!(error.contains("--kvm intel"), "{error}");
    }
}
