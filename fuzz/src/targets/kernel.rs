//! The loader of kernels, and what it leaves in guest memory.

use std::fs;
use std::ops::Range;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm::boot::kernel::{KernelError, load_initramfs, load_kernel};
use vmm::boot::{entry, parameters};

use crate::scratch;

const MEMORY_BYTES: usize = 3 << 19;
const HIGH_MEMORY: usize = 1 << 20;
static ZEROES: [u8; HIGH_MEMORY] = [0; HIGH_MEMORY];
const INITRAMFS: &[u8] = b"070701";

/// See [`crate::TARGETS`].
pub(crate) fn target(input: &[u8]) {
    if let Err(error) = load(input) {
        assert!(!error.to_string().is_empty(), "a refusal says why");
    }
}

/// Loads a kernel as at a boot, and checks what that leaves in memory.
fn load(input: &[u8]) -> Result<(), KernelError> {
    let path = scratch::path("kernel");
    let initramfs = scratch::path("initramfs");
    fs::write(&path, input).expect("a file");
    fs::write(&initramfs, INITRAMFS).expect("a file");
    let memory =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).expect("host memory");
    let loaded = load_kernel(&memory, &path);
    assert!(
        read(&memory, 0..HIGH_MEMORY) == ZEROES,
        "a kernel is loaded into high memory only"
    );
    let kernel = loaded?;
    assert!(
        kernel.entry < kernel.end,
        "the first instruction lies in the kernel"
    );
    assert!(
        kernel.end <= MEMORY_BYTES as u64,
        "a kernel that is accepted fits into memory"
    );
    let end = usize::try_from(kernel.end).expect("in memory");
    let before = read(&memory, HIGH_MEMORY..end);
    // Fails where the kernel leaves no room.
    let initramfs = load_initramfs(&memory, &initramfs, kernel).ok();
    if let Some(initramfs) = initramfs {
        assert!(
            initramfs.address >= kernel.end,
            "the initramfs does not cover the kernel"
        );
    }
    parameters::write(&memory, "quiet", initramfs).expect("there is room for parameters");
    entry::prepare(&memory, kernel.entry).expect("there is room for tables");
    assert!(
        read(&memory, HIGH_MEMORY..end) == before,
        "the kernel is still as it was loaded"
    );
    Ok(())
}

fn read(memory: &GuestMemoryMmap, range: Range<usize>) -> Vec<u8> {
    let mut bytes = vec![0; range.len()];
    memory
        .read_slice(&mut bytes, GuestAddress(range.start as u64))
        .expect("in memory");
    bytes
}

/// An ELF file with these segments (address, bytes in the file, bytes in memory) and a note.
fn elf(segments: &[(u64, u64, u64)], note: Option<&[u8]>) -> Vec<u8> {
    let headers = segments.len() + usize::from(note.is_some());
    let mut file = vec![0; 64 + 56 * headers];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[16] = 2;
    file[18] = 62;
    file[20] = 1;
    file[24..32].copy_from_slice(&segments[0].0.to_le_bytes());
    file[32] = 64;
    file[52] = 64;
    file[54] = 56;
    file[56] = u8::try_from(headers).expect("a few segments");
    let put = |file: &mut Vec<u8>,
               index: usize,
               kind: u32,
               address: u64,
               bytes: u64,
               in_memory: u64,
               content: &[u8]| {
        let offset = file.len() as u64;
        let at = 64 + 56 * index;
        file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
        for (place, value) in [
            (8, offset),
            (16, address),
            (24, address),
            (32, bytes),
            (40, in_memory),
            (48, 4),
        ] {
            file[at + place..at + place + 8].copy_from_slice(&value.to_le_bytes());
        }
        file.extend_from_slice(content);
    };
    for (index, (address, bytes, in_memory)) in segments.iter().enumerate() {
        let content = vec![0x90; usize::try_from(*bytes).expect("a small segment")];
        put(&mut file, index, 1, *address, *bytes, *in_memory, &content);
    }
    if let Some(note) = note {
        let bytes = note.len() as u64;
        put(&mut file, segments.len(), 4, 0, bytes, bytes, note);
    }
    file
}

/// See [`crate::TARGETS`].
pub(crate) fn seeds() -> Vec<(&'static str, Vec<u8>)> {
    let high = HIGH_MEMORY as u64;
    // XEN_ELFNOTE_PHYS32_ENTRY, the entry of a PVH guest.
    let mut note = Vec::new();
    for word in [4_u32, 4, 18] {
        note.extend_from_slice(&word.to_le_bytes());
    }
    note.extend_from_slice(b"Xen\0\0\0\x10\0");
    let mut other_note = note.clone();
    other_note[8] = 1;
    let mut bzimage = vec![0; 0x280];
    bzimage[0x202..0x206].copy_from_slice(b"HdrS");
    bzimage[0x1f1] = 1;
    vec![
        ("small", elf(&[(high, 64, 64)], None)),
        (
            "segments",
            elf(
                &[
                    (high, 64, 4096),
                    (high + 0x2000, 100, 100),
                    (high + 0x8000, 0, 0x1000),
                ],
                None,
            ),
        ),
        ("pvh", elf(&[(high, 64, 64)], Some(&note))),
        (
            "notes",
            elf(&[(high, 64, 64)], Some(&[other_note, note].concat())),
        ),
        ("low", elf(&[(high / 2, 64, 64)], None)),
        ("large", elf(&[(high, 64, 16 << 20)], None)),
        (
            "full",
            elf(&[(high, 64, (MEMORY_BYTES - HIGH_MEMORY) as u64)], None),
        ),
        ("bzimage", bzimage),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_among_the_seeds_are_loaded() {
        let loaded = seeds().into_iter().filter(|(_, input)| load(input).is_ok());
        let names: Vec<_> = loaded.map(|(name, _)| name).collect();
        assert_eq!(names, ["small", "segments", "pvh", "notes", "full"]);
    }
}
