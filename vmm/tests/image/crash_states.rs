//! What a power failure may leave of the files of an image: a model of a file system with a cache.
//!
//! The real code runs on real files; a snapshot before each of its steps shows what the step did. What a
//! step changed may be durable afterwards or not, in any order, each sector and each name by itself,
//! until it is synced. So the model is weaker than any file system: what holds here holds on all.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, RngExt};
use rustix::fs::SeekFrom;

const BLOCK: usize = 4096;
const SECTOR: usize = 512;

type Inode = u64;
type Block = Arc<[u8; BLOCK]>;

/// The content of a file. Blocks that are not there are zeroes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Content {
    length: u64,
    blocks: BTreeMap<u64, Block>,
}

impl Content {
    pub(crate) fn read(file: &File, before: Option<&Self>) -> Self {
        let length = file.metadata().unwrap().len();
        let mut blocks = BTreeMap::new();
        let mut at = 0;
        while let Ok(data) = rustix::fs::seek(file, SeekFrom::Data(at)) {
            let hole = rustix::fs::seek(file, SeekFrom::Hole(data)).unwrap();
            for index in data / BLOCK as u64..hole.div_ceil(BLOCK as u64) {
                let mut block = [0; BLOCK];
                let start = index * BLOCK as u64;
                let bytes = usize::try_from((length - start).min(BLOCK as u64)).unwrap();
                file.read_exact_at(&mut block[..bytes], start).unwrap();
                // Shared with the snapshot before, which keeps many of them small.
                let known = before.and_then(|before| before.blocks.get(&index));
                let known = known.filter(|known| known[..] == block[..]).cloned();
                blocks.insert(index, known.unwrap_or_else(|| Arc::new(block)));
            }
            at = hole;
        }
        Self { length, blocks }
    }

    fn write(&self, path: &Path) {
        let file = File::create(path).unwrap();
        file.set_len(self.length).unwrap();
        for (index, block) in &self.blocks {
            let start = index * BLOCK as u64;
            let bytes =
                usize::try_from(self.length.saturating_sub(start).min(BLOCK as u64)).unwrap();
            file.write_all_at(&block[..bytes], start).unwrap();
        }
    }
}

/// The files of an image and a disk at one moment.
#[derive(Debug, Clone, Default)]
struct Snapshot {
    names: BTreeMap<String, Inode>,
    files: BTreeMap<Inode, Content>,
}

/// What a step made durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Synced {
    Nothing,
    /// The content of the file of that name.
    File(&'static str),
    /// All names.
    Names,
    /// The disk.
    Disk,
}

/// One step: what there was after it, and what it made durable.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) synced: Synced,
    after: Snapshot,
    disk: Content,
}

/// Records the steps of real code.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    pub(crate) events: Vec<Event>,
}

impl Recorder {
    /// Notes what there is in `directory` and on `disk` now, after a step of that name.
    pub(crate) fn note(&mut self, name: &str, synced: Synced, directory: &Path, disk: &File) {
        let before = self.events.last();
        let mut after = Snapshot::default();
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            let file = File::open(entry.path()).unwrap();
            let inode = file.metadata().unwrap().ino();
            let known = before.and_then(|event| event.after.files.get(&inode));
            after.files.insert(inode, Content::read(&file, known));
            let name = entry.file_name().into_string().unwrap();
            after.names.insert(name, inode);
        }
        let disk = Content::read(disk, before.map(|event| &event.disk));
        self.events.push(Event {
            name: name.to_owned(),
            synced,
            after,
            disk,
        });
    }
}

/// What is durable, and what may be.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cache {
    durable_names: BTreeMap<String, Inode>,
    /// Changes of names, each of which takes effect as a whole: a name and what it stands for then.
    pending_names: Vec<Vec<(String, Option<Inode>)>>,
    /// Per file the content that is durable, and all since.
    files: BTreeMap<Inode, Vec<Content>>,
    disk: Vec<Content>,
}

impl Cache {
    /// Takes a step.
    pub(crate) fn apply(&mut self, event: &Event) {
        self.pending_names
            .extend(changes(&self.present_names(), &event.after.names));
        for (inode, content) in &event.after.files {
            let versions = self
                .files
                .entry(*inode)
                .or_insert_with(|| vec![Content::default()]);
            if versions.last() != Some(content) {
                versions.push(content.clone());
            }
        }
        if self.disk.last() != Some(&event.disk) {
            self.disk.push(event.disk.clone());
        }
        match event.synced {
            Synced::Nothing => {}
            Synced::File(name) => {
                let versions = self.files.get_mut(&event.after.names[name]).unwrap();
                versions.drain(..versions.len() - 1);
            }
            Synced::Names => {
                self.durable_names.clone_from(&event.after.names);
                self.pending_names.clear();
            }
            Synced::Disk => {
                self.disk.drain(..self.disk.len() - 1);
            }
        }
    }

    fn present_names(&self) -> BTreeMap<String, Inode> {
        let mut names = self.durable_names.clone();
        for change in &self.pending_names {
            rename(&mut names, change);
        }
        names
    }

    /// Writes into `directory` what a power failure may leave now; returns what it leaves of the disk.
    pub(crate) fn leave(&self, directory: &Path, random: &mut StdRng) -> Content {
        let mut names = self.durable_names.clone();
        // Everything, nothing and anything in between.
        let share = *[0.0, 0.5, 1.0].choose(random).unwrap();
        for change in &self.pending_names {
            if random.random_bool(share) {
                rename(&mut names, change);
            }
        }
        for (name, inode) in names {
            mixed(&self.files[&inode], random).write(&directory.join(name));
        }
        mixed(&self.disk, random)
    }
}

/// How names changed: a rename takes effect as a whole, all else by itself.
fn changes(
    before: &BTreeMap<String, Inode>,
    after: &BTreeMap<String, Inode>,
) -> Vec<Vec<(String, Option<Inode>)>> {
    let mut gone: BTreeMap<&String, Inode> = before
        .iter()
        .filter(|(name, _)| !after.contains_key(*name))
        .map(|(name, inode)| (name, *inode))
        .collect();
    let mut changes = Vec::new();
    for (name, inode) in after {
        if before.get(name) == Some(inode) {
            continue;
        }
        let mut change = vec![(name.clone(), Some(*inode))];
        let from = gone.iter().find(|(_, moved)| *moved == inode);
        if let Some(from) = from.map(|(from, _)| *from) {
            gone.remove(from);
            change.push((from.clone(), None));
        }
        changes.push(change);
    }
    changes.extend(gone.into_keys().map(|name| vec![(name.clone(), None)]));
    changes
}

fn rename(names: &mut BTreeMap<String, Inode>, change: &[(String, Option<Inode>)]) {
    for (name, inode) in change {
        match inode {
            Some(inode) => names.insert(name.clone(), *inode),
            None => names.remove(name),
        };
    }
}

/// A file whose first content is durable, and whose later ones may be, sector by sector.
fn mixed(versions: &[Content], random: &mut StdRng) -> Content {
    let share = *[0.0, 0.5, 1.0].choose(random).unwrap();
    let (durable, pending) = versions.split_first().unwrap();
    let mut left = durable.clone();
    for version in pending {
        if random.random_bool(share) {
            left.length = version.length;
        }
        let indices: BTreeSet<u64> = left
            .blocks
            .keys()
            .chain(version.blocks.keys())
            .copied()
            .collect();
        for index in indices {
            let zeroes: Block = Arc::new([0; BLOCK]);
            let old = left.blocks.get(&index).unwrap_or(&zeroes).clone();
            let new = version.blocks.get(&index).unwrap_or(&zeroes);
            if old != *new {
                left.blocks.insert(index, torn(&old, new, share, random));
            }
        }
    }
    left
}

fn torn(old: &Block, new: &Block, share: f64, random: &mut impl Rng) -> Block {
    let mut block = **old;
    for (left, new) in block.chunks_mut(SECTOR).zip(new.chunks(SECTOR)) {
        if random.random_bool(share) {
            left.copy_from_slice(new);
        }
    }
    Arc::new(block)
}
