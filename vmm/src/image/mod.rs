//! The private image of a suspended machine: one directory that a suspend writes and the next
//! resume consumes.
//!
//! | file             | holds                                                              |
//! |------------------|--------------------------------------------------------------------|
//! | `memory`         | a header page, then guest memory without the gap, sparse           |
//! | `memory.sums`    | one 64-bit sum per 64 KiB of guest memory                          |
//! | `state.bin`      | what vCPUs and devices saved; opaque here                          |
//! | `manifest.json`  | which machine, which generation, sizes and digests of the others   |
//!
//! There is an image if, and only if, there is a `manifest.json`. It is the last thing that a
//! save makes, and the first thing that goes:
//!
//! ```text
//! save commits ─▶ manifest.json ── resume ──▶ manifest.consumed ── save begins ─┐
//!       ▲                                                                       ▼
//!       └────── all else written and synced ◀── manifest.unfinished (durable, before any write)
//! ```
//!
//! All sums and digests are XXH3: they find damage, they don't stop a forger.
//! Which bytes the state holds and when it may be taken is the business of `machine`.

pub mod digest;
pub mod directory;
pub mod format;
pub mod header;
pub mod open;
mod pages;
pub mod save;
pub mod step;
pub mod verify;

pub use format::{CpuIdentity, ImageId, Manifest};
pub use open::{Expectation, OpenError, OpenImage, open};
pub use save::{DiskFile, SaveError, SaveRequest, save};
pub use verify::{BackgroundVerifier, DamagedRange, Verified, VerifyError};
