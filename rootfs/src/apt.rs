//! Debian packages as a source of files: downloaded and unpacked with apt, installed nowhere.
//!
//! The package lists of this host are used if they have the package and are new enough for its file
//! to exist; otherwise private lists are fetched into the cache, which needs no root. Which packages
//! to fetch, and what is in them, is the caller's business.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use thiserror::Error;

use crate::Report;
use crate::cache::{self, Cache, CacheError};

/// Why a package could not be fetched.
#[derive(Debug, Error)]
pub enum AptError {
    #[error(
        "cannot run {program}, which only Debian and its derivatives have (elsewhere, give the files by flag)"
    )]
    NotDebian {
        program: &'static str,
        source: io::Error,
    },
    #[error("apt knows no package {package}: {message}")]
    Unknown { package: String, message: String },
    #[error("cannot fetch the package lists (is this host offline?): {message}")]
    Lists { message: String },
    #[error("cannot download {package} {version} (is this host offline?): {message}")]
    Download {
        package: String,
        version: String,
        message: String,
    },
    #[error("cannot unpack {file}: {message}")]
    Unpack { file: PathBuf, message: String },
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// A package as apt describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// The names in its `Depends` field, without versions and alternatives.
    pub depends: Vec<String>,
}

/// Which package lists to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lists {
    Host,
    Private,
}

/// apt with a cache to put its files into.
#[derive(Debug)]
pub struct Apt<'a> {
    cache: &'a Cache,
    lists: Lists,
    /// The private list that apt could not fetch; apt counts that as a success.
    lists_warning: Option<String>,
}

impl<'a> Apt<'a> {
    pub fn new(cache: &'a Cache) -> Self {
        Self {
            cache,
            lists: Lists::Host,
            lists_warning: None,
        }
    }

    /// Describes the newest version of a package.
    pub fn describe(&mut self, name: &str, report: Report) -> Result<Package, AptError> {
        match self.show(name) {
            Err(AptError::Unknown { .. }) if self.lists == Lists::Host => {
                self.fetch_private_lists(report)?;
                self.show(name)
            }
            result => result,
        }
    }

    /// Downloads a package and unpacks its files into `folder`.
    pub fn unpack(
        &mut self,
        package: &Package,
        folder: &Path,
        report: Report,
    ) -> Result<(), AptError> {
        let download = cache::scratch_in(folder.parent().unwrap_or(folder))?;
        report(&format!("downloading {} {}", package.name, package.version));
        self.download(package, download.path())?;
        report(&format!("unpacking {}", package.name));
        unpack_only_file(download.path(), folder)
    }

    /// Switches from the package lists of this host to newer ones; false if it did so before.
    ///
    /// Old lists name files that the mirror has replaced. Every package that was described by the old
    /// lists has to be described again: a newer kernel, for example, is a package of another name.
    pub fn renew_lists(&mut self, report: Report) -> Result<bool, AptError> {
        if self.lists == Lists::Private {
            return Ok(false);
        }
        self.fetch_private_lists(report)?;
        Ok(true)
    }

    fn show(&self, name: &str) -> Result<Package, AptError> {
        let output = run(self
            .command("apt-cache")
            .args(["show", "--no-all-versions", name]))
        .map_err(|source| AptError::NotDebian {
            program: "apt-cache",
            source,
        })?;
        if let Some(package) = parse_description(&String::from_utf8_lossy(&output.stdout)) {
            return Ok(package);
        }
        Err(match &self.lists_warning {
            Some(warning) => AptError::Lists {
                message: warning.clone(),
            },
            None => AptError::Unknown {
                package: name.to_owned(),
                message: failure_message(&output),
            },
        })
    }

    fn download(&self, package: &Package, folder: &Path) -> Result<(), AptError> {
        let wanted = format!("{}={}", package.name, package.version);
        let output = run(self
            .command("apt-get")
            .args(["download", &wanted])
            .current_dir(folder))
        .map_err(|source| AptError::NotDebian {
            program: "apt-get",
            source,
        })?;
        if !output.status.success() {
            return Err(AptError::Download {
                package: package.name.clone(),
                version: package.version.clone(),
                message: failure_message(&output),
            });
        }
        Ok(())
    }

    fn fetch_private_lists(&mut self, report: Report) -> Result<(), AptError> {
        report("fetching package lists, since those of this host are missing or old");
        self.lists = Lists::Private;
        cache::create_folder(&self.cache.path("apt/lists/partial"))?;
        cache::create_folder(&self.cache.path("apt/archives/partial"))?;
        let output =
            run(self.command("apt-get").arg("update")).map_err(|source| AptError::NotDebian {
                program: "apt-get",
                source,
            })?;
        if !output.status.success() {
            return Err(AptError::Lists {
                message: failure_message(&output),
            });
        }
        // The failed list may be irrelevant, so this matters only if the package is not found.
        self.lists_warning = fetch_warning(&String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C");
        // As root, apt would download as the user `_apt`, which may not write into our folders.
        command.args(["-q", "-o", "APT::Sandbox::User=root"]);
        if self.lists == Lists::Private {
            let folder = self.cache.path("apt");
            command
                .arg("-o")
                .arg(format!(
                    "Dir::State::Lists={}",
                    folder.join("lists").display()
                ))
                .arg("-o")
                .arg(format!("Dir::Cache={}", folder.display()));
        }
        command
    }
}

fn unpack_only_file(downloaded: &Path, folder: &Path) -> Result<(), AptError> {
    let file = std::fs::read_dir(downloaded)
        .ok()
        .and_then(|entries| entries.flatten().map(|entry| entry.path()).next())
        .ok_or_else(|| AptError::Unpack {
            file: downloaded.to_owned(),
            message: "apt-get left no file here".to_owned(),
        })?;
    let output =
        run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(folder)).map_err(|source| {
            AptError::NotDebian {
                program: "dpkg-deb",
                source,
            }
        })?;
    if !output.status.success() {
        return Err(AptError::Unpack {
            file,
            message: failure_message(&output),
        });
    }
    Ok(())
}

fn run(command: &mut Command) -> io::Result<Output> {
    command.stdin(std::process::Stdio::null()).output()
}

/// The line with the reason of a failure: the first that apt marks as an error, else the last.
fn failure_message(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let lines = || text.lines().filter(|line| !line.trim().is_empty());
    lines()
        .find(|line| line.starts_with("E:"))
        .or_else(|| lines().next_back())
        .map(|line| line.trim_start_matches("E:").trim().to_owned())
        .unwrap_or_else(|| output.status.to_string())
}

/// The first list that `apt-get update` could not fetch.
fn fetch_warning(stderr: &str) -> Option<String> {
    let text = stderr
        .lines()
        .find_map(|line| line.strip_prefix("W: Failed to fetch "))?;
    Some(text.trim().to_owned())
}

/// Reads the fields of the first paragraph that `apt-cache show` prints.
fn parse_description(text: &str) -> Option<Package> {
    let paragraph = text.split("\n\n").next()?;
    let field = |name: &str| {
        paragraph
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .map(|value| value.trim().to_owned())
    };
    let depends = field("Depends")
        .unwrap_or_default()
        .split(',')
        .filter_map(|dependency| dependency.split_whitespace().next().map(str::to_owned))
        .collect();
    Some(Package {
        name: field("Package")?,
        version: field("Version")?,
        depends,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_gives_name_version_and_what_it_depends_on() {
        let text = "Package: linux-image-cloud-amd64\nSource: linux-signed-amd64 (6.1.192+2)\n\
                    Version: 6.1.192-2\nDepends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2), a | b\n\
                    \nPackage: other\nVersion: 1\n";
        let expected = Package {
            name: "linux-image-cloud-amd64".to_owned(),
            version: "6.1.192-2".to_owned(),
            depends: vec![
                "linux-image-6.1.0-56-cloud-amd64".to_owned(),
                "a".to_owned(),
            ],
        };
        assert_eq!(parse_description(text), Some(expected));
    }

    #[test]
    fn a_list_that_could_not_be_fetched_is_distinguished_from_other_warnings() {
        let stderr = "W: old key\nW: Failed to fetch http://deb.debian.org/x  Could not resolve\n";
        let expected = "http://deb.debian.org/x  Could not resolve";
        assert_eq!(fetch_warning(stderr).as_deref(), Some(expected));
        assert_eq!(fetch_warning("W: old key\n"), None);
    }

    #[test]
    fn no_description_is_no_package() {
        assert_eq!(parse_description(""), None);
        assert_eq!(parse_description("Package: half\n"), None);
    }
}
