//! The CPUID instruction on this host.

use core::arch::x86_64::__cpuid;

/// EAX, EBX, ECX and EDX of a leaf without sub-leaves.
pub(crate) fn host_leaf(function: u32) -> [u32; 4] {
    let leaf = __cpuid(function);
    [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
}
