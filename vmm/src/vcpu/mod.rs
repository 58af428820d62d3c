//! Virtual processors: their features (`cpuid`, `template`, `features`), their state (`registers`, `msrs`),
//! the thread that runs each (`thread`) and the service of exits from the guest (`exits`).
//!
//! They reach devices only through the buses.

mod brand;
pub mod cpuid;
pub mod diagnosis;
pub mod exits;
mod feature_names;
pub mod features;
pub mod leaf_register;
pub mod msrs;
pub mod registers;
pub mod template;
pub mod thread;
pub mod tsc;
