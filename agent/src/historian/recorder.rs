//! What the fold keeps of an asset for the charts of the past: the 10-second bucket that is open now, and those that were
//! closed since the last checkpoint.
//!
//! Owns the rule which bucket a row belongs to. A bucket begins at a multiple of [`BUCKET_US`] of device time, UTC, and closes with the
//! first row of a later one. A row that is up to [`LATE_US_MAX`] older than the open bucket is counted into the open one: devices
//! whose clocks differ a little lose no peak. A row from further back means that a clock was set back: a bucket is opened
//! there, and takes the place of what was stored for that time. The open bucket is saved with its asset, so that
//! what is folded again after a crash gives the same buckets. Never touches a disk. About 20 bytes for each channel.

use serde::{Deserialize, Serialize};

use crate::clock::SECOND_US;
use crate::ids::{AssetId, ChannelName};

/// Length of a bucket.
pub const BUCKET_US: i64 = 10 * SECOND_US;
/// How far a row may be behind the open bucket and still be counted into it.
const LATE_US_MAX: i64 = 60 * SECOND_US;

/// Smallest, largest and mean value; all NaN where nothing was known.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Stat {
    /// Smallest.
    pub min: f32,
    /// Largest.
    pub max: f32,
    /// Mean.
    pub mean: f32,
}

impl Stat {
    /// Of nothing.
    pub const NONE: Stat = Stat { min: f32::NAN, max: f32::NAN, mean: f32::NAN };

    /// Whether anything was known.
    pub fn is_known(&self) -> bool {
        self.min <= self.max
    }
}

/// Two that say the same: what is unknown equals what is unknown.
impl PartialEq for Stat {
    fn eq(&self, other: &Stat) -> bool {
        let bits = |stat: &Stat| (stat.min.to_bits(), stat.max.to_bits(), stat.mean.to_bits());
        bits(self) == bits(other) || (!self.is_known() && !other.is_known())
    }
}

/// A closed bucket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// Where it begins, device time, UTC microseconds.
    pub start_us: i64,
    /// Rows in it: the weight of its means.
    pub rows: u32,
    /// The channels, in the order of the asset's rows.
    pub channels: Vec<Stat>,
    /// The score.
    pub score: Stat,
}

/// Buckets of an asset for charts of the past, to be stored with the checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    /// Which.
    pub asset: AssetId,
    /// Its channels: the order of each bucket's.
    pub channels: Vec<ChannelName>,
    /// In the order in which they were closed.
    pub buckets: Vec<Bucket>,
}

/// Values of one channel so far.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Gathered {
    min: f32,
    max: f32,
    sum: f64,
    count: u32,
}

impl Gathered {
    const NONE: Gathered = Gathered { min: f32::INFINITY, max: f32::NEG_INFINITY, sum: 0.0, count: 0 };

    fn note(&mut self, value: f32) {
        if value.is_finite() {
            self.min = self.min.min(value);
            self.max = self.max.max(value);
            self.sum += f64::from(value);
            self.count = self.count.saturating_add(1);
        }
    }

    fn stat(&self) -> Stat {
        if self.count == 0 {
            return Stat::NONE;
        }
        Stat { min: self.min, max: self.max, mean: (self.sum / f64::from(self.count)) as f32 }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Open {
    start_us: i64,
    rows: u32,
    channels: Vec<Gathered>,
    score: Gathered,
}

impl Open {
    fn close(self) -> Bucket {
        Bucket {
            start_us: self.start_us,
            rows: self.rows,
            channels: self.channels.iter().map(Gathered::stat).collect(),
            score: self.score.stat(),
        }
    }
}

/// The buckets of one asset that no checkpoint holds yet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Recorder {
    open: Option<Open>,
    /// Closed, but the score of their last rows may still be on its way.
    #[serde(skip)]
    closed: Vec<Open>,
}

impl Recorder {
    /// Takes a row of `width` channels, its `values` belonging to `positions`. Returns where its bucket begins: its score
    /// belongs there too.
    pub fn note_row(&mut self, time_us: i64, width: usize, positions: &[Option<usize>], values: &[f32]) -> i64 {
        let open = self.bucket_at(time_us);
        open.rows = open.rows.saturating_add(1);
        if open.channels.len() < width {
            open.channels.resize(width, Gathered::NONE);
        }
        for (position, value) in positions.iter().zip(values) {
            if let Some(channel) = position.and_then(|index| open.channels.get_mut(index)) {
                channel.note(*value);
            }
        }
        open.start_us
    }

    fn bucket_at(&mut self, time_us: i64) -> &mut Open {
        let start_us = time_us.div_euclid(BUCKET_US).saturating_mul(BUCKET_US);
        let stays =
            self.open.as_ref().is_some_and(|open| (0..=LATE_US_MAX).contains(&open.start_us.saturating_sub(start_us)));
        if !stays {
            self.closed.extend(self.open.take());
        }
        self.open.get_or_insert(Open { start_us, rows: 0, channels: Vec::new(), score: Gathered::NONE })
    }

    /// Takes the score of a row whose bucket begins at `bucket_us`.
    pub fn note_score(&mut self, bucket_us: i64, score: f32) {
        let mut buckets = self.open.iter_mut().chain(self.closed.iter_mut().rev());
        if let Some(bucket) = buckets.find(|bucket| bucket.start_us == bucket_us) {
            bucket.score.note(score);
        }
    }

    /// Buckets closed since they were last taken.
    pub fn closed_count(&self) -> usize {
        self.closed.len()
    }

    /// Forgets the closed buckets: nobody keeps them.
    pub fn forget_closed(&mut self) {
        self.closed.clear();
    }

    /// The closed buckets, in the order in which they were closed.
    pub fn take_closed(&mut self) -> Vec<Bucket> {
        std::mem::take(&mut self.closed).into_iter().map(Open::close).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: [Option<usize>; 2] = [Some(0), Some(1)];

    // A bucket closes with the first row of the next, keeps its extremes, and takes the score of its last row afterwards.
    #[test]
    fn a_bucket_keeps_its_extremes() {
        let mut recorder = Recorder::default();
        for (second, value) in [(0, 1.0), (5, -4.0), (9, 7.0)] {
            recorder.note_row(second * SECOND_US, 2, &BOTH, &[value, f32::NAN]);
        }
        let next = recorder.note_row(10 * SECOND_US, 2, &BOTH, &[0.0, 1.0]);
        recorder.note_score(0, 0.5);
        recorder.note_score(next, 9.0);
        let known = Stat { min: -4.0, max: 7.0, mean: 4.0 / 3.0 };
        let score = Stat { min: 0.5, max: 0.5, mean: 0.5 };
        let expected = Bucket { start_us: 0, rows: 3, channels: vec![known, Stat::NONE], score };
        assert_eq!(recorder.take_closed(), [expected]);
    }

    // A row a minute behind stays in the open bucket; one further behind opens a bucket of its own.
    #[test]
    fn a_late_row_loses_no_peak() {
        let mut recorder = Recorder::default();
        recorder.note_row(600 * SECOND_US, 1, &[Some(0)], &[1.0]);
        assert_eq!(recorder.note_row(540 * SECOND_US, 1, &[Some(0)], &[9.0]), 600 * SECOND_US);
        assert_eq!(recorder.note_row(539 * SECOND_US, 1, &[Some(0)], &[2.0]), 530 * SECOND_US);
        let closed = recorder.take_closed();
        assert_eq!((closed[0].rows, closed[0].channels[0].max), (2, 9.0));
    }

    // What is saved and restored closes the very same buckets as what was never interrupted.
    #[test]
    fn a_saved_recorder_continues() {
        let mut through = Recorder::default();
        let mut before = Recorder::default();
        let row = |recorder: &mut Recorder, k: i32| {
            let bucket = recorder.note_row(i64::from(k) * SECOND_US, 1, &[Some(0)], &[(k as f32 * 0.37).sin()]);
            recorder.note_score(bucket, k as f32 * 0.01);
        };
        (0..25).for_each(|k| row(&mut through, k));
        (0..25).for_each(|k| row(&mut before, k));
        let mut buckets = before.take_closed();
        let mut after: Recorder = postcard::from_bytes(&postcard::to_stdvec(&before).unwrap()).unwrap();
        (25..60).for_each(|k| row(&mut through, k));
        (25..60).for_each(|k| row(&mut after, k));
        buckets.extend(after.take_closed());
        assert_eq!(buckets, through.take_closed());
    }

    // What a checkpoint saves of an asset with 8 channels grows by at most 200 bytes: it is written every five seconds.
    #[test]
    fn the_open_bucket_is_small() {
        let mut recorder = Recorder::default();
        let positions: Vec<_> = (0..8).map(Some).collect();
        for second in 0..300 {
            let values = [second as f32 * 1e3; 8];
            let bucket = recorder.note_row(1_780_000_000 * SECOND_US + second, 8, &positions, &values);
            recorder.note_score(bucket, 2.0);
        }
        let bytes = postcard::to_stdvec(&recorder).unwrap().len();
        assert!(bytes <= 200, "{bytes}");
    }
}
