//! What each resource is, and how much of it may grow.

/// How a resource may grow.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Allowance {
    /// By less than one in 300 cycles.
    Count,
    /// By so many bytes per cycle. Less is what allocators, caches and page tables settle with.
    Bytes {
        /// Bytes per cycle.
        per_cycle: f64,
    },
    /// By design, by so many bytes per cycle and to a limit.
    Designed {
        /// Bytes per cycle.
        per_cycle: f64,
        /// The most bytes, whenever.
        limit: f64,
    },
}

const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * KIB;

/// Resources whose allowance the ending of their name does not tell.
const KNOWN: [(&str, Allowance); 7] = [
    // Events and timings: 3.5 KiB in a healthy cycle, until each machine has 5,000 rows of either;
    // the write-ahead log has its 8 MiB from the start (supervisor/src/store).
    (
        "database_bytes",
        Allowance::Designed {
            per_cycle: 8.0 * KIB,
            limit: 64.0 * MIB,
        },
    ),
    // What the guest and the VMM print at a resume, 31 bytes from a healthy one; rotated at 8 MiB
    // (supervisor/src/logs).
    (
        "log_bytes",
        Allowance::Designed {
            per_cycle: KIB,
            limit: 64.0 * MIB,
        },
    ),
    // Logs again, and the image, which is the guest's memory at most.
    (
        "machine_folder_bytes",
        Allowance::Designed {
            per_cycle: 16.0 * KIB,
            limit: 65_536.0 * MIB,
        },
    ),
    // SQLite's page cache fills to 2 MB.
    (
        "supervisor_resident_bytes",
        Allowance::Bytes {
            per_cycle: 8.0 * KIB,
        },
    ),
    (
        "supervisor_anonymous_bytes",
        Allowance::Bytes {
            per_cycle: 8.0 * KIB,
        },
    ),
    (
        "guest_init_resident_bytes",
        Allowance::Bytes { per_cycle: KIB },
    ),
    (
        "guest_init_anonymous_bytes",
        Allowance::Bytes { per_cycle: KIB },
    ),
];

/// What other bytes may grow by per cycle: one page.
const PAGE: f64 = 4.0 * KIB;

/// How the resource `name` may grow.
pub(super) fn allowance(name: &str) -> Allowance {
    if let Some((_, known)) = KNOWN.iter().find(|(known, _)| *known == name) {
        return *known;
    }
    if name.ends_with("_bytes") {
        Allowance::Bytes { per_cycle: PAGE }
    } else {
        Allowance::Count
    }
}

/// `vmm_resident_bytes` in words: `vmm resident`.
pub(crate) fn in_words(name: &str) -> String {
    name.strip_suffix("_bytes")
        .unwrap_or(name)
        .replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_nobody_knows_is_told_by_its_ending() {
        assert_eq!(allowance("vmm_threads"), Allowance::Count);
        assert_eq!(allowance("gpu_bytes"), Allowance::Bytes { per_cycle: PAGE });
        assert!(matches!(allowance("log_bytes"), Allowance::Designed { .. }));
    }
}
