//! Millwright's own telemetry frame.
//!
//! Owns the step from a checked frame to a reading. The format itself belongs to the wire crate.

use std::sync::Arc;

use millwright_wire::Frame;

use super::error::{Fault, Faulty, Place};
use super::rows::Rows;
use super::{Reading, StreamPosition, time};

/// Decodes a frame. If `own_topic`, the topic names the asset by the gateway's own rule, and the frame must agree.
pub(super) fn decode(rows: &mut Rows<'_>, own_topic: bool, payload: &[u8], received_us: i64) -> Faulty<()> {
    let frame = Frame::decode(payload).map_err(|error| (Place::Whole, Fault::NotAFrame(error)))?;
    if own_topic && frame.asset() != rows.asset.as_str() {
        return Err((Place::Whole, Fault::OtherAsset { frame: frame.asset().to_owned() }));
    }
    let names: Vec<(&str, f32)> = frame.channels().iter().map(|name| (*name, f32::NAN)).collect();
    let channels = match rows.lists.list(rows.asset, &names) {
        Some(channels) => channels,
        // The wire allows names that a topic does not.
        None => match names.iter().map(|(name, _)| super::rows::channel_name(name)).collect() {
            Some(channels) => channels,
            None => return Err((Place::Whole, Fault::NoValues)),
        },
    };
    let samples = frame.samples();
    let device_time = time::is_plausible(frame.first_sample_us());
    let interval_us = i64::from(frame.interval_us());
    let steps = |index: usize| interval_us.saturating_mul(i64::try_from(index).unwrap_or(i64::MAX));
    // A device whose clock was never set still knows its interval: its newest sample is from now.
    let first_us = match device_time {
        true => frame.first_sample_us(),
        false => received_us.saturating_sub(steps(samples.len().saturating_sub(1))),
    };
    let mut values = Vec::with_capacity(samples.len().saturating_mul(channels.len()));
    for value in samples.rows().flatten() {
        values.push(if value.is_finite() { value } else { f32::NAN });
    }
    let times_us: Vec<i64> = (0..samples.len()).map(|index| first_us.saturating_add(steps(index))).collect();
    rows.report.samples += times_us.len() as u64;
    rows.report.missing += values.iter().filter(|value| value.is_nan()).count() as u64;
    rows.report.times_replaced += if device_time { 0 } else { times_us.len() as u64 };
    let stream = StreamPosition {
        device: Arc::from(frame.device()),
        boot: Some(frame.boot_id()),
        seq: frame.sequence(),
        device_time,
    };
    rows.out.push(Reading { asset: rows.asset.clone(), stream: Some(stream), channels, times_us, values });
    Ok(())
}
