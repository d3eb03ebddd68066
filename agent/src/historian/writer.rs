//! The historian's thread: from the journal into `history.db`, and what is dropped from there.
//!
//! Owns the file. Buckets are written when the oldest has waited [`WRITE_AFTER`] or many wait, each into its chunk, replacing what was there
//! for its time: writing twice changes nothing. With a chunk of the fine tier its bucket of the coarse tier is made anew. Then the
//! journal is forgotten. Retention drops what is older than configured and, near the quota, the oldest: of the fine
//! tier while it covers more than [`FINE_KEPT_US`], else of the coarse. Transactions are short, so that nobody waits. A full
//! disk or a failing file is told, and tried again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::time::{Duration, Instant};

use super::chunk::{Chunk, Slot, Tier};
use super::pending::ByAsset;
use super::recorder::{Bucket, Recorded};
use super::store::{self, ASSETS_MAX, Store, StoreError};
use super::{HistoryStatus, Shared};
use crate::clock::{self, SECOND_US};
use crate::conditions::measure;
use crate::state::{JOURNAL_BYTES_MAX, State};

/// How often the thread looks.
const TICK: Duration = Duration::from_secs(1);
/// How long buckets wait in the journal: with 5 minutes each chunk is written about twice; the journal costs little.
const WRITE_AFTER: Duration = Duration::from_secs(300);
/// Bytes that are written at once however young they are.
const WRITE_BYTES: u64 = JOURNAL_BYTES_MAX / 2;
/// Pause after the file failed.
const RETRY: Duration = Duration::from_secs(30);
/// How often the free space is looked at.
const ROOM_EVERY: Duration = Duration::from_secs(5);
/// How often what is too old is looked for.
const RETAIN_EVERY: Duration = Duration::from_secs(60);
/// Free bytes that history leaves to what matters more: the log and the state.
const FREE_BYTES_MIN: u64 = 64 << 20;
/// Assets written in one transaction.
const ASSETS_PER_COMMIT: usize = 64;
/// Chunks dropped in one transaction, and in one step.
const DROP_PER_COMMIT: usize = 1_000;
/// See [`DROP_PER_COMMIT`].
const DROP_PER_STEP: usize = 10_000;
/// Longest time of the fine tier.
const FINE_DAYS: i64 = 7;
/// Times the oldest is dropped so that something fits: half a day of the fine tier.
const DROPS_PER_WRITE: usize = 12;
const HOUR_US: i64 = 3_600 * SECOND_US;
const DAY_US: i64 = 24 * HOUR_US;
/// Near the quota the fine tier is dropped first, down to this.
const FINE_KEPT_US: i64 = DAY_US;

/// What the thread is asked.
pub(super) enum Ask {
    /// Write what waits, now.
    Write(SyncSender<Result<(), String>>),
    /// End.
    Stop,
}

pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) state: Arc<State>,
    pub(super) dir: PathBuf,
    pub(super) quota_bytes: u64,
    pub(super) days: i64,
    pub(super) store: Option<Store>,
    pub(super) failed: Option<Instant>,
    pub(super) room: bool,
    pub(super) looked: Option<Instant>,
    pub(super) retained: Option<Instant>,
    /// The newest bucket that was written: nothing is dropped because a clock was set far ahead.
    pub(super) newest_us: Option<i64>,
}

impl Writer {
    pub(super) fn run(mut self, asks: &Receiver<Ask>) {
        loop {
            match asks.recv_timeout(TICK) {
                Ok(Ask::Write(reply)) => {
                    let written = self.write();
                    let told = written.as_ref().map_err(ToString::to_string).copied();
                    self.note(written);
                    // Who asked may have gone.
                    let _ = reply.send(told);
                }
                Err(RecvTimeoutError::Timeout) => self.step(),
                Ok(Ask::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            }
            self.shared.set_wanted(self.room && self.shared.pending().bytes() < JOURNAL_BYTES_MAX);
        }
    }

    fn step(&mut self) {
        self.look_for_room();
        if self.failed.is_some_and(|failed| failed.elapsed() < RETRY) || !self.room {
            return;
        }
        let (bytes, age) = {
            let pending = self.shared.pending();
            (pending.bytes(), pending.age())
        };
        let due = bytes >= WRITE_BYTES || age.is_some_and(|age| age >= WRITE_AFTER);
        let result = if due { self.write() } else { Ok(()) };
        let result = result.and_then(|()| self.retain_if_due());
        self.note(result);
    }

    fn look_for_room(&mut self) {
        if self.looked.is_some_and(|looked| looked.elapsed() < ROOM_EVERY) {
            return;
        }
        self.looked = Some(Instant::now());
        // Where the system does not tell, the file's own limit has to do.
        let free = measure::disk(&self.dir).map(|disk| disk.max.saturating_sub(disk.used));
        self.room = free.is_none_or(|free| free >= FREE_BYTES_MIN);
        if !self.room {
            let free_mb = free.unwrap_or(0) >> 20;
            self.shared.tell(|status| {
                let left = FREE_BYTES_MIN >> 20;
                status.trouble = Some(format!(
                    "the disk has {free_mb} MB left, and the last {left} MB are for telemetry and alerts"
                ));
            });
        }
    }

    /// Tells how it went; a file that is no database any more is set aside.
    fn note(&mut self, result: Result<(), StoreError>) {
        let Err(error) = result else {
            if self.failed.take().is_some() {
                tracing::info!("history is written again");
            }
            let bytes = self.store.as_ref().and_then(|store| store.bytes().ok());
            if bytes.is_some_and(|bytes| self.is_near_quota(bytes)) {
                self.retained = None;
            }
            return self.shared.tell(|status| {
                *status = HistoryStatus { trouble: None, bytes: bytes.unwrap_or(status.bytes), ..status.clone() };
            });
        };
        tracing::error!(%error, "history cannot be written; scoring goes on");
        self.failed = Some(Instant::now());
        self.shared.tell(|status| status.trouble = Some(error.to_string()));
        if error.is_corrupt() {
            self.store = None;
            match store::set_aside(&self.dir) {
                Ok(aside) => {
                    self.shared.file.fetch_add(1, Ordering::Release);
                    tracing::error!("history.db is damaged: it is kept as {} and a new one is begun", aside.display());
                }
                Err(error) => tracing::error!(%error, "history.db is damaged and cannot be renamed"),
            }
        } else if let Some(store) = &mut self.store {
            store.roll_back();
        }
        if error.is_full() {
            self.retained = None;
        }
    }

    fn is_near_quota(&self, bytes: u64) -> bool {
        bytes > self.quota_bytes - self.quota_bytes / 10
    }

    fn store(&mut self) -> Result<&mut Store, StoreError> {
        let opened = match self.store.take() {
            Some(store) => store,
            None => Store::open(&self.dir, self.quota_bytes)?,
        };
        Ok(self.store.insert(opened))
    }

    /// Writes everything that waits.
    fn write(&mut self) -> Result<(), StoreError> {
        let (writing, last) = self.shared.pending().begin();
        if let Err(error) = self.write_making_room(&writing) {
            self.shared.pending().failed();
            return Err(error);
        }
        self.shared.pending().written();
        if let Some(last) = last
            && let Err(error) = self.state.forget_journal(last)
        {
            // What is written again changes nothing.
            tracing::warn!(%error, "the journal of history could not be shortened");
        }
        Ok(())
    }

    /// Writes; a file that is full drops its oldest and takes it then.
    fn write_making_room(&mut self, writing: &ByAsset) -> Result<(), StoreError> {
        for _ in 0..DROPS_PER_WRITE {
            match self.write_assets(writing) {
                Err(error) if error.is_full() => {
                    self.store()?.roll_back();
                    self.drop_oldest()?;
                }
                written => return written,
            }
        }
        self.write_assets(writing)
    }

    fn write_assets(&mut self, writing: &ByAsset) -> Result<(), StoreError> {
        let assets: Vec<_> = writing.iter().collect();
        let mut newest_us = self.newest_us;
        let store = self.store()?;
        for some in assets.chunks(ASSETS_PER_COMMIT) {
            store.begin()?;
            for (asset, recorded) in some {
                match write_asset(store, asset.as_str(), recorded) {
                    Err(StoreError::TooManyAssets) => {
                        tracing::warn!(%asset, "history has {ASSETS_MAX} assets: this one has none");
                    }
                    other => other?,
                }
                let starts = recorded.iter().flat_map(|recorded| &recorded.buckets).map(|bucket| bucket.start_us);
                newest_us = newest_us.max(starts.max());
            }
            store.commit()?;
        }
        self.newest_us = newest_us;
        Ok(())
    }

    fn retain_if_due(&mut self) -> Result<(), StoreError> {
        let due = self.retained.is_none_or(|retained| retained.elapsed() >= RETAIN_EVERY);
        let Some(newest_us) = self.newest_us.filter(|_| due) else { return Ok(()) };
        let now_us = clock::utc_us().min(newest_us.saturating_add(DAY_US));
        let before = [now_us - self.days.min(FINE_DAYS) * DAY_US, now_us - self.days * DAY_US];
        let finished = drop_before(self.store()?, before)?;
        let bytes = self.store()?.bytes()?;
        let near = self.is_near_quota(bytes);
        if near {
            self.drop_oldest()?;
        }
        // Near the quota, or with more to drop, the next look is the next step's.
        self.retained = Some(Instant::now()).filter(|_| finished && !near);
        Ok(())
    }

    /// Drops an hour of the fine tier, or a day of the coarse.
    fn drop_oldest(&mut self) -> Result<(), StoreError> {
        let newest_us = self.newest_us;
        let store = self.store()?;
        let oldest = oldest(store)?;
        let reaches_far = |oldest: i64| newest_us.is_none_or(|newest| newest.saturating_sub(oldest) > FINE_KEPT_US);
        let before = match oldest {
            [Some(fine), _] if reaches_far(fine) => [fine + HOUR_US, 0],
            [_, Some(coarse)] if reaches_far(coarse) => [0, coarse + DAY_US],
            [Some(fine), _] => [fine + HOUR_US, 0],
            [None, coarse] => [0, coarse.unwrap_or(0) + DAY_US],
        };
        drop_before(store, before)?;
        Ok(())
    }
}

/// Puts buckets into their chunks.
pub(super) fn write_asset(store: &mut Store, asset: &str, recorded: &[Recorded]) -> Result<(), StoreError> {
    let mut chunks: BTreeMap<i64, Vec<(i64, Slot)>> = BTreeMap::new();
    let mut number = 0;
    for recorded in recorded {
        let named = store.name(asset, &recorded.channels)?;
        number = named.number;
        let places: Vec<_> = recorded.channels.iter().map(|channel| named.place(channel.as_str())).collect();
        for bucket in recorded.buckets.iter().filter(|bucket| is_datable(bucket)) {
            let chunk = chunks.entry(Tier::Fine.chunk_start_us(bucket.start_us)).or_default();
            chunk.push((bucket.start_us, Slot::of(bucket, &places)));
        }
    }
    let mut coarse: Option<Chunk> = None;
    for (start_us, slots) in chunks {
        let mut chunk = store.chunk(Tier::Fine, number, start_us)?;
        slots.into_iter().for_each(|(time_us, slot)| chunk.put(time_us, slot));
        store.put(number, &chunk)?;
        let hour_us = Tier::Coarse.chunk_start_us(start_us);
        let mut of_hour = match coarse.take() {
            Some(coarse) if coarse.start_us == hour_us => coarse,
            other => {
                other.map_or(Ok(()), |done| store.put(number, &done))?;
                store.chunk(Tier::Coarse, number, start_us)?
            }
        };
        chunk.reduced().into_iter().for_each(|slot| of_hour.put(start_us, slot));
        coarse = Some(of_hour);
    }
    coarse.map_or(Ok(()), |done| store.put(number, &done))
}

/// Whether a bucket's time is one that a clock can mean: after 1970, and not beyond what a chunk's key holds.
fn is_datable(bucket: &Bucket) -> bool {
    (0..i64::MAX / 2).contains(&bucket.start_us)
}

/// Where the oldest chunk of each tier begins, over all assets.
fn oldest(store: &Store) -> Result<[Option<i64>; 2], StoreError> {
    let mut oldest = [None, None];
    for asset in store.assets_from(0, ASSETS_MAX as usize)? {
        for (tier, oldest) in Tier::ALL.into_iter().zip(&mut oldest) {
            let begins = store.oldest_us(tier, asset)?;
            *oldest = match (*oldest, begins) {
                (Some(before), Some(begins)) => Some(i64::min(before, begins)),
                (before, begins) => before.or(begins),
            };
        }
    }
    Ok(oldest)
}

/// Drops what is older, in short transactions; false if there is more to drop.
fn drop_before(store: &mut Store, before: [i64; 2]) -> Result<bool, StoreError> {
    let mut dropped = 0;
    for asset in store.assets_from(0, ASSETS_MAX as usize)? {
        for (tier, before_us) in Tier::ALL.into_iter().zip(before) {
            while store
                .oldest_us(tier, asset)?
                .is_some_and(|oldest| oldest.saturating_add(tier.chunk_us()) <= before_us)
            {
                if dropped >= DROP_PER_STEP {
                    return Ok(false);
                }
                store.begin()?;
                dropped += store.drop_before(tier, asset, before_us, DROP_PER_COMMIT)?.max(1);
                store.forget_if_empty(asset)?;
                store.commit()?;
            }
        }
    }
    Ok(true)
}
