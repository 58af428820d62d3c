//! The processor that a guest sees: the features that KVM supports here, without those that can't be
//! kept across a suspend, and with each vCPU's place in the topology.
//!
//! Topology: one package, as many cores as vCPUs, one thread each. Sources: Intel SDM vol. 2A, CPUID;
//! AMD APM vol. 3, appendix E; Documentation/virt/kvm/api.rst, KVM_GET_SUPPORTED_CPUID.

use std::ops::RangeInclusive;

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2,
};
use kvm_ioctls::Kvm;
use vmm_sys_util::errno;
use xxhash_rust::xxh3::xxh3_64;

use super::brand;
use super::template::CpuTemplate;
use crate::image::CpuIdentity;
use crate::sys::cpuid::host_leaf;
use crate::vm::Capabilities;

const LEAF1_ECX_VMX: u32 = 1 << 5;
const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX_HTT: u32 = 1 << 28;
/// AMX_BF16, AMX_TILE and AMX_INT8.
const LEAF7_EDX_AMX: u32 = 1 << 22 | 1 << 24 | 1 << 25;
/// XTILE_CFG and XTILE_DATA.
const LEAF_D_EAX_TILES: u32 = 1 << 17 | 1 << 18;
const AMD_1_ECX_SVM: u32 = 1 << 2;
const AMD_1_ECX_CMP_LEGACY: u32 = 1 << 1;
/// PerfCtrExtCore, PerfCtrExtNB and PerfCtrExtLLC.
const AMD_1_ECX_PERFORMANCE_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;

/// The leaves that KVM supports on this host.
///
/// # Errors
/// The errno of KVM_GET_SUPPORTED_CPUID.
pub fn supported(kvm: &Kvm) -> Result<CpuId, errno::Error> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
}

/// The leaves of one vCPU out of `vcpus`, as far as `template` has them; its index is its APIC id.
///
/// # Errors
/// E2BIG where topology leaves find no room.
pub fn for_vcpu(
    supported: &CpuId,
    index: u8,
    vcpus: u8,
    capabilities: Capabilities,
    template: CpuTemplate,
) -> Result<CpuId, errno::Error> {
    let entries = for_place(
        supported,
        Place::new(index, vcpus),
        capabilities,
        template,
        |entries| {
            for entry in entries.iter_mut() {
                // Encrypted memory (SEV): a guest that believes in it looks for its C-bit, and this VMM sets up
                // none.
                if entry.function == 0x8000_001f {
                    clear(entry);
                }
            }
            let name = [0x8000_0002, 0x8000_0003, 0x8000_0004].map(host_leaf);
            brand::set(entries, name, template);
        },
    );
    CpuId::from_entries(&entries).map_err(|_| errno::Error::new(libc::E2BIG))
}

fn for_place(
    supported: &CpuId,
    place: Place,
    capabilities: Capabilities,
    template: CpuTemplate,
    adapt_further: impl FnOnce(&mut Vec<kvm_cpuid_entry2>),
) -> Vec<kvm_cpuid_entry2> {
    let tiles_usable = supported.as_slice().iter().any(|entry| {
        entry.function == 0xd && entry.index == 0 && entry.eax & LEAF_D_EAX_TILES != 0
    });
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        // Replaced below by leaves for our topology.
        .filter(|entry| !matches!(entry.function, 0xb | 0x1f))
        .copied()
        .collect();
    for entry in &mut entries {
        adapt(entry, place, capabilities, tiles_usable);
    }
    adapt_further(&mut entries);
    template.apply(&mut entries);
    let highest = entries
        .iter()
        .find(|entry| entry.function == 0)
        .map_or(0, |entry| entry.eax);
    if highest >= 0xb {
        entries.extend(place.extended_topology(0xb));
    }
    if highest >= 0x1f {
        entries.extend(place.extended_topology(0x1f));
    }
    entries
}

/// The processor for people: model, and a digest of the features that KVM offers, without each vCPU's place
/// and without the paravirtual leaves. Whether an image fits is found out by `features`; but version 0.1.0
/// compares the digest, so it is made of what that version's guests see.
///
/// # Errors
/// As [`for_vcpu`].
pub fn identity(
    supported: &CpuId,
    capabilities: Capabilities,
) -> Result<CpuIdentity, errno::Error> {
    let entries = for_place(
        supported,
        Place::new(0, 1),
        capabilities,
        CpuTemplate::Host,
        |_| {},
    );
    let leaf = |function| entries.iter().find(|entry| entry.function == function);
    let vendor: Vec<u8> = leaf(0)
        .map(|entry| {
            [entry.ebx, entry.edx, entry.ecx]
                .map(u32::to_le_bytes)
                .concat()
        })
        .unwrap_or_default();
    let signature = leaf(1).map_or(0, |entry| entry.eax);
    let mut features = Vec::new();
    for entry in &entries {
        if !PARAVIRTUAL_LEAVES.contains(&entry.function) && !CACHE_LEAVES.contains(&entry.function)
        {
            let words = [
                entry.function,
                entry.index,
                entry.eax,
                entry.ebx,
                entry.ecx,
                entry.edx,
            ];
            features.extend(words.into_iter().flat_map(u32::to_le_bytes));
        }
    }
    let family = signature >> 8 & 0xf;
    let extended_family = if family == 0xf {
        signature >> 20 & 0xff
    } else {
        0
    };
    Ok(CpuIdentity {
        vendor: String::from_utf8_lossy(&vendor).into_owned(),
        family: family + extended_family,
        // Reserved, thus zero, on the old families that don't define the extended model.
        model: signature >> 4 & 0xf | (signature >> 16 & 0xf) << 4,
        stepping: signature & 0xf,
        feature_digest: format!("{:016x}", xxh3_64(&features)),
    })
}

/// Caches and TLBs (SDM vol. 2A, leaves 2, 4 and 0x18; APM vol. 3, E.4). No instruction depends on them,
/// and on processors with several kinds of cores KVM reports those of the core that it runs on.
const CACHE_LEAVES: [u32; 7] = [
    0x2,
    0x4,
    0x18,
    0x8000_0005,
    0x8000_0006,
    0x8000_0019,
    0x8000_001d,
];

/// Leaves that hypervisors define.
const PARAVIRTUAL_LEAVES: RangeInclusive<u32> = 0x4000_0000..=0x4fff_ffff;

fn adapt(
    entry: &mut kvm_cpuid_entry2,
    place: Place,
    capabilities: Capabilities,
    tiles_usable: bool,
) {
    match entry.function {
        0x1 => adapt_features(entry, place, capabilities),
        // Deterministic cache parameters; the same layout on Intel (4) and AMD (0x8000_001d).
        0x4 | 0x8000_001d => adapt_cache(entry, place),
        // AMX needs a permission for its state, which this process doesn't request; KVM may list the
        // instructions nevertheless.
        0x7 if entry.index == 0 && !tiles_usable => entry.edx &= !LEAF7_EDX_AMX,
        0x1d | 0x1e if !tiles_usable => clear(entry),
        // SVM's features; see `adapt_features` for why a guest gets none.
        0x8000_000a => clear(entry),
        // Performance counters belong to the host that they ran on; after a resume, a guest that used them
        // would continue with meaningless values.
        0xa | 0x8000_0022 => clear(entry),
        0x8000_0001 => {
            entry.ecx &= !(AMD_1_ECX_PERFORMANCE_COUNTERS | AMD_1_ECX_SVM);
            let multicore = place.is_amd_multicore(entry);
            set(&mut entry.ecx, AMD_1_ECX_CMP_LEGACY, multicore);
        }
        0x8000_0008 => {
            // NC: cores - 1; ApicIdSize: bits of the APIC id that number cores (APM vol. 3, E.4.7). Both are
            // reserved on Intel processors, where KVM reports 0 and Linux does not look.
            entry.ecx = entry.ecx & !0xf0ff | place.core_bits << 12 | (place.vcpus - 1);
        }
        0x8000_001e => {
            // Extended APIC id, core id with one thread, node 0 of 1.
            entry.eax = place.apic_id;
            entry.ebx = place.apic_id;
            entry.ecx = 0;
        }
        _ => {}
    }
}

fn adapt_features(entry: &mut kvm_cpuid_entry2, place: Place, capabilities: Capabilities) {
    // Initial APIC id, addressable ids in the package; the CLFLUSH size stays.
    entry.ebx = entry.ebx & 0x0000_ffff | place.apic_id << 24 | (1 << place.core_bits) << 16;
    entry.ecx |= LEAF1_ECX_HYPERVISOR;
    // A guest that ran guests of its own would have state in KVM that is not saved.
    entry.ecx &= !LEAF1_ECX_VMX;
    // Not in KVM_GET_SUPPORTED_CPUID, as it depends on the in-kernel LAPIC (api.rst); ours is one.
    set(
        &mut entry.ecx,
        LEAF1_ECX_TSC_DEADLINE,
        capabilities.tsc_deadline,
    );
    set(&mut entry.edx, LEAF1_EDX_HTT, place.vcpus > 1);
}

/// Levels 1 and 2 are private to a core, others belong to the package.
fn adapt_cache(entry: &mut kvm_cpuid_entry2, place: Place) {
    let kind = entry.eax & 0x1f;
    if kind == 0 {
        return;
    }
    let level = entry.eax >> 5 & 0x7;
    let sharing = if level >= 3 {
        (1 << place.core_bits) - 1
    } else {
        0
    };
    entry.eax = entry.eax & 0x0000_3fff | sharing << 14;
    if entry.function == 0x4 {
        entry.eax |= ((1 << place.core_bits) - 1) << 26;
    }
}

/// A vCPU's place in the topology.
#[derive(Debug, Clone, Copy)]
struct Place {
    apic_id: u32,
    vcpus: u32,
    /// Bits of the APIC id that number cores.
    core_bits: u32,
}

impl Place {
    fn new(index: u8, vcpus: u8) -> Self {
        let vcpus = u32::from(vcpus.max(1));
        Self {
            apic_id: index.into(),
            vcpus,
            core_bits: vcpus.next_power_of_two().trailing_zeros(),
        }
    }

    /// CmpLegacy means "HTT says cores, not threads"; Intel processors have the bit reserved. AMD and its
    /// kin have an SVM or topology extension bit in the same register.
    fn is_amd_multicore(self, leaf: &kvm_cpuid_entry2) -> bool {
        const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
        self.vcpus > 1 && leaf.ecx & (TOPOLOGY_EXTENSIONS | AMD_1_ECX_CMP_LEGACY) != 0
    }

    /// Leaves 0xb and 0x1f: threads, then cores, then the end.
    fn extended_topology(self, function: u32) -> [kvm_cpuid_entry2; 3] {
        const LEVEL_THREAD: u32 = 1 << 8;
        const LEVEL_CORE: u32 = 2 << 8;
        let level = |index: u32, shift: u32, processors: u32, kind: u32| kvm_cpuid_entry2 {
            function,
            index,
            flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
            eax: shift,
            ebx: processors,
            ecx: index | kind,
            edx: self.apic_id,
            ..kvm_cpuid_entry2::default()
        };
        [
            level(0, 0, 1, LEVEL_THREAD),
            level(1, self.core_bits, self.vcpus, LEVEL_CORE),
            level(2, 0, 0, 0),
        ]
    }
}

fn set(register: &mut u32, bits: u32, on: bool) {
    if on {
        *register |= bits;
    } else {
        *register &= !bits;
    }
}

fn clear(entry: &mut kvm_cpuid_entry2) {
    (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::leaf_register::leaf;

    const CAPABILITIES: Capabilities = Capabilities {
        xsave2_bytes: 0,
        tsc_control: false,
        tsc_deadline: true,
        kvmclock_ctrl: true,
    };

    fn seen(host: &[kvm_cpuid_entry2], index: u8, vcpus: u8, function: u32, sub: u32) -> [u32; 4] {
        let host = CpuId::from_entries(host).unwrap();
        let guest = for_vcpu(&host, index, vcpus, CAPABILITIES, CpuTemplate::Host).unwrap();
        let entry = guest
            .as_slice()
            .iter()
            .find(|e| e.function == function && e.index == sub);
        entry.map(|e| [e.eax, e.ebx, e.ecx, e.edx]).unwrap()
    }

    #[test]
    fn the_initial_apic_id_is_the_index() {
        let host = [leaf(1, 0, [0, 0x0710_0800, 0, 0])];
        assert_eq!(seen(&host, 3, 6, 1, 0)[1], 0x0308_0800);
    }

    #[test]
    fn a_guest_learns_of_its_hypervisor_and_the_deadline_timer() {
        let host = [leaf(1, 0, [0; 4])];
        let [_, _, ecx, edx] = seen(&host, 0, 1, 1, 0);
        assert_eq!(ecx, LEAF1_ECX_HYPERVISOR | LEAF1_ECX_TSC_DEADLINE);
        assert_eq!(edx & LEAF1_EDX_HTT, 0, "one vCPU has no siblings");
    }

    #[test]
    fn extended_topology_counts_cores() {
        let host = [leaf(0, 0, [0xd, 0, 0, 0]), leaf(0xb, 0, [1, 2, 3, 4])];
        assert_eq!(seen(&host, 5, 6, 0xb, 0), [0, 1, 0x100, 5]);
        assert_eq!(seen(&host, 5, 6, 0xb, 1), [3, 6, 0x201, 5]);
    }

    #[test]
    fn a_last_level_cache_is_shared_by_all_cores() {
        let host = [
            leaf(4, 0, [0xffff_c121, 0, 0, 0]),
            leaf(4, 3, [0xffff_c163, 0, 0, 0]),
        ];
        assert_eq!(seen(&host, 0, 4, 4, 0)[0] >> 14 & 0xfff, 0);
        assert_eq!(seen(&host, 0, 4, 4, 3)[0] >> 14 & 0xfff, 3);
    }

    #[test]
    fn guests_are_offered_no_virtualisation_of_their_own() {
        let host = [
            leaf(1, 0, [0, 0, LEAF1_ECX_VMX, 0]),
            leaf(0x8000_0001, 0, [0, 0, AMD_1_ECX_SVM, 0]),
            leaf(0x8000_000a, 0, [1, 8, 0, 0xf]),
        ];
        assert_eq!(seen(&host, 0, 1, 1, 0)[2] & LEAF1_ECX_VMX, 0);
        assert_eq!(seen(&host, 0, 1, 0x8000_0001, 0)[2] & AMD_1_ECX_SVM, 0);
        assert_eq!(seen(&host, 0, 1, 0x8000_000a, 0), [0; 4]);
    }

    #[test]
    fn a_processor_is_the_same_on_each_of_its_kinds_of_core() {
        let core = |cache: u32, feature: u32| {
            let leaves = [
                leaf(1, 0, [0x000b_0671, 0, feature, 0]),
                leaf(2, 0, [cache; 4]),
                leaf(4, 0, [cache | 1; 4]),
                leaf(0x8000_0006, 0, [cache; 4]),
            ];
            identity(&CpuId::from_entries(&leaves).unwrap(), CAPABILITIES).unwrap()
        };
        assert_eq!(core(0x10, 0), core(0x20, 0));
        assert_ne!(core(0x10, 0), core(0x10, 1));
    }

    #[test]
    fn guests_do_not_believe_in_encrypted_memory() {
        let host = [leaf(0x8000_001f, 0, [0xf, 0x33, 0x1fd, 1])];
        assert_eq!(seen(&host, 0, 1, 0x8000_001f, 0), [0; 4]);
    }

    #[test]
    fn performance_counters_are_hidden() {
        let host = [leaf(0xa, 0, [0x0730_0405, 1, 2, 3])];
        assert_eq!(seen(&host, 0, 1, 0xa, 0), [0; 4]);
    }

    #[test]
    fn amd_core_counts_match_the_vcpus() {
        let host = [leaf(0x8000_0008, 0, [0, 0, 0x503f, 0])];
        assert_eq!(seen(&host, 0, 8, 0x8000_0008, 0)[2], 0x3007);
    }
}
