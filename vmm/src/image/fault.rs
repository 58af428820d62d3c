//! Why an image cannot be resumed, as far as it decides what becomes of it.

use std::io;

use super::directory::DirectoryError;
use super::format::ManifestError;
use super::open::OpenError;
use super::verify::VerifyError;

/// What is at fault when an image cannot be resumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The image: it is incomplete, changed, or another one. No host can resume it.
    Damaged,
    /// The image is whole, and this host or this program cannot run it. Another one can.
    Unfit,
    /// The host: it could not be found out. The same attempt may succeed later.
    Host,
}

impl Fault {
    /// Of a file that could not be opened or read. What is missing, cut short or not a file is damage;
    /// whatever else the system refuses (EIO, ENOMEM, EACCES, EMFILE, …) says nothing about the image.
    fn of_reading(error: &io::Error) -> Self {
        let is_loop = error.raw_os_error() == Some(libc::ELOOP);
        match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory => Self::Damaged,
            _ if is_loop => Self::Damaged,
            _ => Self::Host,
        }
    }
}

impl OpenError {
    /// What is at fault.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Directory(error) => match error {
                DirectoryError::Open { source, .. } => Fault::of_reading(source),
                DirectoryError::Lock { .. } | DirectoryError::InUse { .. } => Fault::Host,
            },
            Self::Read { source, .. } => Fault::of_reading(source),
            Self::Manifest { source, .. } => match source {
                ManifestError::Version { .. } => Fault::Unfit,
                ManifestError::Seal(_) | ManifestError::Magic | ManifestError::Fields(_) => {
                    Fault::Damaged
                }
            },
            Self::Cpu { .. } => Fault::Unfit,
            Self::Missing { .. }
            | Self::Consumed { .. }
            | Self::Unfinished { .. }
            | Self::TooLarge { .. }
            | Self::Contradiction { .. }
            | Self::Machine { .. }
            | Self::Generation { .. }
            | Self::Supplement { .. }
            | Self::FileSize { .. }
            | Self::FileDamaged { .. }
            | Self::Header { .. }
            | Self::OtherImage { .. }
            | Self::OtherGeneration { .. }
            | Self::OtherSize { .. } => Fault::Damaged,
        }
    }
}

impl VerifyError {
    /// What is at fault.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Damaged(_) => Fault::Damaged,
            Self::Read { source, .. } => Fault::of_reading(source),
            Self::Stopped => Fault::Host,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::image::sealed_json::SealError;

    fn read(errno: i32) -> Fault {
        let error = OpenError::Read {
            file: PathBuf::from("memory"),
            source: io::Error::from_raw_os_error(errno),
        };
        error.fault()
    }

    #[test]
    fn what_the_system_refuses_says_nothing_about_the_image() {
        for errno in [
            libc::EIO,
            libc::ENOMEM,
            libc::EACCES,
            libc::EPERM,
            libc::EMFILE,
            libc::ENFILE,
            libc::EINTR,
            libc::ESTALE,
            libc::ENODEV,
            libc::ETIMEDOUT,
        ] {
            assert_eq!(read(errno), Fault::Host, "{errno}");
            let verify = VerifyError::Read {
                file_offset: 0,
                source: io::Error::from_raw_os_error(errno),
            };
            assert_eq!(verify.fault(), Fault::Host, "{errno}");
        }
        for errno in [libc::ENOENT, libc::ELOOP, libc::ENOTDIR, libc::EISDIR] {
            assert_eq!(read(errno), Fault::Damaged, "{errno}");
        }
    }

    #[test]
    fn a_lock_that_another_holds_says_nothing_about_the_image() {
        let path = PathBuf::from("image");
        let in_use = DirectoryError::InUse {
            path: path.clone(),
            waited_ms: 500,
        };
        assert_eq!(OpenError::from(in_use).fault(), Fault::Host);
        let lock = DirectoryError::Lock {
            path,
            source: io::Error::from_raw_os_error(libc::ENOLCK),
        };
        assert_eq!(OpenError::from(lock).fault(), Fault::Host);
    }

    #[test]
    fn an_image_of_another_format_fits_another_program() {
        let newer = OpenError::Manifest {
            file: PathBuf::from("manifest.json"),
            source: ManifestError::Version { found: 99 },
        };
        assert_eq!(newer.fault(), Fault::Unfit);
        let cut = OpenError::Manifest {
            file: PathBuf::from("manifest.json"),
            source: ManifestError::Seal(SealError::Unterminated),
        };
        assert_eq!(cut.fault(), Fault::Damaged);
    }
}
