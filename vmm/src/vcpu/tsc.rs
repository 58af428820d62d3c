//! The guest's time stamp counter over a suspend: which offset continues it. Pure.
//!
//! A guest reads `scaled(host's counter) + offset`. KVM scales where the guest's frequency is not the
//! host's, by a fixed-point ratio (Linux, arch/x86/kvm/x86.c, `kvm_set_tsc_khz`, `set_tsc_khz`,
//! `kvm_scale_tsc`); the same arithmetic is done here, to the last bit, since counters differ by hours
//! where it is left out, and by milliseconds where it is rounded differently.

/// A host's counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostCounter {
    /// At the moment that counts.
    pub value: u64,
    /// Its frequency.
    pub khz: u32,
}

/// Bits behind the point of KVM's ratio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scaling {
    /// VMX: the TSC multiplier has 48 (Intel SDM vol. 3C, 25.3).
    Intel,
    /// SVM: TSC_RATIO has 32 (AMD APM vol. 2, 15.30.5).
    Amd,
}

impl Scaling {
    fn fraction_bits(self) -> u32 {
        match self {
            Self::Intel => 48,
            Self::Amd => 32,
        }
    }

    /// What a guest of that frequency reads before the offset is added.
    fn scaled(self, host: HostCounter, guest_khz: u32) -> u64 {
        if is_unscaled(guest_khz, host.khz) {
            return host.value;
        }
        let bits = self.fraction_bits();
        let ratio = (u128::from(guest_khz) << bits) / u128::from(host.khz);
        low_64((u128::from(host.value) * ratio) >> bits)
    }
}

/// KVM does not scale within this tolerance (`tsc_tolerance_ppm`; Linux itself keeps time within it).
const TOLERANCE_PPM: u64 = 250;

/// Whether a guest of that frequency reads the host's counter as it is.
#[must_use]
pub fn is_unscaled(guest_khz: u32, host_khz: u32) -> bool {
    let adjusted = |ppm: u64| u64::from(host_khz) * ppm / 1_000_000;
    let tolerated = adjusted(1_000_000 - TOLERANCE_PPM)..=adjusted(1_000_000 + TOLERANCE_PPM);
    host_khz == 0 || tolerated.contains(&u64::from(guest_khz))
}

/// The offset with which a guest's counter goes on from what it read at the save, when the host's counter
/// was `saved` and the guest's offset `offset`; `now` is the counter of the host that goes on.
#[must_use]
pub fn continued_offset(
    scaling: Scaling,
    guest_khz: u32,
    offset: u64,
    saved: HostCounter,
    now: HostCounter,
) -> u64 {
    scaling
        .scaled(saved, guest_khz)
        .wrapping_add(offset)
        .wrapping_sub(scaling.scaled(now, guest_khz))
}

#[expect(clippy::cast_possible_truncation, reason = "counters wrap")]
fn low_64(value: u128) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_AT_2_GHZ: u64 = 3_600 * 2_000_000_000;

    /// What the guest reads.
    fn guest_reads(scaling: Scaling, guest_khz: u32, host: HostCounter, offset: u64) -> u64 {
        scaling.scaled(host, guest_khz).wrapping_add(offset)
    }

    #[test]
    fn on_a_host_of_the_same_frequency_only_the_difference_of_the_counters_counts() {
        let counter = |value| HostCounter {
            value,
            khz: 2_000_000,
        };
        let offset = continued_offset(
            Scaling::Intel,
            2_000_000,
            u64::MAX - 9,
            counter(1_000),
            counter(400),
        );
        assert_eq!(offset, 590, "-10 + 1000 - 400");
    }

    #[test]
    fn a_guest_goes_on_from_where_it_was_on_hosts_of_any_frequency() {
        for scaling in [Scaling::Intel, Scaling::Amd] {
            for (saved_khz, now_khz) in [
                (2_000_000, 2_600_000),
                (2_600_000, 2_000_000),
                (2_599_998, 2_600_004),
                (2_000_000, 2_000_400),
                (1_000_000, 5_000_000),
            ] {
                let saved = HostCounter {
                    value: 900 * HOUR_AT_2_GHZ,
                    khz: saved_khz,
                };
                let now = HostCounter {
                    value: 7 * HOUR_AT_2_GHZ + 12_345,
                    khz: now_khz,
                };
                let guest_khz = 2_000_000;
                let before = guest_reads(scaling, guest_khz, saved, 77);
                let offset = continued_offset(scaling, guest_khz, 77, saved, now);
                assert_eq!(guest_reads(scaling, guest_khz, now, offset), before);
            }
        }
    }

    #[test]
    fn an_offset_alone_would_jump_by_hours() {
        let saved = HostCounter {
            value: 900 * HOUR_AT_2_GHZ,
            khz: 2_000_000,
        };
        let now = HostCounter {
            value: 7 * HOUR_AT_2_GHZ,
            khz: 2_600_000,
        };
        let right = continued_offset(Scaling::Intel, 2_000_000, 0, saved, now);
        let unscaled = saved.value - now.value;
        assert!(right - unscaled > HOUR_AT_2_GHZ, "{right} {unscaled}");
    }

    #[test]
    fn the_arithmetic_is_kvms() {
        let host = HostCounter {
            value: 0x0123_4567_89ab_cdef,
            khz: 2_600_000,
        };
        // The ratios are 2^48 * 10 / 13 and 2^32 * 10 / 13, rounded down.
        assert_eq!(
            Scaling::Intel.scaled(host, 2_000_000),
            low_64((u128::from(host.value) * 216_519_212_854_350) >> 48)
        );
        assert_eq!(
            Scaling::Amd.scaled(host, 2_000_000),
            low_64((u128::from(host.value) * 3_303_820_996) >> 32)
        );
    }

    #[test]
    fn within_the_tolerance_nothing_is_scaled() {
        assert!(is_unscaled(2_000_000, 2_000_000));
        assert!(is_unscaled(2_000_500, 2_000_000));
        assert!(!is_unscaled(2_000_501, 2_000_000));
        assert!(is_unscaled(1_999_500, 2_000_000));
        assert!(!is_unscaled(1_999_499, 2_000_000));
        assert!(is_unscaled(2_000_000, 0), "the host does not know");
    }
}
