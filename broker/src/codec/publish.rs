//! PUBLISH (§3.3), the packet that matters for speed.
//!
//! Topics that a connection uses again and again are checked and allocated once, in [`TopicCache`]; payload and
//! properties are slices of the read buffer.

use std::collections::HashSet;
use std::num::NonZeroU16;

use bytes::{BufMut, Bytes, BytesMut};

use super::error::DecodeError;
use super::properties::{self, Property, Seen, allowed, put_binary, varint_len};
use super::reader::Reader;
use super::reason::Reason;
use super::{Version, kind, put_varint};
use crate::message::QoS;
use crate::topic::TopicName;

/// A packet identifier; never 0. [MQTT-2.2.1-3]
pub type PacketId = NonZeroU16;

/// The most subscription identifiers of one PUBLISH.
const SUBSCRIPTION_IDENTIFIERS_MAX: usize = 1_024;

/// An application message on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Sent before.
    pub dup: bool,
    /// Quality of service.
    pub qos: QoS,
    /// To be retained, or sent because it was.
    pub retain: bool,
    /// `None` if only an alias names it.
    pub topic: Option<TopicName>,
    /// Present if the QoS is 1 or 2.
    pub packet_id: Option<PacketId>,
    /// MQTT 5: a number in place of the topic.
    pub topic_alias: Option<u16>,
    /// MQTT 5, from the server: which subscriptions matched.
    pub subscription_identifiers: Vec<u32>,
    /// The other properties, in wire form without their length.
    pub properties: Bytes,
    /// The bytes of the message.
    pub payload: Bytes,
}

const DUP: u8 = 0b1000;
const RETAIN: u8 = 0b0001;

pub(super) fn check_flags(flags: u8) -> Result<(), DecodeError> {
    match flags >> 1 & 0b11 {
        3 => Err(DecodeError::malformed("MQTT-3.3.1-4", "PUBLISH has QoS 3")),
        0 if flags & DUP != 0 => Err(DecodeError::malformed("MQTT-3.3.1-2", "PUBLISH has DUP with QoS 0")),
        _ => Ok(()),
    }
}

pub(super) fn packet_id(reader: &mut Reader) -> Result<PacketId, DecodeError> {
    PacketId::new(reader.u16()?).ok_or(DecodeError::protocol("MQTT-2.2.1-3", "the packet identifier is 0"))
}

pub(super) fn decode(
    mut reader: Reader,
    flags: u8,
    version: Version,
    topics: &mut TopicCache,
) -> Result<Publish, DecodeError> {
    let name = reader.binary()?;
    let topic = if name.is_empty() { None } else { Some(topics.parse(&name)?) };
    let qos = match flags >> 1 & 0b11 {
        0 => QoS::AtMostOnce,
        1 => QoS::AtLeastOnce,
        _ => QoS::ExactlyOnce,
    };
    let packet_id = match qos {
        QoS::AtMostOnce => None,
        _ => Some(packet_id(&mut reader)?),
    };
    let own = match version {
        Version::V311 => OwnProperties::default(),
        Version::V5 => own_properties(&mut reader)?,
    };
    if topic.is_none() && own.topic_alias.is_none() {
        let what = "PUBLISH has neither a topic nor an alias";
        return Err(DecodeError::protocol("MQTT-3.3.2.1", what));
    }
    Ok(Publish {
        dup: flags & DUP != 0,
        qos,
        retain: flags & RETAIN != 0,
        topic,
        packet_id,
        topic_alias: own.topic_alias,
        subscription_identifiers: own.subscription_identifiers,
        properties: own.others,
        payload: reader.rest(),
    })
}

/// The properties that belong to this hop, and the others as they came.
#[derive(Default)]
struct OwnProperties {
    topic_alias: Option<u16>,
    subscription_identifiers: Vec<u32>,
    others: Bytes,
}

fn own_properties(reader: &mut Reader) -> Result<OwnProperties, DecodeError> {
    let mut section = properties::section(reader)?;
    let whole = section.remaining().clone();
    let mut own = OwnProperties::default();
    let mut seen = Seen::default();
    // Where the properties of this hop are; they are cut out afterwards.
    let mut cuts: Vec<(usize, usize)> = Vec::new();
    while !section.is_empty() {
        let start = whole.len() - section.remaining().len();
        let id = seen.next(&mut section, allowed::PUBLISH, true)?;
        match properties::property(id, &mut section)? {
            Property::TopicAlias(alias) => own.topic_alias = Some(alias),
            Property::SubscriptionIdentifier(id) => {
                if own.subscription_identifiers.len() == SUBSCRIPTION_IDENTIFIERS_MAX {
                    let what = "PUBLISH has too many subscription identifiers";
                    return Err(DecodeError::with(Reason::QuotaExceeded, "MQTT-3.3.2.3.8", what));
                }
                own.subscription_identifiers.push(id);
            }
            _ => continue,
        }
        cuts.push((start, whole.len() - section.remaining().len()));
    }
    own.others = without(whole, &cuts);
    Ok(own)
}

fn without(whole: Bytes, cuts: &[(usize, usize)]) -> Bytes {
    match cuts {
        [] => whole,
        [(0, end)] => whole.slice(*end..),
        _ => {
            let mut kept = BytesMut::with_capacity(whole.len());
            let mut from = 0;
            for (start, end) in cuts {
                kept.put_slice(whole.get(from..*start).unwrap_or_default());
                from = *end;
            }
            kept.put_slice(whole.get(from..).unwrap_or_default());
            kept.freeze()
        }
    }
}

pub(super) fn encode(publish: &Publish, version: Version, out: &mut BytesMut) {
    let outgoing = OutgoingPublish {
        dup: publish.dup,
        qos: publish.qos,
        retain: publish.retain,
        topic: publish.topic.as_ref().map_or("", TopicName::as_str),
        packet_id: publish.packet_id,
        topic_alias: publish.topic_alias,
        subscription_identifiers: &publish.subscription_identifiers,
        properties: &publish.properties,
        expiry: None,
        payload: &publish.payload,
    };
    outgoing.encode(version, out);
}

/// A PUBLISH on its way out, borrowed from the message it carries.
pub(crate) struct OutgoingPublish<'m> {
    pub(crate) dup: bool,
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) topic: &'m str,
    pub(crate) packet_id: Option<PacketId>,
    pub(crate) topic_alias: Option<u16>,
    pub(crate) subscription_identifiers: &'m [u32],
    pub(crate) properties: &'m [u8],
    /// Where in `properties` the message expiry interval is, and what is left of it in seconds.
    pub(crate) expiry: Option<(usize, u32)>,
    pub(crate) payload: &'m [u8],
}

impl OutgoingPublish<'_> {
    /// Bytes of the whole packet.
    pub(crate) fn len(&self, version: Version) -> usize {
        let body = self.body_len(version);
        1 + varint_len(u32::try_from(body).unwrap_or(u32::MAX)) + body
    }

    fn properties_len(&self) -> usize {
        let identifiers: usize = self.subscription_identifiers.iter().map(|id| 1 + varint_len(*id)).sum();
        self.properties.len() + identifiers + if self.topic_alias.is_some() { 3 } else { 0 }
    }

    fn body_len(&self, version: Version) -> usize {
        let id = if self.packet_id.is_some() { 2 } else { 0 };
        let properties = match version {
            Version::V311 => 0,
            Version::V5 => {
                let len = self.properties_len();
                varint_len(u32::try_from(len).unwrap_or(u32::MAX)) + len
            }
        };
        2 + self.topic.len() + id + properties + self.payload.len()
    }

    /// Writes the packet.
    pub(crate) fn encode(&self, version: Version, out: &mut BytesMut) {
        let body = self.body_len(version);
        out.reserve(body + 5);
        let flags = u8::from(self.dup) << 3 | (self.qos as u8) << 1 | u8::from(self.retain);
        out.put_u8(kind::PUBLISH << 4 | flags);
        put_varint(out, u32::try_from(body).unwrap_or(u32::MAX));
        put_binary(out, self.topic.as_bytes());
        if let Some(id) = self.packet_id {
            out.put_u16(id.get());
        }
        if version == Version::V5 {
            put_varint(out, u32::try_from(self.properties_len()).unwrap_or(u32::MAX));
            if let Some(alias) = self.topic_alias {
                properties::put(out, &Property::TopicAlias(alias));
            }
            for id in self.subscription_identifiers {
                properties::put(out, &Property::SubscriptionIdentifier(*id));
            }
            let start = out.len();
            out.put_slice(self.properties);
            if let Some((at, seconds)) = self.expiry
                && let Some(field) = out.get_mut(start + at..).and_then(|rest| rest.first_chunk_mut::<4>())
            {
                *field = seconds.to_be_bytes();
            }
        }
        out.put_slice(self.payload);
    }
}

/// The topics that a connection published to lately, so that a topic is checked and allocated once.
#[derive(Debug, Default)]
pub(crate) struct TopicCache {
    topics: HashSet<TopicName>,
    bytes: usize,
    /// The last that was asked for; the next is mostly the same.
    last: Option<TopicName>,
}

/// What a [`TopicCache`] keeps at most: some hundred topics of a usual length, and 16 MiB for 1,000 connections.
const TOPIC_CACHE_BYTES_MAX: usize = 16 * 1024;

/// What a topic costs besides its text: its allocation and its place in the table.
const TOPIC_OVERHEAD_BYTES: usize = 64;

impl TopicCache {
    pub(crate) fn parse(&mut self, name: &[u8]) -> Result<TopicName, DecodeError> {
        if let Some(last) = self.last.as_ref().filter(|last| last.as_str().as_bytes() == name) {
            return Ok(last.clone());
        }
        let topic = self.find(name)?;
        self.last = Some(topic.clone());
        Ok(topic)
    }

    fn find(&mut self, name: &[u8]) -> Result<TopicName, DecodeError> {
        let name =
            std::str::from_utf8(name).map_err(|_| DecodeError::malformed("MQTT-1.5.4-1", "the topic is not UTF-8"))?;
        if let Some(topic) = self.topics.get(name) {
            return Ok(topic.clone());
        }
        let topic = TopicName::parse(name).map_err(|error| match error {
            crate::topic::TopicError::Null => {
                DecodeError::malformed("MQTT-1.5.4-2", "the topic contains the null character")
            }
            crate::topic::TopicError::WildcardInName { .. } => {
                DecodeError::with(Reason::TopicNameInvalid, "MQTT-3.3.2-2", "the topic contains a wildcard")
            }
            _ => DecodeError::with(Reason::TopicNameInvalid, "MQTT-4.7.3-3", "the topic is too long or too deep"),
        })?;
        let bytes = name.len() + TOPIC_OVERHEAD_BYTES;
        if self.bytes + bytes > TOPIC_CACHE_BYTES_MAX {
            self.topics.clear();
            self.bytes = 0;
        }
        self.bytes += bytes;
        self.topics.insert(topic.clone());
        Ok(topic)
    }
}
