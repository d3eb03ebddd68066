//! MQTT 3.1.1 and MQTT 5 on the wire: all fifteen packets, all properties, both directions.
//!
//! The codec is total: every byte string gives a packet, "more bytes needed", or a [`DecodeError`] that names the clause
//! it breaks and the reason code that MQTT 5 has for it. Payloads are slices of the read buffer. A packet larger than
//! the maximum is refused from its fixed header, before its body is buffered. The codec keeps no protocol state but the
//! version that CONNECT announced: which packet may come when is the session's business.

mod ack;
mod connect;
mod error;
mod properties;
mod publish;
mod reader;
mod reason;
mod subscribe;
#[cfg(test)]
pub(crate) mod tests;

use bytes::{Buf, BufMut, Bytes, BytesMut};

pub use ack::{Ack, Auth, Disconnect};
pub use connect::{ConnAck, Connect, Will};
pub use error::DecodeError;
pub(crate) use properties::put as put_property;
use properties::put_varint;
pub use properties::{MessageProperties, PROPERTIES_PER_PACKET_MAX, Property};
pub(crate) use publish::OutgoingPublish;
pub(crate) use publish::TopicCache;
pub use publish::{PacketId, Publish};
pub use reader::Text;
pub use reason::Reason;
pub use subscribe::{
    FILTERS_PER_PACKET_MAX, RetainHandling, SubAck, Subscribe, SubscribeFilter, SubscribeOptions, UnsubAck, Unsubscribe,
};

/// The largest CONNECT. It is read before anyone is authenticated, so it is kept small: 128 connections that have not
/// said who they are hold at most 16 MiB.
pub const CONNECT_BYTES_MAX: usize = 128 * 1024;

/// The version of the protocol that a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// MQTT 3.1.1, protocol level 4.
    V311,
    /// MQTT 5, protocol level 5.
    V5,
}

/// One control packet. [MQTT-2.1.2]
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the standard's")]
pub enum Packet {
    Connect(Box<Connect>),
    ConnAck(ConnAck),
    Publish(Publish),
    PubAck(Ack),
    PubRec(Ack),
    PubRel(Ack),
    PubComp(Ack),
    Subscribe(Subscribe),
    SubAck(SubAck),
    Unsubscribe(Unsubscribe),
    UnsubAck(UnsubAck),
    PingReq,
    PingResp,
    Disconnect(Disconnect),
    Auth(Auth),
}

impl Packet {
    /// The standard's name of the packet.
    pub fn name(&self) -> &'static str {
        match self {
            Packet::Connect(_) => "CONNECT",
            Packet::ConnAck(_) => "CONNACK",
            Packet::Publish(_) => "PUBLISH",
            Packet::PubAck(_) => "PUBACK",
            Packet::PubRec(_) => "PUBREC",
            Packet::PubRel(_) => "PUBREL",
            Packet::PubComp(_) => "PUBCOMP",
            Packet::Subscribe(_) => "SUBSCRIBE",
            Packet::SubAck(_) => "SUBACK",
            Packet::Unsubscribe(_) => "UNSUBSCRIBE",
            Packet::UnsubAck(_) => "UNSUBACK",
            Packet::PingReq => "PINGREQ",
            Packet::PingResp => "PINGRESP",
            Packet::Disconnect(_) => "DISCONNECT",
            Packet::Auth(_) => "AUTH",
        }
    }
}

/// Packet types in the upper four bits of the first byte.
pub(crate) mod kind {
    pub(crate) const CONNECT: u8 = 1;
    pub(crate) const CONNACK: u8 = 2;
    pub(crate) const PUBLISH: u8 = 3;
    pub(crate) const PUBACK: u8 = 4;
    pub(crate) const PUBREC: u8 = 5;
    pub(crate) const PUBREL: u8 = 6;
    pub(crate) const PUBCOMP: u8 = 7;
    pub(crate) const SUBSCRIBE: u8 = 8;
    pub(crate) const SUBACK: u8 = 9;
    pub(crate) const UNSUBSCRIBE: u8 = 10;
    pub(crate) const UNSUBACK: u8 = 11;
    pub(crate) const PINGREQ: u8 = 12;
    pub(crate) const PINGRESP: u8 = 13;
    pub(crate) const DISCONNECT: u8 = 14;
    pub(crate) const AUTH: u8 = 15;
}

/// Cuts packets out of the bytes of one connection.
#[derive(Debug)]
pub struct Decoder {
    version: Option<Version>,
    packet_bytes_max: usize,
    topics: TopicCache,
}

impl Decoder {
    /// For the server's end: the first packet must be a CONNECT, and it tells the version. `packet_bytes_max` counts
    /// the whole packet with its fixed header.
    pub fn server(packet_bytes_max: usize) -> Decoder {
        Decoder { version: None, packet_bytes_max, topics: TopicCache::default() }
    }

    /// For an end that knows the version: a client.
    pub fn client(version: Version, packet_bytes_max: usize) -> Decoder {
        Decoder { version: Some(version), packet_bytes_max, topics: TopicCache::default() }
    }

    /// What CONNECT announced; known even if the rest of that CONNECT was refused.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// The next packet of `buffer`, which loses its bytes; `None` if more bytes are needed.
    ///
    /// # Errors
    /// The bytes are not MQTT; the connection cannot go on, since where the next packet begins is unknown.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Packet>, DecodeError> {
        let Some(&first) = buffer.first() else { return Ok(None) };
        let (kind, flags) = (first >> 4, first & 0x0F);
        check_first(kind, flags, self.version)?;
        let minimal = self.version == Some(Version::V5);
        let Some((len, len_bytes)) = reader::varint(buffer.get(1..).unwrap_or_default(), minimal)? else {
            return Ok(None);
        };
        let total = 1 + len_bytes + len as usize;
        let max = match self.version {
            Some(_) => self.packet_bytes_max,
            None => self.packet_bytes_max.min(CONNECT_BYTES_MAX),
        };
        if total > max {
            let what = "the packet is larger than this end accepts";
            return Err(DecodeError::with(Reason::PacketTooLarge, "MQTT-3.1.2-24", what));
        }
        if buffer.len() < total {
            return Ok(None);
        }
        let mut body = buffer.split_to(total);
        body.advance(1 + len_bytes);
        self.body(kind, flags, body.freeze()).map(Some)
    }

    fn body(&mut self, kind: u8, flags: u8, body: Bytes) -> Result<Packet, DecodeError> {
        let mut reader = reader::Reader::new(body);
        let Some(version) = self.version else {
            return connect::decode_connect(reader, &mut self.version)
                .map(|connect| Packet::Connect(Box::new(connect)));
        };
        let packet = match kind {
            kind::CONNECT => {
                let mut announced = None;
                Packet::Connect(Box::new(connect::decode_connect(reader, &mut announced)?))
            }
            kind::CONNACK => Packet::ConnAck(connect::decode_connack(reader, version)?),
            kind::PUBLISH => Packet::Publish(publish::decode(reader, flags, version, &mut self.topics)?),
            kind::PUBACK => Packet::PubAck(ack::decode_ack(reader, version, ack::PUBACK_REASONS)?),
            kind::PUBREC => Packet::PubRec(ack::decode_ack(reader, version, ack::PUBACK_REASONS)?),
            kind::PUBREL => Packet::PubRel(ack::decode_ack(reader, version, ack::PUBREL_REASONS)?),
            kind::PUBCOMP => Packet::PubComp(ack::decode_ack(reader, version, ack::PUBREL_REASONS)?),
            kind::SUBSCRIBE => Packet::Subscribe(subscribe::decode_subscribe(reader, version)?),
            kind::SUBACK => Packet::SubAck(subscribe::decode_suback(reader, version)?),
            kind::UNSUBSCRIBE => Packet::Unsubscribe(subscribe::decode_unsubscribe(reader, version)?),
            kind::UNSUBACK => Packet::UnsubAck(subscribe::decode_unsuback(reader, version)?),
            kind::PINGREQ | kind::PINGRESP => {
                reader.end("a ping has a body")?;
                if kind == kind::PINGREQ { Packet::PingReq } else { Packet::PingResp }
            }
            kind::DISCONNECT => Packet::Disconnect(ack::decode_disconnect(&mut reader, version)?),
            kind::AUTH => Packet::Auth(ack::decode_auth(&mut reader)?),
            _ => return Err(DecodeError::malformed("MQTT-2.1.2", "packet type 0 is reserved")),
        };
        Ok(packet)
    }
}

/// Checks the first byte, before anything of the body is there.
fn check_first(kind: u8, flags: u8, version: Option<Version>) -> Result<(), DecodeError> {
    if version.is_none() && kind != kind::CONNECT {
        return Err(DecodeError::protocol("MQTT-3.1.0-1", "the first packet is not CONNECT"));
    }
    match kind {
        0 => Err(DecodeError::malformed("MQTT-2.1.2", "packet type 0 is reserved")),
        kind::AUTH if version == Some(Version::V311) => {
            Err(DecodeError::malformed("MQTT-2.2.1 of 3.1.1", "packet type 15 is reserved"))
        }
        kind::PUBLISH => publish::check_flags(flags),
        kind::PUBREL | kind::SUBSCRIBE | kind::UNSUBSCRIBE if flags == 0b0010 => Ok(()),
        kind::PUBREL | kind::SUBSCRIBE | kind::UNSUBSCRIBE => {
            Err(DecodeError::malformed("MQTT-2.1.3-1", "the flags of the fixed header are not 0010"))
        }
        _ if flags != 0 => Err(DecodeError::malformed("MQTT-2.1.3-1", "reserved flags of the fixed header are set")),
        _ => Ok(()),
    }
}

/// Writes a packet. Properties are written in MQTT 5 only, reason codes as far as the version has them.
pub fn encode(packet: &Packet, version: Version, out: &mut BytesMut) {
    match packet {
        Packet::Connect(connect) => connect::encode_connect(connect, out),
        Packet::ConnAck(connack) => connect::encode_connack(connack, version, out),
        Packet::Publish(publish) => publish::encode(publish, version, out),
        Packet::PubAck(ack) => ack::encode_ack(kind::PUBACK, ack, version, out),
        Packet::PubRec(ack) => ack::encode_ack(kind::PUBREC, ack, version, out),
        Packet::PubRel(ack) => ack::encode_ack(kind::PUBREL, ack, version, out),
        Packet::PubComp(ack) => ack::encode_ack(kind::PUBCOMP, ack, version, out),
        Packet::Subscribe(subscribe) => subscribe::encode_subscribe(subscribe, version, out),
        Packet::SubAck(suback) => subscribe::encode_suback(suback, version, out),
        Packet::Unsubscribe(unsubscribe) => subscribe::encode_unsubscribe(unsubscribe, version, out),
        Packet::UnsubAck(unsuback) => subscribe::encode_unsuback(unsuback, version, out),
        Packet::PingReq => put_packet(kind::PINGREQ << 4, &[], out),
        Packet::PingResp => put_packet(kind::PINGRESP << 4, &[], out),
        Packet::Disconnect(disconnect) => ack::encode_disconnect(disconnect, version, out),
        Packet::Auth(auth) => ack::encode_auth(auth, out),
    }
}

/// Writes the fixed header and the body.
fn put_packet(first: u8, body: &[u8], out: &mut BytesMut) {
    out.put_u8(first);
    put_varint(out, u32::try_from(body.len()).unwrap_or(u32::MAX));
    out.put_slice(body);
}
