//! Chooses the kernel and the busybox: files that the user gives, else Debian's packages.
//!
//! Flags and environment variables give the same files, so that one setting serves everything that
//! packs a kernel: guest images, and the virtual host that runs them.

use std::env;
use std::path::PathBuf;

use crate::Report;
use crate::cache::Cache;
use crate::kernel::{self, Freshness, Kernel, SourceError};

/// Variable with the path of a kernel image.
pub const KERNEL_ENV: &str = "MCTL_KERNEL";
/// Variable with the path of the folder of its modules.
pub const MODULES_ENV: &str = "MCTL_MODULES";
/// Variable with the path of a static busybox.
pub const BUSYBOX_ENV: &str = "MCTL_BUSYBOX";

/// The files that the user gives.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// A bzImage or ELF file, and the folder of its modules.
    pub kernel: Option<(PathBuf, PathBuf)>,
    /// A static busybox.
    pub busybox: Option<PathBuf>,
}

impl Sources {
    /// The files that the environment gives.
    ///
    /// # Errors
    /// [`SourceError::Unpaired`] if a kernel is given without modules, or modules without a kernel.
    pub fn from_environment() -> Result<Self, SourceError> {
        let path = |name| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        Self::new(path(KERNEL_ENV), path(MODULES_ENV), path(BUSYBOX_ENV))
    }

    /// These files.
    ///
    /// # Errors
    /// As [`Sources::from_environment`].
    pub fn new(
        kernel: Option<PathBuf>,
        modules: Option<PathBuf>,
        busybox: Option<PathBuf>,
    ) -> Result<Self, SourceError> {
        let kernel = match (kernel, modules) {
            (Some(kernel), Some(modules)) => Some((kernel, modules)),
            (None, None) => None,
            (Some(_), None) => return Err(SourceError::Unpaired { missing: "modules" }),
            (None, Some(_)) => return Err(SourceError::Unpaired { missing: "kernel" }),
        };
        Ok(Self { kernel, busybox })
    }

    /// The kernel that the user gives, else Debian's cloud kernel.
    ///
    /// # Errors
    /// [`SourceError`] if it cannot be fetched or used.
    pub fn kernel(
        &self,
        cache: &Cache,
        freshness: Freshness,
        report: Report,
    ) -> Result<Kernel, SourceError> {
        match &self.kernel {
            Some((image, modules)) => kernel::from_files(image, modules),
            None => kernel::from_debian(cache, freshness, report),
        }
    }

    /// The busybox that the user gives, else Debian's.
    ///
    /// # Errors
    /// [`SourceError`] if it cannot be fetched.
    pub fn busybox(
        &self,
        cache: &Cache,
        freshness: Freshness,
        report: Report,
    ) -> Result<PathBuf, SourceError> {
        match &self.busybox {
            Some(path) => Ok(path.clone()),
            None => kernel::busybox_from_debian(cache, freshness, report),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_its_modules_is_refused_before_anything_is_fetched() {
        let path = || Some(PathBuf::from("/x"));
        let missing = |kernel, modules| match Sources::new(kernel, modules, None) {
            Err(SourceError::Unpaired { missing }) => missing,
            other => panic!("{other:?}"),
        };
        assert_eq!(missing(path(), None), "modules");
        assert_eq!(missing(None, path()), "kernel");
        assert_eq!(Sources::new(None, None, None).unwrap(), Sources::default());
    }
}
