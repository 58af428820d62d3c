//! Loads the kernel modules of the image in the order of its list. The list is made by the image's
//! builder.

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::kmod::{ModuleInitFlags, finit_module};

use crate::os::console::say;

const DIRECTORY: &str = "/lib/modules";

/// linux/module.h; nix has no name for it.
const MODULE_INIT_COMPRESSED_FILE: libc::c_uint = 4;

/// Why a module was not loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ModuleError {
    #[error("cannot read the list of modules {path:?}")]
    Order {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("module {0:?} is not within {DIRECTORY}")]
    Outside(String),
    #[error("cannot open module {path:?}")]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the kernel refuses module {path:?}")]
    Load {
        path: PathBuf,
        #[source]
        source: Errno,
    },
}

/// Loads every module that the image lists. A failure is logged only: which modules a guest needs
/// depends on its kernel and its devices.
pub(crate) fn load_all() -> Result<(), ModuleError> {
    let path = Path::new(DIRECTORY).join("order");
    let order = fs::read_to_string(&path).map_err(|source| ModuleError::Order { path, source })?;
    for line in parse_order(&order) {
        if let Err(error) = load(line) {
            say(error_text::with_causes(&error));
        }
    }
    Ok(())
}

/// The modules in `order`: one per line, except empty lines and comments.
fn parse_order(order: &str) -> impl Iterator<Item = &str> {
    order
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn load(line: &str) -> Result<(), ModuleError> {
    let path = resolve(line)?;
    let file = File::open(&path).map_err(|source| ModuleError::Open {
        path: path.clone(),
        source,
    })?;
    let flags = if path.extension().is_some_and(|extension| extension == "ko") {
        ModuleInitFlags::empty()
    } else {
        ModuleInitFlags::from_bits_retain(MODULE_INIT_COMPRESSED_FILE)
    };
    match finit_module(&file, c"", flags) {
        // EEXIST: loaded already, or built into the kernel.
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(source) => Err(ModuleError::Load { path, source }),
    }
}

fn resolve(line: &str) -> Result<PathBuf, ModuleError> {
    let relative = Path::new(line);
    let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    if relative.components().all(is_plain) {
        Ok(Path::new(DIRECTORY).join(relative))
    } else {
        Err(ModuleError::Outside(line.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_the_lines() {
        let order = "# vsock\nnet/vsock.ko\n\n  net/virtio.ko.xz \r\n";
        let modules: Vec<_> = parse_order(order).collect();
        assert_eq!(modules, ["net/vsock.ko", "net/virtio.ko.xz"]);
    }

    #[test]
    fn modules_come_from_the_image_only() {
        assert_eq!(resolve("a/b.ko").unwrap(), Path::new("/lib/modules/a/b.ko"));
        for line in ["/tmp/a.ko", "../a.ko", "a/../../b.ko"] {
            assert!(resolve(line).is_err(), "{line}");
        }
    }
}
