//! A blocking MQTT 3.1.1 client, just large enough to test a broker from outside.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Packet types, the upper four bits of the first byte.
pub const CONNACK: u8 = 2;
/// PUBLISH.
pub const PUBLISH: u8 = 3;
/// PUBACK.
pub const PUBACK: u8 = 4;
/// SUBACK.
pub const SUBACK: u8 = 9;
/// PINGRESP.
pub const PINGRESP: u8 = 13;

/// A packet as it came: first byte and body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawPacket {
    /// Type and flags.
    pub first: u8,
    /// Everything behind the remaining length.
    pub body: Vec<u8>,
}

/// A message that was delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Topic.
    pub topic: String,
    /// Payload.
    pub payload: Vec<u8>,
    /// Quality of service.
    pub qos: u8,
    /// Whether it was retained.
    pub retain: bool,
}

/// How to connect.
#[derive(Debug, Clone, Copy)]
pub struct Connect<'a> {
    /// Client identifier.
    pub id: &'a str,
    /// Clean session.
    pub clean: bool,
    /// Keep-alive in seconds.
    pub keep_alive_s: u16,
    /// User name and password.
    pub login: Option<(&'a str, &'a str)>,
    /// Will: topic, payload, QoS.
    pub will: Option<(&'a str, &'a [u8], u8)>,
}

impl<'a> Connect<'a> {
    /// A clean session without keep-alive.
    pub fn new(id: &'a str) -> Connect<'a> {
        Connect { id, clean: true, keep_alive_s: 0, login: None, will: None }
    }
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    deliveries: VecDeque<Delivery>,
}

impl Client {
    /// Opens the connection without saying anything.
    ///
    /// # Errors
    /// The broker does not accept.
    pub fn open(addr: SocketAddr) -> std::io::Result<Client> {
        let stream = TcpStream::connect_timeout(&addr, Duration::from_secs(10))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.set_write_timeout(Some(Duration::from_secs(30)))?;
        stream.set_nodelay(true)?;
        Ok(Client { stream, buffer: Vec::new(), deliveries: VecDeque::new() })
    }

    /// Connects and waits for a CONNACK of acceptance.
    ///
    /// # Errors
    /// The broker refuses.
    pub fn connect(addr: SocketAddr, options: &Connect<'_>) -> anyhow::Result<Client> {
        let mut client = Client::open(addr)?;
        client.send(0x10, &connect_body(options))?;
        let answer = client.receive()?;
        anyhow::ensure!(answer.first >> 4 == CONNACK && answer.body.get(1) == Some(&0), "refused: {answer:?}");
        Ok(client)
    }

    /// Sends a packet.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send(&mut self, first: u8, body: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(&packet(first, body))
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Waits at most this long for a packet from now on.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn set_patience(&self, patience: Duration) -> std::io::Result<()> {
        self.stream.set_read_timeout(Some(patience))
    }

    /// The next packet.
    ///
    /// # Errors
    /// The connection is gone or silent for too long.
    pub fn receive(&mut self) -> std::io::Result<RawPacket> {
        loop {
            if let Some((packet, used)) = parse(&self.buffer) {
                self.buffer.drain(..used);
                return Ok(packet);
            }
            let mut chunk = [0; 65_536];
            match self.stream.read(&mut chunk)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                count => self.buffer.extend(chunk.iter().take(count)),
            }
        }
    }

    /// The next packet of a type; deliveries on the way are kept and acknowledged.
    ///
    /// # Errors
    /// The connection is gone or silent for too long.
    pub fn receive_type(&mut self, wanted: u8) -> std::io::Result<RawPacket> {
        loop {
            let packet = self.receive()?;
            if packet.first >> 4 == wanted {
                return Ok(packet);
            }
            if packet.first >> 4 == PUBLISH {
                self.keep(&packet)?;
            }
        }
    }

    /// Publishes at QoS 1 and waits for the acknowledgement.
    ///
    /// # Errors
    /// The connection is gone or the broker does not acknowledge.
    pub fn publish(&mut self, topic: &str, payload: &[u8], retain: bool) -> std::io::Result<()> {
        self.send(0x32 | u8::from(retain), &publish_body(topic, Some(1), payload))?;
        self.receive_type(PUBACK).map(drop)
    }

    /// Subscribes to one filter and waits for the grant; returns the granted QoS or 0x80.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn subscribe(&mut self, filter: &str, qos: u8) -> std::io::Result<u8> {
        let mut body = vec![0, 1];
        push_text(&mut body, filter.as_bytes());
        body.push(qos);
        self.send(0x82, &body)?;
        let grant = self.receive_type(SUBACK)?;
        Ok(grant.body.get(2).copied().unwrap_or(0x80))
    }

    /// The next message; acknowledges it if it wants that.
    ///
    /// # Errors
    /// The connection is gone or silent for too long.
    pub fn next_delivery(&mut self) -> std::io::Result<Delivery> {
        loop {
            if let Some(delivery) = self.deliveries.pop_front() {
                return Ok(delivery);
            }
            let packet = self.receive_type(PUBLISH)?;
            self.keep(&packet)?;
        }
    }

    /// The next message on a topic; others are passed over.
    ///
    /// # Errors
    /// The connection is gone or silent for too long.
    pub fn next_on(&mut self, topic: &str) -> std::io::Result<Delivery> {
        loop {
            let delivery = self.next_delivery()?;
            if delivery.topic == topic {
                return Ok(delivery);
            }
        }
    }

    fn keep(&mut self, packet: &RawPacket) -> std::io::Result<()> {
        let (delivery, id) = parse_publish(packet).ok_or(ErrorKind::InvalidData)?;
        self.deliveries.push_back(delivery);
        match id {
            Some(id) => self.send(0x40, &id.to_be_bytes()),
            None => Ok(()),
        }
    }

    /// Sends a ping and waits for the answer: what was sent before has been taken in.
    ///
    /// # Errors
    /// The connection is gone.
    pub fn ping(&mut self) -> std::io::Result<()> {
        self.send(0xC0, &[])?;
        self.receive_type(PINGRESP).map(drop)
    }

    /// Whether the broker has closed the connection, waiting for it at most the set patience.
    pub fn is_closed_by_peer(&mut self) -> bool {
        loop {
            match self.receive() {
                Ok(_) => {}
                Err(error) => return !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            }
        }
    }
}

/// A packet on the wire.
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    let mut left = body.len();
    loop {
        let low = (left % 128) as u8;
        left /= 128;
        bytes.push(if left > 0 { low | 0x80 } else { low });
        if left == 0 {
            break;
        }
    }
    bytes.extend(body);
    bytes
}

/// The body of a PUBLISH.
pub fn publish_body(topic: &str, id: Option<u16>, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(topic.len() + payload.len() + 4);
    push_text(&mut body, topic.as_bytes());
    if let Some(id) = id {
        body.extend(id.to_be_bytes());
    }
    body.extend(payload);
    body
}

/// The body of a CONNECT.
pub fn connect_body(options: &Connect<'_>) -> Vec<u8> {
    let mut flags = u8::from(options.clean) << 1;
    if options.login.is_some() {
        flags |= 0xC0;
    }
    if let Some((_, _, qos)) = options.will {
        flags |= 0x04 | qos << 3;
    }
    let mut body = b"\x00\x04MQTT\x04".to_vec();
    body.push(flags);
    body.extend(options.keep_alive_s.to_be_bytes());
    push_text(&mut body, options.id.as_bytes());
    if let Some((topic, payload, _)) = options.will {
        push_text(&mut body, topic.as_bytes());
        push_text(&mut body, payload);
    }
    if let Some((user, password)) = options.login {
        push_text(&mut body, user.as_bytes());
        push_text(&mut body, password.as_bytes());
    }
    body
}

pub(crate) fn push_text(body: &mut Vec<u8>, text: &[u8]) {
    body.extend((text.len() as u16).to_be_bytes());
    body.extend(text);
}

fn parse(buffer: &[u8]) -> Option<(RawPacket, usize)> {
    let first = *buffer.first()?;
    let mut length = 0;
    let mut at = 1;
    loop {
        let byte = *buffer.get(at)?;
        length |= usize::from(byte & 0x7F) << (7 * (at - 1));
        at += 1;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let body = buffer.get(at..at + length)?.to_vec();
    Some((RawPacket { first, body }, at + length))
}

pub(crate) fn parse_publish(packet: &RawPacket) -> Option<(Delivery, Option<u16>)> {
    let body = &packet.body;
    let length = usize::from(u16::from_be_bytes([*body.first()?, *body.get(1)?]));
    let topic = String::from_utf8(body.get(2..2 + length)?.to_vec()).ok()?;
    let qos = packet.first >> 1 & 3;
    let mut at = 2 + length;
    let id = if qos > 0 {
        let id = u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?]);
        at += 2;
        Some(id)
    } else {
        None
    };
    let payload = body.get(at..)?.to_vec();
    Some((Delivery { topic, payload, qos, retain: packet.first & 1 == 1 }, id))
}
