//! The transport reset after a restore, and the gate that holds host packets until the guest has
//! handled it.
//!
//! ```text
//! Open ─restore─▶ Evicting ─answered or deadline─▶ Unpublished ─event buffer─▶ Published ─acknowledged─▶ Open
//! ```
//!
//! Host connections end with the VMM process that saved. A TRANSPORT_RESET event tells the guest. Linux
//! then kills each connected socket, but leaves it in the table of connected sockets until its owner
//! closes it (virtio_transport.c: virtio_vsock_reset_sock). A guest program that never closes it leaks
//! the pair.
//!
//! *Eviction* frees the pairs without the program's help: a SHUTDOWN with both flags makes Linux
//! answer with RST and take the socket out of the table, if it comes while the socket is still
//! established (virtio_transport_common.c: virtio_transport_recv_connected; since "vsock/virtio:
//! remove socket from connected/bound list on shutdown", 6.7 and stable kernels, tried on Debian's
//! 6.1.192. Older ones answer, but keep the pair until close). A program that waits for data then
//! sees end-of-file instead of ECONNRESET. The eviction must end before the reset is published, since
//! the driver handles the two queues by separate work items, which may overtake each other.
//!
//! A socket with unread data is taken out without an RST. So that the device knows when the guest has
//! handled all packets, the last one is a *fence*: a packet to a pair that can't exist, which Linux
//! always answers with RST (virtio_transport_reset_no_sock); the RX queue is handled in order.
//!
//! When its owner finally closes an evicted socket, the guest sends a second RST. So the pairs of an
//! eviction are reserved until this VMM ends: no new connection gets one of them.
//!
//! Before the acknowledgement, Linux silently drops a REQUEST on a pair in use; that is why there is a
//! gate. Only a restore closes it, never a pause or a failed suspend. Nothing here does I/O.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant};

use super::packet::{Header, Op, SHUTDOWN_BOTH};
use super::state::Pair;

/// How long the guest may take from one answer to the next while pairs are evicted. The answer to the
/// fence ends the eviction earlier. An emulated guest on a busy host needed 1.4 s for its first step
/// after a restore.
const QUIET: Duration = Duration::from_secs(2);
/// How long eviction may take in all.
const TOTAL: Duration = Duration::from_secs(10);
/// The pair of the fence: VMADDR_PORT_ANY, which no socket can be bound to.
const FENCE: Pair = Pair {
    local: u32::MAX,
    peer: u32::MAX,
};

/// The progress of the transport reset.
#[derive(Debug)]
pub(super) struct ResetGate {
    step: Step,
}

#[derive(Debug)]
enum Step {
    Open,
    Evicting(Eviction),
    Unpublished,
    Published { avail_index: u16 },
}

#[derive(Debug)]
struct Eviction {
    unsent: VecDeque<Pair>,
    unanswered: HashSet<Pair>,
    fence_sent: bool,
    quiet_until: Instant,
    ends: Instant,
}

impl ResetGate {
    /// The gate of a device that has not been restored.
    pub(super) fn open() -> Self {
        Self { step: Step::Open }
    }

    /// A reset is due; the pairs in `evict` are to be freed before it.
    pub(super) fn due(evict: Vec<Pair>, now: Instant) -> Self {
        if evict.is_empty() {
            return Self {
                step: Step::Unpublished,
            };
        }
        let eviction = Eviction {
            unanswered: evict.iter().copied().collect(),
            unsent: evict.into(),
            fence_sent: false,
            quiet_until: now + QUIET,
            ends: now + TOTAL,
        };
        Self {
            step: Step::Evicting(eviction),
        }
    }

    /// A reset was published before the save, when the event queue's avail index was `avail_index`.
    pub(super) fn published_before(avail_index: u16) -> Self {
        Self {
            step: Step::Published { avail_index },
        }
    }

    /// Whether packets of connections may go to the guest.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.step, Step::Open)
    }

    /// Whether the event has still to be put into the event queue, and may be.
    pub(super) fn is_unpublished(&self) -> bool {
        matches!(self.step, Step::Unpublished)
    }

    /// The avail index at which the reset was published, where it is not acknowledged.
    pub(super) fn unacknowledged(&self) -> Option<u16> {
        match self.step {
            Step::Published { avail_index } => Some(avail_index),
            Step::Open | Step::Evicting(_) | Step::Unpublished => None,
        }
    }

    /// The pairs still to be evicted.
    pub(super) fn unevicted(&self) -> impl Iterator<Item = Pair> + '_ {
        let eviction = match &self.step {
            Step::Evicting(eviction) => Some(eviction),
            Step::Open | Step::Unpublished | Step::Published { .. } => None,
        };
        eviction
            .into_iter()
            .flat_map(|eviction| eviction.unanswered.iter().copied())
    }

    /// Whether [`ResetGate::next_eviction_packet`] has a packet.
    pub(super) fn has_eviction_packet(&self) -> bool {
        matches!(&self.step, Step::Evicting(eviction) if !eviction.fence_sent)
    }

    /// The next packet that evicts a pair, or the fence behind the last.
    pub(super) fn next_eviction_packet(&mut self, now: Instant) -> Option<Header> {
        let Step::Evicting(eviction) = &mut self.step else {
            return None;
        };
        if eviction.fence_sent {
            return None;
        }
        eviction.quiet_until = now + QUIET;
        if let Some(pair) = eviction.unsent.pop_front() {
            return Some(Header {
                flags: SHUTDOWN_BOTH,
                ..Header::to_guest(pair, Op::Shutdown)
            });
        }
        eviction.fence_sent = true;
        Some(Header::to_guest(FENCE, Op::CreditRequest))
    }

    /// The guest has sent an RST; returns whether that frees a pair that is being evicted.
    pub(super) fn guest_reset(&mut self, pair: Pair, now: Instant) -> bool {
        let Step::Evicting(eviction) = &mut self.step else {
            return false;
        };
        if pair == FENCE && eviction.fence_sent {
            self.step = Step::Unpublished;
            return false;
        }
        eviction.quiet_until = now + QUIET;
        eviction.unanswered.remove(&pair)
    }

    /// When [`ResetGate::expire`] is due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        match &self.step {
            Step::Evicting(eviction) => Some(eviction.quiet_until.min(eviction.ends)),
            Step::Open | Step::Unpublished | Step::Published { .. } => None,
        }
    }

    /// Ends the eviction if its deadline has passed; returns whether it has.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let silent = self.deadline().is_some_and(|deadline| deadline <= now);
        if silent {
            self.step = Step::Unpublished;
        }
        silent
    }

    /// The event is in the queue, whose avail index is `avail_index`.
    pub(super) fn published(&mut self, avail_index: u16) {
        self.step = Step::Published { avail_index };
    }

    /// Checks whether the guest has put a buffer back into the event queue; returns whether that opens the
    /// gate.
    pub(super) fn observe(&mut self, avail_index: u16) -> bool {
        let Step::Published {
            avail_index: before,
        } = self.step
        else {
            return false;
        };
        // The guest can't have more than the 2^15 buffers of the largest queue outstanding.
        let advanced = avail_index.wrapping_sub(before);
        if advanced == 0 || advanced > 1 << 15 {
            return false;
        }
        self.step = Step::Open;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Pair = Pair {
        local: 1 << 30,
        peer: 1024,
    };
    const TWO: Pair = Pair {
        local: (1 << 30) + 1,
        peer: 1024,
    };

    fn evicting(now: Instant) -> ResetGate {
        ResetGate::due(vec![ONE, TWO], now)
    }

    #[test]
    fn without_pairs_there_is_nothing_to_wait_for() {
        assert!(ResetGate::due(Vec::new(), Instant::now()).is_unpublished());
    }

    #[test]
    fn the_fence_comes_last_and_its_answer_ends_the_eviction() {
        let now = Instant::now();
        let mut gate = evicting(now);
        let packets: Vec<Header> = std::iter::from_fn(|| gate.next_eviction_packet(now)).collect();
        let ops: Vec<Op> = packets.iter().map(|packet| packet.op).collect();
        assert_eq!(ops, [Op::Shutdown, Op::Shutdown, Op::CreditRequest]);
        assert!(!gate.has_eviction_packet());
        assert!(gate.guest_reset(ONE, now));
        assert!(!gate.is_unpublished());
        assert!(!gate.guest_reset(FENCE, now));
        assert!(gate.is_unpublished());
    }

    #[test]
    fn an_answer_to_a_fence_that_was_not_sent_does_not_count() {
        let now = Instant::now();
        let mut gate = evicting(now);
        gate.next_eviction_packet(now);
        gate.guest_reset(FENCE, now);
        assert!(!gate.is_unpublished());
    }

    #[test]
    fn a_silent_guest_is_given_up_and_a_slow_one_is_not() {
        let begin = Instant::now();
        let mut gate = evicting(begin);
        let later = begin + QUIET - Duration::from_millis(1);
        assert!(!gate.expire(later));
        gate.guest_reset(ONE, later);
        assert!(!gate.expire(begin + QUIET));
        assert!(gate.expire(later + QUIET));
        assert!(gate.is_unpublished());
    }

    #[test]
    fn a_guest_that_answers_without_end_is_given_up_in_the_end() {
        let begin = Instant::now();
        let mut gate = evicting(begin);
        for step in 0..50 {
            let now = begin + step * (TOTAL / 50);
            assert!(!gate.expire(now));
            gate.guest_reset(
                Pair {
                    local: 1,
                    peer: step,
                },
                now,
            );
        }
        assert!(gate.expire(begin + TOTAL));
    }

    #[test]
    fn only_a_buffer_that_is_put_back_acknowledges_a_published_reset() {
        let mut gate = ResetGate::due(Vec::new(), Instant::now());
        assert!(!gate.observe(8));
        gate.published(8);
        assert!(!gate.is_open());
        assert!(!gate.observe(8));
        assert!(
            !gate.observe(7),
            "an index that runs backward is no acknowledgement"
        );
        assert!(gate.observe(9));
        assert!(gate.is_open());
        assert!(!gate.observe(10), "an open gate is not opened again");
    }

    #[test]
    fn the_ring_index_may_wrap_between_reset_and_acknowledgement() {
        let mut gate = ResetGate::published_before(u16::MAX);
        assert_eq!(gate.unacknowledged(), Some(u16::MAX));
        assert!(gate.observe(0));
    }

    #[test]
    fn pairs_that_were_not_answered_are_still_to_be_evicted() {
        let now = Instant::now();
        let mut gate = evicting(now);
        gate.guest_reset(TWO, now);
        assert_eq!(gate.unevicted().collect::<Vec<_>>(), [ONE]);
    }
}
