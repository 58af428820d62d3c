//! `mctl cp`: copies a file into a machine or out of it.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::stream;
use machine_api::Machine;

use crate::arguments::find_machine;
use crate::error::CommandError;
use crate::output::Progress;
use crate::session::Session;
use crate::units::bytes;

/// Bytes that are read and sent at a time.
const CHUNK_BYTES: usize = 256 << 10;

/// Copy a file into a machine or out of it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
One of FROM and TO is MACHINE:/absolute/path. The copy appears complete or not at all.

Example:
  mctl cp ./site.tar web:/srv/site.tar && mctl cp web:/var/log/app.log .")]
pub(crate) struct Args {
    /// File to copy: PATH or MACHINE:PATH
    from: String,
    /// Path of the copy: PATH or MACHINE:PATH
    to: String,
}

/// Where a file is.
enum Place<'a> {
    Guest { machine: &'a str, path: &'a str },
    Host(&'a Path),
}

impl<'a> Place<'a> {
    /// `MACHINE:PATH` is in a guest, unless there is a `/` before the colon.
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
    match (Place::parse(&args.from), Place::parse(&args.to)) {
        (Place::Host(file), Place::Guest { machine, path }) => {
            let machine = find_machine(session, machine).await?;
            copy_in(session, file, &machine, path).await
        }
        (Place::Guest { machine, path }, Place::Host(file)) => {
            let machine = find_machine(session, machine).await?;
            copy_out(session, &machine, path, file).await
        }
        (Place::Host(_), Place::Host(_)) | (Place::Guest { .. }, Place::Guest { .. }) => {
            Err(CommandError::Argument {
                argument: "cp",
                reason: "exactly one of FROM and TO must be MACHINE:/path".to_owned(),
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
        action: "read",
        path: from.to_owned(),
        source,
    };
    let file = File::open(from).map_err(failed)?;
    let attributes = file.metadata().map_err(failed)?;
    if !attributes.is_file() {
        return Err(failed(io::Error::from(io::ErrorKind::IsADirectory)));
    }
    let path = if path.ends_with('/') {
        format!("{path}{}", file_name(from))
    } else {
        path.to_owned()
    };
    let size = attributes.len();
    let progress = Arc::new(session.output.progress_in_bytes(size));
    let mode = attributes.permissions().mode() & 0o777;
    let chunks = stream::unfold((file, 0, Arc::clone(&progress)), read_chunk);
    let written = session
        .client
        .write_file(&machine.id, &path, mode, size, chunks)
        .await?;
    drop(progress);
    session.output.note(&format!(
        "{}:{path}: {} written",
        machine.name,
        bytes(written)
    ));
    Ok(())
}

/// The file, the number of bytes that are read already, and the progress bar.
type ReadState = (File, u64, Arc<Progress>);

/// Reads the next chunk. A local file is read quickly enough to do it without a thread.
async fn read_chunk(
    (mut file, done, progress): ReadState,
) -> Option<(io::Result<client::Bytes>, ReadState)> {
    let mut chunk = vec![0; CHUNK_BYTES];
    match file.read(&mut chunk) {
        Ok(0) => None,
        Ok(length) => {
            chunk.truncate(length);
            let done = done + length as u64;
            progress.advance_to(done, "");
            Some((Ok(chunk.into()), (file, done, progress)))
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
        action: "write",
        path: to.clone(),
        source,
    };
    let mut content = session.client.read_file(&machine.id, path).await?;
    let partial = PartialFile::beside(&to);
    let mut file = File::create(&partial.path).map_err(failed)?;
    let progress = session
        .output
        .progress_in_bytes(content.size_bytes.unwrap_or(0));
    let mut done = 0;
    while let Some(chunk) = content.next().await? {
        file.write_all(&chunk).map_err(failed)?;
        done += chunk.len() as u64;
        progress.advance_to(done, "");
    }
    drop(progress);
    // The guest decides who may read and execute the file. Set-user-ID and set-group-ID bits are
    // dropped.
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

/// The file while it is incomplete. Dropping it removes the file, unless it was renamed.
struct PartialFile {
    path: PathBuf,
}

impl PartialFile {
    fn beside(target: &Path) -> Self {
        let name = format!(".{}.{}.partial", file_name(target), std::process::id());
        Self {
            path: target.with_file_name(name),
        }
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        // It fails after the rename, when there is nothing to remove.
        let _ = fs::remove_file(&self.path);
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(
        || "file".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}
