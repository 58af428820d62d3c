//! The private image of a suspended machine: one directory that a suspend writes and the next
//! resume consumes.
//!
//! | file             | holds                                                              |
//! |------------------|--------------------------------------------------------------------|
//! | `memory`         | a header page, then guest memory without the gap, sparse           |
//! | `memory.sums`    | one 64-bit sum per 64 KiB of guest memory                          |
//! | `state.bin`      | the state of vCPUs and devices; opaque here                        |
//! | `supplement.json`| what its disks were like, and the like; if there is anything       |
//! | `manifest.json`  | which machine, which generation, sizes and digests of the others   |
//!
//! There is an image if, and only if, there is a `manifest.json`. It is the last file that a save
//! makes, and the first one that is removed:
//!
//! ```text
//! save commits ─▶ manifest.json ── resume ──▶ manifest.consumed ── save begins ─┐
//!       ▲                                                                       ▼
//!       └── all other files written and synced ◀── manifest.unfinished (durable, before any write)
//! ```
//!
//! All sums and digests are XXH3: they find damage, they don't stop a forger. The caller decides what
//! the state holds, and when it is collected.

mod attempt;
mod consume;
pub mod digest;
pub mod directory;
mod fault;
pub mod format;
pub mod header;
pub mod open;
mod pages;
mod request;
pub mod save;
mod sealed_json;
pub mod step;
mod supplement;
pub mod verify;

pub use consume::{ConsumeError, Consumption};
pub use fault::Fault;
pub use format::{CpuIdentity, ImageId, Manifest};
pub use open::{Expectation, OpenError, OpenImage, open};
pub use request::{DiskFile, SaveError, SaveRequest};
pub use save::save;
pub use supplement::Supplement;
pub use verify::{BackgroundVerifier, DamagedRange, Verified, VerifyError};
