//! The Sparkplug B payload.
//!
//! Owns the protobuf messages, with the field numbers of Eclipse Tahu's `sparkplug_b.proto`; only the fields that
//! telemetry needs are kept. Metrics are decoded one by one, since a list of two-byte metrics would otherwise take
//! sixty times its size in memory.

use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// The most metrics of one payload; a birth message names every metric of a device.
pub(super) const METRICS_MAX: usize = 4_096;

/// One metric.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Metric {
    #[prost(string, optional, tag = "1")]
    pub(crate) name: Option<String>,
    #[prost(uint64, optional, tag = "2")]
    pub(crate) alias: Option<u64>,
    #[prost(uint64, optional, tag = "3")]
    pub(crate) timestamp: Option<u64>,
    #[prost(uint32, optional, tag = "4")]
    pub(crate) datatype: Option<u32>,
    #[prost(bool, optional, tag = "5")]
    pub(crate) is_historical: Option<bool>,
    #[prost(bool, optional, tag = "7")]
    pub(crate) is_null: Option<bool>,
    /// Texts, bytes, data sets and templates have other tags and are skipped.
    #[prost(oneof = "Value", tags = "10, 11, 12, 13, 14")]
    pub(crate) value: Option<Value>,
}

/// A metric's numeric value.
#[derive(Clone, Copy, PartialEq, prost::Oneof)]
pub(crate) enum Value {
    /// Int8 to Int32 and UInt8 to UInt32.
    #[prost(uint32, tag = "10")]
    Int(u32),
    /// Int64 and UInt64.
    #[prost(uint64, tag = "11")]
    Long(u64),
    #[prost(float, tag = "12")]
    Float(f32),
    #[prost(double, tag = "13")]
    Double(f64),
    #[prost(bool, tag = "14")]
    Boolean(bool),
}

/// The payload, for encoding.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Payload {
    #[prost(uint64, optional, tag = "1")]
    pub(crate) timestamp: Option<u64>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) metrics: Vec<Metric>,
    #[prost(uint64, optional, tag = "3")]
    pub(crate) seq: Option<u64>,
}

/// Why bytes are not a payload.
#[derive(Debug, thiserror::Error)]
pub(super) enum PayloadError {
    #[error("{0}")]
    Protobuf(#[from] prost::DecodeError),
    #[error("a metric is cut off")]
    CutOff,
    #[error("more than {METRICS_MAX} metrics")]
    TooManyMetrics,
}

/// Hands every metric to `each`, in order, and returns the payload's timestamp in milliseconds since 1970.
pub(super) fn metrics<E: From<PayloadError>>(
    mut bytes: &[u8],
    mut each: impl FnMut(Metric) -> Result<(), E>,
) -> Result<Option<u64>, E> {
    let mut timestamp = None;
    let mut count = 0_usize;
    while !bytes.is_empty() {
        let (tag, wire_type) = decode_key(&mut bytes).map_err(PayloadError::from)?;
        match (tag, wire_type) {
            (1, WireType::Varint) => timestamp = Some(decode_varint(&mut bytes).map_err(PayloadError::from)?),
            (2, WireType::LengthDelimited) => {
                count += 1;
                if count > METRICS_MAX {
                    return Err(PayloadError::TooManyMetrics.into());
                }
                let length = decode_varint(&mut bytes).map_err(PayloadError::from)?;
                let (metric, rest) = usize::try_from(length)
                    .ok()
                    .and_then(|length| bytes.split_at_checked(length))
                    .ok_or(PayloadError::CutOff)?;
                bytes = rest;
                each(Metric::decode(metric).map_err(PayloadError::from)?)?;
            }
            _ => {
                skip_field(wire_type, tag, &mut bytes, DecodeContext::default()).map_err(PayloadError::from)?;
            }
        }
    }
    Ok(timestamp)
}
