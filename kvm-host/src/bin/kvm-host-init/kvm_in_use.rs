//! A virtual machine that nobody runs, so that KVM is never out of use.
//!
//! With the first virtual machine KVM patches a jump in `__schedule` of the host's kernel, and with
//! the end of the last one it patches it back (virt/kvm/kvm_main.c, `preempt_notifier_inc`); the
//! same holds for vCPUs whose LAPIC is off (arch/x86/kvm/lapic.c, `apic_sw_disabled`). A machine
//! that is suspended and resumed alone on its host does both in every cycle. QEMU 7.2, which Debian
//! 12 has, now and then fails to translate code anew that one processor changes while another runs
//! it: both were found standing before that very jump, for ever, with a pending timer interrupt.
//! With one more machine the code is patched once. Hardware does not need this.

use anyhow::Context;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};

/// KVM is in use as long as this lives.
#[derive(Debug)]
pub(crate) struct KvmInUse {
    _vcpu: VcpuFd,
    _vm: VmFd,
}

impl KvmInUse {
    /// Makes the machine: no memory, and a vCPU whose LAPIC is as a reset leaves it, which is off.
    pub(crate) fn hold() -> anyhow::Result<Self> {
        let kvm = Kvm::new()
            .context("cannot open /dev/kvm; kvm_amd is loaded, so does QEMU emulate SVM?")?;
        let vm = kvm.create_vm().context("KVM_CREATE_VM failed")?;
        vm.create_irq_chip().context("KVM_CREATE_IRQCHIP failed")?;
        let vcpu = vm.create_vcpu(0).context("KVM_CREATE_VCPU failed")?;
        Ok(Self {
            _vcpu: vcpu,
            _vm: vm,
        })
    }
}
