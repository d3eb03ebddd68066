//! The historian: what a chart of the past shows.
//!
//! Owns `history.db` and the way there. The fold gathers buckets of 10 s with the smallest, largest and mean value of each channel and of the score
//! ([`recorder`]). A checkpoint puts closed buckets into a journal in `state.db`, in the transaction that stores the cursor and
//! the open buckets: nothing behind the cursor is missing, and what is folded again after a crash is there once. A thread
//! of its own ([`writer`]) moves the journal into chunks ([`chunk`], [`store`]), so that the pipeline never waits for
//! history. A chart ([`series`]) reads chunks, journal, and for short spans the log itself ([`raw`]); an export reads all of it ([`stored`]).
//!
//! Wear, with 200 assets of 8 channels: the open buckets add 200 bytes to each saved asset, 8 KB/s to the 50 KB/s of the checkpoints; the
//! journal takes 2.4 KB/s; each chunk of 3.4 KB is written about twice in 5 minutes, 5 KB/s. A row for each bucket would touch a
//! page for each asset every 10 s: 80 KB/s.
//!
//! Bounds: `[history] quota_mb` and `days`; the fine tier keeps 7 days; [`crate::state::JOURNAL_BYTES_MAX`] wait at most. Near the quota the
//! oldest is dropped. While the disk is nearly full, or the file fails for long, buckets are skipped and counted, and a condition says
//! so; scoring goes on. A device whose clock is off by more than `days` has no history.

mod chunk;
mod pending;
mod raw;
pub mod recorder;
pub mod series;
mod store;
pub mod stored;
#[cfg(test)]
mod tests;
mod writer;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use millwright_broker::log::{Log, ReadError};
use serde::Serialize;

use self::pending::Pending;
use self::recorder::Recorded;
pub use self::store::StoreError;
use self::store::StoreReader;
use self::writer::{Ask, Writer};
use crate::config::SourceConfig;
use crate::state::{State, StateError};

/// Questions to the thread that may wait.
const ASKS_MAX: usize = 4;
/// Connections for reading that are kept.
const READERS_MAX: usize = 4;

/// What the historian is made of.
pub struct HistorianParts {
    /// Where `history.db` is.
    pub dir: PathBuf,
    /// Where the journal is.
    pub state: Arc<State>,
    /// For short spans.
    pub log: Log,
    /// How its payloads are read.
    pub sources: Vec<SourceConfig>,
    /// Bytes that the file may hold; 0 keeps no history.
    pub quota_bytes: u64,
    /// Days that the coarse tier keeps.
    pub days: u32,
}

/// Why a chart cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The configuration keeps none.
    #[error("this gateway keeps no history: set `quota_mb` in [history]")]
    Off,
    /// The end is not after the beginning.
    #[error("the span from {from_us} to {to_us} is empty: the end must be after the beginning")]
    Span {
        /// Its beginning.
        from_us: i64,
        /// Its end.
        to_us: i64,
    },
    /// The file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The journal.
    #[error(transparent)]
    State(#[from] StateError),
    /// The log.
    #[error(transparent)]
    Log(#[from] ReadError),
    /// What waits cannot be written.
    #[error("history cannot be written: {0}")]
    Write(String),
}

/// How history does.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct HistoryStatus {
    /// Bytes in use.
    pub bytes: u64,
    /// Bytes that may be used.
    pub bytes_max: u64,
    /// Buckets that were not kept since the start.
    pub skipped_buckets: u64,
    /// Why it cannot be written now.
    pub trouble: Option<String>,
}

/// What the thread, the pipeline and charts share.
#[derive(Debug)]
struct Shared {
    pending: Mutex<Pending>,
    wanted: AtomicBool,
    skipped: AtomicU64,
    /// Counts the files: connections to one that was set aside are of no use.
    file: AtomicU64,
    status: Mutex<HistoryStatus>,
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_wanted(&self, wanted: bool) {
        self.wanted.store(wanted, Ordering::Relaxed);
    }

    fn tell(&self, change: impl FnOnce(&mut HistoryStatus)) {
        change(&mut self.status.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The historian. Reading blocks: use a thread that may.
pub struct Historian {
    parts: HistorianParts,
    shared: Arc<Shared>,
    asks: SyncSender<Ask>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
    /// Connections, and of which file.
    readers: Mutex<Vec<(u64, StoreReader)>>,
}

impl Historian {
    /// Takes what the journal holds and starts the thread.
    ///
    /// # Errors
    /// The journal cannot be read, or the system gives no thread. A file that fails is told in the status, and tried again.
    pub fn start(parts: HistorianParts) -> Result<Arc<Historian>, StateError> {
        let on = parts.quota_bytes > 0;
        let mut pending = Pending::default();
        for row in parts.state.journal()?.rows {
            match on {
                true => pending.add(row.number, row.recorded),
                // It was on before.
                false => parts.state.forget_journal(row.number)?,
            }
        }
        let status = HistoryStatus { bytes_max: parts.quota_bytes, ..HistoryStatus::default() };
        let shared = Arc::new(Shared {
            pending: Mutex::new(pending),
            wanted: AtomicBool::new(on),
            skipped: AtomicU64::new(0),
            file: AtomicU64::new(0),
            status: Mutex::new(status),
        });
        let (asks, asked) = sync_channel(ASKS_MAX);
        let writer = Writer {
            shared: Arc::clone(&shared),
            state: Arc::clone(&parts.state),
            dir: parts.dir.clone(),
            quota_bytes: parts.quota_bytes,
            days: i64::from(parts.days),
            store: None,
            failed: None,
            room: true,
            looked: None,
            retained: None,
            newest_us: None,
        };
        let run = move || writer.run(&asked);
        let thread = if on { std::thread::Builder::new().name("historian".into()).spawn(run).ok() } else { None };
        if on && thread.is_none() {
            shared.set_wanted(false);
            shared.tell(|status| status.trouble = Some("the system gives it no thread".to_owned()));
        }
        let (thread, readers) = (Mutex::new(thread), Mutex::default());
        Ok(Arc::new(Historian { parts, shared, asks, thread, readers }))
    }

    /// What of a checkpoint's buckets is to go into the journal: all, or nothing while there is no room; then they are counted.
    pub fn admit(&self, recorded: Vec<Recorded>) -> Vec<Recorded> {
        if self.shared.wanted.load(Ordering::Relaxed) {
            return recorded;
        }
        if self.parts.quota_bytes > 0 {
            let buckets = recorded.iter().map(|recorded| recorded.buckets.len() as u64).sum();
            self.shared.skipped.fetch_add(buckets, Ordering::Relaxed);
        }
        Vec::new()
    }

    /// Takes what a checkpoint has put into the journal, in the row of that number.
    pub fn take(&self, number: i64, recorded: Vec<Recorded>) {
        self.shared.pending().add(number, recorded);
    }

    /// How it does.
    pub fn status(&self) -> HistoryStatus {
        let status = self.shared.status.lock().unwrap_or_else(PoisonError::into_inner).clone();
        HistoryStatus { skipped_buckets: self.shared.skipped.load(Ordering::Relaxed), ..status }
    }

    /// Has everything written that waits; when it returns it is in `history.db`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self) -> Result<(), HistoryError> {
        let stopped = |_| HistoryError::Write("the historian has stopped".to_owned());
        let (reply, answer) = sync_channel(1);
        self.asks.send(Ask::Write(reply)).map_err(|_| stopped(()))?;
        answer.recv().map_err(|_| stopped(()))?.map_err(HistoryError::Write)
    }

    /// Ends the thread. What waits is in the journal.
    pub fn stop(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A thread that has ended takes no question.
            let _ = self.asks.send(Ask::Stop);
            if thread.join().is_err() {
                tracing::error!("the historian's thread ended badly");
            }
        }
    }

    /// Has `work` done with a connection for reading; `None` while there is no file.
    fn read<T>(&self, work: impl FnOnce(&StoreReader) -> Result<T, StoreError>) -> Result<Option<T>, StoreError> {
        if !store::path_in(&self.parts.dir).exists() {
            return Ok(None);
        }
        let file = self.shared.file.load(Ordering::Acquire);
        let kept = self.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let reader = match kept {
            Some((of, reader)) if of == file => reader,
            _ => StoreReader::open(&self.parts.dir)?,
        };
        // One that failed is not used again: the file may have been set aside.
        let result = work(&reader)?;
        let mut readers = self.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if readers.len() < READERS_MAX {
            readers.push((file, reader));
        }
        Ok(Some(result))
    }
}
