//! Model-specific registers: which ones to save, and reading and writing them in bulk.
//!
//! KVM_GET_MSRS and KVM_SET_MSRS stop at the first register that fails and return how many succeeded
//! (api.rst, 4.18 and 4.19); both loops here continue after it, for different reasons.

use std::ops::RangeInclusive;

use kvm_bindings::{KVM_MAX_MSR_ENTRIES, Msrs, kvm_msr_entry};
use kvm_ioctls::{Kvm, VcpuFd};
use vmm_sys_util::errno;

/// Time stamp counter (Intel SDM vol. 4, table 2-2).
pub const IA32_TSC: u32 = 0x10;
/// Deadline of the LAPIC timer; takes effect against the TSC, so it is written after it and after
/// the LAPIC, whose timer mode must be "deadline" by then.
pub const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// Physical base of the LAPIC; carried by sregs.
const IA32_APIC_BASE: u32 = 0x1b;
/// Memory types (Intel SDM vol. 3A, 11.11; AMD APM vol. 2, 7.7) and machine checks (SDM vol. 3B, 15.3).
/// KVM has all of them, and KVM_GET_MSR_INDEX_LIST lists none. Of machine checks only the enabling
/// registers are saved; no error is pending in a virtual bank.
const UNLISTED: [RangeInclusive<u32>; 7] = [
    0x200..=0x20f, // IA32_MTRR_PHYSBASE and PHYSMASK 0 to 7
    0x250..=0x250, // IA32_MTRR_FIX64K_00000
    0x258..=0x259, // IA32_MTRR_FIX16K
    0x268..=0x26f, // IA32_MTRR_FIX4K
    0x277..=0x277, // IA32_PAT
    0x2ff..=0x2ff, // IA32_MTRR_DEF_TYPE
    0x17a..=0x17b, // IA32_MCG_STATUS, IA32_MCG_CTL
];
/// IA32_MCi_CTL of bank 0, the distance to the next bank's, and how many banks KVM has.
const MACHINE_CHECK_CONTROL: (u32, usize, u32) = (0x400, 4, 32);
/// KVM's two wall clock registers: writing one makes KVM write the wall clock of the VM's start into
/// guest memory. Only the guest may ask for that; writing one at a restore would change its memory.
const KVM_WALL_CLOCKS: [u32; 2] = [0x11, 0x4b56_4d00];

/// Registers of Hyper-V's interface (Linux, include/hyperv/hvgdk_mini.h). KVM lists them for every VM,
/// and our guests have no such interface (`cpuid`).
const HYPER_V: RangeInclusive<u32> = 0x4000_0000..=0x4000_01ff;
/// Intel SDM vol. 4, table 2-2. Bit 0 enables fast strings, as firmware does. Without it Linux believes
/// that `rep movsb` is slow (arch/x86/kernel/cpu/intel.c, `early_init_intel`). On AMD processors KVM keeps
/// the value and nothing reads it.
const IA32_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;

/// Why registers could not be restored.
#[derive(Debug, thiserror::Error)]
pub enum MsrError {
    /// KVM refused the list.
    #[error("{call} failed")]
    Call {
        /// Name as in api.rst.
        call: &'static str,
        /// Why.
        source: errno::Error,
    },
    /// This host can't restore the guest's value.
    #[error("this host's KVM refuses value {value:#x} for register {index:#x}")]
    Refused {
        /// Register.
        index: u32,
        /// Saved value.
        value: u64,
    },
}

/// The registers that KVM can save on this host.
///
/// # Errors
/// [`MsrError::Call`].
pub fn saved_indices(kvm: &Kvm) -> Result<Vec<u32>, MsrError> {
    let list = kvm.get_msr_index_list().map_err(|source| MsrError::Call {
        call: "KVM_GET_MSR_INDEX_LIST",
        source,
    })?;
    Ok(to_save(list.as_slice()))
}

fn is_state(index: u32) -> bool {
    index != IA32_APIC_BASE && !KVM_WALL_CLOCKS.contains(&index) && !HYPER_V.contains(&index)
}

/// The registers of KVM's list that hold state of a guest, and those that KVM has without listing them.
fn to_save(list: &[u32]) -> Vec<u32> {
    let mut indices: Vec<u32> = list
        .iter()
        .copied()
        .filter(|index| is_state(*index))
        .collect();
    let (first, step, banks) = MACHINE_CHECK_CONTROL;
    let controls = (first..)
        .step_by(step)
        .zip(0..banks)
        .map(|(index, _)| index);
    for index in UNLISTED.into_iter().flatten().chain(controls) {
        if !indices.contains(&index) {
            indices.push(index);
        }
    }
    // Listed only with KVM_CAP_TSC_DEADLINE_TIMER; it has to be the last.
    let had_deadline = indices.contains(&IA32_TSC_DEADLINE);
    indices.retain(|index| *index != IA32_TSC_DEADLINE);
    if had_deadline {
        indices.push(IA32_TSC_DEADLINE);
    }
    indices
}

/// Those of saved registers that are written at a restore. An image may have others, from a program that
/// saved more.
pub fn restorable(saved: &[kvm_msr_entry]) -> Vec<kvm_msr_entry> {
    let state = |entry: &&kvm_msr_entry| is_state(entry.index);
    saved.iter().filter(state).copied().collect()
}

/// Sets a deadline of zero to the counter's value, so that the timer fires at once. Zero is also what KVM
/// reports of a timer that has expired and whose interrupt it has not injected yet, which would be lost;
/// a guest that has no timer armed ignores an interrupt too many, and without deadline mode KVM ignores
/// the register.
pub fn fire_expired_deadline(entries: &mut [kvm_msr_entry]) {
    let counter = entries.iter().find(|entry| entry.index == IA32_TSC);
    let Some(now) = counter.map(|entry| entry.data) else {
        return;
    };
    for entry in entries {
        if entry.index == IA32_TSC_DEADLINE && entry.data == 0 {
            entry.data = now;
        }
    }
}

/// Lets a new vCPU have fast strings.
///
/// # Errors
/// [`MsrError`].
pub fn enable_fast_strings(vcpu: &VcpuFd) -> Result<(), MsrError> {
    let Some(mut entry) = read(vcpu, &[IA32_MISC_ENABLE])?.first().copied() else {
        return Ok(());
    };
    entry.data |= FAST_STRINGS;
    write(vcpu, &[entry])
}

/// Reads registers, in order. Leaves out those that this vCPU doesn't have: the list is host-wide, while
/// a register's existence depends on the vCPU's CPUID.
///
/// # Errors
/// [`MsrError::Call`].
pub fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<kvm_msr_entry>, MsrError> {
    let mut entries = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let chunk: Vec<kvm_msr_entry> = rest
            .iter()
            .take(KVM_MAX_MSR_ENTRIES)
            .map(|&index| kvm_msr_entry {
                index,
                ..kvm_msr_entry::default()
            })
            .collect();
        let mut msrs = list(&chunk)?;
        let good = vcpu.get_msrs(&mut msrs).map_err(|source| MsrError::Call {
            call: "KVM_GET_MSRS",
            source,
        })?;
        entries.extend_from_slice(&msrs.as_slice()[..good]);
        let skipped = usize::from(good < chunk.len());
        rest = &rest[good + skipped..];
    }
    Ok(entries)
}

/// Writes registers, in order.
///
/// # Errors
/// [`MsrError::Refused`] where KVM refuses one and the vCPU does not hold that value anyway.
pub fn write(vcpu: &VcpuFd, entries: &[kvm_msr_entry]) -> Result<(), MsrError> {
    let mut rest = entries;
    while !rest.is_empty() {
        let chunk = &rest[..rest.len().min(KVM_MAX_MSR_ENTRIES)];
        let good = vcpu
            .set_msrs(&list(chunk)?)
            .map_err(|source| MsrError::Call {
                call: "KVM_SET_MSRS",
                source,
            })?;
        let mut done = good;
        if let Some(refused) = chunk.get(good) {
            expect_same(vcpu, *refused)?;
            done += 1;
        }
        rest = &rest[done..];
    }
    Ok(())
}

/// Some registers can be read but not written, not even with the value that they have (on older kernels,
/// capabilities). That is harmless if the value is the saved one.
fn expect_same(vcpu: &VcpuFd, refused: kvm_msr_entry) -> Result<(), MsrError> {
    let now = read(vcpu, &[refused.index])?;
    match now.first() {
        Some(now) if now.data == refused.data => Ok(()),
        _ => Err(MsrError::Refused {
            index: refused.index,
            value: refused.data,
        }),
    }
}

fn list(entries: &[kvm_msr_entry]) -> Result<Msrs, MsrError> {
    Msrs::from_entries(entries).map_err(|_| MsrError::Call {
        call: "allocating a register list",
        source: errno::Error::new(libc::ENOMEM),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(index: u32, data: u64) -> kvm_msr_entry {
        kvm_msr_entry {
            index,
            data,
            ..kvm_msr_entry::default()
        }
    }

    /// Part of what KVM of Linux 6.12 lists.
    const LISTED: [u32; 12] = [
        0x174,
        0x175,
        0x176,
        0x10,
        0x1b,
        0x4b56_4d00,
        0x4b56_4d01,
        0x4000_0000,
        0x4000_0001,
        0x4000_0020,
        0x6e0,
        0x1a0,
    ];

    #[test]
    fn hyper_v_and_wall_clocks_are_no_state_of_a_guest() {
        let saved = to_save(&LISTED);
        for index in [
            0x4000_0000,
            0x4000_0001,
            0x4000_0020,
            0x11,
            0x4b56_4d00,
            0x1b,
        ] {
            assert!(!saved.contains(&index), "{index:#x}");
        }
        for index in [0x10, 0x174, 0x1a0, 0x4b56_4d01, 0x277, 0x2ff] {
            assert!(saved.contains(&index), "{index:#x}");
        }
        assert_eq!(saved.last(), Some(&IA32_TSC_DEADLINE), "after the counter");
    }

    #[test]
    fn what_another_program_saved_of_hyper_v_is_not_written() {
        let written = restorable(&[entry(0x10, 1), entry(0x4000_0020, 7), entry(0x6e0, 2)]);
        let indices: Vec<u32> = written.iter().map(|entry| entry.index).collect();
        assert_eq!(indices, [0x10, 0x6e0]);
    }

    #[test]
    fn an_expired_timer_fires_and_an_armed_one_keeps_its_deadline() {
        let deadline = |value| {
            let mut entries = [entry(IA32_TSC, 500), entry(IA32_TSC_DEADLINE, value)];
            fire_expired_deadline(&mut entries);
            entries[1].data
        };
        assert_eq!(deadline(0), 500);
        assert_eq!(deadline(700), 700);
        let mut without_counter = [entry(IA32_TSC_DEADLINE, 0)];
        fire_expired_deadline(&mut without_counter);
        assert_eq!(without_counter[0].data, 0);
    }
}
