//! The image store: builds an image once per set of inputs and places it in a folder of images.
//!
//! An image is a folder with `image.json`, `kernel` (an ELF file) and `initramfs`. Its digest covers
//! every byte of the inputs, so images with the same digest are the same and need one build.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::Report;
use crate::cache::{self, Cache, CacheError};
use crate::cpio::{Archive, CpioError};
use crate::initramfs::{self, Busybox, GUEST_MODULES, GUEST_OPTIONAL_MODULES, InitramfsError};
use crate::kernel::Kernel;
use crate::kernel_image::{KernelImage, KernelImageError};
use crate::modules::{ModuleTree, ModulesError};

/// Raised whenever the same inputs give another image, so that old images are built again.
const SCHEMA: u32 = 1;
const DESCRIPTION: &str = "image.json";
const KERNEL: &str = "kernel";
const INITRAMFS: &str = "initramfs";

/// Why an image could not be built, put in place or read.
#[derive(Debug, Error)]
pub enum ImageError {
    #[error("{name:?} is not an image name (a letter or digit, then also `-`, `_` and `.`)")]
    Name { name: String },
    #[error("cannot use the kernel {path}")]
    Kernel {
        path: PathBuf,
        source: KernelImageError,
    },
    #[error(transparent)]
    Modules(#[from] ModulesError),
    #[error(transparent)]
    Initramfs(#[from] InitramfsError),
    #[error("cannot pack the initramfs")]
    Pack(#[from] CpioError),
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} does not describe an image")]
    Description {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("the image {folder} has schema {found} instead of {SCHEMA} (build it again)")]
    OtherSchema { folder: PathBuf, found: u32 },
    #[error(
        "the image {folder} is damaged: {file} has {bytes} bytes instead of {expected_bytes} (build it again)"
    )]
    Damaged {
        folder: PathBuf,
        file: &'static str,
        bytes: u64,
        expected_bytes: u64,
    },
    #[error(transparent)]
    Cache(#[from] CacheError),
}

/// The content of `image.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    pub schema: u32,
    pub name: String,
    pub kernel_version: String,
    /// File names in the folder of the image.
    pub kernel: String,
    pub initramfs: String,
    /// RFC 3339, UTC.
    pub created_at: String,
    /// SHA-256 of all inputs.
    pub inputs_sha256: String,
    pub kernel_bytes: u64,
    pub kernel_sha256: String,
    pub initramfs_bytes: u64,
    pub initramfs_sha256: String,
}

impl Image {
    /// Reads an image's description and checks that its files exist and have the right size.
    pub fn open(folder: &Path) -> Result<Self, ImageError> {
        let path = folder.join(DESCRIPTION);
        let text = fs::read(&path).map_err(|source| read_error(&path, source))?;
        let image: Self = serde_json::from_slice(&text)
            .map_err(|source| ImageError::Description { path, source })?;
        if image.schema != SCHEMA {
            return Err(ImageError::OtherSchema {
                folder: folder.to_owned(),
                found: image.schema,
            });
        }
        let files = [
            (KERNEL, image.kernel_bytes),
            (INITRAMFS, image.initramfs_bytes),
        ];
        for (file, expected_bytes) in files {
            let path = folder.join(file);
            let bytes = fs::metadata(&path)
                .map_err(|source| read_error(&path, source))?
                .len();
            if bytes != expected_bytes {
                let folder = folder.to_owned();
                return Err(ImageError::Damaged {
                    folder,
                    file,
                    bytes,
                    expected_bytes,
                });
            }
        }
        Ok(image)
    }
}

/// All images in `output`, by name. A folder that is not an image is skipped.
pub fn list(output: &Path) -> Result<Vec<Image>, ImageError> {
    let entries = match fs::read_dir(output) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(read_error(output, source)),
    };
    let mut images: Vec<Image> = entries
        .flatten()
        .filter_map(|entry| Image::open(&entry.path()).ok())
        .collect();
    images.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(images)
}

/// The inputs of a build.
#[derive(Debug)]
pub struct Inputs {
    pub name: String,
    pub kernel: Kernel,
    pub busybox: Busybox,
    /// The static binary that becomes `/init`.
    pub init: PathBuf,
}

/// How a build made the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was there already.
    UpToDate,
    /// It was copied from the cache.
    Placed,
    Built,
}

/// Makes `<output>/<name>` an image of these inputs. Several builds may run at the same time; a
/// reader sees the old image or the new one.
pub fn build(
    cache: &Cache,
    inputs: &Inputs,
    output: &Path,
    report: Report,
) -> Result<(Image, Outcome), ImageError> {
    check_name(&inputs.name)?;
    let kernel_error = |source| ImageError::Kernel {
        path: inputs.kernel.image.clone(),
        source,
    };
    let kernel = KernelImage::read(&inputs.kernel.image).map_err(kernel_error)?;
    let archive = guest_archive(inputs)?;
    let digest = digest_of(&inputs.kernel, &kernel, &archive)?;
    let target = output.join(&inputs.name);
    if let Ok(image) = Image::open(&target)
        && image.inputs_sha256 == digest
    {
        return Ok((image, Outcome::UpToDate));
    }
    let cached = cache.path("images").join(&digest);
    let mut outcome = Outcome::Placed;
    if Image::open(&cached).is_err() {
        outcome = Outcome::Built;
        report("unpacking the kernel");
        let vmlinux = kernel.into_vmlinux().map_err(kernel_error)?;
        report("packing the initramfs");
        let scratch = cache.scratch()?;
        let folder = scratch.path().join("image");
        write_image(&folder, inputs, &digest, &vmlinux, &archive)?;
        // Replaces a damaged entry.
        cache::create_folder(&cache.path("images"))?;
        cache::replace(&folder, &cached)?;
    }
    report(&format!("placing it in {}", target.display()));
    let image = place(&cached, &inputs.name, &target)?;
    Ok((image, outcome))
}

fn check_name(name: &str) -> Result<(), ImageError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.starts_with(|first: char| first.is_ascii_alphanumeric()) && name.chars().all(allowed) {
        return Ok(());
    }
    Err(ImageError::Name {
        name: name.to_owned(),
    })
}

fn guest_archive(inputs: &Inputs) -> Result<Archive, ImageError> {
    let tree = ModuleTree::open(&inputs.kernel.modules)?;
    let modules = tree.load_order(&GUEST_MODULES, &GUEST_OPTIONAL_MODULES)?;
    Ok(initramfs::base(&inputs.init, &inputs.busybox, &modules)?)
}

fn digest_of(
    kernel: &Kernel,
    image: &KernelImage,
    archive: &Archive,
) -> Result<String, ImageError> {
    let mut hasher = Sha256::new();
    hasher.update(SCHEMA.to_le_bytes());
    hasher.update(kernel.version.as_bytes());
    // The packed kernel, because unpacking it takes a second.
    hasher.update(Sha256::digest(image.bytes()));
    let mut packed = HashingWriter::new(io::sink());
    archive.write_to(&mut packed)?;
    hasher.update(packed.finish().1);
    Ok(hex::encode(hasher.finalize()))
}

fn write_image(
    folder: &Path,
    inputs: &Inputs,
    digest: &str,
    vmlinux: &[u8],
    archive: &Archive,
) -> Result<(), ImageError> {
    cache::create_folder(folder)?;
    write_file(&folder.join(KERNEL), vmlinux)?;
    let path = folder.join(INITRAMFS);
    let file = File::create(&path).map_err(|source| write_error(&path, source))?;
    let mut packed = HashingWriter::new(BufWriter::new(file));
    archive.write_to(&mut packed)?;
    let (initramfs_bytes, initramfs_sha256) = packed.finish();
    let image = Image {
        schema: SCHEMA,
        name: inputs.name.clone(),
        kernel_version: inputs.kernel.version.clone(),
        kernel: KERNEL.to_owned(),
        initramfs: INITRAMFS.to_owned(),
        created_at: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        inputs_sha256: digest.to_owned(),
        kernel_bytes: vmlinux.len() as u64,
        kernel_sha256: hex::encode(Sha256::digest(vmlinux)),
        initramfs_bytes,
        initramfs_sha256: hex::encode(initramfs_sha256),
    };
    write_description(folder, &image)
}

/// Copies an image from the cache to `target` under the name `name`.
fn place(cached: &Path, name: &str, target: &Path) -> Result<Image, ImageError> {
    let mut image = Image::open(cached)?;
    image.name = name.to_owned();
    let parent = target.parent().unwrap_or(target);
    cache::create_folder(parent)?;
    let scratch = cache::scratch_in(parent)?;
    let folder = scratch.path().join("image");
    cache::create_folder(&folder)?;
    for file in [KERNEL, INITRAMFS] {
        let path = folder.join(file);
        fs::copy(cached.join(file), &path).map_err(|source| write_error(&path, source))?;
    }
    write_description(&folder, &image)?;
    cache::replace(&folder, target)?;
    Ok(image)
}

fn write_description(folder: &Path, image: &Image) -> Result<(), ImageError> {
    let path = folder.join(DESCRIPTION);
    let mut text = serde_json::to_vec_pretty(image).map_err(|source| ImageError::Description {
        path: path.clone(),
        source,
    })?;
    text.push(b'\n');
    write_file(&path, &text)
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    fs::write(path, bytes).map_err(|source| write_error(path, source))
}

fn write_error(path: &Path, source: io::Error) -> ImageError {
    ImageError::Write {
        path: path.to_owned(),
        source,
    }
}

fn read_error(path: &Path, source: io::Error) -> ImageError {
    ImageError::Read {
        path: path.to_owned(),
        source,
    }
}

/// Counts and digests the bytes that it passes on.
struct HashingWriter<W> {
    inner: W,
    hasher: Sha256,
    bytes: u64,
}

impl<W: Write> HashingWriter<W> {
    fn new(inner: W) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
            bytes: 0,
        }
    }

    fn finish(self) -> (u64, [u8; 32]) {
        (self.bytes, self.hasher.finalize().into())
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel_image::sample;

    /// A cache, the inputs of an image and a folder for images.
    struct Workspace {
        root: tempfile::TempDir,
        cache: Cache,
        inputs: Inputs,
    }

    impl Workspace {
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let modules = root.path().join("6.1.0-made");
            fs::create_dir(&modules).unwrap();
            for name in GUEST_MODULES {
                fs::write(modules.join(format!("{name}.ko")), name).unwrap();
            }
            fs::write(modules.join("modules.dep"), "").unwrap();
            let image = root.path().join("vmlinux");
            fs::write(&image, sample::vmlinux()).unwrap();
            let init = root.path().join("init");
            fs::write(&init, "init").unwrap();
            let kernel = Kernel {
                version: "6.1.0-made".to_owned(),
                image,
                modules,
            };
            let busybox = Busybox::sample(&init);
            let inputs = Inputs {
                name: "default".to_owned(),
                kernel,
                busybox,
                init,
            };
            let cache = Cache::open(&root.path().join("cache")).unwrap();
            Self {
                root,
                cache,
                inputs,
            }
        }

        fn images(&self) -> PathBuf {
            self.root.path().join("images")
        }

        fn build(&self) -> (Image, Outcome) {
            build(&self.cache, &self.inputs, &self.images(), &|_| ()).unwrap()
        }
    }

    #[test]
    fn a_second_build_does_nothing() {
        let workspace = Workspace::new();
        let (first, outcome) = workspace.build();
        assert_eq!(outcome, Outcome::Built);
        assert_eq!(workspace.build(), (first, Outcome::UpToDate));
    }

    #[test]
    fn another_init_makes_another_image() {
        let workspace = Workspace::new();
        let (first, _) = workspace.build();
        fs::write(&workspace.inputs.init, "another").unwrap();
        let (second, outcome) = workspace.build();
        assert_eq!(outcome, Outcome::Built);
        assert_ne!(second.inputs_sha256, first.inputs_sha256);
        assert_eq!(list(&workspace.images()).unwrap(), [second]);
    }

    #[test]
    fn an_image_that_lost_bytes_is_detected_and_replaced_from_the_cache() {
        let workspace = Workspace::new();
        workspace.build();
        let folder = workspace.images().join("default");
        fs::write(folder.join(KERNEL), "short").unwrap();
        let error = Image::open(&folder).unwrap_err();
        assert!(
            matches!(error, ImageError::Damaged { bytes: 5, .. }),
            "{error}"
        );
        assert_eq!(workspace.build().1, Outcome::Placed);
        assert!(Image::open(&folder).is_ok());
    }

    #[test]
    fn a_damaged_cache_entry_is_built_again() {
        let workspace = Workspace::new();
        let (image, _) = workspace.build();
        fs::write(
            workspace
                .cache
                .path("images")
                .join(image.inputs_sha256)
                .join(KERNEL),
            "",
        )
        .unwrap();
        fs::remove_dir_all(workspace.images()).unwrap();
        assert_eq!(workspace.build().1, Outcome::Built);
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["", "..", "a/b", ".hidden", "-x"] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(check_name("debian-6.1_x").is_ok());
    }
}
