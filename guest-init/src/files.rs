//! Files out of the guest and into it. What may wait for a disk does so on threads of its own: all
//! else of guest-init has one thread.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use guest_protocol::{FileKind, Frame, LaunchFile, Refusal, RefusalKind, Reply, StreamEnd, base64};

use crate::connection::{Connection, ConnectionError, Message};
use crate::server::refusal;

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
    Step {
        verb: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("only data can follow the request to write a file")]
    Misplaced,
}

impl FileError {
    fn refusal(&self) -> Refusal {
        let kind = match self {
            Self::Path(_) | Self::NotRegular(_) | Self::Misplaced => RefusalKind::Invalid,
            Self::Step { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                RefusalKind::NotFound
            }
            Self::Step { .. } => RefusalKind::Failed,
        };
        refusal(kind, self)
    }
}

/// Puts a file in place before the main process starts. It is small, and nothing else is under way.
pub(crate) fn put(file: &LaunchFile) -> Result<(), Refusal> {
    let content = base64::decode(&file.content).ok_or_else(|| Refusal {
        kind: RefusalKind::Invalid,
        message: format!("the content of {:?} is no base64", file.path),
    })?;
    let written = IncomingFile::create(&file.path, file.mode).and_then(|mut incoming| {
        incoming.append(&content)?;
        incoming.finish()
    });
    written.map_err(|error| error.refusal())
}

/// Sends the file at `path`.
pub(crate) async fn serve_read(connection: &Connection, path: &str) -> Result<(), ConnectionError> {
    let path = path.to_owned();
    let wanted = path.clone();
    let (mut file, kind) = match blocking(move || open_to_read(&wanted)).await {
        Ok(opened) => opened,
        Err(error) => return connection.send_json(&Reply::Refused(error.refusal())).await,
    };
    connection.send_json(&Reply::Streaming).await?;
    connection.send_json(&kind).await?;
    let mut bytes = 0;
    let end = loop {
        // Files of the kernel claim a size of zero, and others may grow: only the end counts.
        let read_from = path.clone();
        let (back, block) = blocking(move || {
            let block = read_block(&mut file, &read_from);
            (file, block)
        })
        .await;
        file = back;
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
    connection.send_json(&end).await
}

fn open_to_read(path: &str) -> Result<(File, FileKind), FileError> {
    let path = absolute(path)?;
    // Without O_NONBLOCK, opening a named pipe would wait for its writer and all of
    // guest-init with it.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(&path)
        .map_err(step("open", &path))?;
    let metadata = file.metadata().map_err(step("examine", &path))?;
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
        .map_err(step("read", Path::new(path)))?;
    Ok(block)
}

/// Receives a file and puts it at `path`, whole or not at all.
pub(crate) async fn serve_write(
    connection: &Connection,
    path: &str,
    mode: u32,
) -> Result<(), ConnectionError> {
    let path = path.to_owned();
    let incoming = match blocking(move || IncomingFile::create(&path, mode)).await {
        Ok(incoming) => incoming,
        Err(error) => return connection.send_json(&Reply::Refused(error.refusal())).await,
    };
    connection.send_json(&Reply::Streaming).await?;
    let end = match receive_file(connection, incoming).await? {
        Ok(bytes) => StreamEnd::Complete { bytes },
        Err(error) => StreamEnd::Refused(error.refusal()),
    };
    connection.send_json(&end).await
}

/// The outer error ends the conversation, the inner one is told.
async fn receive_file(
    connection: &Connection,
    mut incoming: IncomingFile,
) -> Result<Result<u64, FileError>, ConnectionError> {
    let mut bytes = 0;
    loop {
        let Message::Data(block) = connection.receive().await? else {
            return Ok(Err(FileError::Misplaced));
        };
        if block.is_empty() {
            break;
        }
        bytes += block.len() as u64;
        let (back, appended) = blocking(move || {
            let appended = incoming.append(&block);
            (incoming, appended)
        })
        .await;
        incoming = back;
        if let Err(error) = appended {
            return Ok(Err(error));
        }
    }
    let finished = blocking(move || incoming.finish()).await;
    Ok(finished.map(|()| bytes))
}

/// Does `work` on another thread; only who awaits it waits for it.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
    }
}

/// A file beside its final place; removed again unless finished.
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
        fs::create_dir_all(parent).map_err(step("make the parents of", &target))?;
        let mut attempt = 0;
        loop {
            let mut temporary_name = std::ffi::OsString::from(".");
            temporary_name.push(name);
            temporary_name.push(format!(".incoming-{attempt}"));
            let temporary = parent.join(temporary_name);
            // The final mode is set at the end; until then nobody else needs to read it.
            let created = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary);
            match created {
                // Another transfer to the same place is under way, or was when power failed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => attempt += 1,
                Err(source) => return Err(step("create", &temporary)(source)),
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
        written.map_err(step("write", &self.target))
    }

    fn finish(mut self) -> Result<(), FileError> {
        self.file
            .set_permissions(Permissions::from_mode(self.mode))
            .and_then(|()| self.file.sync_all())
            .and_then(|()| fs::rename(&self.temporary, &self.target))
            .map_err(step("put in place", &self.target))?;
        self.is_in_place = true;
        Ok(())
    }
}

impl Drop for IncomingFile {
    fn drop(&mut self) {
        if !self.is_in_place {
            // Nothing more can be done about what cannot even be removed.
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

fn step(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError + use<> {
    let path = path.to_owned();
    move |source| FileError::Step { verb, path, source }
}
