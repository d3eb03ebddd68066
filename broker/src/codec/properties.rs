//! The properties of MQTT 5 (§2.2.2).
//!
//! Owns their wire form and which packet may carry which. A PUBLISH keeps the properties that travel with the message
//! in wire form (see [`MessageProperties`]): they are checked once and passed on as they came. All other packets get a
//! list of at most [`PROPERTIES_PER_PACKET_MAX`].

use bytes::{BufMut, Bytes, BytesMut};

use super::error::DecodeError;
use super::reader::{Reader, Text};
use super::reason::Reason;

/// The most properties of a packet other than PUBLISH. Each takes at least 2 bytes on the wire and 80 in memory, so the
/// list stays under 21 KiB whatever the packet.
pub const PROPERTIES_PER_PACKET_MAX: usize = 256;

/// One property. [MQTT-2.2.2.2]
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the standard's")]
pub enum Property {
    PayloadFormatIndicator(bool),
    MessageExpiryInterval(u32),
    ContentType(Text),
    ResponseTopic(Text),
    CorrelationData(Bytes),
    SubscriptionIdentifier(u32),
    SessionExpiryInterval(u32),
    AssignedClientIdentifier(Text),
    ServerKeepAlive(u16),
    AuthenticationMethod(Text),
    AuthenticationData(Bytes),
    RequestProblemInformation(bool),
    WillDelayInterval(u32),
    RequestResponseInformation(bool),
    ResponseInformation(Text),
    ServerReference(Text),
    ReasonString(Text),
    ReceiveMaximum(u16),
    TopicAliasMaximum(u16),
    TopicAlias(u16),
    MaximumQoS(bool),
    RetainAvailable(bool),
    UserProperty(Text, Text),
    MaximumPacketSize(u32),
    WildcardSubscriptionAvailable(bool),
    SubscriptionIdentifierAvailable(bool),
    SharedSubscriptionAvailable(bool),
}

pub(crate) mod id {
    pub(crate) const PAYLOAD_FORMAT_INDICATOR: u8 = 0x01;
    pub(crate) const MESSAGE_EXPIRY_INTERVAL: u8 = 0x02;
    pub(crate) const CONTENT_TYPE: u8 = 0x03;
    pub(crate) const RESPONSE_TOPIC: u8 = 0x08;
    pub(crate) const CORRELATION_DATA: u8 = 0x09;
    pub(crate) const SUBSCRIPTION_IDENTIFIER: u8 = 0x0B;
    pub(crate) const SESSION_EXPIRY_INTERVAL: u8 = 0x11;
    pub(crate) const ASSIGNED_CLIENT_IDENTIFIER: u8 = 0x12;
    pub(crate) const SERVER_KEEP_ALIVE: u8 = 0x13;
    pub(crate) const AUTHENTICATION_METHOD: u8 = 0x15;
    pub(crate) const AUTHENTICATION_DATA: u8 = 0x16;
    pub(crate) const REQUEST_PROBLEM_INFORMATION: u8 = 0x17;
    pub(crate) const WILL_DELAY_INTERVAL: u8 = 0x18;
    pub(crate) const REQUEST_RESPONSE_INFORMATION: u8 = 0x19;
    pub(crate) const RESPONSE_INFORMATION: u8 = 0x1A;
    pub(crate) const SERVER_REFERENCE: u8 = 0x1C;
    pub(crate) const REASON_STRING: u8 = 0x1F;
    pub(crate) const RECEIVE_MAXIMUM: u8 = 0x21;
    pub(crate) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub(crate) const TOPIC_ALIAS: u8 = 0x23;
    pub(crate) const MAXIMUM_QOS: u8 = 0x24;
    pub(crate) const RETAIN_AVAILABLE: u8 = 0x25;
    pub(crate) const USER_PROPERTY: u8 = 0x26;
    pub(crate) const MAXIMUM_PACKET_SIZE: u8 = 0x27;
    pub(crate) const WILDCARD_SUBSCRIPTION_AVAILABLE: u8 = 0x28;
    pub(crate) const SUBSCRIPTION_IDENTIFIER_AVAILABLE: u8 = 0x29;
    pub(crate) const SHARED_SUBSCRIPTION_AVAILABLE: u8 = 0x2A;
}

/// A set of property identifiers, one bit each; the highest identifier is 0x2A.
#[derive(Clone, Copy)]
pub(crate) struct Allowed(u64);

impl Allowed {
    const fn of(ids: &[u8]) -> Allowed {
        let mut bits = 0;
        let mut index = 0;
        while index < ids.len() {
            bits |= 1 << ids[index];
            index += 1;
        }
        Allowed(bits)
    }

    fn contains(self, id: u8) -> bool {
        id < 64 && self.0 & (1 << id) != 0
    }
}

/// The table 2-4 of the standard, by packet.
pub(crate) mod allowed {
    use super::Allowed;
    use super::id::*;

    pub(crate) const CONNECT: Allowed = Allowed::of(&[
        SESSION_EXPIRY_INTERVAL,
        AUTHENTICATION_METHOD,
        AUTHENTICATION_DATA,
        REQUEST_PROBLEM_INFORMATION,
        REQUEST_RESPONSE_INFORMATION,
        RECEIVE_MAXIMUM,
        TOPIC_ALIAS_MAXIMUM,
        USER_PROPERTY,
        MAXIMUM_PACKET_SIZE,
    ]);
    pub(crate) const WILL: Allowed = Allowed::of(&[
        PAYLOAD_FORMAT_INDICATOR,
        MESSAGE_EXPIRY_INTERVAL,
        CONTENT_TYPE,
        RESPONSE_TOPIC,
        CORRELATION_DATA,
        WILL_DELAY_INTERVAL,
        USER_PROPERTY,
    ]);
    pub(crate) const CONNACK: Allowed = Allowed::of(&[
        SESSION_EXPIRY_INTERVAL,
        ASSIGNED_CLIENT_IDENTIFIER,
        SERVER_KEEP_ALIVE,
        AUTHENTICATION_METHOD,
        AUTHENTICATION_DATA,
        RESPONSE_INFORMATION,
        SERVER_REFERENCE,
        REASON_STRING,
        RECEIVE_MAXIMUM,
        TOPIC_ALIAS_MAXIMUM,
        MAXIMUM_QOS,
        RETAIN_AVAILABLE,
        USER_PROPERTY,
        MAXIMUM_PACKET_SIZE,
        WILDCARD_SUBSCRIPTION_AVAILABLE,
        SUBSCRIPTION_IDENTIFIER_AVAILABLE,
        SHARED_SUBSCRIPTION_AVAILABLE,
    ]);
    pub(crate) const PUBLISH: Allowed = Allowed::of(&[
        PAYLOAD_FORMAT_INDICATOR,
        MESSAGE_EXPIRY_INTERVAL,
        CONTENT_TYPE,
        RESPONSE_TOPIC,
        CORRELATION_DATA,
        SUBSCRIPTION_IDENTIFIER,
        TOPIC_ALIAS,
        USER_PROPERTY,
    ]);
    /// PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK and UNSUBACK.
    pub(crate) const ACK: Allowed = Allowed::of(&[REASON_STRING, USER_PROPERTY]);
    pub(crate) const SUBSCRIBE: Allowed = Allowed::of(&[SUBSCRIPTION_IDENTIFIER, USER_PROPERTY]);
    pub(crate) const UNSUBSCRIBE: Allowed = Allowed::of(&[USER_PROPERTY]);
    pub(crate) const DISCONNECT: Allowed =
        Allowed::of(&[SESSION_EXPIRY_INTERVAL, SERVER_REFERENCE, REASON_STRING, USER_PROPERTY]);
    pub(crate) const AUTH: Allowed =
        Allowed::of(&[AUTHENTICATION_METHOD, AUTHENTICATION_DATA, REASON_STRING, USER_PROPERTY]);
}

/// Splits the property section off: its length, then its bytes.
pub(crate) fn section(reader: &mut Reader) -> Result<Reader, DecodeError> {
    let len = reader.varint()?;
    Ok(Reader::new(reader.take(len as usize)?))
}

/// Reads the whole section of a packet into a list.
pub(crate) fn decode(reader: &mut Reader, allowed: Allowed) -> Result<Vec<Property>, DecodeError> {
    let mut section = section(reader)?;
    let mut seen = Seen::default();
    let mut properties = Vec::new();
    while !section.is_empty() {
        if properties.len() == PROPERTIES_PER_PACKET_MAX {
            return Err(DecodeError::with(Reason::QuotaExceeded, "MQTT-2.2.2", "a packet has too many properties"));
        }
        let id = seen.next(&mut section, allowed, false)?;
        properties.push(property(id, &mut section)?);
    }
    Ok(properties)
}

/// Which identifiers a section had so far.
#[derive(Default)]
pub(crate) struct Seen(u64);

impl Seen {
    /// Reads the next identifier and checks that it may be here.
    pub(crate) fn next(&mut self, section: &mut Reader, allowed: Allowed, publish: bool) -> Result<u8, DecodeError> {
        let id = u8::try_from(section.varint()?).unwrap_or(u8::MAX);
        if !allowed.contains(id) {
            return Err(DecodeError::malformed("MQTT-2.2.2.2", "a property is unknown or not allowed in its packet"));
        }
        let repeatable = id == id::USER_PROPERTY || (publish && id == id::SUBSCRIPTION_IDENTIFIER);
        if !repeatable && self.0 & (1 << id) != 0 {
            return Err(DecodeError::protocol("MQTT-2.2.2.2", "a property occurs twice"));
        }
        self.0 |= 1 << id;
        Ok(id)
    }
}

/// Reads the value of the property with this identifier.
pub(crate) fn property(id: u8, section: &mut Reader) -> Result<Property, DecodeError> {
    use Property as P;
    Ok(match id {
        id::PAYLOAD_FORMAT_INDICATOR => P::PayloadFormatIndicator(flag(section)?),
        id::MESSAGE_EXPIRY_INTERVAL => P::MessageExpiryInterval(section.u32()?),
        id::CONTENT_TYPE => P::ContentType(section.text()?),
        id::RESPONSE_TOPIC => P::ResponseTopic(response_topic(section)?),
        id::CORRELATION_DATA => P::CorrelationData(section.binary()?),
        id::SUBSCRIPTION_IDENTIFIER => P::SubscriptionIdentifier(subscription_identifier(section)?),
        id::SESSION_EXPIRY_INTERVAL => P::SessionExpiryInterval(section.u32()?),
        id::ASSIGNED_CLIENT_IDENTIFIER => P::AssignedClientIdentifier(section.text()?),
        id::SERVER_KEEP_ALIVE => P::ServerKeepAlive(section.u16()?),
        id::AUTHENTICATION_METHOD => P::AuthenticationMethod(section.text()?),
        id::AUTHENTICATION_DATA => P::AuthenticationData(section.binary()?),
        id::REQUEST_PROBLEM_INFORMATION => P::RequestProblemInformation(flag(section)?),
        id::WILL_DELAY_INTERVAL => P::WillDelayInterval(section.u32()?),
        id::REQUEST_RESPONSE_INFORMATION => P::RequestResponseInformation(flag(section)?),
        id::RESPONSE_INFORMATION => P::ResponseInformation(section.text()?),
        id::SERVER_REFERENCE => P::ServerReference(section.text()?),
        id::REASON_STRING => P::ReasonString(section.text()?),
        id::RECEIVE_MAXIMUM => P::ReceiveMaximum(non_zero_u16(section)?),
        id::TOPIC_ALIAS_MAXIMUM => P::TopicAliasMaximum(section.u16()?),
        id::TOPIC_ALIAS => P::TopicAlias(topic_alias(section)?),
        id::MAXIMUM_QOS => P::MaximumQoS(flag(section)?),
        id::RETAIN_AVAILABLE => P::RetainAvailable(flag(section)?),
        id::USER_PROPERTY => P::UserProperty(section.text()?, section.text()?),
        id::MAXIMUM_PACKET_SIZE => P::MaximumPacketSize(maximum_packet_size(section)?),
        id::WILDCARD_SUBSCRIPTION_AVAILABLE => P::WildcardSubscriptionAvailable(flag(section)?),
        id::SUBSCRIPTION_IDENTIFIER_AVAILABLE => P::SubscriptionIdentifierAvailable(flag(section)?),
        id::SHARED_SUBSCRIPTION_AVAILABLE => P::SharedSubscriptionAvailable(flag(section)?),
        _ => return Err(DecodeError::malformed("MQTT-2.2.2.2", "a property is unknown")),
    })
}

fn flag(section: &mut Reader) -> Result<bool, DecodeError> {
    match section.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(DecodeError::protocol("MQTT-2.2.2.2", "a property that is 0 or 1 is neither")),
    }
}

fn non_zero_u16(section: &mut Reader) -> Result<u16, DecodeError> {
    match section.u16()? {
        0 => Err(DecodeError::protocol("MQTT-3.1.2.11.3", "the receive maximum is 0")),
        value => Ok(value),
    }
}

fn maximum_packet_size(section: &mut Reader) -> Result<u32, DecodeError> {
    match section.u32()? {
        0 => Err(DecodeError::protocol("MQTT-3.1.2.11.4", "the maximum packet size is 0")),
        value => Ok(value),
    }
}

fn topic_alias(section: &mut Reader) -> Result<u16, DecodeError> {
    match section.u16()? {
        0 => Err(DecodeError::with(Reason::TopicAliasInvalid, "MQTT-3.3.2-8", "the topic alias is 0")),
        value => Ok(value),
    }
}

fn subscription_identifier(section: &mut Reader) -> Result<u32, DecodeError> {
    match section.varint()? {
        0 => Err(DecodeError::protocol("MQTT-3.8.2.1.2", "the subscription identifier is 0")),
        value => Ok(value),
    }
}

fn response_topic(section: &mut Reader) -> Result<Text, DecodeError> {
    let topic = section.text()?;
    if topic.as_str().contains(['+', '#']) {
        return Err(DecodeError::protocol("MQTT-3.3.2-14", "the response topic contains a wildcard"));
    }
    Ok(topic)
}

/// Writes a property.
pub(crate) fn put(out: &mut BytesMut, property: &Property) {
    use Property as P;
    match property {
        P::PayloadFormatIndicator(value) => put_flag(out, id::PAYLOAD_FORMAT_INDICATOR, *value),
        P::MessageExpiryInterval(value) => put_u32(out, id::MESSAGE_EXPIRY_INTERVAL, *value),
        P::ContentType(value) => put_binary_property(out, id::CONTENT_TYPE, value.as_bytes()),
        P::ResponseTopic(value) => put_binary_property(out, id::RESPONSE_TOPIC, value.as_bytes()),
        P::CorrelationData(value) => put_binary_property(out, id::CORRELATION_DATA, value),
        P::SubscriptionIdentifier(value) => {
            out.put_u8(id::SUBSCRIPTION_IDENTIFIER);
            put_varint(out, *value);
        }
        P::SessionExpiryInterval(value) => put_u32(out, id::SESSION_EXPIRY_INTERVAL, *value),
        P::AssignedClientIdentifier(value) => {
            put_binary_property(out, id::ASSIGNED_CLIENT_IDENTIFIER, value.as_bytes());
        }
        P::ServerKeepAlive(value) => put_u16(out, id::SERVER_KEEP_ALIVE, *value),
        P::AuthenticationMethod(value) => put_binary_property(out, id::AUTHENTICATION_METHOD, value.as_bytes()),
        P::AuthenticationData(value) => put_binary_property(out, id::AUTHENTICATION_DATA, value),
        P::RequestProblemInformation(value) => put_flag(out, id::REQUEST_PROBLEM_INFORMATION, *value),
        P::WillDelayInterval(value) => put_u32(out, id::WILL_DELAY_INTERVAL, *value),
        P::RequestResponseInformation(value) => put_flag(out, id::REQUEST_RESPONSE_INFORMATION, *value),
        P::ResponseInformation(value) => put_binary_property(out, id::RESPONSE_INFORMATION, value.as_bytes()),
        P::ServerReference(value) => put_binary_property(out, id::SERVER_REFERENCE, value.as_bytes()),
        P::ReasonString(value) => put_binary_property(out, id::REASON_STRING, value.as_bytes()),
        P::ReceiveMaximum(value) => put_u16(out, id::RECEIVE_MAXIMUM, *value),
        P::TopicAliasMaximum(value) => put_u16(out, id::TOPIC_ALIAS_MAXIMUM, *value),
        P::TopicAlias(value) => put_u16(out, id::TOPIC_ALIAS, *value),
        P::MaximumQoS(value) => put_flag(out, id::MAXIMUM_QOS, *value),
        P::RetainAvailable(value) => put_flag(out, id::RETAIN_AVAILABLE, *value),
        P::UserProperty(key, value) => {
            put_binary_property(out, id::USER_PROPERTY, key.as_bytes());
            put_binary(out, value.as_bytes());
        }
        P::MaximumPacketSize(value) => put_u32(out, id::MAXIMUM_PACKET_SIZE, *value),
        P::WildcardSubscriptionAvailable(value) => put_flag(out, id::WILDCARD_SUBSCRIPTION_AVAILABLE, *value),
        P::SubscriptionIdentifierAvailable(value) => put_flag(out, id::SUBSCRIPTION_IDENTIFIER_AVAILABLE, *value),
        P::SharedSubscriptionAvailable(value) => put_flag(out, id::SHARED_SUBSCRIPTION_AVAILABLE, *value),
    }
}

fn put_flag(out: &mut BytesMut, id: u8, value: bool) {
    out.put_u8(id);
    out.put_u8(u8::from(value));
}

fn put_u16(out: &mut BytesMut, id: u8, value: u16) {
    out.put_u8(id);
    out.put_u16(value);
}

fn put_u32(out: &mut BytesMut, id: u8, value: u32) {
    out.put_u8(id);
    out.put_u32(value);
}

fn put_binary_property(out: &mut BytesMut, id: u8, value: &[u8]) {
    out.put_u8(id);
    put_binary(out, value);
}

/// Writes binary data with its length; the protocol has no form for more than 65,535 bytes, so more is cut off.
pub(crate) fn put_binary(out: &mut BytesMut, value: &[u8]) {
    let len = u16::try_from(value.len()).unwrap_or(u16::MAX);
    out.put_u16(len);
    out.put_slice(value.get(..usize::from(len)).unwrap_or_default());
}

/// Writes a variable byte integer; values beyond the four bytes of the protocol do not occur.
pub(crate) fn put_varint(out: &mut BytesMut, mut value: u32) {
    loop {
        let byte = (value & 0x7F) as u8;
        value >>= 7;
        if value == 0 {
            out.put_u8(byte);
            return;
        }
        out.put_u8(byte | 0x80);
    }
}

/// Length in bytes of a variable byte integer.
pub(crate) fn varint_len(value: u32) -> usize {
    match value {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
    }
}

/// Writes a property section: its length and its properties.
pub(crate) fn put_section(out: &mut BytesMut, properties: &[Property]) {
    let mut section = BytesMut::new();
    for property in properties {
        put(&mut section, property);
    }
    put_varint(out, u32::try_from(section.len()).unwrap_or(u32::MAX));
    out.put_slice(&section);
}

/// What a reader of [`crate::message::Message::properties`] wants to know; the bytes were checked when they came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MessageProperties {
    /// The payload claims to be UTF-8.
    pub payload_is_text: bool,
    /// Where the four bytes of the message expiry interval are, and its value in seconds.
    pub expiry: Option<(usize, u32)>,
}

impl MessageProperties {
    /// Looks through properties in wire form. Bytes that are not properties read as none.
    pub fn read(properties: &Bytes) -> MessageProperties {
        let mut found = MessageProperties::default();
        if properties.is_empty() {
            return found;
        }
        let mut section = Reader::new(properties.clone());
        let mut seen = Seen::default();
        while !section.is_empty() {
            let Ok(id) = seen.next(&mut section, allowed::PUBLISH, true) else { break };
            let at = properties.len() - section.remaining().len();
            match property(id, &mut section) {
                Ok(Property::PayloadFormatIndicator(value)) => found.payload_is_text = value,
                Ok(Property::MessageExpiryInterval(seconds)) => found.expiry = Some((at, seconds)),
                Ok(_) => {}
                Err(_) => break,
            }
        }
        found
    }
}

/// One property alone, as the tests make them.
#[cfg(test)]
pub(super) fn decode_one(wire: Bytes, allowed: Allowed) -> Result<Property, DecodeError> {
    let mut section = Reader::new(wire);
    let id = Seen::default().next(&mut section, allowed, false)?;
    property(id, &mut section)
}
