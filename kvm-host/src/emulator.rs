//! The kinds of virtual KVM hosts: which program emulates which processor.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::clock::Clock;
use crate::kernel_word;

/// A program that emulates a computer, and the processor that it emulates. The processor decides
/// which of Linux' KVM modules runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Emulator {
    /// QEMU's EPYC. The default: the fastest, and the only one with disks and a network.
    QemuAmd,
    /// Bochs' Haswell, a Core i7-4770.
    BochsIntel,
    /// Bochs' Ryzen.
    BochsAmd,
}

/// Tells programs inside where they are.
const WORD: &str = "mctl.emulator=";

impl Emulator {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::QemuAmd, Self::BochsIntel, Self::BochsAmd];

    /// The one that this process runs in, if any.
    pub fn of_this_host() -> Option<Self> {
        Self::of_name(&kernel_word::of_this_host(WORD)?)
    }

    /// The kind of that [`Self::name`].
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// The word for the kernel's command line.
    pub(crate) fn command_line_word(self) -> String {
        format!("{WORD}{}", self.name())
    }

    /// Its name on command lines. The first of a vendor's has that vendor's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::QemuAmd => "amd",
            Self::BochsIntel => "intel",
            Self::BochsAmd => "bochs-amd",
        }
    }

    /// KVM's module for the processor.
    pub fn kvm_module(self) -> &'static str {
        match self {
            Self::QemuAmd | Self::BochsAmd => "kvm_amd",
            Self::BochsIntel => "kvm_intel",
        }
    }

    /// Whether Bochs is the program.
    pub fn is_bochs(self) -> bool {
        match self {
            Self::QemuAmd => false,
            Self::BochsIntel | Self::BochsAmd => true,
        }
    }

    /// The clock of its hosts, if none is asked for.
    pub fn default_clock(self) -> Clock {
        if self.is_bochs() {
            Clock::Virtual
        } else {
            Clock::Real
        }
    }
}

/// The module and the processor, in words that do not claim hardware.
impl fmt::Display for Emulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let processor = match self {
            Self::QemuAmd => "an EPYC that QEMU emulates",
            Self::BochsIntel => "a Haswell that Bochs emulates",
            Self::BochsAmd => "a Ryzen that Bochs emulates",
        };
        write!(f, "{} on {processor}", self.kvm_module())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_command_line(line: &str) -> Option<Emulator> {
        Emulator::of_name(kernel_word::find(line, WORD)?)
    }

    #[test]
    fn a_host_knows_its_kind_by_its_kernels_command_line() {
        for kind in Emulator::ALL {
            let line = format!("console=ttyS0 {} panic=-1\n", kind.command_line_word());
            assert_eq!(of_command_line(&line), Some(kind));
        }
        assert_eq!(of_command_line("root=/dev/sda1 quiet"), None);
        assert_eq!(of_command_line("mctl.emulator=abacus"), None);
    }
}
