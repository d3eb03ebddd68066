//! History as it is read by others, whole: beside the gateway that writes it, or when there is none.
//!
//! Owns the walk over all buckets of an asset, those that wait in the journal in the place of those that are stored, and their merging into
//! points of a step. Never writes. Holds what waits in the journal ([`crate::state::JOURNAL_BYTES_MAX`] encoded) and [`CHUNKS_MAX`] chunks;
//! each read is short.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use super::chunk::{Chunk, Slot, Sums, Tier};
use super::recorder::{Recorded, Stat};
use super::series::fresh_chunks;
use super::store::{self, Named, StoreReader};
use super::{HistoryError, StoreError};
use crate::ids::AssetId;
use crate::state::stored::StoredState;

/// Chunks of one read: of 64 channels they take 6 MB.
const CHUNKS_MAX: usize = 256;

/// The files.
pub struct StoredHistory {
    reader: Option<StoreReader>,
    waiting: BTreeMap<AssetId, Vec<Recorded>>,
}

/// What there is of one asset.
pub struct AssetHistory {
    named: Named,
    stored: Option<i64>,
    /// Chunks of the fine tier that something waits for, with it in place.
    fresh: BTreeMap<i64, Chunk>,
}

/// So many buckets as one.
pub struct Point {
    /// Where it begins, device time, UTC microseconds.
    pub time_us: i64,
    sums: Sums,
}

impl Point {
    /// The score.
    pub fn score(&self) -> Stat {
        self.sums.stat(0)
    }

    /// A channel by its place in [`AssetHistory::channels`].
    pub fn channel(&self, place: usize) -> Stat {
        self.sums.stat(place + 1)
    }
}

impl AssetHistory {
    /// Its channels.
    pub fn channels(&self) -> &[String] {
        &self.named.channels
    }
}

/// Where `history.db` is in a data directory.
pub fn path_in(dir: &Path) -> PathBuf {
    store::path_in(dir)
}

/// The version of the tables of the `history.db` of `dir`, and the one that this program knows.
///
/// # Errors
/// The file cannot be read.
pub fn schema_of(dir: &Path) -> Result<(i64, i64), StoreError> {
    store::schema_of(dir)
}

/// The length of the buckets that points of `step_us` are made of; `None` if no buckets make such points.
fn tier_of(step_us: i64) -> Option<Tier> {
    let divides = |tier: &Tier| step_us > 0 && step_us % tier.bucket_us() == 0;
    [Tier::Coarse, Tier::Fine].into_iter().find(divides)
}

/// Whether points of `step_us` can be made: a multiple of the shortest bucket.
pub fn is_step(step_us: i64) -> bool {
    tier_of(step_us).is_some()
}

/// Whether points of `step_us` are made of the fine buckets, which are kept for days rather than months.
pub fn is_fine(step_us: i64) -> bool {
    tier_of(step_us) == Some(Tier::Fine)
}

impl StoredHistory {
    /// Opens the files of the data directory `dir`, for `wanted` assets.
    ///
    /// # Errors
    /// A file is of another version or cannot be read.
    pub fn open(dir: &Path, wanted: &dyn Fn(&AssetId) -> bool) -> Result<StoredHistory, HistoryError> {
        let mut waiting: BTreeMap<AssetId, Vec<Recorded>> = BTreeMap::new();
        // Before the file: what is moved there meanwhile is seen twice, and the same.
        if let Some(state) = StoredState::open(dir)? {
            for recorded in state.recorded(wanted)? {
                waiting.entry(recorded.asset.clone()).or_default().push(recorded);
            }
        }
        let reader = match store::path_in(dir).is_file() {
            true => Some(StoreReader::open_checked(dir)?),
            false => None,
        };
        Ok(StoredHistory { reader, waiting })
    }

    /// The assets that there is something of, by name.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn assets(&self) -> Result<Vec<AssetId>, StoreError> {
        let stored = self.reader.as_ref().map_or(Ok(Vec::new()), StoreReader::assets)?;
        let mut all: Vec<AssetId> = stored.iter().filter_map(|name| AssetId::parse(name).ok()).collect();
        all.extend(self.waiting.keys().cloned());
        all.sort();
        all.dedup();
        Ok(all)
    }

    /// What there is of an asset.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn asset(&self, asset: &AssetId) -> Result<AssetHistory, StoreError> {
        let found = self.reader.as_ref().map_or(Ok(None), |reader| reader.find(asset.as_str()))?;
        let stored = found.as_ref().map(|named| named.number);
        let mut named = found.unwrap_or_default();
        let waiting = self.waiting.get(asset).map_or(&[][..], Vec::as_slice);
        let chunk = |time_us: i64| match (&self.reader, stored) {
            (Some(reader), Some(number)) => reader.chunk(Tier::Fine, number, time_us),
            _ => Ok(Chunk::new(Tier::Fine, Tier::Fine.chunk_start_us(time_us))),
        };
        let fresh = fresh_chunks(waiting, &mut named, &chunk)?;
        Ok(AssetHistory { named, stored, fresh })
    }

    /// Shows the points of `step_us` of an asset that hold buckets of `[from_us, to_us)`, oldest first, until it is told to stop.
    /// Without buckets there is no point.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn points(
        &self,
        asset: &AssetHistory,
        step_us: i64,
        (from_us, to_us): (i64, i64),
        show: &mut dyn FnMut(&Point) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let Some(tier) = tier_of(step_us) else { return Ok(()) };
        let to_us = to_us.min(i64::MAX / 4);
        let mut at_us = from_us.max(0);
        let mut open: Option<Point> = None;
        while at_us < to_us {
            let (buckets, next_us) = self.page(asset, tier, (at_us, to_us))?;
            for (bucket_us, slot) in buckets {
                let time_us = bucket_us.div_euclid(step_us).saturating_mul(step_us);
                if let Some(done) = open.take_if(|point| point.time_us != time_us)
                    && show(&done).is_break()
                {
                    return Ok(());
                }
                open.get_or_insert_with(|| Point { time_us, sums: Sums::default() }).sums.add(&slot);
            }
            at_us = next_us;
        }
        if let Some(last) = open {
            let _ = show(&last);
        }
        Ok(())
    }

    /// The buckets that begin in a part of a span, and where the next part begins.
    fn page(
        &self,
        asset: &AssetHistory,
        tier: Tier,
        (from_us, to_us): (i64, i64),
    ) -> Result<(BTreeMap<i64, Slot>, i64), StoreError> {
        let (mut chunks, mut next_us) = (Vec::new(), to_us);
        if let (Some(reader), Some(number)) = (&self.reader, asset.stored) {
            let more =
                reader.each_chunk(tier, number, (from_us, to_us), CHUNKS_MAX, &mut |chunk| chunks.push(chunk))?;
            next_us = more.map_or(to_us, |more_us| more_us.min(to_us));
        }
        let within = |time_us: i64| (from_us..next_us).contains(&time_us);
        let mut buckets = BTreeMap::new();
        for chunk in &chunks {
            buckets.extend(chunk.buckets().filter(|(at, _)| within(*at)).map(|(at, slot)| (at, slot.clone())));
        }
        for (start_us, chunk) in asset.fresh.range(Tier::Fine.chunk_start_us(from_us)..next_us) {
            match tier {
                Tier::Fine => {
                    buckets.extend(chunk.buckets().filter(|(at, _)| within(*at)).map(|(at, slot)| (at, slot.clone())));
                }
                Tier::Coarse => {
                    buckets.extend(chunk.reduced().filter(|_| within(*start_us)).map(|slot| (*start_us, slot)))
                }
            }
        }
        Ok((buckets, next_us))
    }
}
