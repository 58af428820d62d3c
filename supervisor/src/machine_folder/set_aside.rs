//! Images that were set aside: no resume uses them, and nobody has removed them.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::image::remove_tree;
use crate::paths::{MachineDir, create_private_dir};

/// How many images of a machine are kept. The oldest goes first.
const IMAGES_KEPT: usize = 2;

/// What the name of such an image's folder begins with; its generation follows.
const PREFIX: &str = "image-";

/// Sets the image aside that the generation `generation` wrote, durably, so that no suspend overwrites it
/// and somebody can look at it. Does nothing if there is none.
pub(crate) fn set_image_aside(dir: &MachineDir, generation: u64) -> io::Result<()> {
    if !dir.image_manifest().try_exists()? {
        return Ok(());
    }
    let folder = dir.images_set_aside();
    create_private_dir(&folder)?;
    let target = dir.image_set_aside(generation);
    remove_tree(&target)?;
    fs::rename(dir.image(), &target)?;
    for changed in [folder.as_path(), dir.root()] {
        fs::File::open(changed)?.sync_all()?;
    }
    let images = images_set_aside(dir)?;
    for (_, surplus) in images.iter().rev().skip(IMAGES_KEPT) {
        remove_tree(surplus)?;
    }
    Ok(())
}

/// The images of a machine that were set aside, with their generations, oldest first.
pub(crate) fn images_set_aside(dir: &MachineDir) -> io::Result<Vec<(u64, PathBuf)>> {
    let entries = match fs::read_dir(dir.images_set_aside()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut images = Vec::new();
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let digits = name.to_str().and_then(|name| name.strip_prefix(PREFIX));
        if let Some(generation) = digits.and_then(|digits| digits.parse().ok()) {
            images.push((generation, entry.path()));
        }
    }
    images.sort();
    Ok(images)
}

/// Removes an image that was set aside; false if there is none of that generation.
pub(crate) fn remove_set_aside(dir: &MachineDir, generation: u64) -> io::Result<bool> {
    match fs::remove_dir_all(dir.image_set_aside(generation)) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::StateDir;

    #[test]
    fn images_are_set_aside_whole_and_only_the_newest_are_kept() {
        let root = tempfile::tempdir_in("/tmp").unwrap();
        let state = StateDir::new(root.path().to_owned()).unwrap();
        let dir = state.machine("0123456789abcd");
        assert_eq!(images_set_aside(&dir).unwrap(), []);
        for generation in [9, 10, 11] {
            create_private_dir(&dir.image()).unwrap();
            fs::write(dir.image_manifest(), generation.to_string()).unwrap();
            set_image_aside(&dir, generation).unwrap();
            assert!(!dir.image().exists());
        }
        set_image_aside(&dir, 12).unwrap();
        let kept = images_set_aside(&dir).unwrap();
        assert_eq!(
            kept.iter().map(|(number, _)| *number).collect::<Vec<_>>(),
            [10, 11]
        );
        for (generation, path) in kept {
            let manifest = fs::read_to_string(path.join("manifest.json")).unwrap();
            assert_eq!(manifest, generation.to_string());
            assert!(remove_set_aside(&dir, generation).unwrap());
            assert!(!remove_set_aside(&dir, generation).unwrap());
        }
    }
}
