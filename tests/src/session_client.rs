//! An MQTT client whose session survives its connections and its broker, as one with a persistent store has it.
//!
//! Owns what the standard makes a client keep ([MQTT-4.1.0-1]): the publishes that are not finished, with their packet
//! identifiers and how far each is, and the QoS 2 identifiers that were received and not released. After a reconnect it
//! sends again what the standard says, before anything new ([MQTT-4.4.0-1]). It panics where the broker breaks the
//! protocol: a session that is gone, an acknowledgement out of order, an identifier used again too early. Has no thread
//! and knows no payload; the caller bounds what is under way, and [`PACKET_IDS`] is the most.
#![allow(clippy::panic, reason = "a client that gets what no broker may send fails its test")]

use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use crate::PATIENCE;
use crate::client::{
    CONNACK, Client, Delivery, PINGRESP, PUBACK, PUBLISH, RawPacket, SUBACK, parse_publish, push_text,
};

/// Packet identifiers of publishes: so few that each is used again soon, which shows an identifier that the broker did
/// not forget or forgot too early.
pub const PACKET_IDS: u16 = 40;

/// The longest that [`SessionClient::step`] waits for a packet.
pub const STEP_MAX: Duration = Duration::from_millis(20);

/// How often a PINGREQ is sent: a broker may ask an MQTT 5 client for a keep-alive of its own choice. [MQTT-3.2.2-21]
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// PUBREC, PUBREL and PUBCOMP: packet types.
const PUBREC: u8 = 5;
const PUBREL: u8 = 6;
const PUBCOMP: u8 = 7;

/// DISCONNECT and the reason that a broker gives in it when it stops.
const DISCONNECT: u8 = 14;
const SHUTTING_DOWN: u8 = 0x8B;

/// The DUP flag of PUBLISH.
const DUP: u8 = 8;

/// The version of the protocol, as CONNECT has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// 3.1.1, clean session 0.
    V311 = 4,
    /// 5, with a session expiry interval of an hour.
    V5 = 5,
}

/// What one packet of the broker came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// A publish at this QoS is the broker's responsibility from here on: PUBACK, PUBREC.
    Acknowledged(u8),
    /// A message for the application.
    Message(Delivery),
    /// Part of a handshake, or a QoS 2 message that the application has had.
    Handshake,
    /// Nothing came.
    Quiet,
}

/// A publish that is not finished.
#[derive(Debug)]
struct Outgoing {
    packet_id: u16,
    delivery: Delivery,
    /// PUBREC came: PUBREL is what is sent again.
    released: bool,
}

/// The client.
#[derive(Debug)]
pub struct SessionClient {
    id: String,
    version: Version,
    receive_max: Option<u16>,
    /// The broker has said once that it accepts; from then on the session must be there.
    is_known: bool,
    outgoing: VecDeque<Outgoing>,
    last_id: u16,
    /// QoS 2 identifiers that are not released, with their messages.
    received: HashMap<u16, Delivery>,
    connection: Option<Client>,
    pinged_at: Instant,
}

impl SessionClient {
    /// A client that never connected.
    pub fn new(id: &str, version: Version) -> SessionClient {
        SessionClient {
            id: id.to_owned(),
            version,
            receive_max: None,
            is_known: false,
            outgoing: VecDeque::new(),
            last_id: 0,
            received: HashMap::new(),
            connection: None,
            pinged_at: Instant::now(),
        }
    }

    /// Takes only so many unacknowledged messages at once; MQTT 5 only.
    pub fn with_receive_max(self, receive_max: u16) -> SessionClient {
        SessionClient { receive_max: Some(receive_max), ..self }
    }

    /// Its client identifier.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Publishes that are not finished.
    pub fn in_flight(&self) -> usize {
        self.outgoing.len()
    }

    /// QoS 2 messages received and not released.
    pub fn unreleased(&self) -> usize {
        self.received.len()
    }

    /// Connects over an open connection, checks that the session is there, and sends again what is unfinished.
    ///
    /// # Errors
    /// The connection is gone.
    ///
    /// # Panics
    /// The broker refuses, or lost the session.
    pub fn connect(&mut self, mut connection: Client) -> std::io::Result<()> {
        connection.set_patience(PATIENCE)?;
        connection.send(0x10, &self.connect_body())?;
        let answer = connection.receive()?;
        let is_accepted = answer.first >> 4 == CONNACK && answer.body.get(1) == Some(&0);
        assert!(is_accepted, "{}: not accepted: {answer:?}", self.id);
        let is_present = answer.body.first() == Some(&1);
        assert!(is_present || !self.is_known, "{}: the session is gone", self.id);
        self.is_known = true;
        connection.set_patience(STEP_MAX)?;
        let version = self.version;
        for outgoing in &self.outgoing {
            match outgoing.released {
                true => connection.send(PUBREL << 4 | 2, &outgoing.packet_id.to_be_bytes())?,
                false => send_publish(&mut connection, version, outgoing, DUP)?,
            }
        }
        self.connection = Some(connection);
        Ok(())
    }

    fn connect_body(&self) -> Vec<u8> {
        // Neither clean nor with a will; no keep-alive.
        let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', self.version as u8, 0, 0, 0];
        if self.version == Version::V5 {
            let mut properties = vec![0x11];
            properties.extend(3_600_u32.to_be_bytes());
            if let Some(receive_max) = self.receive_max {
                properties.push(0x21);
                properties.extend(receive_max.to_be_bytes());
            }
            push_properties(&mut body, &properties);
        }
        push_text(&mut body, self.id.as_bytes());
        body
    }

    /// Subscribes and waits for the grant.
    ///
    /// # Errors
    /// The connection is gone.
    ///
    /// # Panics
    /// The broker does not grant that QoS, or sends a message before.
    pub fn subscribe(&mut self, filter: &str, qos: u8) -> std::io::Result<()> {
        self.send_subscribe(filter, qos)?;
        let connection = self.connection.as_mut().ok_or(ErrorKind::NotConnected)?;
        connection.set_patience(PATIENCE)?;
        let grant = connection.receive()?;
        connection.set_patience(STEP_MAX)?;
        let is_granted = grant.first >> 4 == SUBACK && grant.body.last() == Some(&qos);
        assert!(is_granted, "{}: {filter} is not granted: {grant:?}", self.id);
        Ok(())
    }

    /// Sends a SUBSCRIBE and does not wait.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send_subscribe(&mut self, filter: &str, qos: u8) -> std::io::Result<()> {
        let mut body = vec![0xFF, 0xFF];
        if self.version == Version::V5 {
            push_properties(&mut body, &[]);
        }
        push_text(&mut body, filter.as_bytes());
        body.push(qos);
        self.connection.as_mut().ok_or(ErrorKind::NotConnected)?.send(0x82, &body)
    }

    /// Publishes at QoS 1 or 2; from the call on it will be sent again until it is finished.
    ///
    /// # Errors
    /// The connection is gone.
    ///
    /// # Panics
    /// [`PACKET_IDS`] are under way.
    pub fn publish(&mut self, topic: &str, payload: Vec<u8>, qos: u8) -> std::io::Result<()> {
        assert!(self.outgoing.len() < usize::from(PACKET_IDS), "{}: no packet identifier is free", self.id);
        loop {
            self.last_id = self.last_id % PACKET_IDS + 1;
            if self.outgoing.iter().all(|outgoing| outgoing.packet_id != self.last_id) {
                break;
            }
        }
        let delivery = Delivery { topic: topic.to_owned(), payload, qos, retain: false };
        let outgoing = Outgoing { packet_id: self.last_id, delivery, released: false };
        let connection = self.connection.as_mut().ok_or(ErrorKind::NotConnected)?;
        let sent = send_publish(connection, self.version, &outgoing, 0);
        self.outgoing.push_back(outgoing);
        sent
    }

    /// Takes the next packet, if one comes within [`STEP_MAX`], and answers it.
    ///
    /// # Errors
    /// The connection is gone.
    ///
    /// # Panics
    /// The broker breaks the protocol.
    pub fn step(&mut self) -> std::io::Result<Step> {
        let connection = self.connection.as_mut().ok_or(ErrorKind::NotConnected)?;
        if self.pinged_at.elapsed() >= PING_INTERVAL {
            self.pinged_at = Instant::now();
            connection.send(0xC0, &[])?;
        }
        let packet = match connection.receive() {
            Ok(packet) => packet,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(Step::Quiet);
            }
            Err(error) => return Err(error),
        };
        match packet.first >> 4 {
            PUBLISH => self.on_publish(&packet),
            PUBACK => self.on_puback(&packet),
            PUBREC => self.on_pubrec(&packet),
            PUBREL => self.on_pubrel(&packet),
            PUBCOMP => self.on_pubcomp(&packet),
            DISCONNECT if packet.body.first() == Some(&SHUTTING_DOWN) => Err(ErrorKind::ConnectionAborted.into()),
            PINGRESP => Ok(Step::Handshake),
            _ => panic!("{}: unexpected: {packet:?}", self.id),
        }
    }

    /// Waits for the next message; what else comes is answered.
    ///
    /// # Errors
    /// The connection is gone, or nothing comes in time.
    pub fn next_message(&mut self) -> std::io::Result<Delivery> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Step::Message(message) = self.step()? {
                return Ok(message);
            }
        }
        Err(ErrorKind::TimedOut.into())
    }

    fn answer(&mut self, first: u8, packet_id: u16) -> std::io::Result<Step> {
        let connection = self.connection.as_mut().ok_or(ErrorKind::NotConnected)?;
        connection.send(first, &packet_id.to_be_bytes()).map(|()| Step::Handshake)
    }

    fn on_publish(&mut self, packet: &RawPacket) -> std::io::Result<Step> {
        let (mut message, packet_id) = parse_publish(packet).ok_or(ErrorKind::InvalidData)?;
        if self.version == Version::V5 {
            assert!(!message.payload.is_empty(), "{}: a PUBLISH without properties: {packet:?}", self.id);
            let properties_length = message.payload.remove(0);
            assert_eq!(properties_length, 0, "{}: no message here has properties", self.id);
        }
        match (message.qos, packet_id) {
            (0, None) => Ok(Step::Message(message)),
            (1, Some(packet_id)) => self.answer(PUBACK << 4, packet_id).map(|_| Step::Message(message)),
            (2, Some(packet_id)) => {
                // The application has it before PUBREC, which may fail: the identifier is what keeps it from coming again.
                if let Some(first) = self.received.get(&packet_id) {
                    assert_eq!(first, &message, "{}: {packet_id} is used again before PUBREL", self.id);
                    // [MQTT-3.3.1-1]
                    assert_eq!(packet.first & DUP, DUP, "{}: sent again without DUP", self.id);
                    return self.answer(PUBREC << 4, packet_id);
                }
                self.received.insert(packet_id, message.clone());
                let _ = self.answer(PUBREC << 4, packet_id);
                Ok(Step::Message(message))
            }
            _ => panic!("{}: not a PUBLISH: {packet:?}", self.id),
        }
    }

    fn on_pubrel(&mut self, packet: &RawPacket) -> std::io::Result<Step> {
        let packet_id = self.packet_id(packet);
        // Unknown: it was released before the broker died, which did not learn of it.
        self.received.remove(&packet_id);
        self.answer(PUBCOMP << 4, packet_id)
    }

    fn on_puback(&mut self, packet: &RawPacket) -> std::io::Result<Step> {
        let packet_id = self.packet_id(packet);
        self.check_success(packet);
        let oldest = self.outgoing.iter().position(|outgoing| outgoing.delivery.qos == 1);
        let finished = oldest.and_then(|index| self.outgoing.remove(index));
        // [MQTT-4.6.0-2]
        assert_eq!(finished.map(|it| it.packet_id), Some(packet_id), "{}: PUBACK out of order", self.id);
        Ok(Step::Acknowledged(1))
    }

    fn on_pubrec(&mut self, packet: &RawPacket) -> std::io::Result<Step> {
        let packet_id = self.packet_id(packet);
        self.check_success(packet);
        let oldest = self.outgoing.iter_mut().find(|outgoing| outgoing.delivery.qos == 2 && !outgoing.released);
        // [MQTT-4.6.0-3]
        assert_eq!(oldest.as_ref().map(|it| it.packet_id), Some(packet_id), "{}: PUBREC out of order", self.id);
        if let Some(oldest) = oldest {
            oldest.released = true;
        }
        // It is acknowledged, even if the answer fails: then it is sent again.
        let _ = self.answer(PUBREL << 4 | 2, packet_id);
        Ok(Step::Acknowledged(2))
    }

    fn on_pubcomp(&mut self, packet: &RawPacket) -> std::io::Result<Step> {
        let packet_id = self.packet_id(packet);
        let index = self.outgoing.iter().position(|outgoing| outgoing.packet_id == packet_id && outgoing.released);
        assert!(index.is_some(), "{}: PUBCOMP for {packet_id}, which is not released", self.id);
        index.and_then(|index| self.outgoing.remove(index));
        Ok(Step::Handshake)
    }

    fn packet_id(&self, packet: &RawPacket) -> u16 {
        match packet.body.get(..2) {
            Some(&[high, low]) => u16::from_be_bytes([high, low]),
            _ => panic!("{}: no packet identifier: {packet:?}", self.id),
        }
    }

    fn check_success(&self, packet: &RawPacket) {
        let reason = packet.body.get(2).copied().unwrap_or(0);
        // 0x10: no subscriber.
        assert!(reason == 0 || reason == 0x10, "{}: a publish is refused: {packet:?}", self.id);
    }
}

fn send_publish(connection: &mut Client, version: Version, outgoing: &Outgoing, dup: u8) -> std::io::Result<()> {
    let Delivery { topic, payload, qos, .. } = &outgoing.delivery;
    let mut body = Vec::with_capacity(topic.len() + payload.len() + 5);
    push_text(&mut body, topic.as_bytes());
    body.extend(outgoing.packet_id.to_be_bytes());
    if version == Version::V5 {
        push_properties(&mut body, &[]);
    }
    body.extend(payload);
    connection.send(PUBLISH << 4 | dup | qos << 1, &body)
}

/// At most 127 bytes of properties, with their length.
fn push_properties(body: &mut Vec<u8>, properties: &[u8]) {
    body.push(properties.len() as u8);
    body.extend(properties);
}
