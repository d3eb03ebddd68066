//! Makes a backup, beside the gateway or when it is stopped.
//!
//! Owns the order. All three databases are pinned at one moment ([`Cut`]): history after the state, whose journal it takes from, and the
//! log last, so that neither knows of a message that the log does not have. It is looked at again whether the state has changed meanwhile, so
//! that nothing lies between state and log that would be told a second time. Then the state is copied, with the models that it names, then
//! the log in short transactions, then history. A log that was full may have dropped meanwhile what the state had not folded: all is done again.
//!
//! Writes `FILE.part` and the folder `FILE.work` beside the backup, which need the room of the backup and of its largest database; they
//! are removed at the end, and begun anew by the next backup if this one is killed. Bounded memory, whatever the size. The backup gets its
//! name when it has been read back and compared.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millwright_broker::log::{self, CopiedLog, DirLock, LogCopy};

use super::archive::{ArchiveReader, ArchiveWriter};
use super::manifest::{CONFIG, FORMAT, MODELS, Manifest, Schemas, model_of};
use super::{BackupError, Progress, swap, sync_dir};
use crate::clock;
use crate::config::Config;
use crate::historian::stored as history;
use crate::state::copy::{self as state, Pinned, StateFacts};

/// Attempts at all of it.
const ATTEMPTS_MAX: u32 = 3;

/// Attempts at a cut in which nothing lies between state and log; a checkpoint is written every few seconds. The last one is good too: what
/// lies between is folded again.
const CUTS_MAX: u32 = 50;
/// How much of the processor's time the process gives way to the gateway.
const NICE: i32 = 10;
/// Between two of them.
const CUT_PAUSE: Duration = Duration::from_millis(20);

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Bytes of the file.
    pub bytes: u64,
    /// What it says about itself.
    pub manifest: Manifest,
}

/// Makes a backup of the gateway of `config`, which was read from `config_path`, in the file `to`.
///
/// # Errors
/// Each says what to do; there is no backup then, and one that was there before is untouched.
pub fn make(config: &Config, config_path: &Path, to: &Path, tell: Progress<'_>) -> Result<Made, BackupError> {
    let beside = |suffix: &str| {
        let mut name = to.as_os_str().to_owned();
        name.push(suffix);
        PathBuf::from(name)
    };
    if to.is_dir() {
        return Err(BackupError::write(to, io::Error::from(io::ErrorKind::IsADirectory)));
    }
    let (part, work) = (beside(".part"), beside(".work"));
    let dir = &config.gateway.data_dir;
    if swap::is_waiting(dir) && DirLock::is_held(dir) != Some(true) {
        // A crash may have left the swap half done.
        return Err(BackupError::Waiting { path: dir.join(swap::STAGED) });
    }
    // It may fail: then the gateway has to share the processor.
    let _ = rustix::process::nice(NICE);
    let making = Making { config, config_path, part: &part, work: &work };
    let made = making.run(tell).and_then(|manifest| {
        let bytes = fs::metadata(&part).map_err(|error| BackupError::read(&part, error))?.len();
        let name = || fs::rename(&part, to).and_then(|()| sync_dir(to.parent().unwrap_or(Path::new("."))));
        name().map_err(|error| BackupError::write(to, error))?;
        Ok(Made { bytes, manifest })
    });
    // Both may never have been made.
    let _ = fs::remove_dir_all(&work);
    if made.is_err() {
        let _ = fs::remove_file(&part);
    }
    made
}

/// The bar: so many bytes of all.
struct Bar<'p> {
    tell: Progress<'p>,
    done: f64,
    all: f64,
}

impl Bar<'_> {
    fn add(&mut self, bytes: u64) {
        self.done += bytes as f64;
        (self.tell)((self.done / self.all.max(1.0)).min(1.0));
    }

    /// Tells a part of `bytes` that is being worked at.
    fn within(&mut self, bytes: u64, part: f64) {
        (self.tell)(((self.done + bytes as f64 * part) / self.all.max(1.0)).min(1.0));
    }
}

/// The databases at one moment.
struct Cut {
    state: Option<Pinned>,
    history: Option<Pinned>,
    log: LogCopy,
}

struct Making<'m> {
    config: &'m Config,
    config_path: &'m Path,
    part: &'m Path,
    work: &'m Path,
}

impl Making<'_> {
    fn run(&self, tell: Progress<'_>) -> Result<Manifest, BackupError> {
        let text = fs::read(self.config_path).map_err(|error| BackupError::read(self.config_path, error))?;
        let made_us = clock::utc_us();
        for _ in 0..ATTEMPTS_MAX {
            self.begin_anew()?;
            // Each is copied, put into the archive and compared.
            let all = ["log.db", "state.db", "history.db"].iter().map(|name| 3 * self.source_bytes(name)).sum::<u64>();
            let mut bar = Bar { tell: &mut *tell, done: 0.0, all: all as f64 };
            let mut archive = ArchiveWriter::create(self.part, made_us)?;
            archive.add_bytes(CONFIG, &text)?;
            let cut = self.cut()?;
            let facts = self.add_state(cut.state, &mut archive, &mut bar)?;
            let (log, log_schema) = self.add_log(cut.log, &mut archive, &mut bar)?;
            if facts.as_ref().is_some_and(|facts| has_lost(facts, &log)) {
                continue;
            }
            let history = self.add_history(cut.history, &mut archive, &mut bar)?;
            let schemas = Schemas { log: log_schema, state: facts.as_ref().map(|facts| facts.schema), history };
            let manifest = archive.finish(Manifest {
                format: FORMAT,
                version: env!("CARGO_PKG_VERSION").to_owned(),
                gateway: self.config.gateway.id.to_string(),
                made_us,
                schemas,
                oldest: log.oldest.0,
                head: log.head.0,
                cursor: facts.map(|facts| facts.cursor),
                parts: Vec::new(),
            })?;
            ArchiveReader::open(self.part)?.verify(&mut |bytes| bar.add(bytes))?;
            return Ok(manifest);
        }
        Err(BackupError::Overtaken { attempts: ATTEMPTS_MAX })
    }

    fn source_bytes(&self, name: &str) -> u64 {
        fs::metadata(self.config.gateway.data_dir.join(name)).map_or(0, |metadata| metadata.len())
    }

    fn begin_anew(&self) -> Result<(), BackupError> {
        let failed = |error| BackupError::write(self.work, error);
        match fs::remove_dir_all(self.work) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        DirBuilder::new().mode(0o700).create(self.work).map_err(failed)
    }

    /// Pins all three files.
    fn cut(&self) -> Result<Cut, BackupError> {
        let dir = &self.config.gateway.data_dir;
        let target = self.work.join("log.db");
        let mut attempt = 0;
        loop {
            attempt += 1;
            let state = Pinned::open(&state::path_in(dir))?;
            let history = Pinned::open(&history::path_in(dir))?;
            let log = LogCopy::begin(dir, &target)?;
            if state.as_ref().map_or(Ok(true), Pinned::is_current)? || attempt >= CUTS_MAX {
                return Ok(Cut { state, history, log });
            }
            drop(log);
            fs::remove_file(&target).map_err(|error| BackupError::write(&target, error))?;
            std::thread::sleep(CUT_PAUSE);
        }
    }

    /// Copies a pinned file and puts the copy into the archive.
    fn add_pinned(
        &self,
        name: &'static str,
        pinned: Pinned,
        archive: &mut ArchiveWriter,
        bar: &mut Bar<'_>,
    ) -> Result<(), BackupError> {
        let (bytes, target) = (self.source_bytes(name), self.work.join(name));
        pinned.copy_to(&target, &mut |part| bar.within(bytes, part))?;
        drop(pinned);
        bar.add(bytes);
        archive.add_file(name, &target, &mut |bytes| bar.add(bytes))
    }

    fn add_state(
        &self,
        pinned: Option<Pinned>,
        archive: &mut ArchiveWriter,
        bar: &mut Bar<'_>,
    ) -> Result<Option<StateFacts>, BackupError> {
        let Some(pinned) = pinned else { return Ok(None) };
        self.add_pinned("state.db", pinned, archive, bar)?;
        let facts = state::facts(self.work)?;
        let models = self.config.gateway.data_dir.join(MODELS);
        for sha256 in model_files(&models)? {
            let name = format!("{MODELS}/{sha256}.onnx");
            match archive.add_file(&name, &models.join(format!("{sha256}.onnx")), &mut |_| {}) {
                // One that nothing needs may go at any time.
                Err(BackupError::Read { error, .. })
                    if error.kind() == io::ErrorKind::NotFound && !facts.models.contains(&sha256) => {}
                other => other?,
            }
        }
        for sha256 in &facts.models {
            if !models.join(format!("{sha256}.onnx")).is_file() {
                return Err(BackupError::ModelMissing { sha256: sha256.clone(), dir: models });
            }
        }
        Ok(Some(facts))
    }

    fn add_log(
        &self,
        mut copy: LogCopy,
        archive: &mut ArchiveWriter,
        bar: &mut Bar<'_>,
    ) -> Result<(CopiedLog, i64), BackupError> {
        let bytes = self.source_bytes("log.db");
        while copy.step()? {
            bar.within(bytes, copy.done());
        }
        let copied = copy.finish()?;
        bar.add(bytes);
        let report = log::verify(self.work)?;
        if !report.is_sound() {
            return Err(BackupError::Unsound { what: "log.db", finding: report.findings.join("; ") });
        }
        let schema = log::schema_of(self.work)?.0;
        let target = self.work.join("log.db");
        archive.add_file("log.db", &target, &mut |bytes| bar.add(bytes))?;
        // Room for one copy at a time is enough.
        fs::remove_file(&target).map_err(|error| BackupError::write(&target, error))?;
        Ok((copied, schema))
    }

    fn add_history(
        &self,
        pinned: Option<Pinned>,
        archive: &mut ArchiveWriter,
        bar: &mut Bar<'_>,
    ) -> Result<Option<i64>, BackupError> {
        let Some(pinned) = pinned else { return Ok(None) };
        self.add_pinned("history.db", pinned, archive, bar)?;
        Ok(Some(history::schema_of(self.work)?.0))
    }
}

/// Whether messages that the state has not folded were in the log when it was pinned, and no longer when they were to be copied. A log
/// that had lost them before is backed up as it is.
fn has_lost(facts: &StateFacts, log: &CopiedLog) -> bool {
    facts.log_id == Some(log.id.0) && facts.cursor < log.oldest.0 && log.oldest_at_begin < log.oldest
}

/// The digests of the models in a folder.
fn model_files(dir: &Path) -> Result<Vec<String>, BackupError> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(BackupError::read(dir, error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let name = entry.map_err(|error| BackupError::read(dir, error))?.file_name();
        let digest = name.to_str().and_then(|name| model_of(&format!("{MODELS}/{name}")));
        found.extend(digest.map(|digest| digest.to_string()));
    }
    found.sort();
    Ok(found)
}
