//! The guest-physical addresses and I/O ports of everything but memory itself.
//!
//! `memory::regions` places memory: up to 3 GiB, and on from 4 GiB. Devices lie in the gap between.

/// The boot processor's global descriptor table.
pub const GDT: u64 = 0x500;
/// An empty interrupt descriptor table.
pub const IDT: u64 = 0x520;
/// `struct boot_params`.
pub const ZERO_PAGE: u64 = 0x7000;
/// Initial stack; the kernel sets its own within a few instructions.
pub const STACK_TOP: u64 = 0x8ff0;
/// Page tables: one PML4, one PDPT, four page directories.
pub const PML4: u64 = 0x9000;
/// See [`PML4`].
pub const PDPT: u64 = 0xa000;
/// See [`PML4`].
pub const PAGE_DIRECTORIES: u64 = 0xb000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// COMMAND_LINE_SIZE of the kernel on x86, with its terminating zero.
pub const CMDLINE_MAX_BYTES: usize = 2048;
/// End of conventional memory; above it a PC has its extended BIOS data area.
pub const CONVENTIONAL_END: u64 = 0x9_fc00;
/// RSDP and all other ACPI tables; the area that a BIOS keeps them in (ACPI 6.5, 5.2.5.1).
pub const ACPI: u64 = 0xe_0000;
/// Where memory continues behind the legacy area; kernels are loaded above.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// Register windows of virtio devices, one after the other.
pub const VIRTIO_START: u32 = 0xd000_0000;
/// Size of each.
pub const VIRTIO_BYTES: u32 = 0x1000;
/// Interrupt line of the first; the others follow.
pub const VIRTIO_FIRST_GSI: u32 = 5;
/// Most virtio devices: the I/O APIC has no more interrupt lines.
pub const VIRTIO_MAX_DEVICES: usize = 19;
/// I/O APIC; KVM fixes this address.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Local APICs.
pub const LAPIC: u32 = 0xfee0_0000;

/// First serial port.
pub const COM1_PORT: u16 = 0x3f8;
/// Its number of ports.
pub const COM1_PORTS: u8 = 8;
/// Its interrupt line.
pub const COM1_GSI: u32 = 4;
/// Keyboard controller, of which only the reset line exists.
pub const I8042_PORT: u16 = 0x60;
/// Its ports 0x60 to 0x64.
pub const I8042_PORTS: u8 = 5;
/// Sleep control, sleep status and reset register (ACPI 6.5, 4.8.3.7).
pub const POWER_PORT: u16 = 0x600;
/// Number of them.
pub const POWER_PORTS: u8 = 3;
