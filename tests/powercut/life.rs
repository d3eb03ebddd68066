//! A log at work on a recorded disk, with a ledger of what it was given and what it has promised.
//!
//! Owns the workload, which follows from a seed alone: one thread drives, what makes up a group commit is forced, and rows
//! are made from their serial numbers. (Only cursors that are not flushed are written when the log thinks it is time.) Takes
//! cuts while the log works; never judges them.

use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use millwright_broker::log::{Append, Cursor, Limits, Log, LogConfig, Offset, OpenError, WhenFull};
use millwright_broker::message::{Message, QoS};
use millwright_broker::topic::TopicName;
use rusqlite::{Connection, OpenFlags};
use tempfile::TempDir;

use crate::disk::{Disk, Files, Ignores, Rng, Step};
use crate::shim::Watch;

/// Topics, so that retained messages replace each other.
const TOPICS: u64 = 12;

/// The longest that an append may be held: a broken disk may hold it for ever.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes that may be behind a cursor before it is moved under [`WhenFull::Refuse`]: the smallest quota keeps 7 MiB.
const BEHIND_BYTES_MAX: usize = 2 << 20;

/// Write-ahead log at which a reader that stays in its transaction leaves: checkpoints begin at 4 MiB, appends are held at 8.
const HELD_WAL_BYTES_MAX: u64 = 5 << 20;

/// The sizes of one workload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    /// Of a payload.
    pub(crate) bytes_max: u64,
    /// Of a batch.
    pub(crate) rows_max: u64,
    /// Rows that fill a group commit, if commits are of several batches; otherwise each batch is one.
    pub(crate) group_rows: Option<usize>,
    pub(crate) quota_mib: u64,
    pub(crate) when_full: WhenFull,
    pub(crate) partition_rows_max: u64,
    /// Whether cursors that moved are always flushed. Otherwise the log writes them a second later, if the life is as long.
    pub(crate) flushes: bool,
    /// Appends of a life.
    pub(crate) appends: u64,
}

/// Small rows and a checkpoint; groups of batches; a small quota under both policies; rows of many pages.
pub(crate) const SHAPES: [Shape; 5] = [
    Shape {
        name: "small rows",
        bytes_max: 200,
        rows_max: 80,
        group_rows: None,
        quota_mib: 64,
        when_full: WhenFull::Refuse,
        partition_rows_max: 300,
        flushes: true,
        appends: 220,
    },
    Shape {
        name: "groups",
        bytes_max: 1_500,
        rows_max: 0,
        group_rows: Some(24),
        quota_mib: 64,
        when_full: WhenFull::Refuse,
        partition_rows_max: 333,
        flushes: true,
        appends: 150,
    },
    Shape {
        name: "refuse",
        bytes_max: 12_000,
        rows_max: 40,
        group_rows: None,
        quota_mib: 16,
        when_full: WhenFull::Refuse,
        partition_rows_max: 70,
        flushes: true,
        appends: 120,
    },
    Shape {
        name: "drop oldest",
        bytes_max: 12_000,
        rows_max: 40,
        group_rows: None,
        quota_mib: 16,
        when_full: WhenFull::DropOldest,
        partition_rows_max: 90,
        flushes: false,
        appends: 120,
    },
    Shape {
        name: "large rows",
        bytes_max: 150_000,
        rows_max: 4,
        group_rows: None,
        quota_mib: 16,
        when_full: WhenFull::Refuse,
        partition_rows_max: 8,
        flushes: false,
        appends: 90,
    },
];

impl Shape {
    pub(crate) fn config(&self, dir: &Path) -> LogConfig {
        let limits = Limits {
            group_rows_max: self.group_rows.unwrap_or(Limits::default().group_rows_max),
            partition_rows_max: self.partition_rows_max,
            ..Limits::default()
        };
        // Groups begin because they are full, not because it is time.
        let commit_delay = if self.group_rows.is_some() { Duration::from_secs(60) } else { Duration::ZERO };
        let (when_full, quota_bytes) = (self.when_full, self.quota_mib << 20);
        LogConfig { quota_bytes, when_full, commit_delay, limits, ..LogConfig::new(dir) }
    }

    /// Whether a life fills the quota, so that partitions are dropped.
    fn can_fill(&self) -> bool {
        self.quota_mib < 64
    }

    /// The row with this serial number.
    pub(crate) fn row(&self, serial: u64, logged: bool) -> Append {
        let mut rng = Rng::new(serial.wrapping_mul(0x1234_5678_9abc_def1));
        let topic = TopicName::parse(&format!("plant/{}", rng.below(TOPICS))).expect("a topic without wildcards");
        let retain = !logged || rng.one_in(10);
        let is_empty = retain && rng.one_in(4);
        let mut payload = serial.to_le_bytes().to_vec();
        payload.resize(8 + rng.below(self.bytes_max - 8) as usize, serial as u8);
        if is_empty {
            payload.clear();
        }
        let properties = if rng.one_in(5) { Bytes::from(vec![serial as u8; 12]) } else { Bytes::new() };
        let qos = if rng.one_in(3) { QoS::ExactlyOnce } else { QoS::AtLeastOnce };
        let message = Message { topic, payload: Bytes::from(payload), properties, qos, retain, origin: serial as u32 };
        Append { message, log: logged, received_us: serial as i64 }
    }
}

/// A batch that was handed to the log.
#[derive(Clone, Copy)]
pub(crate) struct Batch {
    pub(crate) first_serial: u64,
    pub(crate) rows: u64,
    pub(crate) logged: bool,
    /// The head before it.
    pub(crate) first_offset: u64,
}

impl Batch {
    /// The head behind it.
    pub(crate) fn end(&self) -> u64 {
        self.first_offset + if self.logged { self.rows } else { 0 }
    }
}

/// What may be on disk of a cursor.
#[derive(Clone, Copy, Default)]
pub(crate) struct Said {
    /// It is there, at least here.
    pub(crate) at_least: Option<u64>,
    /// If it is there, at most here.
    pub(crate) at_most: u64,
}

/// What the log was given, in order, and what it promised.
#[derive(Clone)]
pub(crate) struct Ledger {
    pub(crate) batches: Vec<Batch>,
    /// The first so many were acknowledged.
    pub(crate) acknowledged: usize,
    pub(crate) cursors: BTreeMap<String, Said>,
    /// The oldest message may be between these.
    pub(crate) oldest: (u64, u64),
    next_serial: u64,
}

impl Default for Ledger {
    fn default() -> Ledger {
        let (batches, cursors) = (Vec::new(), BTreeMap::new());
        Ledger { batches, acknowledged: 0, cursors, oldest: (1, 1), next_serial: 1 }
    }
}

impl Ledger {
    /// The head behind the first so many batches.
    pub(crate) fn head_behind(&self, batches: usize) -> u64 {
        self.batches[..batches].last().map_or(1, Batch::end)
    }

    /// The serial number of the row that has this offset.
    pub(crate) fn serial_at(&self, offset: u64) -> Option<u64> {
        let behind = self.batches.partition_point(|batch| batch.end() <= offset);
        let batch = self.batches.get(behind).filter(|batch| batch.logged && batch.first_offset <= offset)?;
        Some(batch.first_serial + offset - batch.first_offset)
    }

    fn submit(&mut self, rows: u64, logged: bool) -> Batch {
        let first_offset = self.head_behind(self.batches.len());
        let batch = Batch { first_serial: self.next_serial, rows, logged, first_offset };
        self.next_serial += rows;
        self.batches.push(batch);
        batch
    }

    /// Goes on behind the batches that came back; what did not is given up, its serial numbers too.
    fn resume(&mut self, batches: usize, log: &Log) {
        self.batches.truncate(batches);
        self.acknowledged = batches;
        self.oldest = (log.oldest().0, log.oldest().0);
        let stored = |position: u64| Said { at_least: Some(position), at_most: position };
        self.cursors = log.stats().cursors.into_iter().map(|c| (c.name, stored(c.position.0))).collect();
    }
}

/// A cut that was taken.
#[derive(Clone)]
pub(crate) struct Cut {
    pub(crate) files: Files,
    pub(crate) step: Step,
    pub(crate) ledger: Ledger,
    /// What the log had told everyone: the head, that is what readers could see.
    pub(crate) head: Option<u64>,
}

/// What the driver and the writer's thread, which takes the cuts, both look at. The ledger is never held during file access.
#[derive(Default)]
struct Shared {
    ledger: Mutex<Ledger>,
    log: Mutex<Option<Log>>,
    cuts: Mutex<Vec<Cut>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// The chance that the disk is cut before a step, one in so many.
    fn chance(step: Step, is_first: bool) -> u64 {
        match step {
            Step::Quiet => 1,
            Step::Create | Step::WriteJournal | Step::SyncJournal => 12,
            Step::Delete | Step::Truncate | Step::SyncDatabase => 3,
            Step::SyncWal if is_first => 30,
            Step::SyncWal => 6,
            Step::WriteWal if is_first => 3_000,
            Step::WriteWal => 250,
            Step::WriteDatabase if is_first => 1_200,
            Step::WriteDatabase => 300,
        }
    }

    fn take(&self, step: Step, files: &Files, droppable_rows: u64) {
        let mut ledger = lock(&self.ledger).clone();
        let told = lock(&self.log).as_ref().map(|log| (log.head().0, log.oldest().0));
        if let Some((_, oldest)) = told {
            // One partition may have been dropped, and not told yet.
            ledger.oldest = (oldest, oldest + droppable_rows);
        }
        lock(&self.cuts).push(Cut { files: files.clone(), step, ledger, head: told.map(|told| told.0) });
    }
}

/// How a life begins.
pub(crate) struct Birth {
    pub(crate) shape: Shape,
    pub(crate) seed: u64,
    pub(crate) ignores: Ignores,
    pub(crate) declares_powersafe: bool,
    /// What is on the disk, and what was not synced of it.
    pub(crate) files: Files,
    pub(crate) ledger: Ledger,
}

/// How it went.
pub(crate) struct Lived {
    pub(crate) cuts: Vec<Cut>,
    pub(crate) fingerprint: u64,
}

/// Opens a log, uses it and closes it, and takes cuts of its disk meanwhile. `batches_found` says how many of the ledger's
/// batches an opened log has.
pub(crate) fn live(
    birth: Birth,
    batches_found: impl Fn(&Log, &Ledger) -> Result<usize, String>,
) -> Result<Lived, String> {
    let Birth { shape, seed, ignores, declares_powersafe, files, ledger } = birth;
    let is_first = ledger.batches.is_empty();
    let dir = scratch_dir().map_err(|error| error.to_string())?;
    files.build_after_death(dir.path()).map_err(|error| error.to_string())?;
    let disk = Disk::new(files, ignores, declares_powersafe);
    let watch = Watch::new(dir.path(), Arc::clone(&disk)).map_err(|error| error.to_string())?;
    let shared = Arc::new(Shared { ledger: Mutex::new(ledger), ..Shared::default() });
    let droppable_rows = if shape.can_fill() { shape.partition_rows_max } else { 0 };
    let (observed, mut dice) = (Arc::clone(&shared), Rng::new(!seed));
    disk.observe(Some(Box::new(move |step, files| {
        if dice.one_in(Shared::chance(step, is_first)) {
            observed.take(step, files, droppable_rows);
        }
    })));
    let mut driver = Driver {
        shape,
        dir: dir.path(),
        shared: &shared,
        rng: Rng::new(seed),
        cursors: BTreeMap::new(),
        reader: None,
        // A cursor found in the file may be far behind.
        behind_bytes: BEHIND_BYTES_MAX,
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(|error| error.to_string())?;
    let lived = runtime.block_on(driver.run(&disk, is_first, &batches_found));
    // The observer holds the log, and is held by the disk.
    let log = lock(&shared.log).take();
    drop(log);
    disk.observe(None);
    drop(watch);
    lived.map(|()| Lived { cuts: std::mem::take(&mut *lock(&shared.cuts)), fingerprint: disk.fingerprint() })
}

/// A directory in memory, if the system has such a place: the disk is simulated, so the real one need not be waited for.
pub(crate) fn scratch_dir() -> io::Result<TempDir> {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())
}

/// The one thread that uses the log.
struct Driver<'l> {
    shape: Shape,
    dir: &'l Path,
    shared: &'l Shared,
    rng: Rng,
    cursors: BTreeMap<&'static str, Cursor>,
    /// A program that stays in its read transaction, which holds the write-ahead log back.
    reader: Option<Connection>,
    /// Appended since all cursors were moved.
    behind_bytes: usize,
}

impl Driver<'_> {
    async fn run(
        &mut self,
        disk: &Disk,
        is_first: bool,
        batches_found: &impl Fn(&Log, &Ledger) -> Result<usize, String>,
    ) -> Result<(), String> {
        let mut log = self.open().map_err(|error| format!("the log does not open: {error}"))?;
        {
            let mut ledger = lock(&self.shared.ledger);
            let found = batches_found(&log, &ledger)?;
            ledger.resume(found, &log);
        }
        *lock(&self.shared.log) = Some(log.clone());
        disk.quiet();
        let appends = if is_first { self.shape.appends } else { 4 + self.rng.below(8) };
        for _ in 0..appends {
            match self.rng.below(100) {
                0..10 => self.move_cursor(&log).await?,
                10..14 => self.forget_cursor(&log).await?,
                14..17 => self.hold_or_release()?,
                17 => log = self.close_and_open(log).await?,
                _ => {}
            }
            self.append(&log).await?;
        }
        if self.rng.one_in(3) {
            disk.quiet();
        }
        self.reader = None;
        log.close();
        Ok(())
    }

    fn open(&self) -> Result<Log, OpenError> {
        Log::open(self.shape.config(self.dir)).map(|opened| opened.log)
    }

    async fn close_and_open(&mut self, log: Log) -> Result<Log, String> {
        self.flush(&log).await?;
        (self.reader, self.cursors) = (None, BTreeMap::new());
        log.close();
        lock(&self.shared.ledger).oldest = (log.oldest().0, log.oldest().0);
        let shut = lock(&self.shared.log).take();
        drop((shut, log));
        let log = self.open().map_err(|error| format!("a closed log does not open: {error}"))?;
        *lock(&self.shared.log) = Some(log.clone());
        Ok(log)
    }

    /// Appends the batches of one commit.
    async fn append(&mut self, log: &Log) -> Result<(), String> {
        let mut batches = Vec::new();
        for (rows, logged) in self.batch_sizes() {
            let batch = lock(&self.shared.ledger).submit(rows, logged);
            let row = |serial| self.shape.row(serial, logged);
            batches.push((batch, (batch.first_serial..batch.first_serial + rows).map(row).collect::<Vec<_>>()));
        }
        let bytes = batches.iter().flat_map(|(_, rows)| rows).map(|row| row.message.payload.len() + 200).sum();
        self.make_way(log, bytes).await?;
        let mut waiting: Vec<_> =
            batches.into_iter().map(|(batch, rows)| (batch, Box::pin(log.append(rows)))).collect();
        // All are queued by the first round, in order; what is answered implies all before it, as they share commits.
        let all_answered = poll_fn(|context| {
            let mut wrong = None;
            waiting.retain_mut(|(batch, answer)| match answer.as_mut().poll(context) {
                Poll::Pending => true,
                Poll::Ready(answer) => {
                    lock(&self.shared.ledger).acknowledged += 1;
                    wrong = wrong.take().or((answer != Ok(Offset(batch.first_offset))).then_some(answer));
                    false
                }
            });
            match wrong {
                Some(answer) => Poll::Ready(Err(format!("an append was answered {answer:?}"))),
                None if waiting.is_empty() => Poll::Ready(Ok(())),
                None => Poll::Pending,
            }
        });
        match tokio::time::timeout(PATIENCE, all_answered).await {
            Ok(answered) => answered,
            Err(_) => Err(format!("an append is held: {:?}", log.stats().full)),
        }
    }

    /// Rows of the batches that are queued together, and whether they are logged. Small ones make up one commit, which begins
    /// when the last one, which fills a commit of its own, is queued; so the writer's timing changes nothing.
    fn batch_sizes(&mut self) -> Vec<(u64, bool)> {
        let Some(group_rows) = self.shape.group_rows else {
            return vec![(1 + self.rng.below(self.shape.rows_max), !self.rng.one_in(12))];
        };
        let mut sizes = Vec::new();
        let mut rows_left = group_rows as u64 - 1;
        while rows_left > 0 && !self.rng.one_in(8) {
            let rows = 1 + self.rng.below(rows_left);
            sizes.push((rows, sizes.is_empty() || !self.rng.one_in(6)));
            rows_left -= rows;
        }
        sizes.push((group_rows as u64, !self.rng.one_in(12)));
        sizes
    }

    /// Keeps an append from waiting for ever: for a cursor, or for a reader that holds the write-ahead log.
    async fn make_way(&mut self, log: &Log, bytes: usize) -> Result<(), String> {
        let shape = &self.shape;
        self.behind_bytes += bytes;
        if shape.when_full == WhenFull::Refuse && shape.can_fill() && self.behind_bytes > BEHIND_BYTES_MAX {
            // Also those that were registered in a life before.
            for name in log.stats().cursors.into_iter().map(|cursor| cursor.name) {
                say(self.shared, &name, log.head().0);
                log.cursor(&name).map_err(|error| error.to_string())?.advance(log.head());
            }
            self.behind_bytes = 0;
            if self.shape.flushes {
                self.flush(log).await?;
            }
        }
        if self.reader.is_some() {
            // When that is answered, the figures are those of the last commit.
            self.flush(log).await?;
            self.reader.take_if(|_| log.stats().wal_bytes > HELD_WAL_BYTES_MAX);
        }
        Ok(())
    }

    async fn move_cursor(&mut self, log: &Log) -> Result<(), String> {
        let name = if self.rng.one_in(3) { "sink" } else { "inference" };
        if !self.cursors.contains_key(name) {
            // It is found where it was, or begins at the oldest message.
            if lock(&self.shared.ledger).cursors.get(name).is_none_or(|said| said.at_least.is_none()) {
                say(self.shared, name, log.oldest().0);
            }
            self.cursors.insert(name, log.cursor(name).map_err(|error| error.to_string())?);
            self.behind_bytes += BEHIND_BYTES_MAX;
        }
        let Some(cursor) = self.cursors.get(name) else { return Ok(()) };
        let (from, head) = (cursor.position().0, log.head().0);
        let next = from + self.rng.below(head.saturating_sub(from) + 1);
        say(self.shared, name, next);
        cursor.advance(Offset(next));
        if self.shape.flushes || self.rng.one_in(2) {
            self.flush(log).await?;
        }
        Ok(())
    }

    async fn forget_cursor(&mut self, log: &Log) -> Result<(), String> {
        let Some(cursor) = self.cursors.remove("sink") else { return Ok(()) };
        if let Some(said) = lock(&self.shared.ledger).cursors.get_mut("sink") {
            said.at_least = None;
        }
        cursor.forget();
        if self.shape.flushes { self.flush(log).await } else { Ok(()) }
    }

    async fn flush(&mut self, log: &Log) -> Result<(), String> {
        log.flush().await.map_err(|error| error.to_string())?;
        let stored = log.stats().cursors;
        let stored = stored.into_iter().map(|c| (c.name, Said { at_least: Some(c.position.0), at_most: c.position.0 }));
        lock(&self.shared.ledger).cursors = stored.collect();
        Ok(())
    }

    fn hold_or_release(&mut self) -> Result<(), String> {
        if self.reader.take().is_some() || self.shape.can_fill() {
            return Ok(());
        }
        let path = self.dir.join("log.db");
        let hold = || {
            let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
            connection.execute_batch("BEGIN; SELECT count(*) FROM meta;")?;
            Ok::<_, rusqlite::Error>(connection)
        };
        self.reader = Some(hold().map_err(|error| error.to_string())?);
        Ok(())
    }
}

/// Notes a cursor's position before it is said.
fn say(shared: &Shared, name: &str, position: u64) {
    let mut ledger = lock(&shared.ledger);
    let said = ledger.cursors.entry(name.to_owned()).or_default();
    said.at_most = said.at_most.max(position);
}
