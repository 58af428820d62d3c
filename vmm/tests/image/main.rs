//! Images as a suspend leaves them and a resume finds them, on real files and mappings.
//!
//! No KVM: the tests act as the guest by writing to the mapped memory.

#![expect(clippy::unwrap_used, reason = "a test that can't continue fails")]

mod crash;
mod crash_states;
mod failure;
mod fixture;
mod power_failure;
mod refusal;
mod release_before;
mod round_trip;
mod verification;
