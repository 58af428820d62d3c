//! Which local port the next connection from the host gets.

use std::ops::RangeInclusive;

use rand::RngExt;

/// First local port, the same as Firecracker's.
pub(super) const FIRST_LOCAL_PORT: u32 = 1 << 30;
/// Last local port.
pub(super) const LAST_LOCAL_PORT: u32 = (1 << 31) - 1;

/// How local ports are chosen.
///
/// A guest that leaks connections keeps their pairs in use. With `Fixed`, each start collides with all
/// of them, one by one; the other policies avoid that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PortPolicy {
    /// Upward from a new random port at each start and restore.
    #[default]
    Random,
    /// Upward from the saved last port; from 2^30 after a boot.
    Continue,
    /// Upward from 2^30 at each start and restore, past pairs that the restore evicts.
    Fixed,
}

impl PortPolicy {
    /// Its name on command lines and in counters.
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Continue => "continue",
            Self::Fixed => "fixed",
        }
    }
}

/// The sequence of local ports.
#[derive(Debug)]
pub(super) struct LocalPorts {
    next: u32,
}

impl LocalPorts {
    /// The ports of a new VMM; `saved` is where the last one stopped.
    pub(super) fn new(policy: PortPolicy, saved: Option<u32>) -> Self {
        let next = match policy {
            PortPolicy::Random => rand::rng().random_range(range()),
            PortPolicy::Continue => saved.unwrap_or(FIRST_LOCAL_PORT),
            PortPolicy::Fixed => FIRST_LOCAL_PORT,
        };
        Self { next }
    }

    /// The port that the next connection tries first.
    pub(super) fn next(&self) -> u32 {
        self.next
    }

    /// The next port that is not in use; `None` after `attempts` ports that are.
    pub(super) fn next_free(
        &mut self,
        attempts: usize,
        in_use: impl Fn(u32) -> bool,
    ) -> Option<u32> {
        for _ in 0..attempts {
            let port = self.next;
            self.next = if port == LAST_LOCAL_PORT {
                FIRST_LOCAL_PORT
            } else {
                port + 1
            };
            if !in_use(port) {
                return Some(port);
            }
        }
        None
    }
}

fn range() -> RangeInclusive<u32> {
    FIRST_LOCAL_PORT..=LAST_LOCAL_PORT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fixed_starts_at_2_to_the_30_even_after_a_restore() {
        let mut ports = LocalPorts::new(PortPolicy::Fixed, Some(FIRST_LOCAL_PORT + 77));
        assert_eq!(ports.next_free(1, |_| false), Some(1 << 30));
        assert_eq!(ports.next_free(1, |_| false), Some((1 << 30) + 1));
    }

    #[test]
    fn continue_goes_on_where_the_saved_device_stopped() {
        let mut ports = LocalPorts::new(PortPolicy::Continue, Some(FIRST_LOCAL_PORT + 77));
        assert_eq!(ports.next_free(1, |_| false), Some(FIRST_LOCAL_PORT + 77));
    }

    #[test]
    fn random_draws_anew_each_time_and_stays_in_range() {
        let starts: Vec<u32> = (0..64)
            .map(|_| LocalPorts::new(PortPolicy::Random, Some(FIRST_LOCAL_PORT)).next())
            .collect();
        assert!(
            starts.iter().all(|port| range().contains(port)),
            "{starts:?}"
        );
        // 64 draws from 2^30: that any two adjacent ones are equal has odds of 1 in 17 million.
        assert!(starts.windows(2).all(|two| two[0] != two[1]), "{starts:?}");
    }

    #[test]
    fn ports_in_use_are_skipped() {
        let mut ports = LocalPorts::new(PortPolicy::Fixed, None);
        let in_use = [FIRST_LOCAL_PORT, FIRST_LOCAL_PORT + 1, FIRST_LOCAL_PORT + 3];
        assert_eq!(
            ports.next_free(4, |port| in_use.contains(&port)),
            Some(FIRST_LOCAL_PORT + 2)
        );
        assert_eq!(
            ports.next_free(4, |port| in_use.contains(&port)),
            Some(FIRST_LOCAL_PORT + 4)
        );
    }

    #[test]
    fn the_search_for_a_free_port_is_bounded() {
        let mut ports = LocalPorts::new(PortPolicy::Random, None);
        assert_eq!(ports.next_free(1000, |_| true), None);
    }

    #[test]
    fn the_last_port_is_followed_by_the_first() {
        let mut ports = LocalPorts::new(PortPolicy::Continue, Some(LAST_LOCAL_PORT));
        assert_eq!(ports.next_free(1, |_| false), Some(LAST_LOCAL_PORT));
        assert_eq!(ports.next_free(1, |_| false), Some(FIRST_LOCAL_PORT));
    }
}
