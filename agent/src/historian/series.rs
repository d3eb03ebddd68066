//! A chart of the past: one asset, a span of time, so many points.
//!
//! Owns the choice of the source and the merging of buckets into points: smallest and largest are kept, so that no peak is lost however
//! much is merged. The grid is aligned to UTC, so that a chart that moves does not flicker. Bounds: [`POINTS_MAX`] points,
//! [`CHUNKS_MAX`] chunks read.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use serde::Serialize;

use super::chunk::{Chunk, Slot, Sum, Sums, Tier};
use super::raw::{self, Rows};
use super::recorder::{Recorded, Stat};
use super::store::{Named, StoreError, StoreReader};
use super::{Historian, HistoryError};
use crate::ids::AssetId;

/// Points of a chart.
pub const POINTS_MAX: usize = 2_000;
/// Chunks that are read for a chart: 2,000 points of the widest step of the fine tier, or more than two years of the coarse.
const CHUNKS_MAX: usize = 20_000;

/// What a chart asks for. Times are device times, UTC microseconds.
#[derive(Debug, Clone)]
pub struct SeriesQuery {
    /// The machine.
    pub asset: AssetId,
    /// Where it begins.
    pub from_us: i64,
    /// Where it ends; not part of it.
    pub to_us: i64,
    /// Points at most, 1 to [`POINTS_MAX`]; one more where the grid does not fit.
    pub points: usize,
    /// These channels, in this order; `None` for all.
    pub channels: Option<Vec<String>>,
}

/// What it was made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Source {
    /// Rows of the log.
    #[serde(rename = "raw")]
    Raw,
    /// Buckets of 10 s.
    #[serde(rename = "10s")]
    Fine,
    /// Buckets of 5 min.
    #[serde(rename = "5m")]
    Coarse,
}

/// One line with its band; null where nothing is known.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Line {
    /// Smallest value of each point.
    pub min: Vec<f32>,
    /// Largest.
    pub max: Vec<f32>,
    /// Mean.
    pub mean: Vec<f32>,
}

/// The line of a channel.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SeriesChannel {
    /// Its name.
    pub name: String,
    /// Its values.
    #[serde(flatten)]
    pub line: Line,
}

/// A chart.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Series {
    /// The machine.
    pub asset: String,
    /// Where it begins.
    pub from_us: i64,
    /// Where it ends.
    pub to_us: i64,
    /// The time between two points; 0 where each point is a row.
    pub step_us: i64,
    /// What it was made from.
    pub source: Source,
    /// Where each point begins.
    pub times_us: Vec<i64>,
    /// The channels.
    pub channels: Vec<SeriesChannel>,
    /// The score.
    pub score: Line,
}

impl Line {
    fn push(&mut self, stat: &Stat) {
        self.min.push(stat.min);
        self.max.push(stat.max);
        self.mean.push(stat.mean);
    }
}

/// Points at equal distances.
struct Grid {
    from_us: i64,
    step_us: i64,
    points: Vec<Sums>,
}

impl Grid {
    /// A grid of buckets: each point is a whole number of buckets, and begins at a multiple of its length.
    fn new(query: &SeriesQuery, bucket_us: i64) -> Grid {
        let step_us = step_us(query, bucket_us);
        let from_us = query.from_us.div_euclid(step_us) * step_us;
        let span_us = query.to_us.saturating_sub(from_us);
        let points = span_us.div_euclid(step_us) + i64::from(span_us.rem_euclid(step_us) > 0);
        let points = usize::try_from(points).unwrap_or(0).min(POINTS_MAX + 1);
        Grid { from_us, step_us, points: vec![Sums::default(); points] }
    }

    fn end_us(&self) -> i64 {
        self.from_us.saturating_add(self.step_us.saturating_mul(self.points.len() as i64))
    }

    fn add(&mut self, time_us: i64, slot: &Slot) {
        let index = time_us.saturating_sub(self.from_us).div_euclid(self.step_us);
        if let Some(point) = usize::try_from(index).ok().and_then(|index| self.points.get_mut(index)) {
            point.add(slot);
        }
    }
}

/// The least multiple of a bucket with which the points suffice.
fn step_us(query: &SeriesQuery, bucket_us: i64) -> i64 {
    let points = query.points.clamp(1, POINTS_MAX) as i64;
    let span_us = query.to_us.saturating_sub(query.from_us).max(1);
    let least_us = span_us.div_euclid(points) + i64::from(span_us.rem_euclid(points) > 0);
    let buckets = least_us.div_euclid(bucket_us) + i64::from(least_us.rem_euclid(bucket_us) > 0);
    buckets.max(1).saturating_mul(bucket_us)
}

impl Historian {
    /// A chart. The newest seconds, whose bucket is open yet, are the live feed's to show.
    ///
    /// # Errors
    /// There is no history, the span is empty, or a file cannot be read.
    pub fn series(&self, query: &SeriesQuery) -> Result<Series, HistoryError> {
        if self.parts.quota_bytes == 0 {
            return Err(HistoryError::Off);
        }
        let (from_us, to_us) = (query.from_us.max(0), query.to_us.min(i64::MAX / 4));
        if to_us <= from_us {
            return Err(HistoryError::Span { from_us: query.from_us, to_us: query.to_us });
        }
        let query = SeriesQuery { from_us, to_us, ..query.clone() };
        if step_us(&query, 1) < Tier::Fine.bucket_us()
            && let Some(rows) = raw::read(&self.parts.log, &self.parts.sources, &query.asset, (from_us, to_us))?
            && !self.knows_before(&query, &rows)?
        {
            return self.of_rows(&query, &rows);
        }
        let tier = self.tier(&query)?;
        self.of_buckets(&query, tier)
    }

    /// Whether buckets tell of a part of the span that is in the log no more.
    fn knows_before(&self, query: &SeriesQuery, rows: &Rows) -> Result<bool, HistoryError> {
        let first_us = rows.rows.keys().next().copied().unwrap_or(query.to_us);
        let span = (query.from_us, first_us.saturating_sub(Tier::Fine.bucket_us()));
        let mut known = false;
        if span.0 < span.1 {
            let waiting = self.shared.pending().of(&query.asset, span);
            self.buckets(query, Tier::Fine, span, &waiting, &mut |_, _| known = true)?;
        }
        Ok(known)
    }

    /// The fine tier while a point is shorter than a coarse bucket, and it reaches back as far.
    fn tier(&self, query: &SeriesQuery) -> Result<Tier, HistoryError> {
        if step_us(query, 1) >= Tier::Coarse.bucket_us() {
            return Ok(Tier::Coarse);
        }
        let oldest = self.read(|reader| match reader.find(query.asset.as_str())? {
            Some(named) => {
                let oldest = |tier| reader.oldest_us(tier, named.number);
                Ok((oldest(Tier::Fine)?, oldest(Tier::Coarse)?))
            }
            None => Ok((None, None)),
        })?;
        let (fine, coarse) = oldest.unwrap_or_default();
        let begins = |oldest: Option<i64>| oldest.map_or(i64::MAX, |oldest| oldest.max(query.from_us));
        // The chunk of the fine tier that was dropped half is no reason.
        let reaches = begins(fine).saturating_sub(begins(coarse)) <= Tier::Coarse.chunk_us();
        Ok(if reaches { Tier::Fine } else { Tier::Coarse })
    }

    fn of_buckets(&self, query: &SeriesQuery, tier: Tier) -> Result<Series, HistoryError> {
        let mut grid = Grid::new(query, tier.bucket_us());
        let span = (grid.from_us, grid.end_us());
        // Before the file: what is moved there meanwhile is seen twice, and the same.
        let waiting = self.shared.pending().of(&query.asset, span);
        let named = self.buckets(query, tier, span, &waiting, &mut |time_us, slot| grid.add(time_us, slot))?;
        let source = if tier == Tier::Fine { Source::Fine } else { Source::Coarse };
        let mut series = Series::empty(query, grid.step_us, source, &named.channels);
        let places: Vec<_> = series.channels.iter().map(|channel| named.place(&channel.name)).collect();
        for (index, point) in grid.points.iter().enumerate() {
            let time_us = grid.from_us + index as i64 * grid.step_us;
            let stat = |place: &Option<usize>| place.map_or(Stat::NONE, |place| point.stat(place + 1));
            series.push(time_us, &point.stat(0), places.iter().map(stat));
        }
        Ok(series)
    }

    /// Shows the buckets of a span, what waits in the place of what is stored. Returns the asset's channels.
    fn buckets(
        &self,
        query: &SeriesQuery,
        tier: Tier,
        span: (i64, i64),
        waiting: &[Recorded],
        show: &mut dyn FnMut(i64, &Slot),
    ) -> Result<Named, HistoryError> {
        let read = self.read(|reader| {
            let mut named = reader.find(query.asset.as_str())?.unwrap_or_default();
            let stored = named.number;
            let fresh = fresh_chunks(waiting, &mut named, &|time_us| reader.chunk(Tier::Fine, stored, time_us))?;
            show_merged(reader, (tier, stored), span, &fresh, show)?;
            Ok(named)
        })?;
        if let Some(named) = read {
            return Ok(named);
        }
        // Nothing was ever written: all there is waits.
        let mut named = Named::default();
        let none = |time_us| Ok(Chunk::new(Tier::Fine, Tier::Fine.chunk_start_us(time_us)));
        let fresh = fresh_chunks(waiting, &mut named, &none)?;
        fresh.values().for_each(|chunk| show_chunk(chunk, tier, span, show));
        Ok(named)
    }

    fn of_rows(&self, query: &SeriesQuery, rows: &Rows) -> Result<Series, HistoryError> {
        // The log holds no scores: those of the buckets are shown.
        let span = (query.from_us - Tier::Fine.bucket_us(), query.to_us);
        let waiting = self.shared.pending().of(&query.asset, span);
        let mut scores: BTreeMap<i64, Stat> = BTreeMap::new();
        self.buckets(query, Tier::Fine, span, &waiting, &mut |time_us, slot| {
            scores.insert(time_us, slot.series.first().copied().unwrap_or(Stat::NONE));
        })?;
        let score_at = |time_us: i64| {
            let bucket = scores.range(..=time_us).next_back();
            let near = |(begin, _): &(&i64, &Stat)| time_us.saturating_sub(**begin) < Tier::Fine.bucket_us();
            bucket.filter(near).map_or(Stat::NONE, |(_, stat)| *stat)
        };
        let each = rows.rows.len() <= query.points.clamp(1, POINTS_MAX);
        let step = if each { 0 } else { step_us(query, 1) };
        let mut series = Series::empty(query, step, Source::Raw, &rows.channels);
        let places: Vec<_> =
            series.channels.iter().map(|channel| rows.channels.iter().position(|name| *name == channel.name)).collect();
        let mut point = Point::new(places.len());
        for (time_us, values) in &rows.rows {
            let begin = if each { *time_us } else { time_us.div_euclid(step) * step };
            if point.begin_us != Some(begin) {
                point.finish(&mut series);
                point.begin_us = Some(begin);
            }
            let value = |place: &Option<usize>| place.and_then(|place| values.get(place)).copied().unwrap_or(f32::NAN);
            point.add(places.iter().map(value), &score_at(*time_us));
        }
        point.finish(&mut series);
        Ok(series)
    }
}

/// Rows that are merged into one point.
struct Point {
    begin_us: Option<i64>,
    channels: Vec<Sum>,
    score: Sum,
}

impl Point {
    fn new(channels: usize) -> Point {
        Point { begin_us: None, channels: vec![Sum::NONE; channels], score: Sum::NONE }
    }

    fn add(&mut self, values: impl Iterator<Item = f32>, score: &Stat) {
        for (sum, value) in self.channels.iter_mut().zip(values) {
            sum.add(&Stat { min: value, max: value, mean: value }, 1);
        }
        self.score.add(score, 1);
    }

    fn finish(&mut self, series: &mut Series) {
        if let Some(begin_us) = self.begin_us.take() {
            series.push(begin_us, &self.score.stat(), self.channels.iter().map(Sum::stat));
        }
        *self = Point::new(self.channels.len());
    }
}

impl Series {
    fn empty(query: &SeriesQuery, step_us: i64, source: Source, known: &[String]) -> Series {
        let wanted = query.channels.as_deref().unwrap_or(known);
        let channel = |name: &String| SeriesChannel { name: name.clone(), line: Line::default() };
        Series {
            asset: query.asset.to_string(),
            from_us: query.from_us,
            to_us: query.to_us,
            step_us,
            source,
            times_us: Vec::new(),
            channels: wanted.iter().map(channel).collect(),
            score: Line::default(),
        }
    }

    fn push(&mut self, time_us: i64, score: &Stat, channels: impl Iterator<Item = Stat>) {
        self.times_us.push(time_us);
        self.score.push(score);
        for (channel, stat) in self.channels.iter_mut().zip(channels) {
            channel.line.push(&stat);
        }
    }
}

/// The chunks of the fine tier that something waits for, with it in place; channels that are new get a place behind the others.
pub(super) fn fresh_chunks(
    waiting: &[Recorded],
    named: &mut Named,
    stored: &dyn Fn(i64) -> Result<Chunk, StoreError>,
) -> Result<BTreeMap<i64, Chunk>, StoreError> {
    let mut chunks = BTreeMap::new();
    for recorded in waiting {
        for channel in recorded.channels.iter().map(|channel| channel.as_str()) {
            if named.place(channel).is_none() {
                named.channels.push(channel.to_owned());
            }
        }
        let places: Vec<_> = recorded.channels.iter().map(|channel| named.place(channel.as_str())).collect();
        for bucket in &recorded.buckets {
            let start_us = Tier::Fine.chunk_start_us(bucket.start_us);
            let chunk = match chunks.entry(start_us) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => unknown.insert(stored(start_us)?),
            };
            chunk.put(bucket.start_us, Slot::of(bucket, &places));
        }
    }
    Ok(chunks)
}

/// Shows what is stored, with the fresh chunks in the place of the stored ones.
fn show_merged(
    reader: &StoreReader,
    (tier, asset): (Tier, i64),
    span: (i64, i64),
    fresh: &BTreeMap<i64, Chunk>,
    show: &mut dyn FnMut(i64, &Slot),
) -> Result<(), StoreError> {
    reader.each_chunk(tier, asset, span, CHUNKS_MAX, &mut |chunk| {
        let stale = |time_us: i64| fresh.contains_key(&Tier::Fine.chunk_start_us(time_us));
        let within = |time_us: i64| (span.0..span.1).contains(&time_us);
        chunk.buckets().filter(|(at, _)| within(*at) && !stale(*at)).for_each(|(at, slot)| show(at, slot));
    })?;
    fresh.values().for_each(|chunk| show_chunk(chunk, tier, span, show));
    Ok(())
}

fn show_chunk(chunk: &Chunk, tier: Tier, (from_us, to_us): (i64, i64), show: &mut dyn FnMut(i64, &Slot)) {
    let within = |time_us: i64| (from_us..to_us).contains(&time_us);
    match tier {
        Tier::Fine => chunk.buckets().filter(|(at, _)| within(*at)).for_each(|(at, slot)| show(at, slot)),
        Tier::Coarse => {
            let slot = chunk.reduced().filter(|_| within(chunk.start_us));
            slot.iter().for_each(|slot| show(chunk.start_us, slot));
        }
    }
}
