//! What the log says of a guest that KVM cannot continue: KVM's reason, registers, and the instruction.
//! Whoever investigates has nothing else, as the guest is gone then.

use std::fmt;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, KVM_INTERNAL_ERROR_SIMUL_EX,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kvm_regs, kvm_sregs,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::sys::kvm::internal_error;

/// Longest x86 instruction (Intel SDM vol. 2A, 2.3.11).
pub const MAX_INSTRUCTION_BYTES: usize = 15;

/// KVM's words about KVM_EXIT_INTERNAL_ERROR (api.rst, section 5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InternalError {
    /// Its kind.
    pub suberror: u32,
    /// More, by kind; at most 16 words.
    pub data: Vec<u64>,
}

impl InternalError {
    fn name(&self) -> &'static str {
        match self.suberror {
            KVM_INTERNAL_ERROR_EMULATION => "an instruction could not be emulated",
            KVM_INTERNAL_ERROR_SIMUL_EX => "two exceptions at once",
            KVM_INTERNAL_ERROR_DELIVERY_EV => "an exit in the middle of the delivery of an event",
            KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => "an exit that KVM does not know",
            _ => "of a kind that is not known here",
        }
    }

    /// The instruction, if KVM tells it: behind the flags come a byte with its length and its bytes.
    #[must_use]
    pub fn instruction(&self) -> Option<Vec<u8>> {
        let told = u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES);
        if self.suberror != KVM_INTERNAL_ERROR_EMULATION || self.data.first()? & told == 0 {
            return None;
        }
        let bytes: Vec<u8> = self.data[1..]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        let (length, bytes) = bytes.split_first()?;
        let length = usize::from(*length).min(MAX_INSTRUCTION_BYTES);
        bytes.get(..length).map(<[u8]>::to_vec)
    }
}

/// All that is known of a vCPU that cannot continue.
#[derive(Debug, Clone, Default)]
pub struct Diagnosis {
    /// After KVM_EXIT_INTERNAL_ERROR.
    pub internal: Option<InternalError>,
    /// General registers, if KVM gives them.
    pub regs: Option<kvm_regs>,
    /// Segment and control registers.
    pub sregs: Option<kvm_sregs>,
    /// Bytes of guest memory at the instruction pointer, if they can be read.
    pub memory: Vec<u8>,
}

impl Diagnosis {
    /// Of a vCPU after its last exit, on its own thread.
    pub fn of(vcpu: &mut VcpuFd, memory: &GuestMemoryMmap) -> Self {
        let internal = internal_error(vcpu.get_kvm_run());
        let regs = vcpu.get_regs().ok();
        let mut bytes = vec![0; MAX_INSTRUCTION_BYTES];
        let read = regs.and_then(|regs| {
            let place = vcpu.translate_gva(regs.rip).ok()?;
            let address = (place.valid != 0).then_some(GuestAddress(place.physical_address))?;
            memory.read(&mut bytes, address).ok()
        });
        bytes.truncate(read.unwrap_or(0));
        Self {
            internal: internal.map(|(suberror, data)| InternalError { suberror, data }),
            regs,
            sregs: vcpu.get_sregs().ok(),
            memory: bytes,
        }
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut instruction = None;
        if let Some(internal) = &self.internal {
            write!(f, "suberror {} ({})", internal.suberror, internal.name())?;
            write!(f, ", data {:x?}; ", internal.data)?;
            instruction = internal.instruction();
        }
        let instruction = instruction.as_ref().unwrap_or(&self.memory);
        match instruction.as_slice() {
            [] => f.write_str("instruction unknown")?,
            bytes => write!(f, "instruction {bytes:02x?}")?,
        }
        if let Some(regs) = &self.regs {
            write!(
                f,
                "; rip {:#x} rflags {:#x} rax {:#x} rbx {:#x} rcx {:#x} rdx {:#x} rsi {:#x} rdi {:#x} \
                 rsp {:#x} rbp {:#x} r8 {:#x} r9 {:#x} r10 {:#x} r11 {:#x} r12 {:#x} r13 {:#x} \
                 r14 {:#x} r15 {:#x}",
                regs.rip,
                regs.rflags,
                regs.rax,
                regs.rbx,
                regs.rcx,
                regs.rdx,
                regs.rsi,
                regs.rdi,
                regs.rsp,
                regs.rbp,
                regs.r8,
                regs.r9,
                regs.r10,
                regs.r11,
                regs.r12,
                regs.r13,
                regs.r14,
                regs.r15,
            )?;
        }
        if let Some(sregs) = &self.sregs {
            write!(
                f,
                "; cr0 {:#x} cr2 {:#x} cr3 {:#x} cr4 {:#x} efer {:#x} cs {:#x}:{:#x} ss {:#x} gdt {:#x} \
                 idt {:#x} tr {:#x}",
                sregs.cr0,
                sregs.cr2,
                sregs.cr3,
                sregs.cr4,
                sregs.efer,
                sregs.cs.selector,
                sregs.cs.base,
                sregs.ss.selector,
                sregs.gdt.base,
                sregs.idt.base,
                sregs.tr.selector,
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn emulation_failure(flags: u64) -> InternalError {
        InternalError {
            suberror: KVM_INTERNAL_ERROR_EMULATION,
            // Length 3, then 0f 01 c1 (VMCALL).
            data: vec![
                flags,
                u64::from_le_bytes([3, 0x0f, 0x01, 0xc1, 0xee, 0, 0, 0]),
                0,
            ],
        }
    }

    #[test]
    fn the_instruction_is_taken_from_kvm_where_it_tells_it() {
        let bytes = emulation_failure(1).instruction();
        assert_eq!(bytes.as_deref(), Some(&[0x0f, 0x01, 0xc1][..]));
        assert_eq!(emulation_failure(0).instruction(), None);
        let unexpected = InternalError {
            suberror: KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
            ..emulation_failure(1)
        };
        assert_eq!(unexpected.instruction(), None);
        let cut = InternalError {
            data: vec![1],
            ..emulation_failure(1)
        };
        assert_eq!(cut.instruction(), None);
    }

    #[test]
    fn reason_instruction_and_registers_are_on_one_line() {
        let diagnosis = Diagnosis {
            internal: Some(emulation_failure(1)),
            regs: Some(kvm_regs {
                rip: 0xffff_8000,
                r15: 0x15,
                ..kvm_regs::default()
            }),
            sregs: Some(kvm_sregs {
                cr3: 0x1000,
                ..kvm_sregs::default()
            }),
            memory: vec![0x90],
        };
        let text = diagnosis.to_string();
        for part in [
            "suberror 1 (an instruction could not be emulated)",
            "instruction [0f, 01, c1]",
            "rip 0xffff8000",
            "r15 0x15",
            "cr3 0x1000",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains('\n'));
    }

    #[test]
    fn without_kvms_word_the_bytes_in_memory_are_shown() {
        let diagnosis = Diagnosis {
            memory: vec![0x0f, 0x0b],
            ..Diagnosis::default()
        };
        assert_eq!(diagnosis.to_string(), "instruction [0f, 0b]");
        assert_eq!(Diagnosis::default().to_string(), "instruction unknown");
    }
}
