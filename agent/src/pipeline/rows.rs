//! Rows of one asset, one after the other in one block.
//!
//! Owns the layout: values row-major, and how wide the rows were, which changes only when a channel appears. Thousands of rows
//! of some hundred assets are in memory while these are learned, so a row takes the place of its values and no more.

use serde::de::{SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The block grows by this share of itself: doubling would leave as much unused as is used.
const GROWTH: usize = 8;
/// Values it grows by at least.
const GROWTH_LEAST: usize = 256;

/// Any number of rows, each a value per channel that was known when it came. Serialised as a sequence of sequences of `f32`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Rows {
    values: Vec<f32>,
    runs: Vec<Run>,
    count: usize,
}

/// Rows of the same width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    width: usize,
    rows: usize,
    /// Where the first begins in the block.
    start: usize,
}

impl Rows {
    /// How many.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Adds a row.
    pub fn push(&mut self, row: &[f32]) {
        let start = self.values.len();
        if self.values.capacity() - start < row.len() {
            self.values.reserve_exact(row.len().max(start / GROWTH).max(GROWTH_LEAST));
        }
        self.values.extend_from_slice(row);
        self.count += 1;
        match self.runs.last_mut() {
            Some(run) if run.width == row.len() => run.rows += 1,
            _ => self.runs.push(Run { width: row.len(), rows: 1, start }),
        }
    }

    /// Adds the rows of another.
    pub fn append(&mut self, other: &Rows) {
        other.iter().for_each(|row| self.push(row));
    }

    /// Every row, in order.
    pub fn iter(&self) -> impl Iterator<Item = &[f32]> {
        self.runs.iter().flat_map(|run| (0..run.rows).map(|n| self.row(run, n)))
    }

    /// The rows from the one with the index `first` on.
    pub fn since(&self, first: usize) -> Rows {
        let mut rows = Rows::default();
        self.iter().skip(first).for_each(|row| rows.push(row));
        rows
    }

    fn row(&self, run: &Run, n: usize) -> &[f32] {
        let start = run.start + n * run.width;
        self.values.get(start..start + run.width).unwrap_or_default()
    }
}

impl Serialize for Rows {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut sequence = serializer.serialize_seq(Some(self.count))?;
        for row in self.iter() {
            sequence.serialize_element(row)?;
        }
        sequence.end()
    }
}

impl<'de> Deserialize<'de> for Rows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Rows, D::Error> {
        deserializer.deserialize_seq(RowsVisitor)
    }
}

struct RowsVisitor;

impl<'de> Visitor<'de> for RowsVisitor {
    type Value = Rows;

    fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("rows of numbers")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Rows, A::Error> {
        let mut rows = Rows::default();
        while let Some(row) = sequence.next_element::<Vec<f32>>()? {
            rows.push(&row);
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(all: &[&[f32]]) -> Rows {
        let mut rows = Rows::default();
        all.iter().for_each(|row| rows.push(row));
        rows
    }

    // Rows come back as they were given, also when a channel appears between them and when a row has no value.
    #[test]
    fn rows_of_any_width_come_back() {
        let all: [&[f32]; 5] = [&[1.0], &[2.0], &[3.0, 4.0], &[], &[5.0, 6.0]];
        let rows = rows(&all);
        assert_eq!(rows.len(), 5);
        assert_eq!(rows.iter().collect::<Vec<_>>(), all);
        assert_eq!(rows.since(3).iter().collect::<Vec<_>>(), all[3..]);
        assert!(rows.since(5).is_empty() && rows.since(9).is_empty());
    }

    // What an earlier version wrote, a sequence of rows each by itself, is read, and written the same.
    #[test]
    fn the_form_on_disk_is_that_of_a_list_of_rows() {
        let listed: Vec<Box<[f32]>> = vec![Box::new([1.0]), Box::new([2.0, f32::MAX]), Box::new([])];
        let bytes = postcard::to_stdvec(&listed).unwrap();
        let read: Rows = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(read, rows(&[&[1.0], &[2.0, f32::MAX], &[]]));
        assert_eq!(postcard::to_stdvec(&read).unwrap(), bytes);
    }

    // Thousands of rows take little more than their values.
    #[test]
    fn rows_take_the_place_of_their_values() {
        let mut rows = Rows::default();
        (0..3_600).for_each(|n| rows.push(&[n as f32; 4]));
        assert!(rows.values.capacity() * 8 <= rows.values.len() * 9 + 8, "{} values", rows.values.capacity());
        assert_eq!(rows.runs.len(), 1);
    }
}
