//! The broker's end of a connection, driven step by step by a test: a real socket, the client library's codec.

use bytes::BytesMut;
use rumqttc::mqttbytes::v4::{ConnAck, Connect, ConnectReturnCode, Packet, PubAck, Publish};
use rumqttc::mqttbytes::{Error, QoS};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The largest packet that it reads.
const PACKET_BYTES_MAX: usize = 65_536;

pub(crate) struct Peer {
    listener: TcpListener,
}

impl Peer {
    pub(crate) async fn bind() -> Peer {
        Peer { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    pub(crate) fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// Accepts a connection and closes it without a word.
    pub(crate) async fn hang_up(&self) {
        drop(self.listener.accept().await.unwrap());
    }

    /// Accepts a connection and its CONNECT.
    pub(crate) async fn accept(&self) -> Session {
        let (socket, _) = self.listener.accept().await.unwrap();
        let mut session = Session { socket, read: BytesMut::new(), connect: None };
        match session.packet().await {
            Some(Packet::Connect(connect)) => session.connect = Some(connect),
            other => panic!("expected CONNECT, got {other:?}"),
        }
        session.send(&Packet::ConnAck(ConnAck::new(ConnectReturnCode::Success, false))).await;
        session
    }
}

pub(crate) struct Session {
    socket: TcpStream,
    read: BytesMut,
    connect: Option<Connect>,
}

impl Session {
    pub(crate) fn connect(&self) -> &Connect {
        self.connect.as_ref().unwrap()
    }

    /// The next packet, PINGREQ aside; `None` when the client has closed the connection.
    pub(crate) async fn packet(&mut self) -> Option<Packet> {
        loop {
            match Packet::read(&mut self.read, PACKET_BYTES_MAX) {
                Ok(Packet::PingReq) => self.send(&Packet::PingResp).await,
                Ok(packet) => return Some(packet),
                Err(Error::InsufficientBytes(_)) => {
                    if self.socket.read_buf(&mut self.read).await.unwrap_or(0) == 0 {
                        return None;
                    }
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The next publication, which must be at QoS 1.
    pub(crate) async fn publication(&mut self) -> Publish {
        match self.packet().await {
            Some(Packet::Publish(publish)) => {
                assert_eq!(publish.qos, QoS::AtLeastOnce);
                publish
            }
            other => panic!("expected PUBLISH, got {other:?}"),
        }
    }

    pub(crate) async fn acknowledge(&mut self, publish: &Publish) {
        self.send(&Packet::PubAck(PubAck::new(publish.pkid))).await;
    }

    async fn send(&mut self, packet: &Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, PACKET_BYTES_MAX).unwrap();
        // A client that is gone does not read; the next read says so.
        let _ = self.socket.write_all(&bytes).await;
    }
}
