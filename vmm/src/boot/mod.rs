//! Everything that firmware would do: load the kernel, describe the machine, set the entry state.
//!
//! Linux 64-bit boot protocol (Documentation/arch/x86/boot.rst, section "64-bit Boot Protocol").
//! It was preferred to PVH because the kernel is entered in the mode that it runs in, so that
//! its 32-bit entry code need not be emulated anywhere.

pub mod acpi;
pub mod entry;
pub mod kernel;
pub mod layout;
pub mod parameters;
