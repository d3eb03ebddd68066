//! The packets that acknowledge a PUBLISH (§3.4 to §3.7), DISCONNECT (§3.14) and AUTH (§3.15).

use bytes::{BufMut, BytesMut};

use super::error::DecodeError;
use super::properties::{self, Property, allowed, put_section};
use super::publish::{self, PacketId};
use super::reader::Reader;
use super::reason::Reason;
use super::{Version, kind, put_packet};

/// PUBACK, PUBREC, PUBREL or PUBCOMP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    /// The packet it answers.
    pub packet_id: PacketId,
    /// Success, or why not; 3.1.1 has only success.
    pub reason: Reason,
    /// Properties; empty in 3.1.1.
    pub properties: Vec<Property>,
}

impl Ack {
    /// An acknowledgement without properties.
    pub fn new(packet_id: PacketId, reason: Reason) -> Ack {
        Ack { packet_id, reason, properties: Vec::new() }
    }
}

/// The end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disconnect {
    /// Why; 3.1.1 has only success.
    pub reason: Reason,
    /// Properties; empty in 3.1.1.
    pub properties: Vec<Property>,
}

/// A step of an extended authentication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// Success, continue or re-authenticate.
    pub reason: Reason,
    /// Properties.
    pub properties: Vec<Property>,
}

/// Tables 3-4 and 3-5.
pub(super) const PUBACK_REASONS: &[u8] = &[0x00, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99];
/// Tables 3-6 and 3-7.
pub(super) const PUBREL_REASONS: &[u8] = &[0x00, 0x92];

pub(super) fn decode_ack(mut reader: Reader, version: Version, reasons: &[u8]) -> Result<Ack, DecodeError> {
    let packet_id = publish::packet_id(&mut reader)?;
    let mut ack = Ack::new(packet_id, Reason::Success);
    if version == Version::V5 && !reader.is_empty() {
        let code = reader.u8()?;
        ack.reason = Reason::from_code(code)
            .filter(|_| reasons.contains(&code))
            .ok_or(DecodeError::malformed("MQTT-3.4.2-1", "the acknowledgement does not have this reason code"))?;
        if !reader.is_empty() {
            ack.properties = properties::decode(&mut reader, allowed::ACK)?;
        }
    }
    reader.end("an acknowledgement goes on after its last field")?;
    Ok(ack)
}

pub(super) fn encode_ack(kind: u8, ack: &Ack, version: Version, out: &mut BytesMut) {
    let first = kind << 4 | if kind == kind::PUBREL { 0b0010 } else { 0 };
    let short = ack.reason == Reason::Success && ack.properties.is_empty();
    if version == Version::V311 || short {
        let [high, low] = ack.packet_id.get().to_be_bytes();
        out.put_slice(&[first, 2, high, low]);
        return;
    }
    let mut body = BytesMut::new();
    body.put_u16(ack.packet_id.get());
    body.put_u8(ack.reason.code());
    if !ack.properties.is_empty() {
        put_section(&mut body, &ack.properties);
    }
    put_packet(first, &body, out);
}

pub(super) fn decode_disconnect(reader: &mut Reader, version: Version) -> Result<Disconnect, DecodeError> {
    let mut disconnect = Disconnect { reason: Reason::Success, properties: Vec::new() };
    if version == Version::V5 && !reader.is_empty() {
        disconnect.reason = disconnect_reason(reader.u8()?)
            .ok_or(DecodeError::malformed("MQTT-3.14.2-1", "DISCONNECT does not have this reason code"))?;
        if !reader.is_empty() {
            disconnect.properties = properties::decode(reader, allowed::DISCONNECT)?;
        }
    }
    reader.end("DISCONNECT goes on after its last field")?;
    Ok(disconnect)
}

/// The reasons that table 3-10 gives to DISCONNECT.
fn disconnect_reason(code: u8) -> Option<Reason> {
    Reason::from_code(code).filter(|reason| reason.fits_disconnect())
}

impl Reason {
    /// Whether DISCONNECT may carry it. [MQTT-3.14.2-1]
    pub(crate) fn fits_disconnect(self) -> bool {
        matches!(
            self.code(),
            0x00 | 0x04 | 0x80..=0x83 | 0x87 | 0x89 | 0x8B | 0x8D..=0x90 | 0x93..=0xA2
        )
    }
}

pub(super) fn encode_disconnect(disconnect: &Disconnect, version: Version, out: &mut BytesMut) {
    let mut body = BytesMut::new();
    let short = disconnect.reason == Reason::Success && disconnect.properties.is_empty();
    if version == Version::V5 && !short {
        body.put_u8(disconnect.reason.code());
        // The length of no properties may be left out, but rumqttc 0.25 takes a DISCONNECT without it for malformed.
        put_section(&mut body, &disconnect.properties);
    }
    put_packet(kind::DISCONNECT << 4, &body, out);
}

pub(super) fn decode_auth(reader: &mut Reader) -> Result<Auth, DecodeError> {
    let mut auth = Auth { reason: Reason::Success, properties: Vec::new() };
    if !reader.is_empty() {
        auth.reason = match reader.u8()? {
            0x00 => Reason::Success,
            0x18 => Reason::ContinueAuthentication,
            0x19 => Reason::ReAuthenticate,
            _ => return Err(DecodeError::malformed("MQTT-3.15.2-1", "AUTH does not have this reason code")),
        };
        auth.properties = properties::decode(reader, allowed::AUTH)?;
    }
    reader.end("AUTH goes on after its last field")?;
    Ok(auth)
}

pub(super) fn encode_auth(auth: &Auth, out: &mut BytesMut) {
    let mut body = BytesMut::new();
    if auth.reason != Reason::Success || !auth.properties.is_empty() {
        body.put_u8(auth.reason.code());
        put_section(&mut body, &auth.properties);
    }
    put_packet(kind::AUTH << 4, &body, out);
}
