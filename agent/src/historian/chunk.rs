//! The stored form of history: chunks of buckets.
//!
//! Owns the two tiers, the key of a chunk and its bytes. A chunk holds the buckets of one asset and one tier in a span of time that
//! begins at a multiple of its length, UTC; a bucket of the coarse tier is made of exactly one chunk of the fine tier, so
//! that it can always be made again, with the same content.
//!
//! | tier | bucket | buckets of a chunk | chunk |
//! |---|---|---|---|
//! | 0, fine | 10 s | 30 | 5 min |
//! | 1, coarse | 5 min | 12 | 1 h |
//!
//! The bytes, little-endian: version `1`; `u32` which buckets are there, one bit each; `u16` number of channels; then for each
//! bucket that is there `u32` rows, and for the score and each channel three `f32`: min, max, mean (NaN where nothing was
//! known). With 8 channels a bucket takes 112 bytes. Decoding never panics: what is cut or of another version is an error.

use super::recorder::{BUCKET_US, Bucket, Stat};

const VERSION: u8 = 1;
/// Bits of a key below the asset and the tier: which chunk, counted from 1970.
const CHUNK_BITS: u32 = 36;
/// Channels of a stored asset. An asset has at most 64 at a time; names may change over the years.
pub(super) const CHANNELS_MAX: usize = 128;
/// Bytes of a bucket's one series.
const STAT_BYTES: usize = 12;

/// How fine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tier {
    /// 10 s.
    Fine,
    /// 5 min.
    Coarse,
}

impl Tier {
    pub(super) const ALL: [Tier; 2] = [Tier::Fine, Tier::Coarse];

    /// Length of a bucket.
    pub(super) fn bucket_us(self) -> i64 {
        match self {
            Tier::Fine => BUCKET_US,
            Tier::Coarse => Tier::Fine.chunk_us(),
        }
    }

    /// Buckets of a chunk.
    fn slots(self) -> i64 {
        match self {
            Tier::Fine => 30,
            Tier::Coarse => 12,
        }
    }

    /// Length of a chunk.
    pub(super) fn chunk_us(self) -> i64 {
        self.slots() * self.bucket_us()
    }

    /// Where the chunk begins that holds `time_us`.
    pub(super) fn chunk_start_us(self, time_us: i64) -> i64 {
        time_us.div_euclid(self.chunk_us()).saturating_mul(self.chunk_us())
    }

    /// The key of the chunk of an asset that holds `time_us`; times before 1970 and beyond the keys are put at the ends.
    pub(super) fn key(self, asset: i64, time_us: i64) -> i64 {
        let chunk = time_us.div_euclid(self.chunk_us()).clamp(0, (1 << CHUNK_BITS) - 1);
        let tier = if self == Tier::Fine { 0 } else { 1 };
        (asset * 2 + tier) << CHUNK_BITS | chunk
    }

    /// Where a chunk begins.
    pub(super) fn start_us(self, key: i64) -> i64 {
        (key & ((1 << CHUNK_BITS) - 1)) * self.chunk_us()
    }

    fn slot(self, time_us: i64) -> usize {
        usize::try_from(time_us.rem_euclid(self.chunk_us()) / self.bucket_us()).unwrap_or(0)
    }
}

/// One bucket: the score, then the channels in the stored order.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Slot {
    pub(super) rows: u32,
    pub(super) series: Vec<Stat>,
}

/// The buckets of one asset and tier in one span of time.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Chunk {
    pub(super) tier: Tier,
    pub(super) start_us: i64,
    slots: Vec<Option<Slot>>,
}

/// Why bytes are no chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum ChunkError {
    #[error("a chunk of version {0}, this program knows {VERSION}")]
    Version(u8),
    #[error("a chunk is cut short")]
    Short,
}

impl Chunk {
    /// Without buckets.
    pub(super) fn new(tier: Tier, start_us: i64) -> Chunk {
        let slots = (0..tier.slots()).map(|_| None).collect();
        Chunk { tier, start_us, slots }
    }

    /// Puts a bucket in its place; one that was there is replaced.
    pub(super) fn put(&mut self, time_us: i64, slot: Slot) {
        let index = self.tier.slot(time_us);
        if let Some(place) = self.slots.get_mut(index) {
            *place = Some(slot);
        }
    }

    /// The buckets that are there, oldest first, and where each begins.
    pub(super) fn buckets(&self) -> impl Iterator<Item = (i64, &Slot)> {
        let at = |index: usize| self.start_us.saturating_add(index as i64 * self.tier.bucket_us());
        self.slots.iter().enumerate().filter_map(move |(index, slot)| Some((at(index), slot.as_ref()?)))
    }

    /// All buckets as one.
    pub(super) fn reduced(&self) -> Option<Slot> {
        let mut sum = Sums::default();
        self.buckets().for_each(|(_, slot)| sum.add(slot));
        sum.slot()
    }

    /// As it is stored.
    pub(super) fn encode(&self) -> Vec<u8> {
        let channels = self.buckets().map(|(_, slot)| slot.series.len()).max().unwrap_or(1).max(1) - 1;
        let there = self.slots.iter().enumerate().filter(|(_, slot)| slot.is_some());
        let bits = there.fold(0_u32, |bits, (index, _)| bits | 1 << index);
        let mut bytes = vec![VERSION];
        bytes.extend(bits.to_le_bytes());
        bytes.extend(u16::try_from(channels).unwrap_or(u16::MAX).to_le_bytes());
        for (_, slot) in self.buckets() {
            bytes.extend(slot.rows.to_le_bytes());
            for index in 0..=channels {
                let stat = slot.series.get(index).copied().unwrap_or(Stat::NONE);
                [stat.min, stat.max, stat.mean].iter().for_each(|value| bytes.extend(value.to_le_bytes()));
            }
        }
        bytes
    }

    /// The reverse of [`Chunk::encode`].
    pub(super) fn decode(tier: Tier, start_us: i64, bytes: &[u8]) -> Result<Chunk, ChunkError> {
        let mut bytes = Bytes(bytes);
        let [version] = bytes.take()?;
        if version != VERSION {
            return Err(ChunkError::Version(version));
        }
        let bits = u32::from_le_bytes(bytes.take()?);
        let channels = usize::from(u16::from_le_bytes(bytes.take()?));
        // Checked before anything is allocated for it.
        if bytes.0.len() < bits.count_ones() as usize * (4 + (channels + 1) * STAT_BYTES) {
            return Err(ChunkError::Short);
        }
        let mut chunk = Chunk::new(tier, start_us);
        for (index, place) in chunk.slots.iter_mut().enumerate() {
            if bits >> index & 1 == 1 {
                *place = Some(bytes.slot(channels)?);
            }
        }
        Ok(chunk)
    }
}

/// What is left to decode.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], ChunkError> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(ChunkError::Short)?;
        self.0 = rest;
        Ok(*taken)
    }

    fn f32(&mut self) -> Result<f32, ChunkError> {
        Ok(f32::from_le_bytes(self.take()?))
    }

    fn slot(&mut self, channels: usize) -> Result<Slot, ChunkError> {
        let rows = u32::from_le_bytes(self.take()?);
        let mut series = Vec::with_capacity(channels + 1);
        for _ in 0..=channels {
            series.push(Stat { min: self.f32()?, max: self.f32()?, mean: self.f32()? });
        }
        Ok(Slot { rows, series })
    }
}

impl Slot {
    /// A bucket whose channels stand at `places` of the stored order.
    pub(super) fn of(bucket: &Bucket, places: &[Option<usize>]) -> Slot {
        let width = places.iter().flatten().max().map_or(0, |last| last + 1);
        let mut series = vec![Stat::NONE; width + 1];
        if let Some(score) = series.first_mut() {
            *score = bucket.score;
        }
        for (place, stat) in places.iter().zip(&bucket.channels) {
            if let Some(slot) = place.and_then(|place| series.get_mut(place + 1)) {
                *slot = *stat;
            }
        }
        Slot { rows: bucket.rows, series }
    }
}

/// One series of several buckets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sum {
    min: f32,
    max: f32,
    weighted: f64,
    weight: f64,
}

impl Sum {
    pub(super) const NONE: Sum = Sum { min: f32::INFINITY, max: f32::NEG_INFINITY, weighted: 0.0, weight: 0.0 };

    /// Adds a bucket of so many rows.
    pub(super) fn add(&mut self, stat: &Stat, rows: u32) {
        if stat.is_known() {
            self.min = self.min.min(stat.min);
            self.max = self.max.max(stat.max);
            let weight = f64::from(rows.max(1));
            self.weighted += f64::from(stat.mean) * weight;
            self.weight += weight;
        }
    }

    /// Smallest, largest and mean of all.
    pub(super) fn stat(&self) -> Stat {
        if self.weight > 0.0 {
            Stat { min: self.min, max: self.max, mean: (self.weighted / self.weight) as f32 }
        } else {
            Stat::NONE
        }
    }
}

/// All series of several buckets.
#[derive(Debug, Clone, Default)]
pub(super) struct Sums {
    rows: u32,
    series: Vec<Sum>,
}

impl Sums {
    pub(super) fn add(&mut self, slot: &Slot) {
        self.rows = self.rows.saturating_add(slot.rows);
        if self.series.len() < slot.series.len() {
            self.series.resize(slot.series.len(), Sum::NONE);
        }
        for (sum, stat) in self.series.iter_mut().zip(&slot.series) {
            sum.add(stat, slot.rows);
        }
    }

    /// As one bucket; `None` of nothing.
    pub(super) fn slot(&self) -> Option<Slot> {
        (self.rows > 0).then(|| Slot { rows: self.rows, series: self.series.iter().map(Sum::stat).collect() })
    }

    /// One series.
    pub(super) fn stat(&self, index: usize) -> Stat {
        self.series.get(index).map_or(Stat::NONE, Sum::stat)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stat() -> impl Strategy<Value = Stat> {
        let known = (-1e6_f32..1e6, 0.0_f32..1e3, 0.0_f32..1.0).prop_map(|(min, span, at)| Stat {
            min,
            max: min + span,
            mean: min + span * at,
        });
        prop_oneof![4 => known, 1 => Just(Stat::NONE)]
    }

    fn slot(channels: usize) -> impl Strategy<Value = Slot> {
        (1_u32..100, prop::collection::vec(stat(), channels + 1)).prop_map(|(rows, series)| Slot { rows, series })
    }

    fn chunk() -> impl Strategy<Value = Chunk> {
        prop::collection::vec((0_i64..30, slot(3)), 0..30).prop_map(|slots| {
            let mut chunk = Chunk::new(Tier::Fine, 3_000_000_000);
            for (index, slot) in slots {
                chunk.put(3_000_000_000 + index * BUCKET_US, slot);
            }
            chunk
        })
    }

    proptest! {
        // A chunk is read back as it was written.
        #[test]
        fn a_chunk_is_read_back(chunk in chunk()) {
            let read = Chunk::decode(Tier::Fine, chunk.start_us, &chunk.encode()).unwrap();
            prop_assert_eq!(read, chunk);
        }

        // Bytes of any kind, and a chunk that was cut, are decoded or refused, never a panic.
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), chunk in chunk(), cut in 0_usize..4_000) {
            let _ = Chunk::decode(Tier::Coarse, 0, &bytes);
            let whole = chunk.encode();
            if cut < whole.len() {
                let part = whole.get(..cut).unwrap();
                prop_assert_eq!(Chunk::decode(Tier::Fine, 0, part).err(), Some(ChunkError::Short));
            }
        }

        // All buckets as one keep the extremes of each series, and the mean lies between them.
        #[test]
        fn a_reduction_keeps_the_extremes(chunk in chunk()) {
            let Some(all) = chunk.reduced() else { return Ok(()) };
            for (index, stat) in all.series.iter().enumerate() {
                let known: Vec<Stat> =
                    chunk.buckets().filter_map(|(_, slot)| slot.series.get(index).copied()).filter(Stat::is_known).collect();
                let max = known.iter().map(|stat| stat.max).fold(f32::NEG_INFINITY, f32::max);
                let min = known.iter().map(|stat| stat.min).fold(f32::INFINITY, f32::min);
                if known.is_empty() {
                    prop_assert!(!stat.is_known());
                } else {
                    prop_assert_eq!((stat.min, stat.max), (min, max));
                    prop_assert!(stat.mean >= min - 1.0 && stat.mean <= max + 1.0);
                }
            }
        }
    }

    // A key says which asset, tier and time, and keys of one asset and tier are in the order of time.
    #[test]
    fn keys_are_in_order() {
        let at = 1_780_000_123_000_000;
        for tier in Tier::ALL {
            let key = tier.key(7, at);
            assert_eq!(tier.start_us(key), tier.chunk_start_us(at));
            assert!(key < tier.key(7, at + tier.chunk_us()) && key > tier.key(7, at - tier.chunk_us()));
        }
        assert!(Tier::Fine.key(7, i64::MAX) < Tier::Coarse.key(7, 0));
        assert!(Tier::Coarse.key(7, i64::MAX) < Tier::Fine.key(8, i64::MIN));
        assert_eq!(Tier::Coarse.bucket_us(), 300_000_000);
    }
}
