//! The zero page (`struct boot_params`) and the command line.

use linux_loader::cmdline::Cmdline;
use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{self, BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::{self, load_cmdline};
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::kernel::LoadedInitramfs;
use super::layout::{ACPI, CMDLINE, CMDLINE_MAX_BYTES, CONVENTIONAL_END, HIGH_MEMORY, ZERO_PAGE};
use crate::memory::regions::GAP_START;

/// The command line of every guest; `--cmdline` is appended, so that its words take precedence.
///
/// `reboot=k` resets through the keyboard controller, and `panic=-1` does so at once after a panic, so
/// that a dead guest is noticed.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 reboot=k panic=-1 quiet";

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
const LOADER_UNDEFINED: u8 = 0xff;
const KERNEL_ALIGNMENT: u32 = 0x100_0000;

/// Why the kernel's parameters can't be written.
#[derive(Debug, thiserror::Error)]
pub enum ParametersError {
    /// Too long, or not printable.
    #[error("cannot use the kernel command line (at most {} characters)", CMDLINE_MAX_BYTES - 1)]
    Cmdline(#[source] linux_loader::cmdline::Error),
    /// Writing the command line failed.
    #[error("cannot write the kernel command line into guest memory")]
    LoadCmdline(#[source] loader::Error),
    /// Writing the boot parameters failed.
    #[error("cannot write the boot parameters into guest memory")]
    ZeroPage(#[source] configurator::Error),
}

/// Writes command line and zero page.
///
/// # Errors
/// [`ParametersError`].
pub fn write(
    memory: &GuestMemoryMmap,
    extra_cmdline: &str,
    initramfs: Option<LoadedInitramfs>,
) -> Result<(), ParametersError> {
    let mut cmdline = Cmdline::new(CMDLINE_MAX_BYTES).map_err(ParametersError::Cmdline)?;
    cmdline
        .insert_str(DEFAULT_CMDLINE)
        .map_err(ParametersError::Cmdline)?;
    if !extra_cmdline.is_empty() {
        cmdline
            .insert_str(extra_cmdline)
            .map_err(ParametersError::Cmdline)?;
    }
    load_cmdline(memory, GuestAddress(CMDLINE), &cmdline).map_err(ParametersError::LoadCmdline)?;

    let mut params = boot_params {
        acpi_rsdp_addr: ACPI,
        ..boot_params::default()
    };
    params.hdr.boot_flag = BOOT_FLAG;
    params.hdr.header = HEADER_MAGIC;
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.kernel_alignment = KERNEL_ALIGNMENT;
    params.hdr.cmd_line_ptr = low(CMDLINE);
    params.hdr.cmdline_size = low(CMDLINE_MAX_BYTES as u64 - 1);
    if let Some(initramfs) = initramfs {
        params.hdr.ramdisk_image = low(initramfs.address);
        params.hdr.ramdisk_size = low(initramfs.length);
    }
    for (slot, entry) in params.e820_table.iter_mut().zip(e820(memory)) {
        *slot = entry;
        params.e820_entries += 1;
    }
    let params = BootParams::new(&params, GuestAddress(ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&params, memory).map_err(ParametersError::ZeroPage)
}

/// All addresses and lengths here are below the gap for devices, so below 4 GiB.
fn low(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

fn e820(memory: &GuestMemoryMmap) -> Vec<boot_e820_entry> {
    let entry = |addr, end: u64, r#type| boot_e820_entry {
        addr,
        size: end - addr,
        r#type,
    };
    let mut entries = vec![
        entry(0, CONVENTIONAL_END, E820_RAM),
        entry(CONVENTIONAL_END, HIGH_MEMORY, E820_RESERVED),
    ];
    for region in memory.iter() {
        let (start, last) = (
            region.start_addr().raw_value(),
            region.last_addr().raw_value(),
        );
        // The first region begins at 0, and the entries above describe its first MiB.
        let start = if start < GAP_START {
            HIGH_MEMORY
        } else {
            start
        };
        entries.push(entry(start, last + 1, E820_RAM));
    }
    entries
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn memory_above_the_hole_is_described_apart() {
        let ranges = [
            (GuestAddress(0), 0x20_0000),
            (GuestAddress(1 << 32), 0x10_0000),
        ];
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        let map: Vec<(u64, u64, u32)> = e820(&memory)
            .iter()
            .map(|e| (e.addr, e.size, e.r#type))
            .collect();
        let expected = [
            (0, 0x9_fc00, 1),
            (0x9_fc00, 0x6_0400, 2),
            (0x10_0000, 0x10_0000, 1),
            (1 << 32, 0x10_0000, 1),
        ];
        assert_eq!(map, expected);
    }

    #[test]
    fn an_overlong_command_line_is_refused() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x20_0000)]).unwrap();
        assert!(write(&memory, &"x".repeat(CMDLINE_MAX_BYTES), None).is_err());
    }

    #[test]
    fn the_users_words_come_last() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x20_0000)]).unwrap();
        write(&memory, "panic=5", None).unwrap();
        let mut text = vec![0; DEFAULT_CMDLINE.len() + 9];
        memory.read_slice(&mut text, GuestAddress(CMDLINE)).unwrap();
        assert_eq!(text, format!("{DEFAULT_CMDLINE} panic=5\0").into_bytes());
    }
}
