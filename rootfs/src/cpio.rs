//! Writes cpio archives in the `newc` format, which the kernel unpacks as its first root.
//!
//! The same entries give the same bytes: they are sorted, owned by root and dated 1970. Which
//! entries an initramfs has is the caller's choice.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use thiserror::Error;

const MODE_DIRECTORY: u32 = 0o040_000;
const MODE_FILE: u32 = 0o100_000;
const MODE_LINK: u32 = 0o120_000;
const MODE_CHARACTER_DEVICE: u32 = 0o020_000;
const END_NAME: &str = "TRAILER!!!";

/// Why an archive could not be written.
#[derive(Debug, Error)]
pub enum CpioError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{name} has {bytes} bytes, which the format cannot hold")]
    TooLarge { name: String, bytes: u64 },
    #[error("the size of {path} changed while it was being packed")]
    Changed { path: PathBuf },
    #[error("cannot write the archive")]
    Write(#[source] io::Error),
}

#[derive(Debug, Clone)]
enum Content {
    Directory,
    Bytes(Vec<u8>),
    /// Read when the archive is written.
    HostFile(PathBuf),
    Link(String),
    CharacterDevice {
        major: u32,
        minor: u32,
    },
}

#[derive(Debug, Clone)]
struct Entry {
    permissions: u32,
    content: Content,
}

/// The entries of an archive. Paths are absolute, as they will be when unpacked; the folders above
/// an entry are added automatically. A later entry replaces an earlier one of the same path.
#[derive(Debug, Clone, Default)]
pub struct Archive {
    entries: BTreeMap<String, Entry>,
}

impl Archive {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn add_directory(&mut self, path: &str, permissions: u32) {
        self.add(path, permissions, Content::Directory);
    }

    pub fn add_bytes(&mut self, path: &str, permissions: u32, bytes: impl Into<Vec<u8>>) {
        self.add(path, permissions, Content::Bytes(bytes.into()));
    }

    pub fn add_host_file(&mut self, path: &str, permissions: u32, source: &Path) {
        self.add(path, permissions, Content::HostFile(source.to_owned()));
    }

    pub fn add_link(&mut self, path: &str, target: &str) {
        self.add(path, 0o777, Content::Link(target.to_owned()));
    }

    pub fn add_character_device(&mut self, path: &str, permissions: u32, number: (u32, u32)) {
        let (major, minor) = number;
        self.add(path, permissions, Content::CharacterDevice { major, minor });
    }

    fn add(&mut self, path: &str, permissions: u32, content: Content) {
        let name = path.trim_matches('/');
        for (end, _) in name.match_indices('/') {
            self.entries.entry(name[..end].to_owned()).or_insert(Entry {
                permissions: 0o755,
                content: Content::Directory,
            });
        }
        self.entries.insert(
            name.to_owned(),
            Entry {
                permissions,
                content,
            },
        );
    }

    /// Writes the whole archive. The order of the map puts each folder before its content.
    pub fn write_to(&self, out: impl Write) -> Result<(), CpioError> {
        let mut writer = Writer { out, inode: 1 };
        for (name, entry) in &self.entries {
            writer.write_entry(name, entry)?;
        }
        writer.write_header(
            END_NAME,
            &Header {
                links: 1,
                ..Header::default()
            },
        )?;
        writer.out.flush().map_err(CpioError::Write)
    }
}

#[derive(Debug, Default)]
struct Header {
    inode: u32,
    mode: u32,
    links: u32,
    size: u32,
    device: (u32, u32),
}

struct Writer<W> {
    out: W,
    inode: u32,
}

impl<W: Write> Writer<W> {
    fn write_entry(&mut self, name: &str, entry: &Entry) -> Result<(), CpioError> {
        let (kind, links) = match &entry.content {
            Content::Directory => (MODE_DIRECTORY, 2),
            Content::Bytes(_) | Content::HostFile(_) => (MODE_FILE, 1),
            Content::Link(_) => (MODE_LINK, 1),
            Content::CharacterDevice { .. } => (MODE_CHARACTER_DEVICE, 1),
        };
        let mut header = Header {
            inode: self.inode,
            mode: kind | entry.permissions,
            links,
            ..Header::default()
        };
        self.inode += 1;
        match &entry.content {
            Content::Directory => self.write_header(name, &header),
            Content::CharacterDevice { major, minor } => {
                header.device = (*major, *minor);
                self.write_header(name, &header)
            }
            Content::Bytes(bytes) => self.write_bytes(name, header, bytes),
            Content::Link(target) => self.write_bytes(name, header, target.as_bytes()),
            Content::HostFile(path) => self.write_host_file(name, header, path),
        }
    }

    fn write_bytes(
        &mut self,
        name: &str,
        mut header: Header,
        bytes: &[u8],
    ) -> Result<(), CpioError> {
        header.size = size_field(name, bytes.len() as u64)?;
        self.write_header(name, &header)?;
        self.out.write_all(bytes).map_err(CpioError::Write)?;
        self.pad(bytes.len())
    }

    fn write_host_file(
        &mut self,
        name: &str,
        mut header: Header,
        path: &Path,
    ) -> Result<(), CpioError> {
        let unreadable = |source| CpioError::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(unreadable)?;
        let size = file.metadata().map_err(unreadable)?.len();
        header.size = size_field(name, size)?;
        self.write_header(name, &header)?;
        let copied = io::copy(&mut file.take(size), &mut self.out).map_err(CpioError::Write)?;
        if copied != size {
            return Err(CpioError::Changed {
                path: path.to_owned(),
            });
        }
        self.pad(header.size as usize)
    }

    fn write_header(&mut self, name: &str, header: &Header) -> Result<(), CpioError> {
        let (major, minor) = header.device;
        let name_bytes = name.len() + 1;
        // c_ino c_mode c_uid c_gid c_nlink c_mtime c_filesize c_devmajor c_devminor
        // c_rdevmajor c_rdevminor c_namesize c_check
        let text = format!(
            "070701{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}{:08x}",
            header.inode,
            header.mode,
            0,
            0,
            header.links,
            0,
            header.size,
            0,
            0,
            major,
            minor,
            name_bytes,
            0,
        );
        self.out
            .write_all(text.as_bytes())
            .map_err(CpioError::Write)?;
        self.out
            .write_all(name.as_bytes())
            .map_err(CpioError::Write)?;
        self.out.write_all(&[0]).map_err(CpioError::Write)?;
        self.pad(text.len() + name_bytes)
    }

    fn pad(&mut self, written: usize) -> Result<(), CpioError> {
        let missing = written.next_multiple_of(4) - written;
        self.out
            .write_all(&[0; 3][..missing])
            .map_err(CpioError::Write)
    }
}

fn size_field(name: &str, bytes: u64) -> Result<u32, CpioError> {
    u32::try_from(bytes).map_err(|_| CpioError::TooLarge {
        name: name.to_owned(),
        bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode, device and content.
    type ReadEntry = (String, u32, (u32, u32), Vec<u8>);

    /// The entries of an archive, read the way the kernel does.
    fn read_back(mut bytes: &[u8]) -> Vec<ReadEntry> {
        let mut entries = Vec::new();
        loop {
            let field = |index: usize| {
                let text = std::str::from_utf8(&bytes[6 + index * 8..14 + index * 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            assert_eq!(&bytes[..6], b"070701");
            let name_end = 110 + field(11) as usize;
            let name = String::from_utf8(bytes[110..name_end - 1].to_vec()).unwrap();
            let start = name_end.next_multiple_of(4);
            let end = start + field(6) as usize;
            let content = bytes[start..end].to_vec();
            if name == END_NAME {
                return entries;
            }
            entries.push((name, field(1), (field(9), field(10)), content));
            bytes = &bytes[end.next_multiple_of(4)..];
        }
    }

    fn written(archive: &Archive) -> Vec<u8> {
        let mut bytes = Vec::new();
        archive.write_to(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn every_kind_of_entry_reads_back_behind_its_folder() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "12345").unwrap();
        let mut archive = Archive::new();
        archive.add_link("/bin/sh", "busybox");
        archive.add_bytes("/init", 0o755, "#!");
        archive.add_character_device("/dev/console", 0o600, (5, 1));
        archive.add_host_file("/bin/busybox", 0o755, file.path());

        let expected = [
            ("bin", 0o040_755, (0, 0), &b""[..]),
            ("bin/busybox", 0o100_755, (0, 0), b"12345"),
            ("bin/sh", 0o120_777, (0, 0), b"busybox"),
            ("dev", 0o040_755, (0, 0), b""),
            ("dev/console", 0o020_600, (5, 1), b""),
            ("init", 0o100_755, (0, 0), b"#!"),
        ];
        let entries = read_back(&written(&archive));
        let entries: Vec<_> = entries
            .iter()
            .map(|(name, mode, device, content)| (name.as_str(), *mode, *device, &content[..]))
            .collect();
        assert_eq!(entries, expected);
    }

    #[test]
    fn the_order_of_adding_does_not_show() {
        let mut one = Archive::new();
        one.add_bytes("/a", 0o644, "a");
        one.add_directory("/z", 0o755);
        let mut other = Archive::new();
        other.add_directory("/z", 0o755);
        other.add_bytes("/a", 0o644, "a");
        assert_eq!(written(&one), written(&other));
    }

    #[test]
    fn a_folder_given_its_own_permissions_keeps_them() {
        let mut archive = Archive::new();
        archive.add_directory("/tmp", 0o1777);
        archive.add_bytes("/tmp/file", 0o644, "");
        assert_eq!(read_back(&written(&archive))[0].1, 0o041_777);
    }

    #[test]
    fn a_file_that_is_gone_is_named() {
        let mut archive = Archive::new();
        archive.add_host_file("/x", 0o644, Path::new("/nowhere/x"));
        let error = archive.write_to(&mut Vec::new()).unwrap_err().to_string();
        assert_eq!(error, "cannot read /nowhere/x");
    }
}
