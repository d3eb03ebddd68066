//! Reading a frame, and the rules that every frame keeps.
//!
//! Owns the checks: a [`Frame`] that exists has passed all of them. Never allocates; the work is bounded by the
//! input's length and by comparing at most 64 channel names with each other.

use heapless::Vec;
use serde::Deserialize;

use crate::{
    CHANNEL_BYTES_MAX, CHANNELS_MAX, DecodeError, Field, Header, ID_BYTES_MAX, SAMPLES_MAX, Samples, VALUE_BYTES,
    VERSION,
};

/// A frame that has passed every check of the format; it borrows from the bytes it was decoded from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame<'a> {
    asset: &'a str,
    device: &'a str,
    boot_id: u32,
    sequence: u64,
    first_sample_us: i64,
    interval_us: u32,
    channels: Vec<&'a str, CHANNELS_MAX>,
    samples: Samples<'a>,
}

impl<'a> Frame<'a> {
    /// Reads a frame that fills `input` exactly.
    ///
    /// # Errors
    /// A [`DecodeError`] that names the field and the rule it breaks; never a panic, whatever the bytes are.
    pub fn decode(input: &'a [u8]) -> Result<Frame<'a>, DecodeError> {
        let (&version, rest) = input.split_first().ok_or(DecodeError::Empty)?;
        if version != VERSION {
            return Err(DecodeError::Version { found: version });
        }
        let mut reader = Reader { rest };
        let asset = reader.take(Field::Asset)?;
        check_asset(asset)?;
        let device = reader.take(Field::Device)?;
        check_text(device, Field::Device, ID_BYTES_MAX)?;
        let boot_id = reader.take(Field::BootId)?;
        let sequence = reader.take(Field::Sequence)?;
        let first_sample_us = reader.take(Field::FirstSample)?;
        let interval_us = reader.take(Field::Interval)?;
        let channels = reader.take_channels()?;
        let bytes: &[u8] = reader.take(Field::Samples)?;
        let row_bytes = channels.len() * VALUE_BYTES;
        if !bytes.len().is_multiple_of(row_bytes) {
            return Err(DecodeError::UnevenSamples { bytes: bytes.len(), row_bytes });
        }
        let samples = Samples::new(bytes, row_bytes);
        check_times(first_sample_us, interval_us, samples.len())?;
        if !reader.rest.is_empty() {
            return Err(DecodeError::TrailingBytes { bytes: reader.rest.len() });
        }
        Ok(Frame { asset, device, boot_id, sequence, first_sample_us, interval_us, channels, samples })
    }

    /// The asset that the values describe; valid as one level of a topic.
    #[must_use]
    pub fn asset(&self) -> &'a str {
        self.asset
    }

    /// The device that measured them.
    #[must_use]
    pub fn device(&self) -> &'a str {
        self.device
    }

    /// Drawn at random at each boot of the device.
    #[must_use]
    pub fn boot_id(&self) -> u32 {
        self.boot_id
    }

    /// Counts the frames of this boot.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Device time of the first sample, in microseconds since 1970-01-01 UTC.
    #[must_use]
    pub fn first_sample_us(&self) -> i64 {
        self.first_sample_us
    }

    /// The time between two samples, in microseconds; 0 only if there is one sample.
    #[must_use]
    pub fn interval_us(&self) -> u32 {
        self.interval_us
    }

    /// Device time of the sample with this index, in microseconds since 1970-01-01 UTC.
    #[must_use]
    pub fn sample_us(&self, index: usize) -> Option<i64> {
        if index >= self.samples.len() {
            return None;
        }
        offset_us(self.interval_us, index).and_then(|offset| self.first_sample_us.checked_add(offset))
    }

    /// The channels' names, in the order of the values of a row: 1 to [`CHANNELS_MAX`], no two alike.
    #[must_use]
    pub fn channels(&self) -> &[&'a str] {
        &self.channels
    }

    /// The values: 1 to [`SAMPLES_MAX`] rows of one value per channel.
    #[must_use]
    pub fn samples(&self) -> Samples<'a> {
        self.samples
    }
}

/// Takes postcard values off the front of the input.
struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take<T: Deserialize<'a>>(&mut self, field: Field) -> Result<T, DecodeError> {
        let (value, rest) = postcard::take_from_bytes(self.rest).map_err(|error| match error {
            postcard::Error::DeserializeUnexpectedEnd => DecodeError::Truncated { field },
            _ => DecodeError::Malformed { field },
        })?;
        self.rest = rest;
        Ok(value)
    }

    fn take_channels(&mut self) -> Result<Vec<&'a str, CHANNELS_MAX>, DecodeError> {
        let count: u32 = self.take(Field::ChannelCount)?;
        if count == 0 || count as usize > CHANNELS_MAX {
            return Err(DecodeError::ChannelCount { channels: count });
        }
        let mut channels = Vec::new();
        for index in 0..count as usize {
            let name = self.take(Field::Channel(index))?;
            check_text(name, Field::Channel(index), CHANNEL_BYTES_MAX)?;
            if let Some(first) = channels.iter().position(|other| *other == name) {
                return Err(DecodeError::DuplicateChannel { first, second: index });
            }
            channels.push(name).map_err(|_| DecodeError::ChannelCount { channels: count })?;
        }
        Ok(channels)
    }
}

/// The rules of everything but the samples' bytes; what passes here and is written can be read back.
pub(crate) fn check_header(header: &Header<'_>, samples: usize) -> Result<(), DecodeError> {
    check_asset(header.asset)?;
    check_text(header.device, Field::Device, ID_BYTES_MAX)?;
    check_channels(header.channels)?;
    check_times(header.first_sample_us, header.interval_us, samples)
}

fn check_channels(channels: &[&str]) -> Result<(), DecodeError> {
    if channels.is_empty() || channels.len() > CHANNELS_MAX {
        return Err(DecodeError::ChannelCount { channels: u32::try_from(channels.len()).unwrap_or(u32::MAX) });
    }
    for (second, name) in channels.iter().enumerate() {
        check_text(name, Field::Channel(second), CHANNEL_BYTES_MAX)?;
        if let Some(first) = channels.iter().take(second).position(|other| other == name) {
            return Err(DecodeError::DuplicateChannel { first, second });
        }
    }
    Ok(())
}

fn check_asset(asset: &str) -> Result<(), DecodeError> {
    check_text(asset, Field::Asset, ID_BYTES_MAX)?;
    match asset.find(['/', '+', '#']) {
        None => Ok(()),
        Some(at) => Err(DecodeError::Character { field: Field::Asset, at }),
    }
}

fn check_text(text: &str, field: Field, bytes_max: usize) -> Result<(), DecodeError> {
    if text.is_empty() {
        return Err(DecodeError::EmptyText { field });
    }
    if text.len() > bytes_max {
        return Err(DecodeError::TextTooLong { field, bytes: text.len(), bytes_max });
    }
    match text.find(char::is_control) {
        None => Ok(()),
        Some(at) => Err(DecodeError::Character { field, at }),
    }
}

fn check_times(first_sample_us: i64, interval_us: u32, samples: usize) -> Result<(), DecodeError> {
    if samples == 0 || samples > SAMPLES_MAX {
        return Err(DecodeError::SampleCount { samples });
    }
    if interval_us == 0 && samples > 1 {
        return Err(DecodeError::ZeroInterval);
    }
    match offset_us(interval_us, samples - 1).and_then(|offset| first_sample_us.checked_add(offset)) {
        None => Err(DecodeError::TimeOverflow),
        Some(_) => Ok(()),
    }
}

fn offset_us(interval_us: u32, index: usize) -> Option<i64> {
    i64::from(interval_us).checked_mul(i64::try_from(index).ok()?)
}
