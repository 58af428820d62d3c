//! The image: a manifest that has the whole state of the guest.

use std::path::Path;
use std::{fs, io};

use serde::{Deserialize, Serialize};
use vmm_control::ExitReason;

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

/// Reads the image of the generation `expected` and consumes it; else the reason, for programs and for
/// people.
pub(crate) fn restore(image: &Path, expected: &str) -> Result<GuestState, (ExitReason, String)> {
    let damaged = |message: String| (ExitReason::ImageRefused, message);
    let manifest = image.join("manifest.json");
    let text = fs::read(&manifest).map_err(|error| damaged(format!("image missing: {error}")))?;
    let guest: GuestState =
        serde_json::from_slice(&text).map_err(|_| damaged("checksum mismatch".to_owned()))?;
    if guest.behaves("refuse-image") {
        return Err(damaged("checksum mismatch".to_owned()));
    }
    if guest.behaves("unfit-image") {
        return Err((
            ExitReason::ImageUnfit,
            "the processor lacks avx2".to_owned(),
        ));
    }
    // The host recovers when somebody removes the file.
    if guest.behaves("unreadable-image") && image.join("unreadable").exists() {
        return Err((ExitReason::HostFailed, "cannot read memory: EIO".to_owned()));
    }
    if guest.generation.to_string() != expected {
        let message = format!("generation {} is not {expected}", guest.generation);
        return Err(damaged(message));
    }
    fs::rename(&manifest, image.join("manifest.consumed"))
        .map_err(|error| damaged(error.to_string()))?;
    Ok(guest)
}
