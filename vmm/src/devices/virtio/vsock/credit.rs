//! Credit (virtio 1.2, 5.10.6.3): how many bytes either end may still send.
//!
//! The counters count bytes since the connection began and wrap by design.

use std::num::Wrapping;

/// What we may send to the guest.
#[derive(Debug, Default)]
pub(super) struct PeerCredit {
    buffer_bytes: u32,
    forwarded: Wrapping<u32>,
    sent: Wrapping<u32>,
}

impl PeerCredit {
    /// Updates the state of the guest's buffer, which each of its packets contains.
    pub(super) fn update(&mut self, buffer_bytes: u32, forwarded: u32) {
        self.buffer_bytes = buffer_bytes;
        self.forwarded = Wrapping(forwarded);
    }

    /// How many bytes may be sent now. A guest that claims to have forwarded more than was sent
    /// gets none.
    pub(super) fn available(&self) -> u32 {
        self.buffer_bytes
            .saturating_sub((self.sent - self.forwarded).0)
    }

    /// Counts bytes sent.
    pub(super) fn spend(&mut self, bytes: u32) {
        self.sent += bytes;
    }
}

/// What the guest may send to us.
#[derive(Debug)]
pub(super) struct LocalCredit {
    buffer_bytes: u32,
    received: Wrapping<u32>,
    forwarded: Wrapping<u32>,
    announced: Wrapping<u32>,
}

/// The guest sent more than it had credit for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Overrun;

impl LocalCredit {
    pub(super) fn new(buffer_bytes: u32) -> Self {
        Self {
            buffer_bytes,
            received: Wrapping(0),
            forwarded: Wrapping(0),
            announced: Wrapping(0),
        }
    }

    pub(super) fn buffer_bytes(&self) -> u32 {
        self.buffer_bytes
    }

    /// Counts bytes that came from the guest.
    pub(super) fn receive(&mut self, bytes: u32) -> Result<(), Overrun> {
        let held = (self.received - self.forwarded).0;
        if bytes > self.buffer_bytes.saturating_sub(held) {
            return Err(Overrun);
        }
        self.received += bytes;
        Ok(())
    }

    /// Counts bytes that have left our buffer.
    pub(super) fn forward(&mut self, bytes: u32) {
        self.forwarded += bytes;
    }

    /// The counter to send in the next packet.
    pub(super) fn announce(&mut self) -> u32 {
        self.announced = self.forwarded;
        self.announced.0
    }

    /// Whether the guest needs a credit update. With one per quarter of the buffer, a guest that waits for
    /// space always gets an update, and one that sends much causes few.
    pub(super) fn update_due(&self) -> bool {
        (self.forwarded - self.announced).0 >= self.buffer_bytes / 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_wrap_without_losing_credit() {
        let mut peer = PeerCredit::default();
        peer.update(1000, 0);
        for round in 1..=5_000_000_u32 {
            peer.spend(1000);
            assert_eq!(peer.available(), 0);
            peer.update(1000, round.wrapping_mul(1000));
        }
        assert_eq!(peer.available(), 1000);
    }

    #[test]
    fn a_guest_that_claims_to_have_taken_what_was_never_sent_gets_nothing() {
        let mut peer = PeerCredit::default();
        peer.update(65536, 1);
        assert_eq!(peer.available(), 0);
        peer.update(u32::MAX, u32::MAX);
        peer.spend(10);
        assert!(peer.available() < u32::MAX);
    }

    #[test]
    fn a_guest_that_shrinks_its_buffer_below_what_is_under_way_gets_nothing() {
        let mut peer = PeerCredit::default();
        peer.update(100, 0);
        peer.spend(80);
        peer.update(50, 0);
        assert_eq!(peer.available(), 0);
    }

    #[test]
    fn the_guest_may_send_as_much_as_there_is_room_and_no_more() {
        let mut local = LocalCredit::new(100);
        assert_eq!(local.receive(100), Ok(()));
        assert_eq!(local.receive(1), Err(Overrun));
        local.forward(1);
        assert_eq!(local.receive(1), Ok(()));
        assert_eq!(local.receive(u32::MAX), Err(Overrun));
    }

    #[test]
    fn an_update_is_due_before_a_waiting_guest_has_to_ask() {
        let mut local = LocalCredit::new(100);
        local.receive(100).unwrap();
        local.forward(24);
        assert!(!local.update_due());
        local.forward(1);
        assert!(local.update_due());
        assert_eq!(local.announce(), 25);
        assert!(!local.update_due());
    }
}
