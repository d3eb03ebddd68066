//! SUBSCRIBE, SUBACK, UNSUBSCRIBE and UNSUBACK (§3.8 to §3.11).
//!
//! Filters stay text here: whether one is a valid topic filter is answered per filter by the session, in SUBACK.

use bytes::{BufMut, BytesMut};

use super::error::DecodeError;
use super::properties::{self, Property, allowed, put_binary, put_section};
use super::publish::{self, PacketId};
use super::reader::{Reader, Text};
use super::reason::Reason;
use super::{Version, kind, put_packet};
use crate::message::QoS;

/// The most filters of one SUBSCRIBE or UNSUBSCRIBE. Each takes at least 3 bytes on the wire and about 40 in memory, so
/// a packet is never more than 40 KiB of list.
pub const FILTERS_PER_PACKET_MAX: usize = 1_024;

/// A client's subscriptions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subscribe {
    /// What SUBACK will answer.
    pub packet_id: PacketId,
    /// Properties; empty in 3.1.1.
    pub properties: Vec<Property>,
    /// At least one filter.
    pub filters: Vec<SubscribeFilter>,
}

/// One filter of a SUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscribeFilter {
    /// The filter as written; not yet checked.
    pub filter: Text,
    /// How to deliver.
    pub options: SubscribeOptions,
}

/// Subscription options; 3.1.1 has only the QoS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// The most that the client asks for.
    pub qos: QoS,
    /// Not what this client published itself.
    pub no_local: bool,
    /// Forward the retain flag as it was published.
    pub retain_as_published: bool,
    /// Which retained messages to send at SUBSCRIBE.
    pub retain_handling: RetainHandling,
}

/// When retained messages are sent. [MQTT-3.8.3.1]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum RetainHandling {
    /// At every SUBSCRIBE.
    Always = 0,
    /// If the subscription did not exist.
    IfNew = 1,
    /// Never.
    Never = 2,
}

/// The answer to SUBSCRIBE, a code for each filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubAck {
    /// Of the SUBSCRIBE.
    pub packet_id: PacketId,
    /// Properties; empty in 3.1.1.
    pub properties: Vec<Property>,
    /// What was granted, in the order of the filters.
    pub reasons: Vec<Reason>,
}

/// The end of subscriptions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsubscribe {
    /// What UNSUBACK will answer.
    pub packet_id: PacketId,
    /// Properties; empty in 3.1.1.
    pub properties: Vec<Property>,
    /// At least one filter, as written.
    pub filters: Vec<Text>,
}

/// The answer to UNSUBSCRIBE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsubAck {
    /// Of the UNSUBSCRIBE.
    pub packet_id: PacketId,
    /// Properties; empty in 3.1.1.
    pub properties: Vec<Property>,
    /// A code for each filter; empty in 3.1.1.
    pub reasons: Vec<Reason>,
}

const TOO_MANY: DecodeError = DecodeError::with(Reason::QuotaExceeded, "MQTT-4.13.1", "a packet has too many filters");

pub(super) fn decode_subscribe(mut reader: Reader, version: Version) -> Result<Subscribe, DecodeError> {
    let packet_id = publish::packet_id(&mut reader)?;
    let properties = match version {
        Version::V311 => Vec::new(),
        Version::V5 => properties::decode(&mut reader, allowed::SUBSCRIBE)?,
    };
    let mut filters = Vec::new();
    while !reader.is_empty() {
        if filters.len() == FILTERS_PER_PACKET_MAX {
            return Err(TOO_MANY);
        }
        let filter = reader.text()?;
        let options = subscribe_options(reader.u8()?, version)?;
        if options.no_local && filter.as_str().starts_with("$share/") {
            return Err(DecodeError::protocol("MQTT-3.8.3-4", "no-local on a shared subscription"));
        }
        filters.push(SubscribeFilter { filter, options });
    }
    if filters.is_empty() {
        return Err(DecodeError::protocol("MQTT-3.8.3-2", "SUBSCRIBE has no filter"));
    }
    Ok(Subscribe { packet_id, properties, filters })
}

fn subscribe_options(byte: u8, version: Version) -> Result<SubscribeOptions, DecodeError> {
    let reserved = if version == Version::V5 { 0b1100_0000 } else { 0b1111_1100 };
    if byte & reserved != 0 {
        return Err(DecodeError::malformed("MQTT-3.8.3-5", "reserved bits of the subscription options are set"));
    }
    let qos = match byte & 0b11 {
        0 => QoS::AtMostOnce,
        1 => QoS::AtLeastOnce,
        2 => QoS::ExactlyOnce,
        _ => return Err(DecodeError::protocol("MQTT-3.8.3.1", "a subscription asks for QoS 3")),
    };
    let retain_handling = match byte >> 4 & 0b11 {
        0 => RetainHandling::Always,
        1 => RetainHandling::IfNew,
        2 => RetainHandling::Never,
        _ => return Err(DecodeError::protocol("MQTT-3.8.3.1", "retain handling is 3")),
    };
    let (no_local, retain_as_published) = (byte & 0b100 != 0, byte & 0b1000 != 0);
    Ok(SubscribeOptions { qos, no_local, retain_as_published, retain_handling })
}

pub(super) fn encode_subscribe(subscribe: &Subscribe, version: Version, out: &mut BytesMut) {
    let mut body = BytesMut::new();
    body.put_u16(subscribe.packet_id.get());
    if version == Version::V5 {
        put_section(&mut body, &subscribe.properties);
    }
    for SubscribeFilter { filter, options } in &subscribe.filters {
        put_binary(&mut body, filter.as_bytes());
        let mut byte = options.qos as u8;
        if version == Version::V5 {
            byte |= u8::from(options.no_local) << 2 | u8::from(options.retain_as_published) << 3;
            byte |= (options.retain_handling as u8) << 4;
        }
        body.put_u8(byte);
    }
    put_packet(kind::SUBSCRIBE << 4 | 0b0010, &body, out);
}

pub(super) fn decode_suback(mut reader: Reader, version: Version) -> Result<SubAck, DecodeError> {
    let packet_id = publish::packet_id(&mut reader)?;
    let properties = match version {
        Version::V311 => Vec::new(),
        Version::V5 => properties::decode(&mut reader, allowed::ACK)?,
    };
    let mut reasons = Vec::new();
    for code in reader.rest() {
        let known = match (version, code) {
            (_, 0..=2 | 0x80) => Reason::from_code(code),
            (Version::V5, 0x83 | 0x87 | 0x8F | 0x91 | 0x97 | 0x9E | 0xA1 | 0xA2) => Reason::from_code(code),
            _ => None,
        };
        reasons.push(known.ok_or(DecodeError::malformed("MQTT-3.9.3-2", "SUBACK does not have this code"))?);
    }
    if reasons.is_empty() {
        return Err(DecodeError::protocol("MQTT-3.8.4-6", "SUBACK has no code"));
    }
    Ok(SubAck { packet_id, properties, reasons })
}

pub(super) fn encode_suback(suback: &SubAck, version: Version, out: &mut BytesMut) {
    let mut body = BytesMut::new();
    body.put_u16(suback.packet_id.get());
    if version == Version::V5 {
        put_section(&mut body, &suback.properties);
    }
    for reason in &suback.reasons {
        let code = reason.code();
        body.put_u8(if version == Version::V311 && reason.is_error() { 0x80 } else { code });
    }
    put_packet(kind::SUBACK << 4, &body, out);
}

pub(super) fn decode_unsubscribe(mut reader: Reader, version: Version) -> Result<Unsubscribe, DecodeError> {
    let packet_id = publish::packet_id(&mut reader)?;
    let properties = match version {
        Version::V311 => Vec::new(),
        Version::V5 => properties::decode(&mut reader, allowed::UNSUBSCRIBE)?,
    };
    let mut filters = Vec::new();
    while !reader.is_empty() {
        if filters.len() == FILTERS_PER_PACKET_MAX {
            return Err(TOO_MANY);
        }
        filters.push(reader.text()?);
    }
    if filters.is_empty() {
        return Err(DecodeError::protocol("MQTT-3.10.3-2", "UNSUBSCRIBE has no filter"));
    }
    Ok(Unsubscribe { packet_id, properties, filters })
}

pub(super) fn encode_unsubscribe(unsubscribe: &Unsubscribe, version: Version, out: &mut BytesMut) {
    let mut body = BytesMut::new();
    body.put_u16(unsubscribe.packet_id.get());
    if version == Version::V5 {
        put_section(&mut body, &unsubscribe.properties);
    }
    for filter in &unsubscribe.filters {
        put_binary(&mut body, filter.as_bytes());
    }
    put_packet(kind::UNSUBSCRIBE << 4 | 0b0010, &body, out);
}

pub(super) fn decode_unsuback(mut reader: Reader, version: Version) -> Result<UnsubAck, DecodeError> {
    let packet_id = publish::packet_id(&mut reader)?;
    if version == Version::V311 {
        reader.end("UNSUBACK goes on after its packet identifier")?;
        return Ok(UnsubAck { packet_id, properties: Vec::new(), reasons: Vec::new() });
    }
    let properties = properties::decode(&mut reader, allowed::ACK)?;
    let mut reasons = Vec::new();
    for code in reader.rest() {
        let known = match code {
            0x00 | 0x11 | 0x80 | 0x83 | 0x87 | 0x8F | 0x91 => Reason::from_code(code),
            _ => None,
        };
        reasons.push(known.ok_or(DecodeError::malformed("MQTT-3.11.3-2", "UNSUBACK does not have this code"))?);
    }
    if reasons.is_empty() {
        return Err(DecodeError::protocol("MQTT-3.11.3-1", "UNSUBACK has no code"));
    }
    Ok(UnsubAck { packet_id, properties, reasons })
}

pub(super) fn encode_unsuback(unsuback: &UnsubAck, version: Version, out: &mut BytesMut) {
    let mut body = BytesMut::new();
    body.put_u16(unsuback.packet_id.get());
    if version == Version::V5 {
        put_section(&mut body, &unsuback.properties);
        for reason in &unsuback.reasons {
            body.put_u8(reason.code());
        }
    }
    put_packet(kind::UNSUBACK << 4, &body, out);
}
