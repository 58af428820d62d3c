//! The image: a manifest that has the whole state of the guest.

use std::path::Path;
use std::{fs, io};

use serde::{Deserialize, Serialize};

/// The guest's state, which an image keeps.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct GuestState {
    pub(crate) boot_id: String,
    /// The words of the kernel's command line.
    pub(crate) behaviour: String,
    /// Command line of the main process, if it was launched.
    pub(crate) launched: Option<Vec<String>>,
    /// Output of the main process.
    pub(crate) lines: Vec<String>,
    /// The machine and the generation that wrote the image.
    pub(crate) machine_id: String,
    pub(crate) generation: u64,
}

impl GuestState {
    pub(crate) fn behaves(&self, word: &str) -> bool {
        self.behaviour.split(' ').any(|found| found == word)
    }
}

/// Writes the image into the directory `image`.
pub(crate) fn save(guest: &GuestState, image: &Path) -> io::Result<()> {
    let part = image.join("manifest.tmp");
    fs::create_dir_all(image)?;
    fs::write(&part, serde_json::to_vec(guest).unwrap())?;
    fs::rename(&part, image.join("manifest.json"))
}

/// Reads the image of the generation `expected` and consumes it.
pub(crate) fn restore(image: &Path, expected: &str) -> Result<GuestState, String> {
    let manifest = image.join("manifest.json");
    let text = fs::read(&manifest).map_err(|error| format!("image missing: {error}"))?;
    let guest: GuestState =
        serde_json::from_slice(&text).map_err(|_| "checksum mismatch".to_owned())?;
    if guest.behaves("refuse-image") {
        return Err("checksum mismatch".to_owned());
    }
    if guest.generation.to_string() != expected {
        return Err(format!("generation {} is not {expected}", guest.generation));
    }
    fs::rename(&manifest, image.join("manifest.consumed")).map_err(|error| error.to_string())?;
    Ok(guest)
}
