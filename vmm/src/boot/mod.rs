//! The work of firmware: loads the kernel, describes the machine, sets the entry state.
//!
//! Linux 64-bit boot protocol (Documentation/arch/x86/boot.rst, section "64-bit Boot Protocol").
//! It enters the kernel in the mode in which it runs. PVH would enter its 32-bit code, which some KVMs
//! would have to emulate.

pub mod acpi;
pub mod entry;
pub mod kernel;
pub mod layout;
pub mod parameters;
