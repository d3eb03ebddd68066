//! A directory on a disk, as a power cut may leave it: what was synced, and what was not, kept, dropped or torn.
//!
//! Owns the record of one directory: for each file its synced bytes and the ordered changes since, for the directory its
//! synced names and the ordered changes since. Never touches a real file except to build the directory that a cut leaves.
//!
//! # The disk it models
//!
//! - What a sync has returned for is there. A file's name is there once the *directory* was synced after the name appeared;
//!   syncing the file alone is not enough.
//! - Everything else is there or not, each write, truncation and name by itself, in any combination within a file and across
//!   files: nothing is ordered but by a sync.
//! - A write that was cut is torn at sectors of [`SECTOR_BYTES`]: any subset of them is new, the others are old or, if the
//!   write covered them whole, zeros or garbage. A sector that it covered in part is old or new: powersafe overwrite, as
//!   SQLite's unix VFS assumes of every disk. [`Overwrite::Garbles`] takes that promise away.
//! - Bytes that were synced never rot by themselves. Shared memory (`-shm`) is not on the disk.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// The smallest unit that a disk writes whole; with larger sectors fewer states are possible.
pub(crate) const SECTOR_BYTES: usize = 512;

/// SplitMix64: repeatable from its seed, on every platform.
#[derive(Clone)]
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    pub(crate) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// What a disk does to a sector that a cut write covered in part.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Overwrite {
    /// It is old or new.
    Powersafe,
    /// It may be garbage, with the synced bytes of the neighbour in it.
    Garbles,
}

/// Which syncs a disk ignores although it says they are done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ignores {
    Nothing,
    WalSyncs,
    DatabaseSyncs,
    DirectorySyncs,
}

/// A step of the program towards the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub(crate) enum Step {
    Create,
    Delete,
    WriteWal,
    /// Into the database; once there is a write-ahead log, only checkpoints do this.
    WriteDatabase,
    WriteJournal,
    Truncate,
    SyncWal,
    SyncDatabase,
    SyncJournal,
    /// Not the program's: the test asks for a cut here.
    Quiet,
}

#[derive(Clone)]
enum Change {
    Write { at: usize, bytes: Arc<[u8]> },
    Truncate { bytes: usize },
}

/// A file's bytes, whatever its name.
#[derive(Clone, Default)]
struct Content {
    synced: Arc<Vec<u8>>,
    unsynced: Vec<Change>,
}

/// The directory: all that a power cut, or the death of the process, leaves something of.
#[derive(Clone, Default)]
pub(crate) struct Files {
    contents: Vec<Content>,
    /// As the program sees them.
    names: BTreeMap<String, usize>,
    synced_names: BTreeMap<String, usize>,
    unsynced_names: Vec<(String, Option<usize>)>,
}

/// What became of the unsynced writes of one cut.
#[derive(Clone, Copy, Default)]
pub(crate) struct Fates {
    pub(crate) kept: u64,
    pub(crate) dropped: u64,
    pub(crate) torn: u64,
}

/// Called before each step takes effect, with the disk held still.
pub(crate) type Observer = Box<dyn FnMut(Step, &Files) + Send>;

struct State {
    files: Files,
    ignores: Ignores,
    observer: Option<Observer>,
    /// Of all steps with their places and sizes, in order.
    fingerprint: u64,
}

/// The disk below one directory of a running program.
pub(crate) struct Disk {
    state: Mutex<State>,
    /// Whether it tells SQLite that overwriting is powersafe, as the unix VFS does.
    pub(crate) declares_powersafe: bool,
}

fn is_wal(name: &str) -> bool {
    name.ends_with("-wal")
}

fn is_database(name: &str) -> bool {
    name.ends_with(".db")
}

impl Disk {
    /// A disk that holds these files.
    pub(crate) fn new(files: Files, ignores: Ignores, declares_powersafe: bool) -> Arc<Disk> {
        let state = State { files, ignores, observer: None, fingerprint: 0 };
        Arc::new(Disk { state: Mutex::new(state), declares_powersafe })
    }

    /// Sets who is told of each step.
    pub(crate) fn observe(&self, observer: Option<Observer>) {
        self.with(|state| state.observer = observer);
    }

    /// A moment at which the program does nothing.
    pub(crate) fn quiet(&self) {
        self.with(|state| state.step(Step::Quiet, 0, 0));
    }

    /// The same for the same steps.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.with(|state| state.fingerprint)
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The content behind a name that was opened, which is new if there was none.
    pub(crate) fn open(&self, name: &str) -> usize {
        self.with(|state| {
            if let Some(content) = state.files.names.get(name) {
                return *content;
            }
            state.step(Step::Create, 0, 0);
            let content = state.files.contents.len();
            state.files.contents.push(Content::default());
            state.files.rename(name, Some(content));
            content
        })
    }

    pub(crate) fn delete(&self, name: &str, sync_directory: bool) {
        self.with(|state| {
            state.step(Step::Delete, 0, 0);
            state.files.rename(name, None);
            if sync_directory {
                state.sync_names();
            }
        });
    }

    pub(crate) fn write(&self, name: &str, content: usize, at: usize, bytes: &[u8]) {
        self.with(|state| {
            let step = match name {
                _ if is_wal(name) => Step::WriteWal,
                _ if is_database(name) => Step::WriteDatabase,
                _ => Step::WriteJournal,
            };
            state.step(step, at, bytes.len());
            state.files.contents[content].unsynced.push(Change::Write { at, bytes: bytes.into() });
        });
    }

    pub(crate) fn truncate(&self, content: usize, bytes: usize) {
        self.with(|state| {
            state.step(Step::Truncate, bytes, 0);
            state.files.contents[content].unsynced.push(Change::Truncate { bytes });
        });
    }

    pub(crate) fn sync(&self, name: &str, content: usize, and_directory: bool) {
        self.with(|state| {
            let (step, ignored_by) = match name {
                _ if is_wal(name) => (Step::SyncWal, Some(Ignores::WalSyncs)),
                _ if is_database(name) => (Step::SyncDatabase, Some(Ignores::DatabaseSyncs)),
                _ => (Step::SyncJournal, None),
            };
            state.step(step, 0, 0);
            if ignored_by != Some(state.ignores) {
                state.files.contents[content].sync();
            }
            if and_directory {
                state.sync_names();
            }
        });
    }
}

impl State {
    fn step(&mut self, step: Step, at: usize, bytes: usize) {
        if step != Step::Quiet {
            let mut mix = Rng::new(self.fingerprint ^ ((step as u64) << 56) ^ ((at as u64) << 24) ^ bytes as u64);
            self.fingerprint = mix.next();
        }
        if let Some(observer) = &mut self.observer {
            observer(step, &self.files);
        }
    }

    fn sync_names(&mut self) {
        if self.ignores != Ignores::DirectorySyncs {
            self.files.synced_names = self.files.names.clone();
            self.files.unsynced_names.clear();
        }
    }
}

impl Content {
    fn sync(&mut self) {
        let image = Arc::make_mut(&mut self.synced);
        self.unsynced.drain(..).for_each(|change| change.apply(image));
    }
}

impl Change {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Change::Truncate { bytes } => image.resize(*bytes, 0),
            Change::Write { at, bytes } => put(image, *at, bytes),
        }
    }
}

fn put(image: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = at + bytes.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[at..end].copy_from_slice(bytes);
}

impl Files {
    /// The files of a directory that is at rest: everything is synced.
    pub(crate) fn at_rest(dir: &Path) -> io::Result<Files> {
        let mut files = Files::default();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.ends_with("-shm") && !name.ends_with(".lock") {
                files.names.insert(name, files.contents.len());
                let synced = Arc::new(fs::read(entry.path())?);
                files.contents.push(Content { synced, unsynced: Vec::new() });
            }
        }
        files.synced_names = files.names.clone();
        Ok(files)
    }

    fn rename(&mut self, name: &str, content: Option<usize>) {
        match content {
            Some(content) => self.names.insert(name.to_owned(), content),
            None => self.names.remove(name),
        };
        self.unsynced_names.push((name.to_owned(), content));
    }

    /// Whether pages of the database are on their way: a checkpoint is going on.
    pub(crate) fn is_in_checkpoint(&self) -> bool {
        let has_wal = self.names.keys().any(|name| is_wal(name));
        let mut databases = self.names.iter().filter(|(name, _)| is_database(name));
        has_wal && databases.any(|(_, content)| !self.contents[*content].unsynced.is_empty())
    }

    /// Builds what the death of the process leaves, with the power on: everything that it wrote.
    pub(crate) fn build_after_death(&self, dir: &Path) -> io::Result<()> {
        for (name, content) in &self.names {
            let content = &self.contents[*content];
            let mut image = (*content.synced).clone();
            content.unsynced.iter().for_each(|change| change.apply(&mut image));
            fs::write(dir.join(name), image)?;
        }
        Ok(())
    }

    /// Builds what a power cut leaves, one of the many possible, chosen by `rng`.
    pub(crate) fn build_after_cut(&self, dir: &Path, overwrite: Overwrite, rng: &mut Rng) -> io::Result<Fates> {
        let mut fates = Fates::default();
        let mut names = self.synced_names.clone();
        let mut mood = Mood::choose(rng, self.unsynced_names.len());
        for (index, (name, content)) in self.unsynced_names.iter().enumerate() {
            // A name is one entry: it cannot be torn.
            if mood.fate(rng, index) != Fate::Kept {
                continue;
            }
            match content {
                Some(content) => names.insert(name.clone(), *content),
                None => names.remove(name),
            };
        }
        for (name, content) in names {
            let image = self.contents[content].cut(overwrite, rng, &mut fates);
            fs::write(dir.join(name), image)?;
        }
        if rng.one_in(4) {
            // A file system may bring the shared memory's file back with anything in it.
            let garbage: Vec<u8> = (0..32_768).map(|_| rng.next() as u8).collect();
            fs::write(dir.join("log.db-shm"), garbage)?;
        }
        Ok(fates)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Dropped,
    Torn,
}

/// How a cut treats the changes of one file. Each file has its own, so that one may be all there and the other not at all.
enum Mood {
    /// All before are kept, all behind are dropped, this one is torn: the disk wrote in order.
    InOrder { torn: usize },
    /// Each by itself: kept or torn with so many chances in 16, else dropped.
    Scattered { kept: u64, torn: u64 },
}

impl Mood {
    fn choose(rng: &mut Rng, changes: usize) -> Mood {
        match rng.below(8) {
            0 => Mood::Scattered { kept: 16, torn: 0 },
            1 => Mood::Scattered { kept: 0, torn: 0 },
            2 => Mood::Scattered { kept: 15, torn: 1 },
            3 => Mood::Scattered { kept: 1, torn: 1 },
            4 => Mood::Scattered { kept: 6, torn: 5 },
            // The first one touches what was synced before.
            5 => Mood::InOrder { torn: rng.below(2) as usize },
            _ => Mood::InOrder { torn: rng.below(changes as u64 + 1) as usize },
        }
    }

    fn fate(&mut self, rng: &mut Rng, index: usize) -> Fate {
        match *self {
            Mood::InOrder { torn } if index < torn => Fate::Kept,
            Mood::InOrder { torn } if index == torn => Fate::Torn,
            Mood::InOrder { .. } => Fate::Dropped,
            Mood::Scattered { kept, torn } => match rng.below(16) {
                chance if chance < kept => Fate::Kept,
                chance if chance < kept + torn => Fate::Torn,
                _ => Fate::Dropped,
            },
        }
    }
}

impl Content {
    fn cut(&self, overwrite: Overwrite, rng: &mut Rng, fates: &mut Fates) -> Vec<u8> {
        let mut image = (*self.synced).clone();
        let mut mood = Mood::choose(rng, self.unsynced.len());
        for (index, change) in self.unsynced.iter().enumerate() {
            let fate = mood.fate(rng, index);
            match (change, fate) {
                (Change::Truncate { .. }, Fate::Kept) => change.apply(&mut image),
                (Change::Truncate { .. }, _) => {}
                (Change::Write { .. }, Fate::Kept) => {
                    fates.kept += 1;
                    change.apply(&mut image);
                }
                (Change::Write { at, bytes }, Fate::Dropped) => {
                    fates.dropped += 1;
                    // The file's new length may be there without its bytes.
                    if rng.one_in(8) && image.len() < at + bytes.len() {
                        image.resize(at + bytes.len(), 0);
                    }
                }
                (Change::Write { at, bytes }, Fate::Torn) => {
                    fates.torn += 1;
                    tear(&mut image, *at, bytes, overwrite, rng);
                }
            }
        }
        image
    }
}

/// Applies a part of a write, sector by sector.
fn tear(image: &mut Vec<u8>, at: usize, bytes: &[u8], overwrite: Overwrite, rng: &mut Rng) {
    let end = at + bytes.len();
    let sectors = at / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES);
    // Up to the cut in order, or each by itself.
    let in_order = rng.one_in(2).then(|| sectors.start + rng.below(sectors.len() as u64 + 1) as usize);
    let rots = rng.one_in(2);
    for sector in sectors {
        let (from, to) = (sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES);
        let (covered_from, covered_to) = (from.max(at), to.min(end));
        let is_whole = (covered_from, covered_to) == (from, to);
        let written = in_order.map_or_else(|| rng.one_in(2), |cut| sector < cut);
        let in_flight = in_order.is_none_or(|cut| sector == cut);
        if written {
            put(image, covered_from, &bytes[covered_from - at..covered_to - at]);
        } else if rots && in_flight && (is_whole || overwrite == Overwrite::Garbles) {
            let garbage = if rng.one_in(2) { [0; SECTOR_BYTES] } else { [rng.next() as u8 | 1; SECTOR_BYTES] };
            // A sector at the file's end is only as long as the file.
            let to = to.min(image.len().max(covered_to));
            put(image, from, &garbage[..to - from]);
        }
    }
}
