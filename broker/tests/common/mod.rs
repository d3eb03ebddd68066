//! A broker on a free port and a client made of the codec and a socket, shared by the tests.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::panic)]

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use millwright_broker::codec::{
    Ack, ConnAck, Connect, Decoder, Packet, PacketId, Publish, Reason, RetainHandling, Subscribe, SubscribeFilter,
    SubscribeOptions, Text, Version, encode,
};
use millwright_broker::log::{Log, LogConfig};
use millwright_broker::message::QoS;
use millwright_broker::topic::TopicName;
use millwright_broker::{Broker, BrokerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Long enough for a loaded machine; a test that waits this long has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Gateway {
    pub broker: Broker,
    pub log: Log,
    pub dir: tempfile::TempDir,
}

impl Gateway {
    pub async fn start() -> Gateway {
        Gateway::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut BrokerConfig)) -> Gateway {
        Gateway::on(tempfile::tempdir().unwrap(), change, |_| {}).await
    }

    pub async fn on(
        dir: tempfile::TempDir,
        change: impl FnOnce(&mut BrokerConfig),
        change_log: impl FnOnce(&mut LogConfig),
    ) -> Gateway {
        let mut log_config = LogConfig { commit_delay: Duration::ZERO, ..LogConfig::new(dir.path()) };
        change_log(&mut log_config);
        let log = Log::open(log_config).unwrap().log;
        let listen = ([127, 0, 0, 1], 0).into();
        let mut config = BrokerConfig { listen, sys_interval: Duration::ZERO, ..BrokerConfig::default() };
        change(&mut config);
        let broker = Broker::bind(config, log.clone()).await.unwrap();
        Gateway { broker, log, dir }
    }

    pub fn addr(&self) -> SocketAddr {
        self.broker.local_addr()
    }

    pub async fn stop(self) -> tempfile::TempDir {
        self.broker.shutdown().await;
        self.log.close();
        self.dir
    }

    /// The broker goes on serving: a new subscriber gets a new publisher's QoS 0 and QoS 1 messages.
    pub async fn assert_serves(&self) {
        let mut subscriber = Client::connect(self.addr(), Version::V5, "serves-subscriber").await;
        subscriber.subscribe("serves/#", QoS::AtLeastOnce).await;
        let mut publisher = Client::connect(self.addr(), Version::V311, "serves-publisher").await;
        publisher.publish("serves/0", QoS::AtMostOnce, b"0").await;
        publisher.publish("serves/1", QoS::AtLeastOnce, b"1").await;
        let mut got = [subscriber.message().await.payload, subscriber.message().await.payload];
        got.sort();
        assert_eq!(got, [&b"0"[..], b"1"]);
    }

    /// Waits until `condition` holds.
    pub async fn until(&self, what: &str, condition: impl Fn(&Gateway) -> bool) {
        let poll = async {
            while !condition(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, poll).await.unwrap_or_else(|_| panic!("never: {what}"));
    }
}

/// Whatever MQTT is spoken on.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

pub struct Client {
    pub stream: Box<dyn Stream>,
    decoder: Decoder,
    buffer: BytesMut,
    version: Version,
    next_id: u16,
    /// PUBACK each QoS 1 message as soon as it is read.
    pub acknowledges: bool,
}

pub fn connect(version: Version, client_id: &str) -> Connect {
    Connect {
        version,
        clean_start: true,
        keep_alive_s: 60,
        client_id: Text::from(client_id),
        will: None,
        username: None,
        password: None,
        properties: Vec::new(),
    }
}

pub fn options(qos: QoS) -> SubscribeOptions {
    SubscribeOptions { qos, no_local: false, retain_as_published: false, retain_handling: RetainHandling::Always }
}

pub fn publish(topic: &str, qos: QoS, payload: &[u8]) -> Publish {
    Publish {
        dup: false,
        qos,
        retain: false,
        topic: Some(TopicName::parse(topic).unwrap()),
        packet_id: None,
        topic_alias: None,
        subscription_identifiers: Vec::new(),
        properties: Bytes::new(),
        payload: Bytes::copy_from_slice(payload),
    }
}

impl Client {
    /// A socket, no CONNECT yet.
    pub async fn open(addr: SocketAddr, version: Version) -> Client {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Client::on(stream, version)
    }

    /// On a stream that is there, no CONNECT yet.
    pub fn on(stream: impl Stream + 'static, version: Version) -> Client {
        let decoder = Decoder::client(version, 1 << 28);
        Client { stream: Box::new(stream), decoder, buffer: BytesMut::new(), version, next_id: 0, acknowledges: true }
    }

    pub async fn connect(addr: SocketAddr, version: Version, client_id: &str) -> Client {
        let (client, connack) = Client::connect_with(addr, connect(version, client_id)).await;
        assert_eq!(connack.reason, Reason::Success);
        client
    }

    pub async fn connect_with(addr: SocketAddr, connect: Connect) -> (Client, ConnAck) {
        let mut client = Client::open(addr, connect.version).await;
        let connack = client.introduce(connect).await;
        (client, connack)
    }

    /// Sends CONNECT; gives the answer.
    pub async fn introduce(&mut self, connect: Connect) -> ConnAck {
        self.send(&Packet::Connect(Box::new(connect))).await;
        match self.recv().await {
            Packet::ConnAck(connack) => connack,
            other => panic!("{other:?} instead of CONNACK"),
        }
    }

    pub async fn send(&mut self, packet: &Packet) {
        let mut out = BytesMut::new();
        encode(packet, self.version, &mut out);
        self.send_bytes(&out).await;
    }

    pub async fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// The next packet, or `None` if the broker closed the connection.
    pub async fn next(&mut self) -> Option<Packet> {
        timeout(PATIENCE, async {
            loop {
                if let Some(packet) = self.decoder.decode(&mut self.buffer).unwrap() {
                    return Some(packet);
                }
                match self.stream.read_buf(&mut self.buffer).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        })
        .await
        .expect("nothing came")
    }

    pub async fn recv(&mut self) -> Packet {
        self.next().await.expect("the broker closed the connection")
    }

    /// The next packet but PUBREL, which is answered: the end of a QoS 2 delivery comes when it comes.
    async fn recv_answering(&mut self) -> Packet {
        loop {
            match self.recv().await {
                Packet::PubRel(ack) if self.acknowledges => {
                    self.send(&Packet::PubComp(Ack::new(ack.packet_id, Reason::Success))).await;
                }
                packet => return packet,
            }
        }
    }

    /// The broker closes the connection; gives the reason of its DISCONNECT, if it sent one.
    pub async fn closed(&mut self) -> Option<Reason> {
        let mut reason = None;
        while let Some(packet) = self.next().await {
            if let Packet::Disconnect(disconnect) = packet {
                reason = Some(disconnect.reason);
            }
        }
        reason
    }

    pub fn packet_id(&mut self) -> PacketId {
        self.next_id = self.next_id.checked_add(1).unwrap_or(1);
        PacketId::new(self.next_id).unwrap()
    }

    pub async fn subscribe(&mut self, filter: &str, qos: QoS) -> Reason {
        self.subscribe_with(filter, options(qos), Vec::new()).await
    }

    pub async fn subscribe_with(
        &mut self,
        filter: &str,
        options: SubscribeOptions,
        properties: Vec<millwright_broker::codec::Property>,
    ) -> Reason {
        let packet_id = self.packet_id();
        let filters = vec![SubscribeFilter { filter: Text::from(filter), options }];
        self.send(&Packet::Subscribe(Subscribe { packet_id, properties, filters })).await;
        match self.recv_answering().await {
            Packet::SubAck(suback) if suback.packet_id == packet_id => suback.reasons[0],
            other => panic!("{other:?} instead of SUBACK"),
        }
    }

    /// Publishes, and waits for the acknowledgement that the QoS asks for.
    pub async fn publish(&mut self, topic: &str, qos: QoS, payload: &[u8]) -> Reason {
        self.publish_with(publish(topic, qos, payload)).await
    }

    pub async fn publish_with(&mut self, mut publish: Publish) -> Reason {
        if publish.qos == QoS::AtMostOnce {
            self.send(&Packet::Publish(publish)).await;
            return Reason::Success;
        }
        let packet_id = self.packet_id();
        publish.packet_id = Some(packet_id);
        self.send(&Packet::Publish(publish)).await;
        match self.recv_answering().await {
            Packet::PubAck(ack) if ack.packet_id == packet_id => ack.reason,
            Packet::PubRec(ack) if ack.packet_id == packet_id && !ack.reason.is_error() => {
                self.send(&Packet::PubRel(Ack::new(packet_id, Reason::Success))).await;
                match self.recv().await {
                    Packet::PubComp(ack) if ack.packet_id == packet_id => ack.reason,
                    other => panic!("{other:?} instead of PUBCOMP"),
                }
            }
            Packet::PubRec(ack) => ack.reason,
            other => panic!("{other:?} instead of an acknowledgement"),
        }
    }

    /// The next message, acknowledged as its QoS asks.
    pub async fn message(&mut self) -> Publish {
        match self.recv_answering().await {
            Packet::Publish(publish) => {
                if let Some(packet_id) = publish.packet_id.filter(|_| self.acknowledges) {
                    let ack = Ack::new(packet_id, Reason::Success);
                    match publish.qos {
                        QoS::ExactlyOnce => self.send(&Packet::PubRec(ack)).await,
                        _ => self.send(&Packet::PubAck(ack)).await,
                    }
                }
                publish
            }
            other => panic!("{other:?} instead of PUBLISH"),
        }
    }

    /// Nothing but what a PINGREQ calls for comes: what was to come before it, did.
    pub async fn assert_quiet(&mut self) {
        self.send(&Packet::PingReq).await;
        assert_eq!(self.recv_answering().await, Packet::PingResp);
    }
}
