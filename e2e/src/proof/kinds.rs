//! The kinds of KVM, each of which is a part of the proof.

use kvm_host::emulator::Emulator;
use kvm_host::host::check_installed;

use crate::kvm_place::{KvmArguments, KvmChoice, KvmPlace};

/// A kind of KVM, and how to get it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kind {
    /// The part's name.
    pub(super) name: &'static str,
    /// How it is asked for.
    pub(super) choice: KvmChoice,
    /// `None` where the host has as many as it has.
    pub(super) processors: Option<u32>,
}

/// All of them.
pub(super) const KINDS: [Kind; 5] = [
    Kind {
        name: "hardware",
        choice: KvmChoice::Hardware,
        processors: None,
    },
    Kind {
        name: "amd",
        choice: KvmChoice::Amd,
        processors: Some(1),
    },
    Kind {
        name: "intel",
        choice: KvmChoice::Intel,
        processors: Some(1),
    },
    Kind {
        name: "intel-2",
        choice: KvmChoice::Intel,
        processors: Some(2),
    },
    Kind {
        name: "bochs-amd-2",
        choice: KvmChoice::BochsAmd,
        processors: Some(2),
    },
];

impl Kind {
    /// Where it is to be had.
    ///
    /// # Errors
    /// If this machine cannot offer it.
    pub(super) fn place(self) -> anyhow::Result<KvmPlace> {
        let place = KvmArguments {
            kvm: Some(self.choice),
            host_cpus: self.processors,
        }
        .place()?;
        if let KvmPlace::Virtual { emulator, .. } = place {
            check_installed(emulator)?;
        }
        Ok(place)
    }

    /// The module and the processor, for people.
    pub(super) fn in_words(self) -> String {
        let emulator = match self.choice {
            KvmChoice::Hardware => return "this machine's own KVM".to_owned(),
            KvmChoice::Amd => Emulator::QemuAmd,
            KvmChoice::Intel => Emulator::BochsIntel,
            KvmChoice::BochsAmd => Emulator::BochsAmd,
        };
        match self.processors {
            Some(processors @ 2..) => format!("{emulator}, {processors} processors"),
            _ => emulator.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_differ_in_name_and_kind() {
        let names: std::collections::BTreeSet<_> = KINDS.iter().map(|kind| kind.name).collect();
        let words: std::collections::BTreeSet<_> =
            KINDS.iter().map(|kind| kind.in_words()).collect();
        assert_eq!((names.len(), words.len()), (KINDS.len(), KINDS.len()));
    }
}
