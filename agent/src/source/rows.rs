//! Collects decoded samples into readings.
//!
//! Owns the channel lists: an asset's list is kept, so that the next message with the same fields allocates no names.
//! Neighbouring samples with the same channels and no count of their own become one reading.

use std::collections::HashMap;
use std::sync::Arc;

use super::{CHANNELS_MAX, DecodeReport, Reading, StreamPosition};
use crate::ids::{AssetId, ChannelName};

/// Channel lists kept; 10,000 lists of 64 shared names are about 20 MB at worst. When full, all are forgotten and
/// learned again.
const LISTS_MAX: usize = 10_000;

/// The channel list that each asset used last.
#[derive(Debug, Default)]
pub(super) struct ChannelLists(HashMap<AssetId, Arc<[ChannelName]>>);

impl ChannelLists {
    /// The list of `names`, which are channel names already.
    pub(super) fn list<N: AsRef<str>>(&mut self, asset: &AssetId, names: &[(N, f32)]) -> Option<Arc<[ChannelName]>> {
        if let Some(list) = self.0.get(asset)
            && list.len() == names.len()
            && list.iter().zip(names).all(|(known, (name, _))| known.as_str() == name.as_ref())
        {
            return Some(Arc::clone(list));
        }
        let list: Option<Arc<[ChannelName]>> =
            names.iter().map(|(name, _)| ChannelName::parse(name.as_ref()).ok()).collect();
        let list = list?;
        if self.0.len() >= LISTS_MAX {
            self.0.clear();
        }
        self.0.insert(asset.clone(), Arc::clone(&list));
        Some(list)
    }
}

/// The readings of one payload, while it is decoded.
pub(super) struct Rows<'a> {
    pub(super) asset: &'a AssetId,
    pub(super) lists: &'a mut ChannelLists,
    pub(super) out: &'a mut Vec<Reading>,
    pub(super) report: DecodeReport,
    /// Where this payload's readings begin in `out`.
    start: usize,
}

impl<'a> Rows<'a> {
    pub(super) fn new(asset: &'a AssetId, lists: &'a mut ChannelLists, out: &'a mut Vec<Reading>) -> Rows<'a> {
        let start = out.len();
        Rows { asset, lists, out, report: DecodeReport::default(), start }
    }

    /// Adds a sample whose fields are in the order of the payload. False if its names are no channel names.
    pub(super) fn push<N: AsRef<str>>(
        &mut self,
        stream: Option<StreamPosition>,
        time_us: i64,
        fields: &[(N, f32)],
    ) -> bool {
        debug_assert!(!fields.is_empty() && fields.len() <= CHANNELS_MAX);
        let Some(channels) = self.lists.list(self.asset, fields) else { return false };
        self.push_listed(stream, time_us, &channels, fields.iter().map(|(_, value)| *value));
        true
    }

    /// Adds a sample of channels that are listed already.
    pub(super) fn push_listed(
        &mut self,
        stream: Option<StreamPosition>,
        time_us: i64,
        channels: &Arc<[ChannelName]>,
        values: impl Iterator<Item = f32>,
    ) {
        self.report.samples += 1;
        let joins = |last: &Reading| stream.is_none() && last.stream.is_none() && last.channels == *channels;
        if self.out.len() <= self.start || !self.out.last().is_some_and(joins) {
            self.out.push(Reading {
                asset: self.asset.clone(),
                stream,
                channels: Arc::clone(channels),
                times_us: Vec::new(),
                values: Vec::new(),
            });
        }
        let Some(reading) = self.out.last_mut() else { return };
        reading.times_us.push(time_us);
        for value in values.take(channels.len()) {
            let value = if value.is_finite() { value } else { f32::NAN };
            self.report.missing += u64::from(value.is_nan());
            reading.values.push(value);
        }
    }
}

/// `raw` as a channel name: what has a meaning in topics becomes a dot. `None` if that does not make it one.
pub(crate) fn channel_name(raw: &str) -> Option<ChannelName> {
    ChannelName::parse(raw).or_else(|_| ChannelName::parse(&raw.replace(['/', '+', '#'], "."))).ok()
}
