//! A halt in progress: first all vCPUs come to rest, then all disks. Pure: the caller asks them to, and
//! passes on what they report.
//!
//! Each halt has a number, so that a report that comes after its halt was given up is not taken for one
//! of the next.

use std::time::{Duration, Instant};

/// How long vCPUs and disks may take together. A vCPU may be waiting for guest memory from a slow disk.
pub const HALT_DEADLINE: Duration = Duration::from_secs(10);

/// A halt in progress.
#[derive(Debug)]
pub struct Halt {
    round: u64,
    deadline: Instant,
    rest: Rest,
}

/// What has not come to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    Vcpus(usize),
    Disks(usize),
}

/// What follows from a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// More reports have to come.
    Wait,
    /// The last vCPU has halted; the disks are to be held.
    HoldDisks,
    /// All is at rest.
    Halted,
}

impl Halt {
    /// All `vcpus`, at least one, have been asked at `now`.
    #[must_use]
    pub fn begin(round: u64, vcpus: usize, now: Instant) -> Self {
        Self {
            round,
            deadline: now + HALT_DEADLINE,
            rest: Rest::Vcpus(vcpus),
        }
    }

    /// Its number.
    #[must_use]
    pub fn round(&self) -> u64 {
        self.round
    }

    /// A vCPU has halted.
    pub fn vcpu_halted(&mut self, round: u64) -> Next {
        match self.rest {
            Rest::Vcpus(left) if round == self.round => {
                let left = left.saturating_sub(1);
                self.rest = Rest::Vcpus(left);
                if left == 0 {
                    Next::HoldDisks
                } else {
                    Next::Wait
                }
            }
            _ => Next::Wait,
        }
    }

    /// So many disks have been asked to take no further request and to report when none is in service.
    pub fn disks_asked(&mut self, disks: usize) -> Next {
        self.rest = Rest::Disks(disks);
        self.disks_left(disks)
    }

    /// A disk has no request in service.
    pub fn disk_held(&mut self, round: u64) -> Next {
        match self.rest {
            Rest::Disks(left) if round == self.round => {
                let left = left.saturating_sub(1);
                self.rest = Rest::Disks(left);
                self.disks_left(left)
            }
            _ => Next::Wait,
        }
    }

    fn disks_left(&self, left: usize) -> Next {
        if left == 0 { Next::Halted } else { Next::Wait }
    }

    /// How long there is until its deadline; none once that has passed.
    #[must_use]
    pub fn time_left(&self, now: Instant) -> Option<Duration> {
        let left = self.deadline.saturating_duration_since(now);
        (!left.is_zero()).then_some(left)
    }

    /// What it still waits for.
    #[must_use]
    pub fn waits_for(&self) -> String {
        match self.rest {
            Rest::Vcpus(1) => "a vCPU to halt".to_owned(),
            Rest::Vcpus(left) => format!("{left} vCPUs to halt"),
            Rest::Disks(1) => "a disk to end a request".to_owned(),
            Rest::Disks(left) => format!("{left} disks to end a request"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vcpus_come_to_rest_first_and_then_disks() {
        let mut halt = Halt::begin(7, 2, Instant::now());
        assert_eq!(halt.waits_for(), "2 vCPUs to halt");
        assert_eq!(halt.disk_held(7), Next::Wait, "no disk was asked yet");
        assert_eq!(halt.vcpu_halted(7), Next::Wait);
        assert_eq!(halt.vcpu_halted(7), Next::HoldDisks);
        assert_eq!(halt.disks_asked(2), Next::Wait);
        assert_eq!(halt.vcpu_halted(7), Next::Wait);
        assert_eq!(halt.disk_held(7), Next::Wait);
        assert_eq!(halt.waits_for(), "a disk to end a request");
        assert_eq!(halt.disk_held(7), Next::Halted);
    }

    #[test]
    fn a_machine_without_disks_is_at_rest_with_its_vcpus() {
        let mut halt = Halt::begin(1, 1, Instant::now());
        assert_eq!(halt.vcpu_halted(1), Next::HoldDisks);
        assert_eq!(halt.disks_asked(0), Next::Halted);
    }

    #[test]
    fn reports_of_an_earlier_halt_count_for_nothing() {
        let mut halt = Halt::begin(2, 1, Instant::now());
        assert_eq!(halt.vcpu_halted(1), Next::Wait);
        assert_eq!(halt.vcpu_halted(2), Next::HoldDisks);
        assert_eq!(halt.disks_asked(1), Next::Wait);
        assert_eq!(halt.disk_held(1), Next::Wait);
        assert_eq!(halt.disk_held(2), Next::Halted);
    }

    #[test]
    fn it_has_a_deadline() {
        let now = Instant::now();
        let halt = Halt::begin(1, 1, now);
        assert_eq!(halt.time_left(now), Some(HALT_DEADLINE));
        assert_eq!(halt.time_left(now + HALT_DEADLINE), None);
    }
}
