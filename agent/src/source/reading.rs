//! A reading: what every source becomes.
//!
//! Owns the layout of samples between decoding and the pipeline. Never knows a format.

use std::sync::Arc;

use crate::ids::{AssetId, ChannelName};

/// Samples of one asset that arrived together.
#[derive(Debug, Clone, PartialEq)]
pub struct Reading {
    /// The asset that was measured.
    pub asset: AssetId,
    /// Where the device stood in its own count, if it counts.
    pub stream: Option<StreamPosition>,
    /// The channels, in the order of a row; 1 to [`super::CHANNELS_MAX`].
    pub channels: Arc<[ChannelName]>,
    /// The time of each sample, UTC microseconds; 1 to [`super::SAMPLES_MAX`].
    pub times_us: Vec<i64>,
    /// Row-major `[samples][channels]`; NaN is a missing value, infinities do not occur.
    pub values: Vec<f32>,
}

impl Reading {
    /// The samples in order: time and row.
    pub fn rows(&self) -> impl Iterator<Item = (i64, &[f32])> {
        self.times_us.iter().copied().zip(self.values.chunks(self.channels.len().max(1)))
    }
}

/// Where a device stood in its own count of messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamPosition {
    /// The device; for formats without a device name, the topic.
    pub device: Arc<str>,
    /// Which boot of the device counted; `None` if the format does not say, and then a count that falls may be a restart.
    pub boot: Option<u32>,
    /// The count.
    pub seq: u64,
    /// Whether the samples carry the device's own time, rather than the gateway's.
    pub device_time: bool,
}
