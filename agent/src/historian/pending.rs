//! Buckets that the journal has and `history.db` does not have yet.
//!
//! Owns the copy of the journal in memory, for the writer and for charts. Bound: the writer stops taking more at
//! [`crate::state::JOURNAL_BYTES_MAX`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::recorder::{Bucket, Recorded};
use crate::ids::AssetId;

/// By asset, in the order of the checkpoints.
pub(super) type ByAsset = HashMap<AssetId, Vec<Recorded>>;

/// Bytes of a bucket without its channels, about.
const BUCKET_BYTES: u64 = 24;
/// Bytes of one channel of a bucket.
const CHANNEL_BYTES: u64 = 12;

/// What waits.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Being written now.
    writing: Arc<ByAsset>,
    waiting: ByAsset,
    bytes: u64,
    /// The newest row of the journal that is here.
    last: Option<i64>,
    since: Option<Instant>,
}

impl Pending {
    /// Adds a row of the journal.
    pub(super) fn add(&mut self, number: i64, recorded: Vec<Recorded>) {
        self.last = Some(number);
        self.since.get_or_insert_with(Instant::now);
        for recorded in recorded {
            self.bytes = self.bytes.saturating_add(bytes_of(&recorded));
            self.waiting.entry(recorded.asset.clone()).or_default().push(recorded);
        }
    }

    /// Bytes that wait, about.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How long the oldest has waited.
    pub(super) fn age(&self) -> Option<Duration> {
        self.since.map(|since| since.elapsed())
    }

    /// Everything that waits, to be written; it is shown to charts until [`Pending::written`].
    pub(super) fn begin(&mut self) -> (Arc<ByAsset>, Option<i64>) {
        self.writing = Arc::new(std::mem::take(&mut self.waiting));
        self.since = None;
        (Arc::clone(&self.writing), self.last)
    }

    /// What [`Pending::begin`] gave is in the file.
    pub(super) fn written(&mut self) {
        let written: u64 = self.writing.values().flatten().map(bytes_of).sum();
        self.bytes = self.bytes.saturating_sub(written);
        self.writing = Arc::default();
    }

    /// It is not: it waits again, before what came since.
    pub(super) fn failed(&mut self) {
        self.since.get_or_insert_with(Instant::now);
        for (asset, mut recorded) in std::mem::take(&mut self.writing).as_ref().clone() {
            recorded.append(self.waiting.entry(asset.clone()).or_default());
            self.waiting.insert(asset, recorded);
        }
    }

    /// What waits of an asset and begins in `[from_us, to_us)`.
    pub(super) fn of(&self, asset: &AssetId, (from_us, to_us): (i64, i64)) -> Vec<Recorded> {
        let both = [self.writing.get(asset), self.waiting.get(asset)];
        let within = |bucket: &&Bucket| (from_us..to_us).contains(&bucket.start_us);
        let cut = |recorded: &Recorded| Recorded {
            asset: recorded.asset.clone(),
            channels: recorded.channels.clone(),
            buckets: recorded.buckets.iter().filter(within).cloned().collect(),
        };
        both.into_iter().flatten().flatten().map(cut).filter(|recorded| !recorded.buckets.is_empty()).collect()
    }
}

fn bytes_of(recorded: &Recorded) -> u64 {
    let bucket = BUCKET_BYTES + CHANNEL_BYTES * recorded.channels.len() as u64;
    recorded.buckets.len() as u64 * bucket
}
