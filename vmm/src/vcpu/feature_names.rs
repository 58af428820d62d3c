//! Names of features, as Linux shows them in `/proc/cpuinfo` where it does
//! (arch/x86/include/asm/cpufeatures.h); those of KVM as in Documentation/virt/kvm/x86/cpuid.rst.

use super::leaf_register::Register;

/// Names of the bits of one register; the empty one is a bit without a name.
struct Names {
    function: u32,
    index: u32,
    register: Register,
    bits: &'static [(u32, &'static str)],
}

/// The name of a bit, if it has one.
pub(super) fn of(function: u32, index: u32, register: Register, bit: u32) -> Option<&'static str> {
    let names = NAMES.iter().find(|names| {
        (names.function, names.index, names.register) == (function, index, register)
    })?;
    let (_, name) = names.bits.iter().find(|(place, _)| *place == bit)?;
    Some(name)
}

const fn names(
    function: u32,
    index: u32,
    register: Register,
    bits: &'static [(u32, &'static str)],
) -> Names {
    Names {
        function,
        index,
        register,
        bits,
    }
}

use Register::{Eax, Ebx, Ecx, Edx};

#[rustfmt::skip]
const NAMES: &[Names] = &[
    names(0x1, 0, Ecx, &[
        (0, "pni"), (1, "pclmulqdq"), (3, "monitor"), (9, "ssse3"), (12, "fma"), (13, "cx16"), (17, "pcid"),
        (19, "sse4_1"), (20, "sse4_2"), (21, "x2apic"), (22, "movbe"), (23, "popcnt"), (24, "tsc_deadline_timer"),
        (25, "aes"), (26, "xsave"), (27, "osxsave"), (28, "avx"), (29, "f16c"), (30, "rdrand"), (31, "hypervisor"),
    ]),
    names(0x1, 0, Edx, &[
        (0, "fpu"), (1, "vme"), (2, "de"), (3, "pse"), (4, "tsc"), (5, "msr"), (6, "pae"), (7, "mce"), (8, "cx8"),
        (9, "apic"), (11, "sep"), (12, "mtrr"), (13, "pge"), (14, "mca"), (15, "cmov"), (16, "pat"), (17, "pse36"),
        (19, "clflush"), (23, "mmx"), (24, "fxsr"), (25, "sse"), (26, "sse2"), (27, "ss"), (28, "ht"),
    ]),
    names(0x6, 0, Eax, &[(2, "arat")]),
    names(0x7, 0, Ebx, &[
        (0, "fsgsbase"), (1, "tsc_adjust"), (3, "bmi1"), (4, "hle"), (5, "avx2"), (6, "fdp_excptn_only"),
        (7, "smep"), (8, "bmi2"), (9, "erms"), (10, "invpcid"), (11, "rtm"), (13, "zero_fcs_fds"), (14, "mpx"),
        (16, "avx512f"), (17, "avx512dq"), (18, "rdseed"), (19, "adx"), (20, "smap"), (21, "avx512ifma"),
        (23, "clflushopt"), (24, "clwb"), (26, "avx512pf"), (27, "avx512er"), (28, "avx512cd"), (29, "sha_ni"),
        (30, "avx512bw"), (31, "avx512vl"),
    ]),
    names(0x7, 0, Ecx, &[
        (1, "avx512vbmi"), (2, "umip"), (3, "pku"), (4, "ospke"), (5, "waitpkg"), (6, "avx512_vbmi2"),
        (7, "shstk"), (8, "gfni"), (9, "vaes"), (10, "vpclmulqdq"), (11, "avx512_vnni"), (12, "avx512_bitalg"),
        (14, "avx512_vpopcntdq"), (16, "la57"), (22, "rdpid"), (24, "bus_lock_detect"), (25, "cldemote"),
        (27, "movdiri"), (28, "movdir64b"), (30, "sgx_lc"),
    ]),
    names(0x7, 0, Edx, &[
        (2, "avx512_4vnniw"), (3, "avx512_4fmaps"), (4, "fsrm"), (8, "avx512_vp2intersect"), (10, "md_clear"),
        (14, "serialize"), (16, "tsxldtrk"), (20, "ibt"), (22, "amx_bf16"), (23, "avx512_fp16"), (24, "amx_tile"),
        (25, "amx_int8"), (26, "spec_ctrl"), (27, "intel_stibp"), (28, "flush_l1d"), (29, "arch_capabilities"),
        (30, "core_capabilities"), (31, "spec_ctrl_ssbd"),
    ]),
    names(0x7, 1, Eax, &[
        (4, "avx_vnni"), (5, "avx512_bf16"), (7, "cmpccxadd"), (10, "fzrm"), (11, "fsrs"), (12, "fsrc"),
        (17, "fred"), (18, "lkgs"), (21, "amx_fp16"), (23, "avx_ifma"), (26, "lam"),
    ]),
    names(0x7, 2, Edx, &[
        (0, "intel_psfd"), (1, "ipred_ctrl"), (2, "rrsba_ctrl"), (3, "ddpd_u"), (4, "bhi_ctrl"), (5, "mcdt_no"),
    ]),
    names(0xd, 0, Eax, &[
        (0, "x87 state"), (1, "sse state"), (2, "avx state"), (3, "mpx bounds state"), (4, "mpx control state"),
        (5, "avx512 opmask state"), (6, "avx512 zmm_hi256 state"), (7, "avx512 hi16_zmm state"), (9, "pkru state"),
        (17, "amx tile configuration state"), (18, "amx tile state"),
    ]),
    names(0xd, 1, Eax, &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1"), (3, "xsaves"), (4, "xfd")]),
    names(0x4000_0001, 0, Eax, &[
        (0, "kvm_clocksource"), (1, "kvm_nop_io_delay"), (2, "kvm_mmu_op"), (3, "kvm_clocksource2"),
        (4, "kvm_async_pf"), (5, "kvm_steal_time"), (6, "kvm_pv_eoi"), (7, "kvm_pv_unhalt"),
        (9, "kvm_pv_tlb_flush"), (10, "kvm_async_pf_vmexit"), (11, "kvm_pv_send_ipi"), (12, "kvm_poll_control"),
        (13, "kvm_pv_sched_yield"), (14, "kvm_asyncpf_int"), (15, "kvm_msi_ext_dest_id"),
        (16, "kvm_hc_map_gpa_range"), (17, "kvm_migration_control"), (24, "kvm_clocksource_stable"),
    ]),
    names(0x8000_0001, 0, Ecx, &[
        (0, "lahf_lm"), (1, "cmp_legacy"), (2, "svm"), (3, "extapic"), (4, "cr8_legacy"), (5, "abm"), (6, "sse4a"),
        (7, "misalignsse"), (8, "3dnowprefetch"), (9, "osvw"), (11, "xop"), (16, "fma4"), (21, "tbm"),
        (22, "topoext"), (29, "mwaitx"),
    ]),
    names(0x8000_0001, 0, Edx, &[
        (11, "syscall"), (20, "nx"), (22, "mmxext"), (25, "fxsr_opt"), (26, "pdpe1gb"), (27, "rdtscp"), (29, "lm"),
        (30, "3dnowext"), (31, "3dnow"),
    ]),
    names(0x8000_0007, 0, Edx, &[(8, "constant_tsc")]),
    names(0x8000_0008, 0, Ebx, &[
        (0, "clzero"), (2, "xsaveerptr"), (4, "rdpru"), (9, "wbnoinvd"), (12, "ibpb"), (14, "ibrs"), (15, "stibp"),
        (17, "stibp_always_on"), (24, "ssbd"), (25, "virt_ssbd"), (26, "amd_ssb_no"), (28, "amd_psfd"), (29, "btc_no"),
        (30, "ibpb_ret"),
    ]),
    names(0x8000_0021, 0, Eax, &[
        (0, "no_nested_data_bp"), (2, "lfence_rdtsc"), (6, "null_sel_clr_base"), (8, "autoibrs"),
        (9, "no_smm_ctl_msr"), (20, "prefetchi"), (27, "sbpb"), (28, "ibpb_brtype"), (29, "srso_no"),
    ]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bit_has_two_names_and_no_register_two_lists() {
        for (place, names) in NAMES.iter().enumerate() {
            let mut bits: Vec<u32> = names.bits.iter().map(|(bit, _)| *bit).collect();
            assert!(bits.is_sorted() && bits.iter().all(|bit| *bit < 32));
            bits.dedup();
            assert_eq!(bits.len(), names.bits.len());
            let same = |other: &Names| {
                (other.function, other.index, other.register)
                    == (names.function, names.index, names.register)
            };
            assert_eq!(NAMES.iter().position(same), Some(place));
        }
    }

    #[test]
    fn names_are_those_of_proc_cpuinfo() {
        assert_eq!(of(7, 0, Ebx, 5), Some("avx2"));
        assert_eq!(of(1, 0, Ecx, 20), Some("sse4_2"));
        assert_eq!(of(7, 0, Ebx, 2), None);
        assert_eq!(of(0x99, 0, Ebx, 5), None);
    }
}
