//! Which kernel modules to load for a purpose, and in which order.
//!
//! Dependencies come from `modules.dep` if `depmod` has written one. A package that was only
//! unpacked has none; there the `depends=` line of each module has the same names. Symbols, aliases
//! and soft dependencies are ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{fs, io};

use object::{Object, ObjectSection};
use thiserror::Error;

use crate::compression::{self, UnpackError};

/// Why there is no load order.
#[derive(Debug, Error)]
pub enum ModulesError {
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("no kernel modules in {folder} (it should look like /lib/modules/<version>)")]
    Empty { folder: PathBuf },
    #[error("the module {name}{} is neither in {folder} nor built in", needed_by(.chain))]
    Absent {
        name: String,
        chain: Vec<String>,
        folder: PathBuf,
    },
    #[error("the module {name} depends on itself: {}", .chain.join(" needs "))]
    Cycle { name: String, chain: Vec<String> },
    #[error("cannot unpack the module {path}")]
    Unpack { path: PathBuf, source: UnpackError },
    #[error("the module {path} is not an ELF file")]
    NotElf {
        path: PathBuf,
        source: object::Error,
    },
}

fn needed_by(chain: &[String]) -> String {
    chain
        .last()
        .map(|user| format!(", needed by {user},"))
        .unwrap_or_default()
}

/// A module to load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// With underscores, as in `/proc/modules`.
    pub name: String,
    pub path: PathBuf,
}

impl Module {
    /// The module's content, unpacked.
    pub fn read(&self) -> Result<Vec<u8>, ModulesError> {
        read_unpacked(&self.path)
    }
}

/// The modules of one kernel.
#[derive(Debug)]
pub struct ModuleTree {
    folder: PathBuf,
    paths: BTreeMap<String, PathBuf>,
    /// From `modules.dep`, if there is one.
    dependencies: Option<BTreeMap<String, Vec<String>>>,
    builtin: BTreeSet<String>,
}

impl ModuleTree {
    /// Reads the index of a folder like `/lib/modules/<version>`.
    pub fn open(folder: &Path) -> Result<Self, ModulesError> {
        let mut paths = BTreeMap::new();
        collect_modules(folder, &mut paths)?;
        if paths.is_empty() {
            return Err(ModulesError::Empty {
                folder: folder.to_owned(),
            });
        }
        let dependencies = read_optional(&folder.join("modules.dep"))?.map(|text| {
            text.lines()
                .filter_map(|line| line.split_once(':'))
                .map(|(module, needs)| {
                    (
                        name_of(module),
                        needs.split_whitespace().map(name_of).collect(),
                    )
                })
                .collect()
        });
        let builtin = read_optional(&folder.join("modules.builtin"))?
            .map(|text| text.lines().map(name_of).collect())
            .unwrap_or_default();
        Ok(Self {
            folder: folder.to_owned(),
            paths,
            dependencies,
            builtin,
        })
    }

    /// The `required` modules, the `optional` ones that exist, and everything that they depend on;
    /// each comes after its dependencies.
    pub fn load_order(
        &self,
        required: &[&str],
        optional: &[&str],
    ) -> Result<Vec<Module>, ModulesError> {
        let present = optional
            .iter()
            .filter(|name| self.paths.contains_key(&name_of(name)));
        let mut order = LoadOrder {
            tree: self,
            added: BTreeSet::new(),
            modules: Vec::new(),
        };
        for name in required.iter().chain(present) {
            order.add(&name_of(name), &mut Vec::new())?;
        }
        Ok(order.modules)
    }

    fn dependencies_of(&self, name: &str, path: &Path) -> Result<Vec<String>, ModulesError> {
        match &self.dependencies {
            Some(known) => Ok(known.get(name).cloned().unwrap_or_default()),
            None => declared_dependencies(path, &read_unpacked(path)?),
        }
    }
}

/// A depth-first walk. `chain` in its methods is the path from the requested module down.
struct LoadOrder<'a> {
    tree: &'a ModuleTree,
    added: BTreeSet<String>,
    modules: Vec<Module>,
}

impl LoadOrder<'_> {
    fn add(&mut self, name: &str, chain: &mut Vec<String>) -> Result<(), ModulesError> {
        if self.added.contains(name) || self.tree.builtin.contains(name) {
            return Ok(());
        }
        if chain.iter().any(|above| above == name) {
            let mut chain = std::mem::take(chain);
            chain.push(name.to_owned());
            return Err(ModulesError::Cycle {
                name: name.to_owned(),
                chain,
            });
        }
        let Some(path) = self.tree.paths.get(name) else {
            return Err(ModulesError::Absent {
                name: name.to_owned(),
                chain: chain.clone(),
                folder: self.tree.folder.clone(),
            });
        };
        chain.push(name.to_owned());
        for dependency in self.tree.dependencies_of(name, path)? {
            self.add(&dependency, chain)?;
        }
        chain.pop();
        self.added.insert(name.to_owned());
        self.modules.push(Module {
            name: name.to_owned(),
            path: path.clone(),
        });
        Ok(())
    }
}

/// The kernel's name of a module, from its path or from a name with hyphens.
fn name_of(path: &str) -> String {
    let file = path.trim().rsplit('/').next().unwrap_or_default();
    let stem = file.split_once(".ko").map_or(file, |(stem, _)| stem);
    stem.replace('-', "_")
}

fn collect_modules(
    folder: &Path,
    paths: &mut BTreeMap<String, PathBuf>,
) -> Result<(), ModulesError> {
    let unreadable = |source| ModulesError::Read {
        path: folder.to_owned(),
        source,
    };
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        // Links are not followed: `build` and `source` lead to whole kernel trees.
        let kind = entry.file_type().map_err(unreadable)?;
        let path = entry.path();
        if kind.is_dir() {
            collect_modules(&path, paths)?;
        } else if let Some(name) = path.file_name().and_then(|name| name.to_str())
            && [".ko", ".ko.gz", ".ko.xz", ".ko.zst"]
                .iter()
                .any(|end| name.ends_with(end))
        {
            paths.insert(name_of(name), path);
        }
    }
    Ok(())
}

fn read_optional(path: &Path) -> Result<Option<String>, ModulesError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ModulesError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

fn read_unpacked(path: &Path) -> Result<Vec<u8>, ModulesError> {
    let bytes = fs::read(path).map_err(|source| ModulesError::Read {
        path: path.to_owned(),
        source,
    })?;
    match compression::detect(&bytes) {
        None => Ok(bytes),
        Some(format) => {
            compression::unpack(format, &bytes).map_err(|source| ModulesError::Unpack {
                path: path.to_owned(),
                source,
            })
        }
    }
}

/// The `depends=` line of the `.modinfo` section, which the kernel's build writes.
fn declared_dependencies(path: &Path, module: &[u8]) -> Result<Vec<String>, ModulesError> {
    let not_elf = |source| ModulesError::NotElf {
        path: path.to_owned(),
        source,
    };
    let file = object::File::parse(module).map_err(not_elf)?;
    let Some(section) = file.section_by_name(".modinfo") else {
        return Ok(Vec::new());
    };
    let info = section.data().map_err(not_elf)?;
    Ok(info
        .split(|byte| *byte == 0)
        .filter_map(|line| line.strip_prefix(b"depends="))
        .flat_map(|names| names.split(|byte| *byte == b','))
        .filter(|name| !name.is_empty())
        .map(|name| name_of(&String::from_utf8_lossy(name)))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compression::{Format, pack};

    fn tree(modules_dep: &str) -> (tempfile::TempDir, Result<ModuleTree, ModulesError>) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("kernel")).unwrap();
        for line in modules_dep.lines() {
            let (path, _) = line.split_once(':').unwrap();
            fs::write(folder.path().join(path), path).unwrap();
        }
        fs::write(folder.path().join("modules.dep"), modules_dep).unwrap();
        fs::write(
            folder.path().join("modules.builtin"),
            "kernel/fs/ext4/ext4.ko\n",
        )
        .unwrap();
        let tree = ModuleTree::open(folder.path());
        (folder, tree)
    }

    fn names(order: &[Module]) -> Vec<&str> {
        order.iter().map(|module| module.name.as_str()).collect()
    }

    #[test]
    fn each_module_comes_once_and_after_its_dependencies() {
        let (_folder, tree) = tree(
            "kernel/virtio_blk.ko: kernel/virtio.ko kernel/virtio_ring.ko\n\
             kernel/virtio.ko: kernel/virtio_ring.ko\n\
             kernel/virtio_ring.ko:\n\
             kernel/virtio-rng.ko: kernel/virtio.ko\n",
        );
        let order = tree
            .unwrap()
            .load_order(&["virtio_blk", "virtio-rng"], &[])
            .unwrap();
        assert_eq!(
            names(&order),
            ["virtio_ring", "virtio", "virtio_blk", "virtio_rng"]
        );
    }

    #[test]
    fn a_built_in_module_needs_no_file() {
        let (_folder, tree) = tree("kernel/a.ko:\n");
        assert!(tree.unwrap().load_order(&["ext4"], &[]).unwrap().is_empty());
    }

    #[test]
    fn an_optional_module_that_is_absent_is_left_out() {
        let (_folder, tree) = tree("kernel/a.ko:\n");
        let order = tree.unwrap().load_order(&[], &["a", "b"]).unwrap();
        assert_eq!(names(&order), ["a"]);
    }

    #[test]
    fn an_absent_module_is_named_with_the_one_that_needs_it() {
        let (_folder, tree) = tree("kernel/a.ko: kernel/b.ko\n");
        let error = tree
            .unwrap()
            .load_order(&["a"], &[])
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("the module b, needed by a, is neither in"),
            "{error}"
        );
    }

    #[test]
    fn a_cycle_is_named_with_its_members() {
        let (_folder, tree) =
            tree("kernel/a.ko: kernel/b.ko\nkernel/b.ko: kernel/c.ko\nkernel/c.ko: kernel/a.ko\n");
        let error = tree
            .unwrap()
            .load_order(&["a"], &[])
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "the module a depends on itself: a needs b needs c needs a"
        );
    }

    #[test]
    fn a_packed_module_is_read_unpacked() {
        for (format, ending) in [
            (Format::Xz, "xz"),
            (Format::Zstd, "zst"),
            (Format::Gzip, "gz"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(format!("loop.ko.{ending}"));
            fs::write(&path, pack::pack(format, b"\x7fELF module")).unwrap();
            let tree = ModuleTree::open(folder.path()).unwrap();
            fs::write(folder.path().join("modules.dep"), "").unwrap();
            let module = Module {
                name: "loop".to_owned(),
                path: tree.paths["loop"].clone(),
            };
            assert_eq!(module.read().unwrap(), b"\x7fELF module");
        }
    }

    #[test]
    fn without_modules_dep_each_module_names_its_dependencies() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("b-b.ko"), sample_module("")).unwrap();
        let packed = pack::pack(Format::Zstd, &sample_module("b_b"));
        fs::write(folder.path().join("a.ko.zst"), packed).unwrap();
        let tree = ModuleTree::open(folder.path()).unwrap();
        assert_eq!(names(&tree.load_order(&["a"], &[]).unwrap()), ["b_b", "a"]);
    }

    #[test]
    fn a_folder_without_modules_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let error = ModuleTree::open(folder.path()).unwrap_err();
        assert!(matches!(error, ModulesError::Empty { .. }), "{error}");
    }

    #[test]
    fn a_module_that_is_not_an_elf_file_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.ko"), "text").unwrap();
        let error = ModuleTree::open(folder.path())
            .unwrap()
            .load_order(&["a"], &[])
            .unwrap_err();
        assert!(matches!(error, ModulesError::NotElf { .. }), "{error}");
    }

    /// A relocatable ELF file with only a `.modinfo` section.
    fn sample_module(depends: &str) -> Vec<u8> {
        use object::write::{Object, StandardSegment};
        let mut module = Object::new(
            object::BinaryFormat::Elf,
            object::Architecture::X86_64,
            object::Endianness::Little,
        );
        let segment = module.segment_name(StandardSegment::Data).to_vec();
        let section = module.add_section(
            segment,
            b".modinfo".to_vec(),
            object::SectionKind::ReadOnlyData,
        );
        let info = format!("license=GPL\0depends={depends}\0name=made\0");
        module.append_section_data(section, info.as_bytes(), 1);
        module.write().unwrap()
    }
}
