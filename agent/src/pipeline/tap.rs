//! Taps: copies of what the pipeline folds, for models that are watched.
//!
//! Owns what a watched model is shown: the readings of its assets and how the active model judged each row. A tap never
//! holds the fold up: a feed that its reader has no room for is dropped and counted. Bounds: [`TAPS_MAX`] taps of
//! [`FEEDS_MAX`] feeds, each of one batch of the log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use millwright_models::State;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::engine::RowScore;
use super::fleet::matches_any;
use crate::ids::{AssetId, ChannelName};
use crate::source::{Reading, StreamPosition};

/// Models watched at once: each is a process of its own, of some 20 MB.
pub const TAPS_MAX: usize = 8;
/// Feeds that may wait: with batches of 500 messages of a few hundred bytes, a megabyte for each tap.
const FEEDS_MAX: usize = 8;

/// What was folded in one batch, as far as it is of the tap's assets.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Feed {
    /// In the order of the log.
    pub readings: Vec<FedReading>,
    /// Rows that the active models scored.
    pub scores: Vec<FedScore>,
}

/// A [`Reading`] in transport.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FedReading {
    asset: AssetId,
    stream: Option<FedPosition>,
    channels: Vec<ChannelName>,
    times_us: Vec<i64>,
    values: Vec<f32>,
    /// When the gateway got it, UTC microseconds.
    pub received_us: i64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct FedPosition {
    device: String,
    boot: Option<u32>,
    seq: u64,
    device_time: bool,
}

/// The active model's verdict on one row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FedScore {
    /// The asset.
    pub asset: AssetId,
    /// The row's device time, UTC microseconds.
    pub time_us: i64,
    /// Whether it is in an alarm episode.
    pub alarm: bool,
}

impl FedReading {
    fn new(reading: &Reading, received_us: i64) -> FedReading {
        let stream = reading.stream.as_ref().map(|position| FedPosition {
            device: position.device.to_string(),
            boot: position.boot,
            seq: position.seq,
            device_time: position.device_time,
        });
        FedReading {
            asset: reading.asset.clone(),
            stream,
            channels: reading.channels.to_vec(),
            times_us: reading.times_us.clone(),
            values: reading.values.clone(),
            received_us,
        }
    }

    /// The reading it was.
    pub fn into_reading(self) -> Reading {
        let stream = self.stream.map(|position| StreamPosition {
            device: position.device.into(),
            boot: position.boot,
            seq: position.seq,
            device_time: position.device_time,
        });
        Reading {
            asset: self.asset,
            stream,
            channels: self.channels.into(),
            times_us: self.times_us,
            values: self.values,
        }
    }
}

impl FedScore {
    /// A row as the engine saw it.
    pub fn new(asset: &AssetId, score: &RowScore) -> FedScore {
        FedScore { asset: asset.clone(), time_us: score.time_us, alarm: score.state != State::Ok }
    }
}

/// One tap, in the pipeline's hands.
#[derive(Debug)]
pub struct Tap {
    id: u64,
    patterns: Vec<String>,
    feeds: mpsc::Sender<Feed>,
    missed: Arc<AtomicU64>,
    pending: Feed,
}

/// The other end of a tap.
#[derive(Debug)]
pub struct TapReader {
    /// What is to be shown to the model.
    pub feeds: mpsc::Receiver<Feed>,
    /// Readings that were dropped because the reader was slow.
    pub missed: Arc<AtomicU64>,
}

/// Makes a tap for the assets that match `patterns`.
pub fn tap(id: u64, patterns: Vec<String>) -> (Tap, TapReader) {
    let (sender, feeds) = mpsc::channel(FEEDS_MAX);
    let missed = Arc::new(AtomicU64::new(0));
    let reader = TapReader { feeds, missed: Arc::clone(&missed) };
    (Tap { id, patterns, feeds: sender, missed, pending: Feed::default() }, reader)
}

/// All taps of the pipeline.
#[derive(Debug, Default)]
pub struct Taps {
    taps: Vec<Tap>,
}

impl Taps {
    /// Adds one; the oldest is given up when there are too many.
    pub fn add(&mut self, tap: Tap) {
        if self.taps.len() >= TAPS_MAX {
            self.taps.remove(0);
        }
        self.taps.push(tap);
    }

    /// Removes one.
    pub fn remove(&mut self, id: u64) {
        self.taps.retain(|tap| tap.id != id);
    }

    /// A reading is about to be folded.
    pub fn note_reading(&mut self, reading: &Reading, received_us: i64) {
        for tap in self.taps.iter_mut().filter(|tap| matches_any(&tap.patterns, &reading.asset)) {
            tap.pending.readings.push(FedReading::new(reading, received_us));
        }
    }

    /// A row was scored by the active model.
    pub fn note_score(&mut self, asset: &AssetId, score: &RowScore) {
        for tap in self.taps.iter_mut().filter(|tap| matches_any(&tap.patterns, asset)) {
            tap.pending.scores.push(FedScore::new(asset, score));
        }
    }

    /// Hands the batch over, to those that have room.
    pub fn send(&mut self) {
        for tap in self.taps.iter_mut().filter(|tap| !tap.pending.readings.is_empty()) {
            let feed = std::mem::take(&mut tap.pending);
            let readings = feed.readings.len() as u64;
            if tap.feeds.try_send(feed).is_err() {
                tap.missed.fetch_add(readings, Ordering::Relaxed);
            }
        }
        self.taps.retain(|tap| !tap.feeds.is_closed());
    }
}
