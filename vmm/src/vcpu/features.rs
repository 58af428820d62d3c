//! Whether a guest that saw one processor can go on with what another one offers: features are
//! compared, not models, so that an update of microcode or kernel that adds some refuses no image.
//!
//! Sources: Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E; Documentation/virt/kvm/x86/cpuid.rst.

use std::fmt;

use kvm_bindings::kvm_cpuid_entry2;

use super::feature_names;
use super::leaf_register::Register;

/// How a register is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// No instruction depends on it: caches, topology, brand, frequencies.
    Ignore,
    /// One bit per feature: each that was seen must be offered.
    Flags,
    /// A number, such as the highest leaf: what was seen must not be larger.
    AtMost,
    /// Four numbers of a byte each, such as widths of addresses.
    Bytes,
    /// A size or a place: it must be the same.
    Equal,
}

use Rule::{AtMost, Bytes, Equal, Flags, Ignore};

/// The rules of EAX, EBX, ECX and EDX of a leaf.
const fn rules(function: u32, index: u32) -> [Rule; 4] {
    match (function, index) {
        // Highest leaf, vendor.
        (0x0, _) => [AtMost, Equal, Equal, Equal],
        // Signature; brand, CLFLUSH and APIC ids.
        (0x1, _) => [Ignore, Ignore, Flags, Flags],
        // Thermal and power: only ARAT and APERF/MPERF are features.
        (0x6, _) => [Flags, Ignore, Flags, Ignore],
        (0x7, 0) => [AtMost, Flags, Flags, Flags],
        (0x7, _) => [Flags, Flags, Flags, Flags],
        // XCR0 and the sizes of the save area: the one for XCR0 as it is now, and the largest.
        (0xd, 0) => [Flags, Ignore, AtMost, Flags],
        (0xd, 1) => [Flags, Ignore, Flags, Flags],
        // Size and offset of one state component.
        (0xd, _) => [Equal, Equal, Ignore, Ignore],
        // Palettes and tiles of AMX.
        (0x1d | 0x1e, _) => [Equal, Equal, Equal, Equal],
        // Caches, TLBs, MONITOR, counters, topology, clock ratios, vendor words of a SoC.
        (0x2 | 0x4 | 0x5 | 0xa | 0xb | 0x15 | 0x16 | 0x17 | 0x18 | 0x1a | 0x1f, _)
        | (0x8000_0005 | 0x8000_0006 | 0x8000_0019 | 0x8000_001d | 0x8000_001e, _) => {
            [Ignore, Ignore, Ignore, Ignore]
        }
        // AVX10: version in the lowest byte, then features.
        (0x24, 0) => [AtMost, Flags, Ignore, Ignore],
        // KVM's own: highest leaf and signature; features, hints.
        (0x4000_0000, _) => [AtMost, Equal, Equal, Equal],
        (0x4000_0001, _) => [Flags, Ignore, Ignore, Ignore],
        (0x4000_0002..=0x4fff_ffff, _) => [Ignore, Ignore, Ignore, Ignore],
        // Memory encryption: no guest has it; programs before this one passed the leaf on.
        (0x8000_001f, _) => [Ignore, Ignore, Ignore, Ignore],
        (0x8000_0000, _) => [AtMost, Ignore, Ignore, Ignore],
        (0x8000_0001, _) => [Ignore, Ignore, Flags, Flags],
        // The brand.
        (0x8000_0002..=0x8000_0004, _) => [Ignore, Ignore, Ignore, Ignore],
        (0x8000_0007, _) => [Ignore, Flags, Ignore, Flags],
        // Widths of addresses; features; number of cores; INVLPGB.
        (0x8000_0008, _) => [Bytes, Flags, Ignore, Ignore],
        // A leaf of later years is likely to hold features.
        _ => [Flags, Flags, Flags, Flags],
    }
}

/// Something that the guest saw and that is not offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// EAX of CPUID.
    pub function: u32,
    /// ECX of CPUID.
    pub index: u32,
    /// Which of its registers.
    pub register: Register,
    /// What the guest saw there.
    pub seen: u32,
    /// What is offered.
    pub offered: u32,
    rule: Rule,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (function, index, register) = (self.function, self.index, self.register);
        let place = || format!("CPUID {function:#x}.{index} {}", register.name());
        if self.rule != Flags {
            let (seen, offered) = (self.seen, self.offered);
            return write!(f, "{} {seen:#x} ({offered:#x} is offered)", place());
        }
        let mut missing = self.seen & !self.offered;
        let mut separator = "";
        while missing != 0 {
            let bit = missing.trailing_zeros();
            missing &= missing - 1;
            match feature_names::of(function, index, register, bit) {
                Some(name) => write!(f, "{separator}{name}")?,
                None => write!(f, "{separator}{} bit {bit}", place())?,
            }
            separator = ", ";
        }
        Ok(())
    }
}

/// What a guest that saw `seen` needs and `offered` does not have; empty if it can go on.
#[must_use]
pub fn missing(seen: &[kvm_cpuid_entry2], offered: &[kvm_cpuid_entry2]) -> Vec<Missing> {
    let components = state_components(seen);
    let mut all = Vec::new();
    for entry in seen {
        let (function, index) = (entry.function, entry.index);
        if function == 0xd && index >= 2 && components & (1u64 << index.min(63)) == 0 {
            continue;
        }
        let other = find(offered, function, index);
        for (register, rule) in Register::ALL.into_iter().zip(rules(function, index)) {
            let wanted = register.of(entry);
            let there = other.map_or(0, |other| register.of(other));
            let holds = match rule {
                Ignore => true,
                Flags => wanted & !there == 0,
                AtMost => wanted <= there,
                Bytes => wanted
                    .to_le_bytes()
                    .iter()
                    .zip(there.to_le_bytes())
                    .all(|(wanted, there)| *wanted <= there),
                Equal => wanted == there,
            };
            if !holds {
                all.push(Missing {
                    function,
                    index,
                    register,
                    seen: wanted,
                    offered: there,
                    rule,
                });
            }
        }
    }
    all
}

/// The features and figures of `missing` in one sentence.
#[must_use]
pub fn in_words(missing: &[Missing]) -> String {
    let words: Vec<String> = missing.iter().map(ToString::to_string).collect();
    words.join(", ")
}

/// The state components that a guest may use: XCR0, and IA32_XSS.
fn state_components(seen: &[kvm_cpuid_entry2]) -> u64 {
    let pair = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
    let user = find(seen, 0xd, 0).map_or(0, |leaf| pair(leaf.edx, leaf.eax));
    let supervisor = find(seen, 0xd, 1).map_or(0, |leaf| pair(leaf.edx, leaf.ecx));
    user | supervisor
}

fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
    entries
        .iter()
        .find(|entry| entry.function == function && entry.index == index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::leaf_register::leaf;

    fn told(seen: &[kvm_cpuid_entry2], offered: &[kvm_cpuid_entry2]) -> String {
        in_words(&missing(seen, offered))
    }

    const AVX2: u32 = 1 << 5;
    const AVX512F: u32 = 1 << 16;

    #[test]
    fn a_host_that_offers_more_is_fit() {
        let seen = [leaf(0, 0, [0xd, 1, 2, 3]), leaf(7, 0, [0, AVX2, 0, 0])];
        let more = [
            leaf(0, 0, [0x20, 1, 2, 3]),
            leaf(7, 0, [2, AVX2 | AVX512F, 4, 8]),
            leaf(7, 1, [u32::MAX; 4]),
            leaf(0x24, 0, [1; 4]),
        ];
        assert_eq!(missing(&seen, &more), []);
    }

    #[test]
    fn each_missing_feature_is_named() {
        let seen = [leaf(7, 0, [0, AVX2 | AVX512F, 0, 0])];
        assert_eq!(told(&seen, &[leaf(7, 0, [0; 4])]), "avx2, avx512f");
        assert_eq!(told(&seen, &[leaf(7, 0, [0, AVX2, 0, 0])]), "avx512f");
        assert_eq!(told(&seen, &[]), "avx2, avx512f");
    }

    #[test]
    fn a_feature_without_a_name_is_told_by_its_place() {
        let seen = [leaf(0x99, 3, [0, 0, 1 << 9, 0])];
        assert_eq!(told(&seen, &[]), "CPUID 0x99.3 ecx bit 9");
    }

    #[test]
    fn numbers_must_not_be_larger_and_widths_not_wider() {
        let seen = [leaf(0x8000_0008, 0, [0x0030_2e2e, 0, 0, 0])];
        let narrower = [leaf(0x8000_0008, 0, [0x0030_3027, 0, 0, 0])];
        assert_eq!(
            told(&seen, &narrower),
            "CPUID 0x80000008.0 eax 0x302e2e (0x303027 is offered)"
        );
        let wider = [leaf(0x8000_0008, 0, [0x0039_3934, 0, 0, 0])];
        assert_eq!(missing(&seen, &wider), []);
    }

    #[test]
    fn what_only_describes_the_processor_is_not_compared() {
        for function in [2, 4, 5, 0xa, 0xb, 0x15, 0x1f, 0x8000_0002, 0x8000_001e] {
            let seen = [leaf(function, 0, [1, 2, 3, 4])];
            assert_eq!(missing(&seen, &[leaf(function, 0, [5, 6, 7, 8])]), []);
        }
        // Model, stepping, APIC ids.
        let seen = [leaf(1, 0, [0x000b_0671, 0x0310_0800, 0, 0])];
        let other = [leaf(1, 0, [0x0009_06a3, 0x0020_0800, 0, 0])];
        assert_eq!(missing(&seen, &other), []);
    }

    #[test]
    fn another_vendor_is_never_fit() {
        let seen = [leaf(0, 0, [0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69])];
        let other = [leaf(0, 0, [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65])];
        assert_eq!(missing(&seen, &other).len(), 3);
    }

    #[test]
    fn state_components_lie_where_they_did_if_the_guest_may_use_them() {
        let seen = |xcr0| {
            [
                leaf(0xd, 0, [xcr0, 0, 832, 0]),
                leaf(0xd, 2, [256, 576, 0, 0]),
            ]
        };
        let host = [
            leaf(0xd, 0, [7, 0, 2696, 0]),
            leaf(0xd, 2, [256, 640, 0, 0]),
        ];
        assert_eq!(missing(&seen(7), &host).len(), 1);
        assert_eq!(missing(&seen(3), &host), []);
    }

    #[test]
    fn paravirtual_features_belong_to_the_kernel_and_are_needed_too() {
        let seen = [leaf(0x4000_0001, 0, [1 << 3 | 1 << 14, 0, 0, 1])];
        let older = [leaf(0x4000_0001, 0, [1 << 3, 0, 0, 0])];
        assert_eq!(told(&seen, &older), "kvm_asyncpf_int");
    }
}
