//! The processor's name as guests see it (leaves 0x80000002 to 0x80000004; Intel SDM vol. 2A, CPUID; AMD
//! APM vol. 3, E.4.2). KVM leaves it to the VMM. A guest of the host's own processor sees its name; one of a
//! template sees the template's, since its image may go on on another one.

use kvm_bindings::kvm_cpuid_entry2;

use super::leaf_register::leaf;
use super::template::CpuTemplate;

/// The leaves with the name.
const LEAVES: [u32; 3] = [0x8000_0002, 0x8000_0003, 0x8000_0004];
/// Bytes of the name; the last is zero.
const BYTES: usize = 48;

/// Puts the name into `entries`. `host` are the registers of the three leaves on this host.
pub(super) fn set(entries: &mut Vec<kvm_cpuid_entry2>, host: [[u32; 4]; 3], template: CpuTemplate) {
    let highest = entries.iter().find(|entry| entry.function == 0x8000_0000);
    if highest.is_none_or(|entry| entry.eax < LEAVES[2]) {
        return;
    }
    let registers = match template {
        CpuTemplate::Host => host,
        CpuTemplate::X86_64V2 | CpuTemplate::X86_64V3 => {
            let intel = u32::from_le_bytes(*b"Genu");
            let vendor = entries.iter().find(|entry| entry.function == 0);
            let vendor = match vendor {
                Some(leaf) if leaf.ebx == intel => "Intel",
                _ => "AMD",
            };
            encode(&format!("{vendor} {template} processor"))
        }
    };
    entries.retain(|entry| !LEAVES.contains(&entry.function));
    let leaves = LEAVES.into_iter().zip(registers);
    entries.extend(leaves.map(|(function, registers)| leaf(function, 0, registers)));
}

fn encode(name: &str) -> [[u32; 4]; 3] {
    let mut bytes = [0; BYTES];
    let length = name.len().min(BYTES - 1);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    let mut words = bytes.chunks_exact(4).map(|word| {
        word.iter()
            .rev()
            .fold(0, |all, byte| all << 8 | u32::from(*byte))
    });
    [(); 3].map(|()| [(); 4].map(|()| words.next().unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(entries: &[kvm_cpuid_entry2]) -> String {
        let leaves = entries
            .iter()
            .filter(|entry| LEAVES.contains(&entry.function));
        let bytes: Vec<u8> = leaves
            .flat_map(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
            .flat_map(u32::to_le_bytes)
            .collect();
        assert_eq!(bytes.len(), BYTES);
        String::from_utf8(bytes)
            .unwrap()
            .trim_end_matches('\0')
            .to_owned()
    }

    fn entries(vendor: [u8; 4]) -> Vec<kvm_cpuid_entry2> {
        vec![
            leaf(0, 0, [0xd, u32::from_le_bytes(vendor), 0, 0]),
            leaf(0x8000_0000, 0, [0x8000_001e, 0, 0, 0]),
            // As KVM offers it: nothing.
            leaf(0x8000_0002, 0, [0; 4]),
        ]
    }

    #[test]
    fn a_guest_of_the_host_sees_the_hosts_name() {
        let mut seen = entries(*b"Auth");
        set(&mut seen, encode("AMD EPYC 7763"), CpuTemplate::Host);
        assert_eq!(name(&seen), "AMD EPYC 7763");
    }

    #[test]
    fn a_guest_of_a_template_sees_the_same_name_on_all_hosts() {
        let mut seen = entries(*b"Genu");
        set(&mut seen, encode("Intel(R) Xeon(R)"), CpuTemplate::X86_64V3);
        assert_eq!(name(&seen), "Intel x86-64-v3 processor");
    }

    #[test]
    fn a_processor_without_a_name_has_none() {
        let mut seen = entries(*b"Genu");
        seen[1].eax = 0x8000_0001;
        let before = seen.len();
        set(&mut seen, encode("x"), CpuTemplate::Host);
        assert_eq!(seen.len(), before);
    }
}
