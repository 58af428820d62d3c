//! Extracts the uncompressed kernel (ELF, `vmlinux`) from the file that distributions ship
//! (`bzImage`).
//!
//! The layout is that of Documentation/arch/x86/boot.rst, protocol 2.08 and later. Kernels that
//! are not for x86-64 are refused: they would not boot.

use std::path::Path;
use std::{fs, io};

use thiserror::Error;

use crate::compression::{self, Format, UnpackError};

const SETUP_SECTS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const PROTOCOL_VERSION: usize = 0x206;
const KERNEL_VERSION: usize = 0x20e;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR_BYTES: usize = 512;
const FIRST_PROTOCOL_WITH_PAYLOAD: u16 = 0x0208;

const ELF_MAGIC: &[u8] = b"\x7fELF";
const ELF_CLASS_64: u8 = 2;
const ELF_MACHINE: usize = 18;
const ELF_MACHINE_X86_64: u16 = 62;

/// Why a file is not a usable kernel.
#[derive(Debug, Error)]
pub enum KernelImageError {
    #[error("cannot read the kernel image")]
    Read(#[source] io::Error),
    #[error("neither an ELF file nor a bzImage (no `HdrS` at 0x202)")]
    Unknown,
    #[error(
        "its boot protocol {major}.{minor:02} has no payload fields (2.08 is the first that has)"
    )]
    OldProtocol { major: u16, minor: u16 },
    #[error("its header puts the payload at {start}..{end}, the file has {file_bytes} bytes")]
    PayloadOutside {
        start: u64,
        end: u64,
        file_bytes: usize,
    },
    #[error("its payload begins with {first_bytes:02x?}, which is no known compression")]
    UnknownPayload { first_bytes: Vec<u8> },
    #[error("cannot unpack its payload")]
    Unpack(#[from] UnpackError),
    #[error("its {format} payload unpacks to {bytes} bytes instead of the announced {announced}")]
    WrongSize {
        format: Format,
        bytes: usize,
        announced: u32,
    },
    #[error("its payload is not an ELF file")]
    NotElf,
    #[error("it is not a kernel for x86-64 (ELF class {class}, machine {machine})")]
    OtherMachine { class: u8, machine: u16 },
}

/// A kernel image in memory.
#[derive(Debug)]
pub struct KernelImage {
    bytes: Vec<u8>,
}

impl KernelImage {
    pub fn read(path: &Path) -> Result<Self, KernelImageError> {
        fs::read(path)
            .map(|bytes| Self { bytes })
            .map_err(KernelImageError::Read)
    }

    /// The bytes of the file, for checksums.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The version of a bzImage, as in `/lib/modules/<version>`; an ELF file has none.
    pub fn version(&self) -> Option<&str> {
        if self.bytes.get(HEADER_MAGIC..)?.first_chunk()? != b"HdrS" {
            return None;
        }
        let offset = usize::from(u16_at(&self.bytes, KERNEL_VERSION)?);
        // The field counts from 0x200, where the header begins.
        let text = self.bytes.get(0x200 + offset..)?;
        let end = text
            .iter()
            .take(256)
            .position(|byte| matches!(byte, 0 | b' '))?;
        std::str::from_utf8(&text[..end])
            .ok()
            .filter(|version| !version.is_empty())
    }

    /// The ELF file in the image, or the image itself if it is one.
    pub fn into_vmlinux(self) -> Result<Vec<u8>, KernelImageError> {
        let vmlinux = if self.bytes.starts_with(ELF_MAGIC) {
            self.bytes
        } else {
            unpack_payload(payload(&self.bytes)?)?
        };
        check_elf(&vmlinux)?;
        Ok(vmlinux)
    }
}

fn payload(image: &[u8]) -> Result<&[u8], KernelImageError> {
    use KernelImageError as E;
    let magic = image
        .get(HEADER_MAGIC..)
        .and_then(|rest| rest.first_chunk::<4>());
    if magic != Some(b"HdrS") {
        return Err(E::Unknown);
    }
    let protocol = u16_at(image, PROTOCOL_VERSION).ok_or(E::Unknown)?;
    if protocol < FIRST_PROTOCOL_WITH_PAYLOAD {
        return Err(E::OldProtocol {
            major: protocol >> 8,
            minor: protocol & 0xff,
        });
    }
    let offset = u32_at(image, PAYLOAD_OFFSET).ok_or(E::Unknown)?;
    let length = u32_at(image, PAYLOAD_LENGTH).ok_or(E::Unknown)?;
    // Zero means four: older kernels do not set the field.
    let setup_sects = match image[SETUP_SECTS] {
        0 => 4,
        sects => usize::from(sects),
    };
    let start = ((setup_sects + 1) * SECTOR_BYTES) as u64 + u64::from(offset);
    let end = start + u64::from(length);
    usize::try_from(start)
        .ok()
        .zip(usize::try_from(end).ok())
        .and_then(|(start, end)| image.get(start..end))
        .ok_or(E::PayloadOutside {
            start,
            end,
            file_bytes: image.len(),
        })
}

fn unpack_payload(payload: &[u8]) -> Result<Vec<u8>, KernelImageError> {
    use KernelImageError as E;
    if payload.starts_with(ELF_MAGIC) {
        return Ok(payload.to_vec());
    }
    let format = compression::detect(payload).ok_or_else(|| E::UnknownPayload {
        first_bytes: payload.iter().copied().take(6).collect(),
    })?;
    let vmlinux = compression::unpack(format, payload)?;
    // The kernel build appends the size; a gzip stream ends with it in any case.
    let announced = payload
        .last_chunk()
        .copied()
        .map(u32::from_le_bytes)
        .unwrap_or_default();
    if announced as usize != vmlinux.len() {
        return Err(E::WrongSize {
            format,
            bytes: vmlinux.len(),
            announced,
        });
    }
    Ok(vmlinux)
}

fn check_elf(vmlinux: &[u8]) -> Result<(), KernelImageError> {
    if !vmlinux.starts_with(ELF_MAGIC) {
        return Err(KernelImageError::NotElf);
    }
    let class = vmlinux.get(4).copied().unwrap_or_default();
    let machine = u16_at(vmlinux, ELF_MACHINE).unwrap_or_default();
    if class != ELF_CLASS_64 || machine != ELF_MACHINE_X86_64 {
        return Err(KernelImageError::OtherMachine { class, machine });
    }
    Ok(())
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes
        .get(offset..)?
        .first_chunk()
        .copied()
        .map(u16::from_le_bytes)
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes
        .get(offset..)?
        .first_chunk()
        .copied()
        .map(u32::from_le_bytes)
}

/// Small kernels for the tests of this crate.
#[cfg(test)]
pub(crate) mod sample {
    use super::*;

    /// An ELF header and enough zeroes to be worth compressing.
    pub(crate) fn vmlinux() -> Vec<u8> {
        let mut elf = vec![0_u8; 4096];
        elf[..4].copy_from_slice(ELF_MAGIC);
        elf[4] = ELF_CLASS_64;
        elf[ELF_MACHINE..ELF_MACHINE + 2].copy_from_slice(&ELF_MACHINE_X86_64.to_le_bytes());
        elf
    }

    /// A bzImage with two set-up sectors, version 6.1.0-made and this payload.
    pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0_u8; 3 * SECTOR_BYTES + 16];
        image[SETUP_SECTS] = 2;
        image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        image[PROTOCOL_VERSION..PROTOCOL_VERSION + 2].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[KERNEL_VERSION..KERNEL_VERSION + 2].copy_from_slice(&0x100_u16.to_le_bytes());
        let version = b"6.1.0-made (someone@somewhere) #1\0";
        image[0x300..0x300 + version.len()].copy_from_slice(version);
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16_u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(payload);
        image.extend_from_slice(&[0x90; 100]);
        image
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compression::pack;

    fn packed_vmlinux(format: Format) -> Vec<u8> {
        let vmlinux = sample::vmlinux();
        let mut payload = pack::pack(format, &vmlinux);
        if format != Format::Gzip {
            payload.extend_from_slice(&u32::try_from(vmlinux.len()).unwrap().to_le_bytes());
        }
        payload
    }

    fn vmlinux_of(bytes: Vec<u8>) -> Result<Vec<u8>, KernelImageError> {
        KernelImage { bytes }.into_vmlinux()
    }

    #[test]
    fn the_elf_comes_out_of_each_kind_of_payload() {
        for format in pack::FORMATS {
            let image = sample::bzimage(&packed_vmlinux(format));
            assert_eq!(vmlinux_of(image).unwrap(), sample::vmlinux(), "{format}");
        }
    }

    #[test]
    fn an_elf_file_is_taken_as_it_is() {
        assert_eq!(vmlinux_of(sample::vmlinux()).unwrap(), sample::vmlinux());
    }

    #[test]
    fn the_version_is_that_of_the_header() {
        let image = KernelImage {
            bytes: sample::bzimage(b""),
        };
        assert_eq!(image.version(), Some("6.1.0-made"));
        assert_eq!(
            KernelImage {
                bytes: sample::vmlinux()
            }
            .version(),
            None
        );
    }

    #[test]
    fn every_shortened_image_is_refused_and_none_panics() {
        let image = sample::bzimage(&packed_vmlinux(Format::Zstd));
        let whole = image.len() - 100;
        for length in 0..whole {
            let cut = KernelImage {
                bytes: image[..length].to_vec(),
            };
            let _ = cut.version();
            assert!(cut.into_vmlinux().is_err(), "{length} of {whole} bytes");
        }
    }

    #[test]
    fn a_payload_beyond_the_file_is_named() {
        let mut image = sample::bzimage(b"");
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].fill(0xff);
        let error = vmlinux_of(image).unwrap_err();
        assert!(
            matches!(error, KernelImageError::PayloadOutside { .. }),
            "{error}"
        );
    }

    #[test]
    fn a_payload_of_another_size_than_announced_is_refused() {
        let mut payload = packed_vmlinux(Format::Lz4Legacy);
        let end = payload.len();
        payload[end - 4..].copy_from_slice(&17_u32.to_le_bytes());
        let error = vmlinux_of(sample::bzimage(&payload)).unwrap_err();
        assert!(
            matches!(error, KernelImageError::WrongSize { announced: 17, .. }),
            "{error}"
        );
    }

    #[test]
    fn a_kernel_for_another_machine_is_refused() {
        let mut elf = sample::vmlinux();
        elf[ELF_MACHINE] = 183;
        let error = vmlinux_of(elf).unwrap_err();
        assert!(
            matches!(error, KernelImageError::OtherMachine { machine: 183, .. }),
            "{error}"
        );
    }

    #[test]
    fn an_old_boot_protocol_is_named() {
        let mut image = sample::bzimage(b"");
        image[PROTOCOL_VERSION..PROTOCOL_VERSION + 2].copy_from_slice(&0x0207_u16.to_le_bytes());
        let error = vmlinux_of(image).unwrap_err();
        assert!(error.to_string().contains("2.07"), "{error}");
    }
}
