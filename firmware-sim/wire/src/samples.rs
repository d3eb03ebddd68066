//! The samples of a frame: rows of little-endian `f32`, read where they lie.
//!
//! Owns the reading of values from bytes. Never copies them, never judges them: NaN and infinities pass.

use core::slice::ChunksExact;

use crate::VALUE_BYTES;

/// The samples of a decoded frame, row-major `[samples][channels]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Samples<'a> {
    /// A whole number of rows of `row_bytes` each; the decoder checked it.
    bytes: &'a [u8],
    /// Bytes of a row, at least [`VALUE_BYTES`].
    row_bytes: usize,
}

impl<'a> Samples<'a> {
    /// `bytes` holds whole rows of `row_bytes`, which is a positive multiple of [`VALUE_BYTES`].
    pub(crate) fn new(bytes: &'a [u8], row_bytes: usize) -> Samples<'a> {
        debug_assert!(row_bytes >= VALUE_BYTES && bytes.len().is_multiple_of(row_bytes));
        Samples { bytes, row_bytes }
    }

    /// The number of samples (rows).
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() / self.row_bytes
    }

    /// Whether there is no sample; never so in a decoded frame.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The sample with this index.
    #[must_use]
    pub fn row(&self, index: usize) -> Option<Row<'a>> {
        let start = index.checked_mul(self.row_bytes)?;
        let bytes = self.bytes.get(start..start.checked_add(self.row_bytes)?)?;
        Some(Row { values: bytes.chunks_exact(VALUE_BYTES) })
    }

    /// The samples in order, each an iterator over its values in the order of the channels.
    #[must_use]
    pub fn rows(&self) -> Rows<'a> {
        Rows { rows: self.bytes.chunks_exact(self.row_bytes) }
    }

    /// The values as they lie in the frame: little-endian `f32`, row by row.
    #[must_use]
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }
}

impl<'a> IntoIterator for Samples<'a> {
    type Item = Row<'a>;
    type IntoIter = Rows<'a>;

    fn into_iter(self) -> Rows<'a> {
        self.rows()
    }
}

/// Iterates over the samples of a frame.
#[derive(Debug, Clone)]
pub struct Rows<'a> {
    rows: ChunksExact<'a, u8>,
}

impl<'a> Iterator for Rows<'a> {
    type Item = Row<'a>;

    fn next(&mut self) -> Option<Row<'a>> {
        Some(Row { values: self.rows.next()?.chunks_exact(VALUE_BYTES) })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.rows.size_hint()
    }
}

impl ExactSizeIterator for Rows<'_> {}

/// One sample: iterates over its values in the order of the channels.
#[derive(Debug, Clone)]
pub struct Row<'a> {
    values: ChunksExact<'a, u8>,
}

impl Iterator for Row<'_> {
    type Item = f32;

    fn next(&mut self) -> Option<f32> {
        let bytes = self.values.next()?.first_chunk::<VALUE_BYTES>()?;
        Some(f32::from_le_bytes(*bytes))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.values.size_hint()
    }
}

impl ExactSizeIterator for Row<'_> {}
