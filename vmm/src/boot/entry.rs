//! The boot processor's state at the kernel's first instruction: 64-bit mode, flat segments, identity
//! mapping of the first 4 GiB, interrupts off, RSI at the boot parameters.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{GDT, IDT, PAGE_DIRECTORIES, PDPT, PML4, STACK_TOP, ZERO_PAGE};
use crate::page::PAGE_BYTES;
use crate::vcpu::registers::EntryState;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_NE: u64 = 1 << 5;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_RESERVED: u64 = 1 << 1;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
const LARGE_PAGE_BYTES: u64 = 2 << 20;
const ENTRIES: u64 = 512;
const DIRECTORIES: u64 = 4;

/// Selectors that the boot protocol requires.
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
/// Null, null, 64-bit code, data: present, ring 0, 4 GiB limit in pages (Intel SDM vol. 3A, 3.4.5).
const DESCRIPTORS: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];

/// Writes descriptor and page tables and returns the registers that refer to them.
///
/// # Errors
/// Where guest memory is too small for them.
pub fn prepare(memory: &GuestMemoryMmap, rip: u64) -> Result<EntryState, GuestMemoryError> {
    for (address, descriptor) in (GDT..).step_by(8).zip(DESCRIPTORS) {
        memory.write_obj(descriptor, GuestAddress(address))?;
    }
    memory.write_obj(0_u64, GuestAddress(IDT))?;
    write_page_tables(memory)?;
    let regs = kvm_regs {
        rip,
        rsi: ZERO_PAGE,
        rsp: STACK_TOP,
        rbp: STACK_TOP,
        rflags: RFLAGS_RESERVED,
        ..kvm_regs::default()
    };
    Ok(EntryState {
        regs,
        sregs: set_long_mode,
    })
}

fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    memory.write_obj(PDPT | PRESENT_WRITABLE, GuestAddress(PML4))?;
    for directory in 0..DIRECTORIES {
        let table = PAGE_DIRECTORIES + directory * PAGE_BYTES;
        memory.write_obj(table | PRESENT_WRITABLE, GuestAddress(PDPT + directory * 8))?;
    }
    let mut entries = Vec::new();
    for page in 0..DIRECTORIES * ENTRIES {
        let entry = (page * LARGE_PAGE_BYTES) | PRESENT_WRITABLE | LARGE_PAGE;
        entries.extend_from_slice(&entry.to_le_bytes());
    }
    memory.write_slice(&entries, GuestAddress(PAGE_DIRECTORIES))
}

fn set_long_mode(sregs: &mut kvm_sregs) {
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 31;
    sregs.idt.base = IDT;
    sregs.idt.limit = 7;
    let flat = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        present: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    sregs.cs = kvm_segment {
        selector: BOOT_CS,
        type_: 0xb,
        l: 1,
        ..flat
    };
    let data = kvm_segment {
        selector: BOOT_DS,
        type_: 0x3,
        db: 1,
        ..flat
    };
    sregs.ds = data;
    sregs.es = data;
    sregs.fs = data;
    sregs.gs = data;
    sregs.ss = data;
    sregs.cr3 = PML4;
    sregs.cr4 = CR4_PAE;
    sregs.cr0 = CR0_PE | CR0_ET | CR0_NE | CR0_PG;
    sregs.efer = EFER_LME | EFER_LMA;
}
