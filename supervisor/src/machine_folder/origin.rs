//! Which launch has left a file: an image's manifest and an exit report name machine and generation.

use std::fs;
use std::io;
use std::path::Path;

use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Origin {
    machine_id: String,
    generation: u64,
}

/// The generation of the file at `path`, if a launch of the machine `id` has left it. A file that cannot
/// be parsed says nothing: whether an image can be used is for the VMM to judge, when it is asked to
/// resume.
pub(super) fn origin_generation(path: &Path, id: &str) -> io::Result<Option<u64>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes?,
    };
    let origin: Option<Origin> = serde_json::from_slice(&bytes).ok();
    let ours = origin.filter(|origin| origin.machine_id == id);
    Ok(ours.map(|origin| origin.generation))
}
