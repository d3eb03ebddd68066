//! Writing a frame into the caller's buffer.
//!
//! Owns the order of the fields on the way out. Writes only what [`crate::Frame::decode`] accepts.

use serde::ser::{Serialize, SerializeSeq, Serializer};

use crate::decode::check_header;
use crate::{EncodeError, Frame, VERSION};

/// What a frame says besides its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header<'a> {
    /// The asset that the values describe.
    pub asset: &'a str,
    /// The device that measured them.
    pub device: &'a str,
    /// Drawn at random at each boot of the device.
    pub boot_id: u32,
    /// Counts the frames of this boot.
    pub sequence: u64,
    /// Device time of the first sample, in microseconds since 1970-01-01 UTC.
    pub first_sample_us: i64,
    /// The time between two samples, in microseconds.
    pub interval_us: u32,
    /// The names of the channels, in the order of the values.
    pub channels: &'a [&'a str],
}

/// Writes a frame of `values`, row-major `[samples][channels]`, and gives back the part of `buffer` that holds it.
///
/// # Errors
/// [`EncodeError::Invalid`] for a header or a number of samples that the format does not allow,
/// [`EncodeError::RowLength`] when the last row is incomplete, [`EncodeError::BufferTooSmall`].
pub fn encode<'b>(header: &Header<'_>, values: &[f32], buffer: &'b mut [u8]) -> Result<&'b mut [u8], EncodeError> {
    let channels = header.channels.len();
    // Without channels the header is refused, whatever the number of samples.
    let samples = values.len().checked_div(channels).unwrap_or(0);
    check_header(header, samples)?;
    let rest = values.len() % channels;
    if rest != 0 {
        return Err(EncodeError::RowLength { values: rest, channels });
    }
    write(header, &Values(values), buffer)
}

impl Frame<'_> {
    /// Writes the frame again, and gives back the part of `buffer` that holds it.
    ///
    /// # Errors
    /// [`EncodeError::BufferTooSmall`].
    pub fn encode<'b>(&self, buffer: &'b mut [u8]) -> Result<&'b mut [u8], EncodeError> {
        let header = Header {
            asset: self.asset(),
            device: self.device(),
            boot_id: self.boot_id(),
            sequence: self.sequence(),
            first_sample_us: self.first_sample_us(),
            interval_us: self.interval_us(),
            channels: self.channels(),
        };
        write(&header, &Bytes(self.samples().as_bytes()), buffer)
    }
}

fn write<'b>(header: &Header<'_>, samples: &impl Serialize, buffer: &'b mut [u8]) -> Result<&'b mut [u8], EncodeError> {
    let buffer_bytes = buffer.len();
    // A tuple is its parts one after another, and a slice is its count and then its elements.
    let fields = (
        VERSION,
        header.asset,
        header.device,
        header.boot_id,
        header.sequence,
        header.first_sample_us,
        header.interval_us,
        header.channels,
        samples,
    );
    // The types above serialise without an error of their own: only the buffer can end.
    postcard::to_slice(&fields, buffer).map_err(|_| EncodeError::BufferTooSmall { buffer_bytes })
}

/// Values as a postcard byte string: the count of bytes, then each value's little-endian bytes.
struct Values<'a>(&'a [f32]);

impl Serialize for Values<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut bytes = serializer.serialize_seq(Some(size_of_val(self.0)))?;
        for byte in self.0.iter().flat_map(|value| value.to_le_bytes()) {
            bytes.serialize_element(&byte)?;
        }
        bytes.end()
    }
}

/// The same, from bytes that are in order already.
struct Bytes<'a>(&'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}
