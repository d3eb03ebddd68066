//! Why bytes are not a frame, and why a frame cannot be written.
//!
//! Owns the error types. An error carries numbers and field names, never bytes of the input.

use core::fmt;

use crate::{CHANNELS_MAX, SAMPLES_MAX, VERSION};

/// A field of the frame, for error messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The asset id.
    Asset,
    /// The device id.
    Device,
    /// The boot id.
    BootId,
    /// The sequence number.
    Sequence,
    /// The device time of the first sample.
    FirstSample,
    /// The time between samples.
    Interval,
    /// The number of channels.
    ChannelCount,
    /// The name of the channel with this index.
    Channel(usize),
    /// The samples.
    Samples,
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Field::Asset => f.write_str("the asset id"),
            Field::Device => f.write_str("the device id"),
            Field::BootId => f.write_str("the boot id"),
            Field::Sequence => f.write_str("the sequence number"),
            Field::FirstSample => f.write_str("the time of the first sample"),
            Field::Interval => f.write_str("the sample interval"),
            Field::ChannelCount => f.write_str("the number of channels"),
            Field::Channel(index) => write!(f, "the name of channel {index}"),
            Field::Samples => f.write_str("the samples"),
        }
    }
}

/// Why bytes are not a frame: the sender's mistake, or not a frame at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DecodeError {
    /// There is not one byte.
    Empty,
    /// The first byte is not [`VERSION`].
    Version {
        /// What it is.
        found: u8,
    },
    /// The bytes end inside this field.
    Truncated {
        /// The field that is cut off.
        field: Field,
    },
    /// The bytes of this field are not an encoding of it: an overlong number, or text that is not UTF-8.
    Malformed {
        /// The field.
        field: Field,
    },
    /// A text that must not be empty is.
    EmptyText {
        /// The field.
        field: Field,
    },
    /// A text is longer than its limit.
    TextTooLong {
        /// The field.
        field: Field,
        /// Its length.
        bytes: usize,
        /// What is allowed.
        bytes_max: usize,
    },
    /// A text contains a control character, or an asset id contains `/`, `+` or `#`.
    Character {
        /// The field.
        field: Field,
        /// Where, in bytes from the start of the text.
        at: usize,
    },
    /// There is no channel, or there are more than [`CHANNELS_MAX`].
    ChannelCount {
        /// How many.
        channels: u32,
    },
    /// Two channels have the same name.
    DuplicateChannel {
        /// The index of the first.
        first: usize,
        /// The index of the second.
        second: usize,
    },
    /// The samples are not a whole number of rows.
    UnevenSamples {
        /// The bytes of the samples.
        bytes: usize,
        /// The bytes of one row.
        row_bytes: usize,
    },
    /// There is no sample, or there are more than [`SAMPLES_MAX`].
    SampleCount {
        /// How many.
        samples: usize,
    },
    /// An interval of zero with more than one sample.
    ZeroInterval,
    /// The last sample's time does not fit into 64 bits.
    TimeOverflow,
    /// There are bytes after the last field.
    TrailingBytes {
        /// How many.
        bytes: usize,
    },
}

impl fmt::Display for DecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DecodeError::Empty => f.write_str("the frame is empty"),
            DecodeError::Version { found } => {
                write!(f, "the frame has format version {found}, only version {VERSION} is known")
            }
            DecodeError::Truncated { field } => write!(f, "the frame ends inside {field}"),
            DecodeError::Malformed { field } => write!(f, "{field} is not validly encoded"),
            DecodeError::EmptyText { field } => write!(f, "{field} is empty"),
            DecodeError::TextTooLong { field, bytes, bytes_max } => {
                write!(f, "{field} has {bytes} bytes, at most {bytes_max} are allowed")
            }
            DecodeError::Character { field, at } => {
                write!(f, "{field} has a character at byte {at} that is not allowed there")
            }
            DecodeError::ChannelCount { channels } => {
                write!(f, "the frame has {channels} channels, 1 to {CHANNELS_MAX} are allowed")
            }
            DecodeError::DuplicateChannel { first, second } => {
                write!(f, "channels {first} and {second} have the same name")
            }
            DecodeError::UnevenSamples { bytes, row_bytes } => {
                write!(f, "the samples have {bytes} bytes, which is not a multiple of the {row_bytes} bytes of a row")
            }
            DecodeError::SampleCount { samples } => {
                write!(f, "the frame has {samples} samples, 1 to {SAMPLES_MAX} are allowed")
            }
            DecodeError::ZeroInterval => f.write_str("the sample interval is zero, but there is more than one sample"),
            DecodeError::TimeOverflow => f.write_str("the time of the last sample is out of range"),
            DecodeError::TrailingBytes { bytes } => write!(f, "{bytes} bytes follow the end of the frame"),
        }
    }
}

impl core::error::Error for DecodeError {}

/// Why a frame cannot be written: the caller's mistake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EncodeError {
    /// The frame would be refused by [`crate::Frame::decode`].
    Invalid(DecodeError),
    /// A row has another number of values than there are channels.
    RowLength {
        /// The values of the row.
        values: usize,
        /// The channels of the frame.
        channels: usize,
    },
    /// The frame does not fit into the buffer.
    BufferTooSmall {
        /// The size of the buffer.
        buffer_bytes: usize,
    },
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EncodeError::Invalid(error) => error.fmt(f),
            EncodeError::RowLength { values, channels } => {
                write!(f, "the row has {values} values for {channels} channels")
            }
            EncodeError::BufferTooSmall { buffer_bytes } => {
                write!(f, "the frame does not fit into {buffer_bytes} bytes")
            }
        }
    }
}

impl core::error::Error for EncodeError {}

impl From<DecodeError> for EncodeError {
    fn from(error: DecodeError) -> EncodeError {
        EncodeError::Invalid(error)
    }
}
