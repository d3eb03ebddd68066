//! The file of a backup: a tar archive, with a manifest at its end.
//!
//! Owns how parts are written and found again, with the SHA-256 of each. Reads a part at the place where the index found it, so that it
//! is never unpacked before it is known to be one of ours. Memory: [`BUFFER_BYTES`], the index of at most
//! [`super::manifest::PARTS_MAX`] parts, and the manifest.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::BackupError;
use super::manifest::{FORMAT, MANIFEST, MANIFEST_BYTES_MAX, Manifest, PARTS_MAX, Part, is_part};

/// What is read and written at once.
const BUFFER_BYTES: usize = 256 * 1024;
/// For the owner alone: the databases hold what machines and people did, the configuration password hashes.
const MODE: u32 = 0o600;

/// Told how many bytes have been read or written.
pub(super) type Tell<'t> = &'t mut dyn FnMut(u64);

/// An archive that is being written.
pub(super) struct ArchiveWriter {
    tar: tar::Builder<BufWriter<File>>,
    path: PathBuf,
    made_s: u64,
    parts: Vec<Part>,
}

impl ArchiveWriter {
    /// Begins the file anew.
    pub(super) fn create(path: &Path, made_us: i64) -> Result<ArchiveWriter, BackupError> {
        // One that a killed process left may have been made with another mode.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(BackupError::write(path, error)),
            _ => {}
        }
        let file = File::options().write(true).create_new(true).mode(MODE).open(path);
        let file = file.map_err(|error| BackupError::write(path, error))?;
        let made_s = u64::try_from(made_us / crate::clock::SECOND_US).unwrap_or(0);
        let tar = tar::Builder::new(BufWriter::with_capacity(BUFFER_BYTES, file));
        Ok(ArchiveWriter { tar, path: path.to_owned(), made_s, parts: Vec::new() })
    }

    /// Adds a file under a name.
    pub(super) fn add_file(&mut self, name: &str, from: &Path, tell: Tell<'_>) -> Result<(), BackupError> {
        let open = || -> io::Result<(File, u64)> {
            let file = File::open(from)?;
            let bytes = file.metadata()?.len();
            Ok((file, bytes))
        };
        let (file, bytes) = open().map_err(|error| BackupError::read(from, error))?;
        let mut hashed = Hashed::new(file.take(bytes), tell);
        self.append(name, bytes, &mut hashed)?;
        let (read, sha256) = hashed.end();
        if read != bytes {
            return Err(BackupError::read(from, io::Error::other("the file became shorter while it was read")));
        }
        self.parts.push(Part { name: name.to_owned(), bytes, sha256 });
        Ok(())
    }

    /// Adds bytes under a name.
    pub(super) fn add_bytes(&mut self, name: &str, content: &[u8]) -> Result<(), BackupError> {
        let (bytes, mut ignored) = (content.len() as u64, |_| {});
        let mut hashed = Hashed::new(content, &mut ignored);
        self.append(name, bytes, &mut hashed)?;
        let (_, sha256) = hashed.end();
        self.parts.push(Part { name: name.to_owned(), bytes, sha256 });
        Ok(())
    }

    fn append(&mut self, name: &str, bytes: u64, content: &mut dyn Read) -> Result<(), BackupError> {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes);
        header.set_mode(MODE);
        header.set_mtime(self.made_s);
        header.set_entry_type(tar::EntryType::Regular);
        self.tar.append_data(&mut header, name, content).map_err(|error| BackupError::write(&self.path, error))
    }

    /// Adds the manifest with the parts so far, and makes all of it durable.
    pub(super) fn finish(mut self, manifest: Manifest) -> Result<Manifest, BackupError> {
        let manifest = Manifest { parts: std::mem::take(&mut self.parts), ..manifest };
        let failed = |error: io::Error| BackupError::write(&self.path, error);
        let mut text = serde_json::to_vec_pretty(&manifest).map_err(|error| failed(error.into()))?;
        text.push(b'\n');
        self.add_bytes(MANIFEST, &text)?;
        let path = self.path;
        let finish = || -> io::Result<()> {
            let mut buffered = self.tar.into_inner()?;
            buffered.flush()?;
            buffered.get_ref().sync_all()
        };
        finish().map_err(|error| BackupError::write(&path, error))?;
        Ok(manifest)
    }
}

/// Where a part is.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    name: String,
    at: u64,
    bytes: u64,
}

/// A backup that is read.
#[derive(Debug)]
pub(super) struct ArchiveReader {
    file: File,
    path: PathBuf,
    places: Vec<Place>,
    pub(super) manifest: Manifest,
}

impl ArchiveReader {
    /// Finds the parts and the manifest; reads no part yet.
    pub(super) fn open(path: &Path) -> Result<ArchiveReader, BackupError> {
        let mut file = File::open(path).map_err(|error| BackupError::read(path, error))?;
        let damaged = |what: String| BackupError::Damaged { path: path.to_owned(), what };
        let mut places = index(&mut file).map_err(damaged)?;
        let Some(last) = places.pop_if(|place| place.name == MANIFEST && place.bytes <= MANIFEST_BYTES_MAX) else {
            return Err(damaged(format!("it does not end with a {MANIFEST}: was it copied as a whole?")));
        };
        let mut text = Vec::new();
        let read = file.seek(SeekFrom::Start(last.at)).and_then(|_| (&file).take(last.bytes).read_to_end(&mut text));
        read.map_err(|error| BackupError::read(path, error))?;
        let form: Form = serde_json::from_slice(&text).map_err(|error| damaged(format!("{MANIFEST}: {error}")))?;
        if form.format > FORMAT {
            return Err(BackupError::Newer {
                what: "the backup".to_owned(),
                found: form.format.into(),
                known: FORMAT.into(),
            });
        }
        let manifest: Manifest =
            serde_json::from_slice(&text).map_err(|error| damaged(format!("{MANIFEST}: {error}")))?;
        let listed = manifest.parts.iter().map(|part| (part.name.as_str(), part.bytes));
        let found = places.iter().map(|place| (place.name.as_str(), place.bytes));
        if !listed.eq(found) {
            return Err(damaged(format!("its parts are not those that {MANIFEST} lists")));
        }
        Ok(ArchiveReader { file, path: path.to_owned(), places, manifest })
    }

    /// Writes a part to `out`; its digest is compared on the way, so that what was written is only good if this is.
    pub(super) fn read_part(&mut self, part: &Part, out: &mut dyn Write, tell: Tell<'_>) -> Result<(), BackupError> {
        let damaged = |what: String| BackupError::Damaged { path: self.path.clone(), what };
        let place = self.places.iter().find(|place| place.name == part.name);
        let place = place.ok_or_else(|| damaged(format!("{} is not in it", part.name)))?;
        self.file.seek(SeekFrom::Start(place.at)).map_err(|error| BackupError::read(&self.path, error))?;
        let mut hashed = Hashed::new((&self.file).take(part.bytes), tell);
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let read = hashed.read(&mut buffer).map_err(|error| BackupError::read(&self.path, error))?;
            let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else { break };
            out.write_all(bytes).map_err(|error| BackupError::write(Path::new(&part.name), error))?;
        }
        let (_, sha256) = hashed.end();
        if sha256 != part.sha256 {
            return Err(damaged(format!("{} is not what was backed up (its SHA-256 differs)", part.name)));
        }
        Ok(())
    }

    /// Reads all parts and compares their digests.
    pub(super) fn verify(&mut self, tell: Tell<'_>) -> Result<(), BackupError> {
        for part in self.manifest.parts.clone() {
            self.read_part(&part, &mut io::sink(), tell)?;
        }
        Ok(())
    }
}

/// What every manifest of a later form has too.
#[derive(serde::Deserialize)]
struct Form {
    format: u32,
}

/// The parts of an archive by their headers, in order.
fn index(file: &mut File) -> Result<Vec<Place>, String> {
    let unreadable = |error: io::Error| format!("it is no whole tar archive: {error}");
    let end = file.metadata().map_err(unreadable)?.len();
    let mut archive = tar::Archive::new(file);
    let mut places: Vec<Place> = Vec::new();
    for entry in archive.entries_with_seek().map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let is_known = is_part(&name) || name == MANIFEST;
        if !is_known || entry.header().entry_type() != tar::EntryType::Regular {
            return Err(format!("`{}` is no part of a backup", crate::ids::shorten(&name)));
        }
        if places.iter().any(|place| place.name == name) || places.len() > PARTS_MAX {
            return Err("it has a part twice, or too many".to_owned());
        }
        let (at, bytes) = (entry.raw_file_position(), entry.header().size().map_err(unreadable)?);
        if at.checked_add(bytes).is_none_or(|behind| behind > end) {
            return Err(format!("it ends within {name}: was it copied as a whole?"));
        }
        places.push(Place { name, at, bytes });
    }
    Ok(places)
}

/// Hashes and counts what is read through it.
struct Hashed<'t, R: Read> {
    source: R,
    hasher: Sha256,
    bytes: u64,
    tell: Tell<'t>,
}

impl<'t, R: Read> Hashed<'t, R> {
    fn new(source: R, tell: Tell<'t>) -> Hashed<'t, R> {
        Hashed { source, hasher: Sha256::new(), bytes: 0, tell }
    }

    fn end(self) -> (u64, String) {
        (self.bytes, self.hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

impl<R: Read> Read for Hashed<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.source.read(buffer)?;
        self.hasher.update(buffer.get(..read).unwrap_or_default());
        self.bytes += read as u64;
        (self.tell)(read as u64);
        Ok(read)
    }
}
