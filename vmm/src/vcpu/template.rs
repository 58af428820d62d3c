//! Processors that many hosts can be: a guest sees only what is common to them, so that its image can be
//! resumed on all of them, under older and newer kernels.
//!
//! The levels are those of the x86-64 psABI (version 1.0, table 3.1). To them come what every Linux guest
//! needs of a processor of that level, and what protects it from faults of the processor (IBRS, STIBP,
//! MD_CLEAR, …): an image moves only to hosts that protect it as well.

use std::fmt;

use kvm_bindings::kvm_cpuid_entry2;

use super::features::{Missing, missing};
use super::leaf_register::Register::{self, Eax, Ebx, Ecx, Edx};

/// Which processor a guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CpuTemplate {
    /// All that KVM offers here.
    #[default]
    Host,
    /// SSE4.2, POPCNT, CMPXCHG16B: Intel from Nehalem on, AMD from Bulldozer on.
    X86_64V2,
    /// AVX2, BMI, FMA, MOVBE, and AES, CLMUL, RDRAND, which all of these have: Intel from Haswell on, AMD
    /// from Zen on.
    X86_64V3,
}

impl fmt::Display for CpuTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::X86_64V2 => "x86-64-v2",
            Self::X86_64V3 => "x86-64-v3",
        })
    }
}

/// The highest leaf of a template: XSAVE is the last one that it has.
const HIGHEST: u32 = 0xd;
/// The highest extended leaf: AMD's topology.
const HIGHEST_EXTENDED: u32 = 0x8000_001e;

/// Bits that make a mask.
const fn bits(places: &[u32]) -> u32 {
    let mut mask = 0;
    let mut rest = places;
    while let [first, others @ ..] = rest {
        mask |= 1 << *first;
        rest = others;
    }
    mask
}

/// Everything up to SSE2, with HT: what leaf 1 has in EDX on every x86-64 processor.
const LEAF1_EDX: u32 = 0x178b_fbff;
/// SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, x2APIC, POPCNT, TSC deadline, hypervisor.
const LEAF1_ECX_V2: u32 = bits(&[0, 9, 13, 19, 20, 21, 23, 24, 31]);
/// CLMUL, FMA, MOVBE, AES, XSAVE, OSXSAVE, AVX, F16C, RDRAND.
const LEAF1_ECX_V3: u32 = LEAF1_ECX_V2 | bits(&[1, 12, 22, 25, 26, 27, 28, 29, 30]);
/// FSGSBASE, BMI1, AVX2, SMEP, BMI2.
const LEAF7_EBX_V3: u32 = bits(&[0, 3, 5, 7, 8]);
/// MD_CLEAR, SPEC_CTRL, STIBP, FLUSH_L1D, ARCH_CAPABILITIES, SSBD.
const LEAF7_EDX_PROTECTION: u32 = bits(&[10, 26, 27, 28, 29, 31]);
/// IBPB, IBRS, STIBP, its always-on mode, SSBD, VIRT_SSBD, SSB_NO, PSFD, BTC_NO, IBPB_RET.
const AMD_8_EBX_PROTECTION: u32 = bits(&[12, 14, 15, 17, 24, 25, 26, 28, 29, 30]);
/// LAHF, CMP_LEGACY, TOPOEXT.
const AMD_1_ECX_V2: u32 = bits(&[0, 1, 22]);
/// And LZCNT.
const AMD_1_ECX_V3: u32 = AMD_1_ECX_V2 | bits(&[5]);
/// What AMD repeats of leaf 1, and SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
const AMD_1_EDX: u32 = 0x0183_f3ff | bits(&[11, 20, 26, 27, 29]);
/// Clocks, steal time, PV EOI and unhalt: in KVM since Linux 3.17 at the latest.
const KVM_FEATURES: u32 = bits(&[0, 1, 3, 5, 6, 7, 24]);
/// x87, SSE and AVX state, and the size of the area for them.
const STATES_V3: u32 = 0b111;
const STATE_BYTES_V3: u32 = 832;

impl CpuTemplate {
    /// Takes away from `entries`, which KVM offers, what this template does not have.
    pub(super) fn apply(self, entries: &mut Vec<kvm_cpuid_entry2>) {
        if self == Self::Host {
            return;
        }
        entries.retain(|entry| self.has_leaf(entry.function, entry.index));
        for entry in entries {
            self.mask(entry);
        }
    }

    fn has_leaf(self, function: u32, index: u32) -> bool {
        match (function, index) {
            (0xd, 0..=2) => self == Self::X86_64V3,
            (0xd, _) | (0x7, 1..) => false,
            (HIGHEST_EXTENDED.., _) if function > HIGHEST_EXTENDED => false,
            (0x4000_0000..=0x4fff_ffff | 0x8000_0000.., _) => true,
            _ => function <= HIGHEST,
        }
    }

    fn mask(self, entry: &mut kvm_cpuid_entry2) {
        let v3 = |mask: u32| if self == Self::X86_64V3 { mask } else { 0 };
        let by_level = |v2: u32, v3: u32| match self {
            Self::X86_64V3 => v3,
            Self::X86_64V2 | Self::Host => v2,
        };
        match (entry.function, entry.index) {
            (0x0, _) => entry.eax = entry.eax.min(HIGHEST),
            (0x1, _) => {
                entry.ecx &= by_level(LEAF1_ECX_V2, LEAF1_ECX_V3);
                entry.edx &= LEAF1_EDX;
            }
            // ARAT.
            (0x6, _) => {
                entry.eax &= 1 << 2;
                (entry.ebx, entry.ecx, entry.edx) = (0, 0, 0);
            }
            (0x7, _) => {
                entry.eax = 0;
                entry.ebx &= v3(LEAF7_EBX_V3);
                entry.ecx = 0;
                entry.edx &= LEAF7_EDX_PROTECTION;
            }
            (0xd, 0) => {
                entry.eax &= STATES_V3;
                (entry.ebx, entry.ecx, entry.edx) = (STATE_BYTES_V3, STATE_BYTES_V3, 0);
            }
            (0xd, 1) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            (0x4000_0001, _) => {
                entry.eax &= KVM_FEATURES;
                entry.edx = 0;
            }
            (0x8000_0000, _) => entry.eax = entry.eax.min(HIGHEST_EXTENDED),
            (0x8000_0001, _) => {
                entry.ecx &= by_level(AMD_1_ECX_V2, AMD_1_ECX_V3);
                entry.edx &= AMD_1_EDX;
            }
            // Invariant TSC.
            (0x8000_0007, _) => {
                (entry.eax, entry.ebx, entry.ecx) = (0, 0, 0);
                entry.edx &= 1 << 8;
            }
            (0x8000_0008, _) => entry.ebx &= AMD_8_EBX_PROTECTION,
            (0x8000_001a, _) => entry.eax = 0,
            _ => {}
        }
    }

    /// What a guest with this template must have, and `entries` does not.
    #[must_use]
    pub fn lacking(self, entries: &[kvm_cpuid_entry2]) -> Vec<Missing> {
        let needed: &[(u32, Register, u32)] = match self {
            Self::Host => &[],
            Self::X86_64V2 => &[
                (0x1, Ecx, bits(&[0, 9, 13, 19, 20, 23])),
                (0x1, Edx, bits(&[8, 15, 23, 24, 25, 26])),
                (0x8000_0001, Ecx, bits(&[0])),
                (0x8000_0001, Edx, bits(&[11, 20, 29])),
            ],
            Self::X86_64V3 => &[
                (
                    0x1,
                    Ecx,
                    bits(&[0, 1, 9, 12, 13, 19, 20, 22, 23, 25, 26, 28, 29, 30]),
                ),
                (0x1, Edx, bits(&[8, 15, 23, 24, 25, 26])),
                (0x7, Ebx, bits(&[3, 5, 8])),
                (0xd, Eax, STATES_V3),
                (0x8000_0001, Ecx, bits(&[0, 5])),
                (0x8000_0001, Edx, bits(&[11, 20, 29])),
            ],
        };
        let needed: Vec<kvm_cpuid_entry2> = needed
            .iter()
            .map(|(function, register, mask)| {
                let mut entry = kvm_cpuid_entry2 {
                    function: *function,
                    ..kvm_cpuid_entry2::default()
                };
                *register.in_mut(&mut entry) = *mask;
                entry
            })
            .collect();
        missing(&needed, entries)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a later processor offers: everything.
    fn everything() -> Vec<kvm_cpuid_entry2> {
        let leaves = [
            (0x0, 0),
            (0x1, 0),
            (0x4, 0),
            (0x6, 0),
            (0x7, 0),
            (0x7, 1),
            (0xb, 0),
            (0xd, 0),
            (0xd, 1),
            (0xd, 2),
            (0xd, 9),
            (0x14, 0),
            (0x1d, 1),
            (0x24, 0),
            (0x4000_0001, 0),
            (0x8000_0000, 0),
            (0x8000_0001, 0),
            (0x8000_0007, 0),
            (0x8000_0008, 0),
            (0x8000_001e, 0),
            (0x8000_0021, 0),
        ];
        let all = |(function, index)| kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..kvm_cpuid_entry2::default()
        };
        leaves.map(all).into()
    }

    fn applied(template: CpuTemplate) -> Vec<kvm_cpuid_entry2> {
        let mut entries = everything();
        template.apply(&mut entries);
        entries
    }

    fn value(entries: &[kvm_cpuid_entry2], function: u32, register: Register) -> u32 {
        let found = entries.iter().find(|entry| entry.function == function);
        found.map_or(0, |entry| register.of(entry))
    }

    #[test]
    fn the_host_is_left_as_it_is() {
        assert_eq!(applied(CpuTemplate::Host), everything());
    }

    #[test]
    fn a_guest_of_a_level_fits_whatever_host_has_that_level() {
        for template in [CpuTemplate::X86_64V2, CpuTemplate::X86_64V3] {
            let seen = applied(template);
            assert_eq!(template.lacking(&seen), []);
            assert_eq!(value(&seen, 0x0, Eax), HIGHEST);
            assert_eq!(value(&seen, 0x8000_0000, Eax), HIGHEST_EXTENDED);
            assert!(seen.iter().all(|entry| entry.function != 0x24));
            // Of a guest that saw everything, it misses something.
            assert!(!missing(&everything(), &seen).is_empty());
        }
    }

    #[test]
    fn levels_have_their_features_and_no_others() {
        let (v2, v3) = (
            applied(CpuTemplate::X86_64V2),
            applied(CpuTemplate::X86_64V3),
        );
        const AVX: u32 = 1 << 28;
        const AVX2: u32 = 1 << 5;
        const AVX512F: u32 = 1 << 16;
        assert_eq!(value(&v2, 0x1, Ecx) & AVX, 0);
        assert_eq!(value(&v3, 0x1, Ecx) & AVX, AVX);
        assert_eq!(value(&v2, 0x7, Ebx), 0);
        assert_eq!(value(&v3, 0x7, Ebx) & (AVX2 | AVX512F), AVX2);
        assert!(v2.iter().all(|entry| entry.function != 0xd));
        assert_eq!(value(&v3, 0xd, Eax), STATES_V3);
        assert_eq!(value(&v3, 0xd, Ecx), STATE_BYTES_V3);
    }

    #[test]
    fn protection_from_faults_of_the_processor_stays() {
        let v3 = applied(CpuTemplate::X86_64V3);
        assert_eq!(value(&v3, 0x7, Edx), LEAF7_EDX_PROTECTION);
        assert_eq!(value(&v3, 0x8000_0008, Ebx), AMD_8_EBX_PROTECTION);
    }

    #[test]
    fn what_a_host_lacks_of_a_level_is_named() {
        let mut old = everything();
        for entry in &mut old {
            if entry.function == 0x7 {
                entry.ebx &= !(1 << 5);
            }
        }
        let lacking = CpuTemplate::X86_64V3.lacking(&old);
        assert_eq!(super::super::features::in_words(&lacking), "avx2");
        assert_eq!(CpuTemplate::X86_64V2.lacking(&old), []);
    }
}
