//! Virtual processors: their features (`cpuid`), their state (`registers`, `msrs`), the thread that runs
//! each (`thread`) and the service of exits from the guest (`exits`).
//!
//! They reach devices only through the buses.

pub mod cpuid;
pub mod exits;
pub mod msrs;
pub mod registers;
pub mod thread;
