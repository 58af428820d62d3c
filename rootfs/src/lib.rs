//! Guest images: fetches the kernel, orders its modules, packs the initramfs, stores the result.
//!
//! The modules read in the order in which a build uses them. Nothing here starts a machine, and
//! nothing is installed into this host: packages are unpacked into a cache.

pub mod apt;
pub mod cache;
pub mod compression;
pub mod cpio;
pub mod image;
pub mod initramfs;
pub mod kernel;
pub mod modules;
pub mod sources;
pub mod unpack;

/// Where a build tells what it is doing, one short sentence per step.
pub type Report<'a> = &'a dyn Fn(&str);
