//! Removing files of a machine, and setting its image aside.

use std::fs;
use std::io;
use std::path::Path;

use crate::paths::{MachineDir, create_private_dir};

/// How many images of a machine are kept that were set aside. The oldest goes first.
const IMAGES_KEPT: usize = 2;

/// Removes a directory with all that is in it; success if it does not exist.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Sets the image aside that the generation `generation` wrote, durably, so that no suspend overwrites it
/// and somebody can look at it. Does nothing if there is none.
pub(super) fn set_image_aside(dir: &MachineDir, generation: u64) -> io::Result<()> {
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
    remove_oldest(&folder)
}

fn remove_oldest(folder: &Path) -> io::Result<()> {
    let mut images: Vec<(u64, std::path::PathBuf)> = fs::read_dir(folder)?
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let generation = name.to_str()?.strip_prefix("image-")?.parse().ok()?;
            Some((generation, entry.path()))
        })
        .collect();
    images.sort();
    let surplus = images.len().saturating_sub(IMAGES_KEPT);
    for (_, image) in images.drain(..surplus) {
        remove_tree(&image)?;
    }
    Ok(())
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
        for generation in [9, 10, 11] {
            create_private_dir(&dir.image()).unwrap();
            fs::write(dir.image_manifest(), generation.to_string()).unwrap();
            set_image_aside(&dir, generation).unwrap();
            assert!(!dir.image().exists());
        }
        set_image_aside(&dir, 12).unwrap();
        let kept = |generation| {
            fs::read_to_string(dir.image_set_aside(generation).join("manifest.json")).ok()
        };
        assert_eq!(
            [9, 10, 11, 12].map(kept),
            [None, Some("10".to_owned()), Some("11".to_owned()), None]
        );
    }
}
