//! CONNECT and CONNACK (§3.1, §3.2).

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use super::error::DecodeError;
use super::properties::{self, Property, allowed, put_binary, put_section};
use super::reader::{Reader, Text};
use super::reason::Reason;
use super::{Version, kind, put_packet};
use crate::message::QoS;
use crate::topic::TopicName;

/// A client's request to connect.
#[derive(Clone, PartialEq, Eq)]
pub struct Connect {
    /// The version of the protocol.
    pub version: Version,
    /// Clean start, in 3.1.1 clean session.
    pub clean_start: bool,
    /// Seconds; 0 turns the keep-alive off.
    pub keep_alive_s: u16,
    /// Empty if the server is to assign one.
    pub client_id: Text,
    /// What to publish when the connection ends without a DISCONNECT.
    pub will: Option<Will>,
    /// User name.
    pub username: Option<Text>,
    /// Password: binary data.
    pub password: Option<Bytes>,
    /// Properties of CONNECT; empty in 3.1.1.
    pub properties: Vec<Property>,
}

impl fmt::Debug for Connect {
    // Passwords, and what enhanced authentication would carry among the properties, do not belong into logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connect")
            .field("version", &self.version)
            .field("clean_start", &self.clean_start)
            .field("keep_alive_s", &self.keep_alive_s)
            .field("client_id", &self.client_id)
            .field("will", &self.will)
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// The message that a client leaves behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will {
    /// Where it will be published.
    pub topic: TopicName,
    /// Its payload.
    pub payload: Bytes,
    /// Its quality of service.
    pub qos: QoS,
    /// Whether it will be retained.
    pub retain: bool,
    /// Its properties and the will delay interval; empty in 3.1.1.
    pub properties: Vec<Property>,
}

/// The answer to CONNECT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnAck {
    /// Whether the server goes on with a stored session.
    pub session_present: bool,
    /// Success, or why not.
    pub reason: Reason,
    /// Properties; empty in 3.1.1.
    pub properties: Vec<Property>,
}

const USERNAME: u8 = 0b1000_0000;
const PASSWORD: u8 = 0b0100_0000;
const WILL_RETAIN: u8 = 0b0010_0000;
const WILL_QOS: u8 = 0b0001_1000;
const WILL: u8 = 0b0000_0100;
const CLEAN_START: u8 = 0b0000_0010;
const RESERVED: u8 = 0b0000_0001;

/// Reads a CONNECT. `announced` is set as soon as the version is known, so that a refusal can be answered in it.
pub(super) fn decode_connect(mut reader: Reader, announced: &mut Option<Version>) -> Result<Connect, DecodeError> {
    let version = protocol_version(&mut reader, announced)?;
    let flags = reader.u8()?;
    check_connect_flags(flags, version)?;
    let keep_alive_s = reader.u16()?;
    let properties = match version {
        Version::V311 => Vec::new(),
        Version::V5 => properties::decode(&mut reader, allowed::CONNECT)?,
    };
    let has_method = properties.iter().any(|property| matches!(property, Property::AuthenticationMethod(_)));
    let has_data = properties.iter().any(|property| matches!(property, Property::AuthenticationData(_)));
    if has_data && !has_method {
        return Err(DecodeError::protocol("MQTT-3.1.2.11.10", "authentication data without a method"));
    }
    let client_id = reader.text()?;
    let will = if flags & WILL != 0 { Some(decode_will(&mut reader, flags, version)?) } else { None };
    let username = if flags & USERNAME != 0 { Some(reader.text()?) } else { None };
    let password = if flags & PASSWORD != 0 { Some(reader.binary()?) } else { None };
    reader.end("CONNECT goes on after its last field")?;
    let clean_start = flags & CLEAN_START != 0;
    Ok(Connect { version, clean_start, keep_alive_s, client_id, will, username, password, properties })
}

fn protocol_version(reader: &mut Reader, announced: &mut Option<Version>) -> Result<Version, DecodeError> {
    let name = reader.text()?;
    let level = reader.u8()?;
    let unsupported = |what| DecodeError::with(Reason::UnsupportedProtocolVersion, "MQTT-3.1.2-2", what);
    match (name.as_str(), level) {
        ("MQTT", 4) => *announced = Some(Version::V311),
        ("MQTT", 5) => *announced = Some(Version::V5),
        ("MQTT", 0..=3) | ("MQIsdp", _) => {
            *announced = Some(Version::V311);
            return Err(unsupported("the protocol level is older than MQTT 3.1.1"));
        }
        ("MQTT", _) => {
            *announced = Some(Version::V5);
            return Err(unsupported("the protocol level is newer than MQTT 5"));
        }
        _ => {
            let what = "the protocol name is not MQTT";
            return Err(DecodeError::with(Reason::UnsupportedProtocolVersion, "MQTT-3.1.2-1", what));
        }
    }
    announced.ok_or(unsupported("the protocol level is unknown"))
}

fn check_connect_flags(flags: u8, version: Version) -> Result<(), DecodeError> {
    let wrong = |clause, what| Err(DecodeError::malformed(clause, what));
    if flags & RESERVED != 0 {
        return wrong("MQTT-3.1.2-3", "the reserved connect flag is set");
    }
    if flags & WILL == 0 && flags & WILL_QOS != 0 {
        return wrong("MQTT-3.1.2-11", "a will QoS without a will");
    }
    if flags & WILL == 0 && flags & WILL_RETAIN != 0 {
        return wrong("MQTT-3.1.2-13", "will retain without a will");
    }
    if flags & WILL_QOS == WILL_QOS {
        return wrong("MQTT-3.1.2-12", "the will QoS is 3");
    }
    if version == Version::V311 && flags & PASSWORD != 0 && flags & USERNAME == 0 {
        return wrong("MQTT-3.1.2-22 of 3.1.1", "a password without a user name");
    }
    Ok(())
}

fn decode_will(reader: &mut Reader, flags: u8, version: Version) -> Result<Will, DecodeError> {
    let properties = match version {
        Version::V311 => Vec::new(),
        Version::V5 => properties::decode(reader, allowed::WILL)?,
    };
    let topic = TopicName::parse(reader.text()?.as_str()).map_err(|_| {
        DecodeError::with(Reason::TopicNameInvalid, "MQTT-3.1.3-11", "the will topic is not a topic name")
    })?;
    let payload = reader.binary()?;
    let qos = match flags & WILL_QOS {
        0 => QoS::AtMostOnce,
        0b0000_1000 => QoS::AtLeastOnce,
        _ => QoS::ExactlyOnce,
    };
    Ok(Will { topic, payload, qos, retain: flags & WILL_RETAIN != 0, properties })
}

pub(super) fn encode_connect(connect: &Connect, out: &mut BytesMut) {
    let mut body = BytesMut::new();
    put_binary(&mut body, b"MQTT");
    let v5 = connect.version == Version::V5;
    body.put_u8(if v5 { 5 } else { 4 });
    let mut flags = 0;
    if connect.clean_start {
        flags |= CLEAN_START;
    }
    if let Some(will) = &connect.will {
        flags |= WILL | (will.qos as u8) << 3;
        if will.retain {
            flags |= WILL_RETAIN;
        }
    }
    if connect.username.is_some() {
        flags |= USERNAME;
    }
    if connect.password.is_some() {
        flags |= PASSWORD;
    }
    body.put_u8(flags);
    body.put_u16(connect.keep_alive_s);
    if v5 {
        put_section(&mut body, &connect.properties);
    }
    put_binary(&mut body, connect.client_id.as_bytes());
    if let Some(will) = &connect.will {
        if v5 {
            put_section(&mut body, &will.properties);
        }
        put_binary(&mut body, will.topic.as_str().as_bytes());
        put_binary(&mut body, &will.payload);
    }
    if let Some(username) = &connect.username {
        put_binary(&mut body, username.as_bytes());
    }
    if let Some(password) = &connect.password {
        put_binary(&mut body, password);
    }
    put_packet(kind::CONNECT << 4, &body, out);
}

pub(super) fn decode_connack(mut reader: Reader, version: Version) -> Result<ConnAck, DecodeError> {
    let flags = reader.u8()?;
    if flags > 1 {
        return Err(DecodeError::malformed("MQTT-3.2.2-1", "reserved bits of the acknowledge flags are set"));
    }
    let code = reader.u8()?;
    let (reason, properties) = match version {
        Version::V311 => (Reason::from_connect_return_code(code), Vec::new()),
        Version::V5 => (connack_reason(code), properties::decode(&mut reader, allowed::CONNACK)?),
    };
    let reason = reason.ok_or(DecodeError::malformed("MQTT-3.2.2-8", "CONNACK does not have this code"))?;
    reader.end("CONNACK goes on after its last field")?;
    let session_present = flags == 1;
    if session_present && reason != Reason::Success {
        return Err(DecodeError::protocol("MQTT-3.2.2-6", "a session is present though the connection was refused"));
    }
    Ok(ConnAck { session_present, reason, properties })
}

/// The reasons that table 3-1 gives to CONNACK.
fn connack_reason(code: u8) -> Option<Reason> {
    match code {
        0x00 | 0x80..=0x8A | 0x8C | 0x90 | 0x95 | 0x97 | 0x99..=0x9D | 0x9F => Reason::from_code(code),
        _ => None,
    }
}

pub(super) fn encode_connack(connack: &ConnAck, version: Version, out: &mut BytesMut) {
    let mut body = BytesMut::new();
    body.put_u8(u8::from(connack.session_present));
    match version {
        Version::V311 => body.put_u8(connack.reason.connect_return_code()),
        Version::V5 => {
            body.put_u8(connack.reason.code());
            put_section(&mut body, &connack.properties);
        }
    }
    put_packet(kind::CONNACK << 4, &body, out);
}
