//! Model-specific registers of a vCPU, saved and restored through KVM.

use kvm_bindings::kvm_msr_entry;
use kvm_ioctls::Kvm;
use vmm::vcpu::msrs::{read, saved_indices, write};

const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;

pub(crate) fn memory_types_survive_though_kvm_does_not_list_them() {
    let kvm = Kvm::new().unwrap();
    let indices = saved_indices(&kvm).unwrap();
    let enabled = kvm_msr_entry {
        index: IA32_MTRR_DEF_TYPE,
        data: 1 << 11 | 6,
        ..kvm_msr_entry::default()
    };
    let before = kvm.create_vm().unwrap();
    let vcpu = before.create_vcpu(0).unwrap();
    write(&vcpu, &[enabled]).unwrap();

    let saved = read(&vcpu, &indices).unwrap();
    let after = kvm.create_vm().unwrap();
    let vcpu = after.create_vcpu(0).unwrap();
    write(&vcpu, &saved).unwrap();

    let restored = read(&vcpu, &[IA32_MTRR_DEF_TYPE]).unwrap();
    assert_eq!(restored.first().map(|entry| entry.data), Some(enabled.data));
}
