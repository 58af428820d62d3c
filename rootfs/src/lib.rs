//! Builds guest images: fetches the kernel, orders its modules, packs the initramfs, stores the
//! result.
//!
//! Nothing here starts a machine, and nothing is installed on this host: packages are unpacked
//! into a cache.

pub mod apt;
pub mod cache;
pub mod compression;
pub mod cpio;
pub mod image;
pub mod initramfs;
pub mod kernel;
pub mod kernel_image;
pub mod modules;
pub mod sources;

/// Reports the progress of a build: one short sentence per step.
pub type Report<'a> = &'a dyn Fn(&str);
