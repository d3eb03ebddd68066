//! A publisher at QoS 1 that keeps a window of messages under way; blocking, one thread.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::ensure;
use harness::client::{Connect, connect_body, packet, publish_body};

/// Messages under way.
pub(crate) const WINDOW: usize = 200;
const PUBACK_BYTES: usize = 4;
const CONNACK_BYTES: usize = 4;

pub(crate) struct Publisher {
    stream: TcpStream,
}

impl Publisher {
    pub(crate) fn connect(addr: SocketAddr, id: &str) -> anyhow::Result<Publisher> {
        let mut stream = TcpStream::connect(addr)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.set_nodelay(true)?;
        stream.write_all(&packet(0x10, &connect_body(&Connect::new(id))))?;
        let mut connack = [0; CONNACK_BYTES];
        stream.read_exact(&mut connack)?;
        ensure!(connack[3] == 0, "refused: {connack:?}");
        Ok(Publisher { stream })
    }

    /// Publishes as many messages as fit a window, to the topics that `topic` gives, and waits for their acknowledgements.
    pub(crate) fn window(&mut self, payload: &[u8], topic: impl Fn(usize) -> String) -> anyhow::Result<usize> {
        let mut bytes = Vec::new();
        for number in 0..WINDOW {
            bytes.extend(packet(0x32, &publish_body(&topic(number), Some(number as u16 + 1), payload)));
        }
        self.stream.write_all(&bytes)?;
        let mut acks = [0; WINDOW * PUBACK_BYTES];
        self.stream.read_exact(&mut acks)?;
        ensure!(acks.chunks(PUBACK_BYTES).all(|ack| ack[0] == 0x40), "something else than PUBACK");
        Ok(WINDOW)
    }
}
