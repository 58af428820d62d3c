//! Mends a fault of QEMU's SVM emulation in the QEMU process that we have started.
//!
//! When VMRUN injects an external interrupt, QEMU's `helper_vmrun` (`svm_helper.c`, case
//! `SVM_EVTINJ_TYPE_INTR`) delivers it at once, but leaves its vector in `exception_index`. If the
//! loop that executes instructions ends before the next #VMEXIT, it takes that for an exception that
//! is still to be delivered: the guest gets the same interrupt a second time, even with interrupts
//! disabled, in the middle of the first one's handler. If the handler holds a lock then, the guest
//! waits for itself for ever. The loop ends at each deadline of a timer in virtual time, so about
//! one boot of a guest in fifteen stood still (seen in `handle_edge_irq` of Linux 6.1, on the stack
//! of a guest twice); in real time it ends so rarely that nobody may have noticed. QEMU 7.2 to 11.1
//! have the fault.
//!
//! The remedy is to reset `exception_index` after the delivery, as is done for interrupts of any
//! other origin (`cpu-exec.c`: `cpu_handle_interrupt`). The compiled code has 13 bytes at that
//! place that only serve QEMU's log. They are replaced in the memory of the process; the file of
//! QEMU is not touched.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why QEMU could not be mended.
#[derive(Debug, Error)]
pub enum FixError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("this QEMU has {found} places of the fault in its emulation of SVM, one is expected")]
    UnknownQemu { found: usize },
    #[error("cannot find the code of QEMU in the memory of its process")]
    NotMapped,
    #[error("cannot write to the memory of QEMU's process")]
    Write(#[source] io::Error),
}

/// A byte of compiled code; `None` is any byte: an address, a place in a structure.
type Pattern = [Option<u8>];

/// A register that holds the emulated processor's state, by its number in a ModRM byte.
const STATE_REGISTERS: [u8; 2] = [RBX, RBP];
const RBX: u8 = 3;
const RBP: u8 = 5;

/// The beginning of the code that injects, as gcc compiles it, with the state in `register`.
#[rustfmt::skip]
const fn preparation(register: u8) -> [Option<u8>; 40] {
    [
        // mov %esi, exception_index(%register)
        Some(0x89), Some(0xb0 | register), None, None, None, None,
        // movl $0, exception_is_int(%register)
        Some(0xc7), Some(0x80 | register), None, None, None, None, Some(0), Some(0), Some(0), Some(0),
        // movq $-1, exception_next_eip(%register)
        Some(0x48), Some(0xc7), Some(0x80 | register), None, None, None, None,
        Some(0xff), Some(0xff), Some(0xff), Some(0xff),
        // testb $2, qemu_loglevel(%rip); jne …
        Some(0xf6), Some(0x05), None, None, None, None, Some(0x02),
        Some(0x0f), Some(0x85), None, None, None, None,
    ]
}
/// Where the displacement of `exception_index` is in it.
const DISPLACEMENT: usize = 2;

/// The delivery that follows: a function of its own (Debian's QEMU 7.2, 10.0 and 11.1), or its
/// content (Ubuntu's 8.2).
#[rustfmt::skip]
const DELIVERIES: [&Pattern; 2] = [
    &[
        // mov $1, %edx; mov %rbx, %rdi; call do_interrupt_x86_hardirq
        Some(0xba), Some(1), Some(0), Some(0), Some(0),
        Some(0x48), Some(0x89), Some(0xdf),
        Some(0xe8), None, None, None, None,
    ],
    &[
        // xor %r8d, %r8d; xor %ecx, %ecx; xor %edx, %edx; mov $1, %r9d; mov %r12, %rdi
        Some(0x45), Some(0x31), Some(0xc0), Some(0x31), Some(0xc9), Some(0x31), Some(0xd2),
        Some(0x41), Some(0xb9), Some(1), Some(0), Some(0), Some(0),
        Some(0x4c), Some(0x89), Some(0xe7),
        // call do_interrupt_all
        Some(0xe8), None, None, None, None,
    ],
];

/// The two instructions that follow, for the log; they are replaced.
#[rustfmt::skip]
const LOG: [Option<u8>; 13] = [
    // testb $2, qemu_loglevel(%rip); je to the end of the function
    Some(0xf6), Some(0x05), None, None, None, None, Some(0x02),
    Some(0x0f), Some(0x84), None, None, None, None,
];
/// The length of the second of them.
const JUMP: usize = 6;

/// What is written, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fix {
    /// In the file of QEMU.
    offset: u64,
    bytes: [u8; LOG.len()],
}

impl Fix {
    /// The fix for the QEMU in the file `program`.
    pub(crate) fn of_program(program: &Path) -> Result<Self, FixError> {
        let code = fs::read(program).map_err(|source| FixError::Read {
            path: program.to_owned(),
            source,
        })?;
        Self::of_code(&code)
    }

    fn of_code(code: &[u8]) -> Result<Self, FixError> {
        let places: Vec<(usize, usize, u8)> = code
            .windows(2)
            .enumerate()
            .filter_map(|(place, window)| {
                // By its first byte, before everything else: a program has thirty million bytes.
                let (0x89, modrm) = (window[0], window[1]) else {
                    return None;
                };
                let register = STATE_REGISTERS
                    .into_iter()
                    .find(|register| modrm == 0xb0 | register)?;
                let log = log_of_injection(&code[place..], register)?;
                Some((place, place + log, register))
            })
            .collect();
        let [(preparation, log, register)] = places[..] else {
            let found = places.len();
            return Err(FixError::UnknownQemu { found });
        };
        let mut bytes = [0x90; LOG.len()];
        // orl $-1, exception_index(%register)
        bytes[..2].copy_from_slice(&[0x83, 0x88 | register]);
        bytes[2..6].copy_from_slice(&code[preparation + DISPLACEMENT..][..4]);
        bytes[6] = 0xff;
        // jmp to where je would have gone. It is one byte shorter and ends one byte earlier.
        let mut distance = [0; 4];
        distance.copy_from_slice(&code[log + LOG.len() - 4..][..4]);
        let distance = i32::from_le_bytes(distance).wrapping_add(1);
        bytes[LOG.len() - JUMP] = 0xe9;
        bytes[LOG.len() - JUMP + 1..LOG.len() - 1].copy_from_slice(&distance.to_le_bytes());
        Ok(Self {
            offset: log as u64,
            bytes,
        })
    }

    /// Applies it to the process `pid`, a child that executes `program`. The code is not executed
    /// before a guest runs, seconds later.
    pub(crate) fn apply(&self, pid: u32, program: &Path) -> Result<(), FixError> {
        let maps = PathBuf::from(format!("/proc/{pid}/maps"));
        let text = fs::read_to_string(&maps).map_err(|source| FixError::Read {
            path: maps.clone(),
            source,
        })?;
        let address = address_of(&text, program, self.offset).ok_or(FixError::NotMapped)?;
        File::options()
            .write(true)
            .open(format!("/proc/{pid}/mem"))
            .and_then(|memory| memory.write_all_at(&self.bytes, address))
            .map_err(FixError::Write)
    }
}

/// Where the log's instructions are in `code`, if it begins with the code that injects.
fn log_of_injection(code: &[u8], register: u8) -> Option<usize> {
    let rest = without(code, &preparation(register))?;
    let rest = DELIVERIES
        .into_iter()
        .find_map(|delivery| without(rest, delivery))?;
    without(rest, &LOG)?;
    Some(code.len() - rest.len())
}

/// What follows `pattern` in `code`, if it begins with it.
fn without<'a>(code: &'a [u8], pattern: &Pattern) -> Option<&'a [u8]> {
    let (found, rest) = code.split_at_checked(pattern.len())?;
    let mut bytes = pattern.iter().zip(found);
    bytes
        .all(|(wanted, byte)| wanted.is_none_or(|wanted| wanted == *byte))
        .then_some(rest)
}

/// The address of the byte `offset` of the file `program`, which is executable there.
fn address_of(maps: &str, program: &Path, offset: u64) -> Option<u64> {
    maps.lines().find_map(|line| {
        // proc(5): address range, permissions, offset, device, inode, path.
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let permissions = fields.next()?;
        let mapped_from = u64::from_str_radix(fields.next()?, 16).ok()?;
        let path = fields.nth(2)?;
        let (start, end) = (
            u64::from_str_radix(start, 16).ok()?,
            u64::from_str_radix(end, 16).ok()?,
        );
        let within = offset.checked_sub(mapped_from)?;
        let is_it = Path::new(path) == program && permissions.contains('x');
        (is_it && within < end - start).then_some(start + within)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The code that injects among other code, with `exception_index` at -0x10ac.
    fn code(register: u8, delivery: &Pattern) -> Vec<u8> {
        let mut code = vec![0xcc; 100];
        let patterns = [&preparation(register)[..], delivery, &LOG];
        let bytes = patterns.into_iter().flatten();
        code.extend(bytes.map(|byte| byte.unwrap_or(0x11)));
        code[102..106].copy_from_slice(&(-0x10ac_i32).to_le_bytes());
        let end = code.len();
        code[end - 4..].copy_from_slice(&(-0x17b_i32).to_le_bytes());
        code.extend([0xcc; 20]);
        code
    }

    #[test]
    fn the_log_is_replaced_by_a_reset_and_a_jump_to_the_same_place() {
        for delivery in DELIVERIES {
            // orl $-1, -0x10ac(%register); jmp -0x17a; nop: from one byte earlier, to the same place.
            for (register, modrm) in [(RBX, 0x8b), (RBP, 0x8d)] {
                let fix = Fix::of_code(&code(register, delivery)).unwrap();
                let log = 100 + preparation(register).len() + delivery.len();
                assert_eq!(fix.offset, log as u64);
                let wanted = [
                    0x83, modrm, 0x54, 0xef, 0xff, 0xff, 0xff, 0xe9, 0x86, 0xfe, 0xff, 0xff, 0x90,
                ];
                assert_eq!(fix.bytes, wanted);
            }
        }
    }

    #[test]
    fn other_code_is_left_alone() {
        let unknown = |code: &[u8]| match Fix::of_code(code) {
            Err(FixError::UnknownQemu { found }) => found,
            other => panic!("{other:?}"),
        };
        assert_eq!(unknown(&[0; 4096]), 0);
        assert_eq!(unknown(&[]), 0);
        let known = code(RBX, DELIVERIES[0]);
        assert_eq!(unknown(&[known.clone(), known.clone()].concat()), 2);
        // Cut off anywhere.
        for length in 0..known.len() - 20 {
            assert_eq!(unknown(&known[..length]), 0);
        }
    }

    #[test]
    fn an_address_is_found_by_the_executable_part_of_the_file() {
        let maps = "55d000-55e000 r--p 00000000 fe:00 1 /usr/bin/qemu\n\
                    560000-570000 r-xp 00001000 fe:00 1 /usr/bin/qemu\n\
                    7f0000-7f1000 r-xp 00000000 fe:00 2 /lib/libc.so\n";
        let program = Path::new("/usr/bin/qemu");
        assert_eq!(address_of(maps, program, 0x1010), Some(0x56_0010));
        assert_eq!(address_of(maps, program, 0x10), None);
        assert_eq!(address_of(maps, program, 0x1_1000), None);
    }
}
