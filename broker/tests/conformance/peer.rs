//! A client that knows bytes, not MQTT: it can send what no codec would, and it writes down what went over the wire.
//!
//! It reads the server's packets without the broker's own codec, and refuses those that break the rules which hold for
//! every packet: reserved flags, and the shortest form of Remaining Length.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use millwright_broker::codec::Version;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::wire::varint;

/// How long to wait for what must come. Only a row that fails waits this long.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The most of a packet that a report shows.
const SHOWN_BYTES_MAX: usize = 96;

/// What went over the wire of all clients of a row, for the report.
#[derive(Clone, Default)]
pub struct Transcript(Arc<Mutex<Vec<String>>>);

impl Transcript {
    pub fn note(&self, line: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    pub fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// A packet from the server.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Packet {
    pub first: u8,
    pub body: Vec<u8>,
    /// Bytes of the whole packet.
    pub len: usize,
}

impl Packet {
    pub fn kind(&self) -> u8 {
        self.first >> 4
    }
}

pub struct Peer {
    name: String,
    version: Version,
    stream: TcpStream,
    unread: Vec<u8>,
    /// Packets that were read and are still to be handed out.
    held: VecDeque<Packet>,
    transcript: Transcript,
    /// The last packet that came.
    pub last: Packet,
}

impl Peer {
    pub async fn open(addr: SocketAddr, name: &str, version: Version, transcript: Transcript) -> Result<Peer> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        let (name, unread, held) = (name.to_owned(), Vec::new(), VecDeque::new());
        Ok(Peer { name, version, stream, unread, held, transcript, last: Packet::default() })
    }

    /// Sends bytes. A connection that is closed already is no failure here: what comes next shows it.
    pub async fn send(&mut self, bytes: &[u8]) {
        self.transcript.note(format!("{} sent {}", self.name, shown(bytes)));
        if let Err(error) = self.stream.write_all(bytes).await {
            self.transcript.note(format!("{} could not send: {error}", self.name));
        }
    }

    /// The next packet, or `None` when the server has closed the connection.
    pub async fn next(&mut self) -> Result<Option<Packet>> {
        if let Some(packet) = self.held.pop_front() {
            self.last = packet.clone();
            return Ok(Some(packet));
        }
        let read = timeout(PATIENCE, self.read()).await;
        match read.context("nothing came, and the connection is open")?? {
            Some(packet) => {
                self.last = packet.clone();
                Ok(Some(packet))
            }
            None => {
                self.transcript.note(format!("{} closed by the server", self.name));
                Ok(None)
            }
        }
    }

    pub async fn packet(&mut self) -> Result<Packet> {
        self.next().await?.context("the connection is closed")
    }

    /// The next packet of a kind; those before it stay to be read.
    pub async fn packet_of(&mut self, kind: u8) -> Result<Packet> {
        let mut before = VecDeque::new();
        loop {
            let packet = self.packet().await?;
            if packet.kind() == kind {
                before.append(&mut self.held);
                self.held = before;
                return Ok(packet);
            }
            before.push_back(packet);
        }
    }

    async fn read(&mut self) -> Result<Option<Packet>> {
        loop {
            if let Some(packet) = self.cut()? {
                return Ok(Some(packet));
            }
            // A reset is a close too.
            if !matches!(self.stream.read_buf(&mut self.unread).await, Ok(1..)) {
                ensure!(self.unread.is_empty(), "the connection was closed in the middle of a packet");
                return Ok(None);
            }
        }
    }

    fn cut(&mut self) -> Result<Option<Packet>> {
        let Some((first, rest)) = self.unread.split_first() else { return Ok(None) };
        let Some((length, width)) = varint(rest) else {
            ensure!(rest.len() < 4, "the server sent a Remaining Length of more than four bytes");
            return Ok(None);
        };
        let Some(body) = rest.get(width..width + length) else { return Ok(None) };
        let packet = Packet { first: *first, body: body.to_vec(), len: 1 + width + length };
        self.transcript.note(format!("{} got  {}", self.name, shown(&self.unread[..packet.len])));
        self.unread.drain(..packet.len);
        let minimal = width == 1 || length >= 1 << (7 * (width - 1));
        ensure!(minimal, "the server sent a Remaining Length that is longer than it need be");
        match (packet.first >> 4, packet.first & 0x0F) {
            (0, _) | (15, _) if self.version == Version::V311 => bail!("the server sent a reserved packet type"),
            (3, flags) => ensure!(flags & 6 != 6 && (flags & 6 != 0 || flags & 8 == 0), "the server sent wrong flags"),
            (kind, flags) => ensure!(flags == if kind == 6 { 2 } else { 0 }, "the server set reserved flags"),
        }
        Ok(Some(packet))
    }
}

/// Bytes for people: hexadecimal, and the printable ones beside it.
fn shown(bytes: &[u8]) -> String {
    let part = &bytes[..bytes.len().min(SHOWN_BYTES_MAX)];
    let hex: Vec<String> = part.iter().map(|byte| format!("{byte:02X}")).collect();
    let text: String = part.iter().map(|byte| if byte.is_ascii_graphic() { *byte as char } else { '.' }).collect();
    let more = if bytes.len() > part.len() { format!(" … {} bytes", bytes.len()) } else { String::new() };
    format!("{}{more}   {text}", hex.join(" "))
}
