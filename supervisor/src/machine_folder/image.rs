//! A machine's image in its folder, as far as the supervisor looks at it: which launch wrote it, and its
//! removal.

use std::fs::{self, File};
use std::io;

use super::origin::origin_generation;
use crate::paths::MachineDir;

/// The generation that wrote the whole image of the machine `id`, if it has one. One that cannot be
/// parsed is none; an error means that nobody could look.
pub(crate) fn image_generation(dir: &MachineDir, id: &str) -> io::Result<Option<u64>> {
    origin_generation(&dir.image_manifest(), id)
}

/// Removes the image, durably: what makes it one goes first, so that no power failure brings back a whole
/// image whose machine has gone on, or a part of it that looks whole. Success if there is none.
pub(crate) fn remove_image(dir: &MachineDir) -> io::Result<()> {
    match fs::remove_file(dir.image_manifest()) {
        Ok(()) => File::open(dir.image())?.sync_all()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    remove_tree(&dir.image())
}

/// Removes the whole folder of a machine, durably.
pub(crate) fn remove_folder(dir: &MachineDir) -> io::Result<()> {
    remove_tree(dir.root())?;
    match dir.root().parent() {
        Some(machines) => File::open(machines)?.sync_all(),
        None => Ok(()),
    }
}

/// Removes a directory with all that is in it; success if it does not exist.
pub(super) fn remove_tree(path: &std::path::Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::{StateDir, create_private_dir};

    #[test]
    fn an_image_is_its_machines_or_none() {
        let root = tempfile::tempdir_in("/tmp").unwrap();
        let state = StateDir::new(root.path().to_owned()).unwrap();
        let dir = state.machine("0123456789abcd");
        assert_eq!(image_generation(&dir, "0123456789abcd").unwrap(), None);
        remove_image(&dir).unwrap();
        create_private_dir(&dir.image()).unwrap();
        let manifest = r#"{"machine_id": "0123456789abcd", "generation": 7}"#;
        fs::write(dir.image_manifest(), manifest).unwrap();
        assert_eq!(image_generation(&dir, "0123456789abcd").unwrap(), Some(7));
        assert_eq!(image_generation(&dir, "another").unwrap(), None);
        fs::write(dir.image_manifest(), "{").unwrap();
        assert_eq!(image_generation(&dir, "0123456789abcd").unwrap(), None);
        remove_image(&dir).unwrap();
        assert!(!dir.image().exists());
        remove_folder(&dir).unwrap();
        remove_folder(&dir).unwrap();
        assert!(!dir.root().exists());
    }
}
