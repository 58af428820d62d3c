//! Reads files out of the guest and writes files into it. Calls that may wait for a disk run on
//! threads of their own, because the rest of guest-init has one thread.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use guest_protocol::{FileKind, Frame, LaunchFile, Refusal, RefusalKind, Reply, StreamEnd, base64};

use crate::connection::{Connection, ConnectionError, Message};
use crate::services::refusal::{ServiceError, refusal};

/// Bytes of one Data frame.
const FRAME_BYTES: usize = 256 * 1024;

const PERMISSION_BITS: u32 = 0o7777;

/// Why a file was not transferred.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    #[error("path {0:?} is not absolute or names no file")]
    Path(String),
    #[error("{0:?} is no regular file")]
    NotRegular(PathBuf),
    #[error("cannot {verb} {path:?}")]
    Io {
        verb: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("only data may follow the request to write a file")]
    NotData,
}

impl FileError {
    fn refusal(&self) -> Refusal {
        let kind = match self {
            Self::Path(_) | Self::NotRegular(_) | Self::NotData => RefusalKind::Invalid,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                RefusalKind::NotFound
            }
            Self::Io { .. } => RefusalKind::Failed,
        };
        refusal(kind, self)
    }
}

/// Writes a file for the main process, before that starts. Blocks guest-init, which is harmless: the
/// file is small, and nothing else is going on.
pub(crate) fn write_launch_file(file: &LaunchFile) -> Result<(), Refusal> {
    let content = base64::decode(&file.content).ok_or_else(|| Refusal {
        kind: RefusalKind::Invalid,
        message: format!("the content of {:?} is not base64", file.path),
    })?;
    let written = IncomingFile::create(&file.path, file.mode).and_then(|mut incoming| {
        incoming.append(&content)?;
        incoming.finish()
    });
    written.map_err(|error| error.refusal())
}

/// Sends the file at `path`.
pub(crate) async fn serve_read(connection: &Connection, path: &str) -> Result<(), ServiceError> {
    let path = path.to_owned();
    let to_open = path.clone();
    let opened = blocking(move || open_to_read(&to_open)).await;
    let (mut file, kind) = opened.map_err(|error| error.refusal())?;
    connection.send_json(&Reply::Streaming).await?;
    connection.send_json(&kind).await?;
    let mut bytes = 0;
    let end = loop {
        // The size does not tell the end: files of the kernel claim zero, and others may grow.
        let to_read = path.clone();
        let block;
        (file, block) = blocking(move || {
            let block = read_block(&mut file, &to_read);
            (file, block)
        })
        .await;
        match block {
            Ok(block) if block.is_empty() => break StreamEnd::Complete { bytes },
            Ok(block) => {
                bytes += block.len() as u64;
                connection.send(Frame::Data(&block)).await?;
            }
            Err(error) => break StreamEnd::Refused(error.refusal()),
        }
    };
    connection.send(Frame::Data(&[])).await?;
    connection.send_json(&end).await?;
    Ok(())
}

fn open_to_read(path: &str) -> Result<(File, FileKind), FileError> {
    let path = absolute(path)?;
    // Without O_NONBLOCK, opening a named pipe would wait for its writer.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)
        .map_err(failed_to("open", &path))?;
    let metadata = file.metadata().map_err(failed_to("examine", &path))?;
    if !metadata.is_file() {
        return Err(FileError::NotRegular(path));
    }
    let kind = FileKind {
        size_bytes: metadata.len(),
        mode: metadata.permissions().mode() & PERMISSION_BITS,
    };
    Ok((file, kind))
}

fn read_block(file: &mut File, path: &str) -> Result<Vec<u8>, FileError> {
    let mut block = Vec::new();
    file.take(FRAME_BYTES as u64)
        .read_to_end(&mut block)
        .map_err(failed_to("read", Path::new(path)))?;
    Ok(block)
}

/// Receives a file and puts it at `path`, whole or not at all.
pub(crate) async fn serve_write(
    connection: &Connection,
    path: &str,
    mode: u32,
) -> Result<(), ServiceError> {
    let path = path.to_owned();
    let created = blocking(move || IncomingFile::create(&path, mode)).await;
    let incoming = created.map_err(|error| error.refusal())?;
    connection.send_json(&Reply::Streaming).await?;
    let end = match receive_file(connection, incoming).await? {
        Ok(bytes) => StreamEnd::Complete { bytes },
        Err(error) => StreamEnd::Refused(error.refusal()),
    };
    connection.send_json(&end).await?;
    Ok(())
}

/// The outer error ends the connection, the inner one is sent over it.
async fn receive_file(
    connection: &Connection,
    mut incoming: IncomingFile,
) -> Result<Result<u64, FileError>, ConnectionError> {
    let mut bytes = 0;
    loop {
        let Message::Data(block) = connection.receive().await? else {
            return Ok(Err(FileError::NotData));
        };
        if block.is_empty() {
            break;
        }
        bytes += block.len() as u64;
        let appended;
        (incoming, appended) = blocking(move || {
            let appended = incoming.append(&block);
            (incoming, appended)
        })
        .await;
        if let Err(error) = appended {
            return Ok(Err(error));
        }
    }
    let finished = blocking(move || incoming.finish()).await;
    Ok(finished.map(|()| bytes))
}

/// Does `work` on another thread.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

/// A file beside its target; removed when dropped before [`IncomingFile::finish`].
#[derive(Debug)]
struct IncomingFile {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    mode: u32,
    is_in_place: bool,
}

impl IncomingFile {
    fn create(path: &str, mode: u32) -> Result<Self, FileError> {
        let target = absolute(path)?;
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return Err(FileError::Path(path.to_owned()));
        };
        if target.is_dir() || path.ends_with('/') {
            return Err(FileError::NotRegular(target));
        }
        fs::create_dir_all(parent).map_err(failed_to("create the parents of", &target))?;
        let mut attempt = 0;
        loop {
            let mut temporary_name = std::ffi::OsString::from(".");
            temporary_name.push(name);
            temporary_name.push(format!(".incoming-{attempt}"));
            let temporary = parent.join(temporary_name);
            // The final mode is set at the end; until then nobody else may read it.
            let created = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary);
            match created {
                // Another transfer to the same target is in progress, or was when the power failed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => attempt += 1,
                Err(source) => return Err(failed_to("create", &temporary)(source)),
                Ok(file) => {
                    return Ok(Self {
                        file,
                        temporary,
                        target,
                        mode: mode & PERMISSION_BITS,
                        is_in_place: false,
                    });
                }
            }
        }
    }

    fn append(&mut self, block: &[u8]) -> Result<(), FileError> {
        let written = self.file.write_all(block);
        written.map_err(failed_to("write", &self.target))
    }

    fn finish(mut self) -> Result<(), FileError> {
        self.file
            .set_permissions(Permissions::from_mode(self.mode))
            .and_then(|()| self.file.sync_all())
            .and_then(|()| fs::rename(&self.temporary, &self.target))
            .map_err(failed_to("put in place", &self.target))?;
        self.is_in_place = true;
        Ok(())
    }
}

impl Drop for IncomingFile {
    fn drop(&mut self) {
        if !self.is_in_place {
            // A file that cannot be removed stays; there is nobody to report it to.
            let _stays = fs::remove_file(&self.temporary);
        }
    }
}

fn absolute(path: &str) -> Result<PathBuf, FileError> {
    if path.starts_with('/') && !path.contains('\0') {
        Ok(PathBuf::from(path))
    } else {
        Err(FileError::Path(path.to_owned()))
    }
}

fn failed_to(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError + use<> {
    let path = path.to_owned();
    move |source| FileError::Io { verb, path, source }
}
