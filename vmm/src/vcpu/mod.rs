//! Virtual processors: what they look like (`cpuid`), their state (`registers`, `msrs`), the thread
//! that runs each (`thread`) and what it does when the guest leaves KVM (`exits`).
//!
//! They reach devices through the buses only.

pub mod cpuid;
pub mod exits;
pub mod msrs;
pub mod registers;
pub mod thread;
