//! The bytes of MQTT 3.1.1 packets, as far as a load generator needs them.
//!
//! PUBLISH packets are built once and only numbered anew; what comes is measured out and counted, never decoded into
//! structures. It shares no code with the broker. Limits: packets below 2^28 bytes, one topic a publisher.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, bail, ensure};

/// First byte and length of a PUBACK. [MQTT-3.4]
pub(crate) const PUBACK: [u8; 2] = [0x40, 2];
pub(crate) const PUBACK_BYTES: usize = 4;

/// What subscribers ask for; [`topic`] matches.
const FILTER: &str = "bench/#";

/// Publisher, number, time: what a payload begins with.
const STAMP_BYTES: usize = 4 + 8 + 8;

const CONNACK_ACCEPTED: [u8; 4] = [0x20, 2, 0, 0];
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);

fn topic(publisher: u32) -> String {
    format!("bench/machine-{publisher:03}")
}

/// PUBLISH packets of one publisher one behind the other, all of the same length.
pub(crate) struct Block {
    bytes: Vec<u8>,
    packet_bytes: usize,
    /// Where in a packet its identifier is; at QoS 0 there is none.
    id_at: Option<usize>,
    number_at: usize,
}

impl Block {
    pub(crate) fn new(publisher: u32, qos: u8, payload_bytes: usize, packets: usize) -> Block {
        let topic = topic(publisher);
        let mut body = Vec::new();
        body.extend_from_slice(&(topic.len() as u16).to_be_bytes());
        body.extend_from_slice(topic.as_bytes());
        let id_in_body = (qos > 0).then_some(body.len());
        body.extend_from_slice(&[0, 0][..2 * usize::from(qos > 0)]);
        let payload_in_body = body.len();
        body.extend_from_slice(&publisher.to_be_bytes());
        // Not compressible, should anything on the way try.
        let fill = (0_u32..).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8);
        body.extend(fill.take(payload_bytes.max(STAMP_BYTES) - 4));
        let mut packet = vec![0x30 | qos << 1];
        put_length(&mut packet, body.len());
        let header_bytes = packet.len();
        packet.extend_from_slice(&body);
        Block {
            packet_bytes: packet.len(),
            id_at: id_in_body.map(|at| header_bytes + at),
            number_at: header_bytes + payload_in_body + 4,
            bytes: packet.repeat(packets),
        }
    }

    pub(crate) fn packets(&self) -> usize {
        self.bytes.len() / self.packet_bytes
    }

    /// Numbers one packet anew; identifiers are 1 to 65,535 over and over.
    pub(crate) fn number(&mut self, packet: usize, number: u64, sent_ns: u64) {
        let start = packet * self.packet_bytes;
        if let Some(at) = self.id_at {
            self.bytes[start + at..][..2].copy_from_slice(&packet_id(number).to_be_bytes());
        }
        let stamp = &mut self.bytes[start + self.number_at..][..16];
        stamp[..8].copy_from_slice(&number.to_be_bytes());
        stamp[8..].copy_from_slice(&sent_ns.to_be_bytes());
    }

    /// The first so many packets.
    pub(crate) fn bytes(&self, packets: usize) -> &[u8] {
        &self.bytes[..packets * self.packet_bytes]
    }
}

/// The identifier of a publisher's message, counted from 0.
pub(crate) fn packet_id(number: u64) -> u16 {
    (number % 65_535) as u16 + 1
}

/// What a delivered PUBLISH says.
pub(crate) struct Delivery {
    pub(crate) packet_id: Option<[u8; 2]>,
    pub(crate) publisher: u32,
    pub(crate) number: u64,
    pub(crate) sent_ns: u64,
}

/// The first packet of `bytes`: its first byte, its body and its length; `None` if it is not complete.
pub(crate) fn first(bytes: &[u8]) -> anyhow::Result<Option<(u8, &[u8], usize)>> {
    let (mut length, mut at) = (0, 1);
    loop {
        let Some(byte) = bytes.get(at) else { return Ok(None) };
        length |= usize::from(byte & 0x7F) << (7 * (at - 1));
        at += 1;
        if byte & 0x80 == 0 {
            break;
        }
        ensure!(at <= 4, "a packet's length has more than four bytes");
    }
    let end = at + length;
    Ok(bytes.get(at..end).map(|body| (bytes[0], body, end)))
}

/// Reads a PUBLISH of ours.
pub(crate) fn delivery(first: u8, body: &[u8]) -> anyhow::Result<Delivery> {
    ensure!(first >> 4 == 3, "a packet that begins with {first:#04x} instead of a PUBLISH");
    let topic_bytes = body.first_chunk().map_or(0, |bytes| usize::from(u16::from_be_bytes(*bytes)));
    let mut rest = body.get(2 + topic_bytes..).context("a PUBLISH ends within its topic")?;
    let mut packet_id = None;
    if first & 0b110 != 0 {
        let (id, payload) = rest.split_first_chunk().context("a PUBLISH ends within its identifier")?;
        packet_id = Some(*id);
        rest = payload;
    }
    let stamp = rest.first_chunk::<STAMP_BYTES>().context("a message that is not of this benchmark")?;
    let number = |at: usize| stamp[at..at + 8].iter().fold(0, |value, byte| value << 8 | u64::from(*byte));
    let publisher = u32::from_be_bytes([stamp[0], stamp[1], stamp[2], stamp[3]]);
    Ok(Delivery { packet_id, publisher, number: number(4), sent_ns: number(12) })
}

/// Connects with a clean session and without keep-alive.
pub(crate) fn connect(addr: SocketAddr, client_id: &str) -> anyhow::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&addr, HANDSHAKE_PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(HANDSHAKE_PATIENCE))?;
    let mut body = b"\x00\x04MQTT\x04\x02\x00\x00".to_vec();
    put_text(&mut body, client_id);
    send(&mut stream, 0x10, &body)?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).context("no CONNACK")?;
    ensure!(answer == CONNACK_ACCEPTED, "refused: {answer:?}");
    Ok(stream)
}

/// Connects and subscribes to everything that publishers send.
pub(crate) fn subscribe(addr: SocketAddr, client_id: &str, qos: u8) -> anyhow::Result<TcpStream> {
    let mut stream = connect(addr, client_id)?;
    let mut body = vec![0, 1];
    put_text(&mut body, FILTER);
    body.push(qos);
    send(&mut stream, 0x82, &body)?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).context("no SUBACK")?;
    if answer != [0x90, 3, 0, 1, qos] {
        bail!("{answer:?} instead of a SUBACK that grants QoS {qos}");
    }
    Ok(stream)
}

fn send(stream: &mut TcpStream, first: u8, body: &[u8]) -> anyhow::Result<()> {
    let mut packet = vec![first];
    put_length(&mut packet, body.len());
    packet.extend_from_slice(body);
    Ok(stream.write_all(&packet)?)
}

fn put_text(to: &mut Vec<u8>, text: &str) {
    to.extend_from_slice(&(text.len() as u16).to_be_bytes());
    to.extend_from_slice(text.as_bytes());
}

/// A packet's remaining length. [MQTT-2.2.3]
fn put_length(to: &mut Vec<u8>, mut length: usize) {
    while length >= 128 {
        to.push(length as u8 & 0x7F | 0x80);
        length >>= 7;
    }
    to.push(length as u8);
}
