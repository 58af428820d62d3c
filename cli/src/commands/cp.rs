//! `mctl cp`: files in and out of a machine.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::stream;
use machine_api::Machine;

use crate::error::CommandError;
use crate::machine_ref;
use crate::output::Progress;
use crate::session::Session;
use crate::span::bytes;

/// Bytes read at a time.
const PIECE_BYTES: usize = 256 << 10;

/// Copy a file into a machine or out of it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
One side is MACHINE:/absolute/path. The file appears whole or not at all.

Example:
  mctl cp ./site.tar web:/srv/site.tar && mctl cp web:/var/log/app.log .")]
pub(crate) struct Args {
    /// File to copy
    from: String,
    /// Where to
    to: String,
}

/// One side of a copy.
enum Side<'a> {
    Guest { machine: &'a str, path: &'a str },
    Host(&'a Path),
}

impl<'a> Side<'a> {
    /// `NAME:/path` is in a guest, unless there is a `/` before the colon.
    fn parse(text: &'a str) -> Self {
        match text.split_once(':') {
            Some((machine, path)) if !machine.is_empty() && !machine.contains('/') => {
                Self::Guest { machine, path }
            }
            _ => Self::Host(Path::new(text)),
        }
    }
}

pub(crate) async fn run(session: &Session, args: Args) -> Result<(), CommandError> {
    match (Side::parse(&args.from), Side::parse(&args.to)) {
        (Side::Host(file), Side::Guest { machine, path }) => {
            let machine = machine_ref::find(session, Some(machine)).await?;
            copy_in(session, file, &machine, path).await
        }
        (Side::Guest { machine, path }, Side::Host(file)) => {
            let machine = machine_ref::find(session, Some(machine)).await?;
            copy_out(session, &machine, path, file).await
        }
        (Side::Host(_), Side::Host(_)) | (Side::Guest { .. }, Side::Guest { .. }) => {
            Err(CommandError::Argument {
                argument: "cp",
                reason: "exactly one side has to be MACHINE:/path".to_owned(),
            })
        }
    }
}

async fn copy_in(
    session: &Session,
    from: &Path,
    machine: &Machine,
    path: &str,
) -> Result<(), CommandError> {
    let failed = |source| CommandError::File {
        what: "read",
        path: from.to_owned(),
        source,
    };
    let file = File::open(from).map_err(failed)?;
    let about = file.metadata().map_err(failed)?;
    if !about.is_file() {
        return Err(failed(io::Error::from(io::ErrorKind::IsADirectory)));
    }
    let path = if path.ends_with('/') {
        format!("{path}{}", file_name(from))
    } else {
        path.to_owned()
    };
    let size = about.len();
    let progress = Arc::new(session.output.progress_in_bytes(size));
    let mode = about.permissions().mode() & 0o777;
    let pieces = stream::unfold((file, 0, Arc::clone(&progress)), read_piece);
    let written = session
        .client
        .write_file(&machine.id, &path, mode, size, pieces)
        .await?;
    drop(progress);
    session.output.note(&format!(
        "{}:{path}: {} written",
        machine.name,
        bytes(written)
    ));
    Ok(())
}

type Reading = (File, u64, Arc<Progress>);

/// Reading a local file is quick enough not to need a thread of its own.
async fn read_piece(
    (mut file, done, progress): Reading,
) -> Option<(io::Result<client::Bytes>, Reading)> {
    let mut piece = vec![0; PIECE_BYTES];
    match file.read(&mut piece) {
        Ok(0) => None,
        Ok(length) => {
            piece.truncate(length);
            let done = done + length as u64;
            progress.advance_to(done, "");
            Some((Ok(piece.into()), (file, done, progress)))
        }
        Err(error) => Some((Err(error), (file, done, progress))),
    }
}

async fn copy_out(
    session: &Session,
    machine: &Machine,
    path: &str,
    to: &Path,
) -> Result<(), CommandError> {
    let to = if to.is_dir() {
        to.join(file_name(Path::new(path)))
    } else {
        to.to_owned()
    };
    let failed = |source| CommandError::File {
        what: "write",
        path: to.clone(),
        source,
    };
    let mut content = session.client.read_file(&machine.id, path).await?;
    let partial = Partial::beside(&to);
    let mut file = File::create(&partial.path).map_err(failed)?;
    let progress = session
        .output
        .progress_in_bytes(content.size_bytes.unwrap_or(0));
    let mut done = 0;
    while let Some(piece) = content.next().await? {
        file.write_all(&piece).map_err(failed)?;
        done += piece.len() as u64;
        progress.advance_to(done, "");
    }
    drop(progress);
    // A guest decides who may read and run the file, but not that it runs as somebody else.
    if let Some(mode) = content.mode {
        file.set_permissions(Permissions::from_mode(mode & 0o777))
            .map_err(failed)?;
    }
    fs::rename(&partial.path, &to).map_err(failed)?;
    session
        .output
        .note(&format!("{}: {} written", to.display(), bytes(done)));
    Ok(())
}

/// A file that is not whole yet; removed unless it was renamed.
struct Partial {
    path: PathBuf,
}

impl Partial {
    fn beside(target: &Path) -> Self {
        let name = format!(".{}.{}.partial", file_name(target), std::process::id());
        Self {
            path: target.with_file_name(name),
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After the rename there is nothing left to remove.
        let _ = fs::remove_file(&self.path);
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(
        || "file".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}
