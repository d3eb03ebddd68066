//! A frame that a device fills row by row.
//!
//! Owns the values of the frame that is being filled, in a buffer of fixed size. Reads no clock and counts no
//! frames: the device logic does.

use heapless::Vec;

use crate::decode::check_header;
use crate::{EncodeError, Header, SAMPLES_MAX, encode};

/// Collects the rows of one frame; `VALUES` is the most values (rows · channels) it holds.
#[derive(Debug, Clone)]
pub struct FrameBuilder<const VALUES: usize> {
    values: Vec<f32, VALUES>,
    channels: usize,
}

impl<const VALUES: usize> FrameBuilder<VALUES> {
    /// An empty frame of so many channels.
    #[must_use]
    pub const fn new(channels: usize) -> FrameBuilder<VALUES> {
        FrameBuilder { values: Vec::new(), channels }
    }

    /// The rows collected so far.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.values.len().checked_div(self.channels).unwrap_or(0)
    }

    /// Whether there is no row yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Whether another row fits.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.rows() >= SAMPLES_MAX || VALUES - self.values.len() < self.channels
    }

    /// Adds a row of one value per channel.
    ///
    /// # Errors
    /// [`EncodeError::RowLength`] when the row has another length, [`EncodeError::BufferTooSmall`] when the
    /// builder [`FrameBuilder::is_full`]; the frame is as it was.
    pub fn push(&mut self, row: &[f32]) -> Result<(), EncodeError> {
        if row.len() != self.channels {
            return Err(EncodeError::RowLength { values: row.len(), channels: self.channels });
        }
        if self.is_full() {
            return Err(EncodeError::BufferTooSmall { buffer_bytes: VALUES * size_of::<f32>() });
        }
        self.values
            .extend_from_slice(row)
            .map_err(|_| EncodeError::BufferTooSmall { buffer_bytes: VALUES * size_of::<f32>() })
    }

    /// Writes the frame and gives back the part of `buffer` that holds it; the rows stay.
    ///
    /// # Errors
    /// As [`encode`].
    pub fn encode<'b>(&self, header: &Header<'_>, buffer: &'b mut [u8]) -> Result<&'b mut [u8], EncodeError> {
        encode(header, &self.values, buffer)
    }

    /// Begins the next frame.
    pub fn clear(&mut self) {
        self.values.clear();
    }
}

impl Header<'_> {
    /// Whether frames of up to `samples` rows under this header can be written, apart from the buffer's size: for a
    /// device to know at its start that its configuration is sound.
    ///
    /// # Errors
    /// [`EncodeError::Invalid`] with the rule it breaks.
    pub fn check(&self, samples: usize) -> Result<(), EncodeError> {
        check_header(self, samples).map_err(EncodeError::Invalid)
    }
}
