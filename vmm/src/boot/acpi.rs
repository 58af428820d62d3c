//! ACPI tables: processors, interrupt controllers, serial port, virtio devices, power-off, reset.
//!
//! Hardware-reduced ACPI (ACPI 6.5, 4.1) needs no fixed power-management hardware: sleep and reset are
//! single registers. Interrupt lines need no overrides, since in KVM's default routing line n is input
//! n of the I/O APIC.

use acpi_tables::Aml;
use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::layout::{
    ACPI, COM1_GSI, COM1_PORT, COM1_PORTS, HIGH_MEMORY, IOAPIC, LAPIC, POWER_PORT, VIRTIO_BYTES,
    VIRTIO_FIRST_GSI, VIRTIO_START,
};
use crate::devices::power::{RESET_OFFSET, RESET_VALUE, SLEEP_TYPE_OFF};

const OEM_ID: [u8; 6] = *b"MCTL  ";
const OEM_TABLE_ID: [u8; 8] = *b"MCTLVMM ";
const OEM_REVISION: u32 = 1;
const SDT_HEADER_BYTES: u32 = 36;
const DSDT_REVISION: u8 = 2;
/// IAPC_BOOT_ARCH (ACPI 6.5, table 5.10): no VGA, no MSI, no CMOS clock; no 8042 either, its flag is clear.
const BOOT_ARCH: u16 = 1 << 2 | 1 << 3 | 1 << 5;

/// Why the tables can't be written.
#[derive(Debug, thiserror::Error)]
pub enum AcpiError {
    /// More devices and processors than the area below 1 MiB describes.
    #[error("ACPI tables of {bytes} bytes do not fit below 1 MiB")]
    TooLarge {
        /// Their size.
        bytes: u64,
    },
    /// There is no guest memory at their address.
    #[error("cannot write ACPI tables into guest memory")]
    Write(#[from] GuestMemoryError),
}

/// The hardware that the tables describe.
#[derive(Debug, Clone, Copy)]
pub struct Hardware {
    /// Number of processors.
    pub vcpus: u8,
    /// Number of virtio devices, in the order of their windows.
    pub virtio_devices: u32,
}

/// Writes all tables; the RSDP is at [`ACPI`].
///
/// # Errors
/// [`AcpiError`].
pub fn write(memory: &GuestMemoryMmap, hardware: Hardware) -> Result<(), AcpiError> {
    let mut tables = Area {
        bytes: vec![0; Rsdp::len().next_multiple_of(ALIGNMENT)],
    };
    let dsdt = tables.append(&dsdt(hardware));
    let fadt = tables.append(&fadt(dsdt));
    let madt = tables.append(&madt(hardware.vcpus));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = tables.append(&bytes(&xsdt));
    let rsdp = bytes(&Rsdp::new(OEM_ID, xsdt));
    tables.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    let length = tables.bytes.len() as u64;
    if ACPI + length > HIGH_MEMORY {
        return Err(AcpiError::TooLarge { bytes: length });
    }
    memory.write_slice(&tables.bytes, GuestAddress(ACPI))?;
    Ok(())
}

const ALIGNMENT: usize = 16;

/// The tables, one after the other.
struct Area {
    bytes: Vec<u8>,
}

impl Area {
    /// Appends a table and returns its guest-physical address.
    fn append(&mut self, table: &[u8]) -> u64 {
        let address = ACPI + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        self.bytes
            .resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        address
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn power_register(offset: u16) -> GAS {
    let address = u64::from(POWER_PORT + offset);
    GAS::new(
        AddressSpace::SystemIo,
        8,
        0,
        AccessSize::ByteAccess,
        address,
    )
}

fn fadt(dsdt: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.sleep_control_reg = power_register(0);
    fadt.sleep_status_reg = power_register(1);
    fadt.reset_reg = power_register(RESET_OFFSET);
    fadt.reset_value = RESET_VALUE;
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(*b"mctl\0\0\0\0").into();
    bytes(&fadt.finalize())
}

fn madt(vcpus: u8) -> Vec<u8> {
    let lapic = LocalInterruptController::Address(LAPIC);
    let mut madt = MADT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, lapic);
    for vcpu in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(vcpu, vcpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IOAPIC, 0));
    bytes(&madt)
}

fn dsdt(hardware: Hardware) -> Vec<u8> {
    let mut body = Vec::new();
    // SLP_TYP of S5 (ACPI 6.5, 7.4.2.6); hardware-reduced machines use the first element only.
    let sleep_type = SLEEP_TYPE_OFF;
    Name::new(
        "_S5_".into(),
        &Package::new(vec![&sleep_type, &0_u8, &0_u8, &0_u8]),
    )
    .to_aml_bytes(&mut body);
    let mut devices = Vec::new();
    for vcpu in 0..hardware.vcpus {
        append_processor(&mut devices, vcpu);
    }
    append_serial(&mut devices);
    for index in 0..hardware.virtio_devices {
        append_virtio(&mut devices, index);
    }
    body.extend_from_slice(&Scope::raw("\\_SB_".into(), devices));
    let mut table = Sdt::new(
        *b"DSDT",
        SDT_HEADER_BYTES,
        DSDT_REVISION,
        OEM_ID,
        OEM_TABLE_ID,
        OEM_REVISION,
    );
    table.append_slice(&body);
    table.as_slice().to_vec()
}

fn append_processor(devices: &mut Vec<u8>, vcpu: u8) {
    let hid = Name::new("_HID".into(), &"ACPI0007");
    let uid = Name::new("_UID".into(), &vcpu);
    let path = Path::new(&format!("C{vcpu:03}"));
    Device::new(path, vec![&hid, &uid]).to_aml_bytes(devices);
}

fn append_serial(devices: &mut Vec<u8>) {
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0501"));
    let uid = Name::new("_UID".into(), &0_u8);
    let ports = IO::new(COM1_PORT, COM1_PORT, 1, COM1_PORTS);
    let interrupt = Interrupt::new(true, true, false, false, COM1_GSI);
    let resources = Name::new(
        "_CRS".into(),
        &ResourceTemplate::new(vec![&ports, &interrupt]),
    );
    Device::new("COM1".into(), vec![&hid, &uid, &resources]).to_aml_bytes(devices);
}

fn append_virtio(devices: &mut Vec<u8>, number: u32) {
    let address = VIRTIO_START + number * VIRTIO_BYTES;
    let hid = Name::new("_HID".into(), &"LNRO0005");
    let uid = Name::new("_UID".into(), &number);
    let coherent = Name::new("_CCA".into(), &1_u8);
    let registers = Memory32Fixed::new(true, address, VIRTIO_BYTES);
    let interrupt = Interrupt::new(true, true, false, false, VIRTIO_FIRST_GSI + number);
    let resources = Name::new(
        "_CRS".into(),
        &ResourceTemplate::new(vec![&registers, &interrupt]),
    );
    let path = Path::new(&format!("V{number:03}"));
    Device::new(path, vec![&hid, &uid, &coherent, &resources]).to_aml_bytes(devices);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(hardware: Hardware) -> (GuestMemoryMmap, Result<(), AcpiError>) {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x20_0000)]).unwrap();
        let result = write(&memory, hardware);
        (memory, result)
    }

    fn table(memory: &GuestMemoryMmap, address: u64) -> Vec<u8> {
        let length: u32 = memory.read_obj(GuestAddress(address + 4)).unwrap();
        let mut bytes = vec![0; length as usize];
        memory
            .read_slice(&mut bytes, GuestAddress(address))
            .unwrap();
        bytes
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn all_tables_are_reachable_and_sum_to_zero() {
        let (memory, result) = written(Hardware {
            vcpus: 32,
            virtio_devices: 19,
        });
        result.unwrap();
        let xsdt: u64 = memory.read_obj(GuestAddress(ACPI + 24)).unwrap();
        let xsdt = table(&memory, xsdt);
        assert_eq!((&xsdt[..4], sum(&xsdt)), (&b"XSDT"[..], 0));
        let entries: Vec<u64> = xsdt[36..]
            .chunks(8)
            .map(|e| u64::from_le_bytes(e.try_into().unwrap()))
            .collect();
        let fadt = table(&memory, entries[0]);
        assert_eq!((&fadt[..4], sum(&fadt)), (&b"FACP"[..], 0));
        let madt = table(&memory, entries[1]);
        assert_eq!((&madt[..4], sum(&madt)), (&b"APIC"[..], 0));
        let dsdt = table(
            &memory,
            u64::from_le_bytes(fadt[140..148].try_into().unwrap()),
        );
        assert_eq!((&dsdt[..4], sum(&dsdt)), (&b"DSDT"[..], 0));
    }

    #[test]
    fn every_virtio_device_is_in_the_namespace() {
        let dsdt = dsdt(Hardware {
            vcpus: 1,
            virtio_devices: 3,
        });
        let found = dsdt
            .windows(8)
            .filter(|window| window == b"LNRO0005")
            .count();
        assert_eq!(found, 3);
    }
}
