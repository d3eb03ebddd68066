//! Rows of one asset, packed.
//!
//! Owns the layout: blocks of a page each, values row-major, and how wide the rows of a block are, which changes only when a channel
//! appears. Thousands of rows of some hundred assets are in memory while these are learned, so a row takes the place of its
//! values and no more; and as all assets grow at once, a block never moves, which would leave holes between those of others.

use serde::de::{SeqAccess, Visitor};
use serde::ser::SerializeSeq;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Values of a block, unless a single row has more: 4 KiB.
const BLOCK_VALUES: usize = 1_024;

/// Any number of rows, each a value per channel that was known when it came. Serialised as a sequence of sequences of `f32`.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    blocks: Vec<Block>,
    count: usize,
}

/// Rows of the same width.
#[derive(Debug, Clone)]
struct Block {
    width: usize,
    rows: usize,
    values: Vec<f32>,
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
        self.count += 1;
        if let Some(block) = self.blocks.last_mut().filter(|block| block.takes(row)) {
            return block.push(row);
        }
        let mut block = Block { width: row.len(), rows: 0, values: Vec::with_capacity(row.len().max(BLOCK_VALUES)) };
        block.push(row);
        self.blocks.push(block);
    }

    /// Adds the rows of another.
    pub fn append(&mut self, other: &Rows) {
        other.iter().for_each(|row| self.push(row));
    }

    /// Every row, in order.
    pub fn iter(&self) -> impl Iterator<Item = &[f32]> {
        self.blocks.iter().flat_map(|block| (0..block.rows).map(|n| block.row(n)))
    }

    /// The rows from the one with the index `first` on.
    pub fn since(&self, first: usize) -> Rows {
        let mut rows = Rows::default();
        self.iter().skip(first).for_each(|row| rows.push(row));
        rows
    }
}

impl Block {
    fn takes(&self, row: &[f32]) -> bool {
        self.width == row.len() && self.values.capacity() - self.values.len() >= row.len()
    }

    fn push(&mut self, row: &[f32]) {
        self.rows += 1;
        self.values.extend_from_slice(row);
    }

    fn row(&self, n: usize) -> &[f32] {
        self.values.get(n * self.width..(n + 1) * self.width).unwrap_or_default()
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
        assert_eq!(read.iter().collect::<Vec<_>>(), listed.iter().map(|row| &**row).collect::<Vec<_>>());
        assert_eq!(postcard::to_stdvec(&read).unwrap(), bytes);
    }

    // Thousands of rows take little more than their values.
    #[test]
    fn rows_take_the_place_of_their_values() {
        let mut rows = Rows::default();
        (0..3_600).for_each(|n| rows.push(&[n as f32; 5]));
        let held: usize = rows.blocks.iter().map(|block| block.values.capacity()).sum();
        assert!(held <= 3_600 * 5 + 2 * BLOCK_VALUES, "{held} values");
        assert!(rows.iter().zip(0..).all(|(row, n)| row == [n as f32; 5]));
    }
}
