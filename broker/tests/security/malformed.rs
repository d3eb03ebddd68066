//! Malformed packets of every kind, in both versions: each ends its own connection, with the reason that the standard gives.

use bytes::BytesMut;
use millwright_broker::codec::{
    Ack, ConnAck, Decoder, Disconnect, Packet, PacketId, Property, Reason, Subscribe, SubscribeFilter, Text, UnsubAck,
    Unsubscribe, Version, Will, encode,
};
use millwright_broker::message::QoS;
use millwright_broker::topic::TopicName;

use crate::common::{Client, Gateway, connect, options, publish};

/// Malformed packets of each kind and version; `MILLWRIGHT_MALFORMED=10000` is the long run.
fn count() -> usize {
    std::env::var("MILLWRIGHT_MALFORMED").ok().and_then(|count| count.parse().ok()).unwrap_or(200)
}

/// Numbers that look random and are the same every time. (Marsaglia, "Xorshift RNGs", 2003)
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }
}

fn sound_packets(version: Version) -> Vec<Packet> {
    let id = PacketId::new(7).unwrap();
    let user = || Property::UserProperty("k".into(), "v".into());
    let properties = |list: Vec<Property>| if version == Version::V5 { list } else { Vec::new() };
    let ack = || Ack::new(id, Reason::Success);
    let will = Will {
        topic: TopicName::parse("w").unwrap(),
        payload: "will".into(),
        qos: QoS::AtLeastOnce,
        retain: true,
        properties: properties(vec![Property::WillDelayInterval(1), user()]),
    };
    let mut connect = connect(version, "c");
    connect.will = Some(will);
    connect.properties = properties(vec![Property::ReceiveMaximum(5), user()]);
    let filters = vec![SubscribeFilter { filter: Text::from("a/+"), options: options(QoS::AtLeastOnce) }];
    let mut all = vec![
        Packet::Connect(Box::new(connect)),
        Packet::ConnAck(ConnAck { session_present: false, reason: Reason::Success, properties: Vec::new() }),
        Packet::Publish(publish("a/b", QoS::AtMostOnce, b"payload")),
        Packet::Publish(millwright_broker::codec::Publish {
            packet_id: Some(id),
            ..publish("a/b", QoS::AtLeastOnce, b"payload")
        }),
        Packet::PubAck(ack()),
        Packet::PubRec(ack()),
        Packet::PubRel(ack()),
        Packet::PubComp(ack()),
        Packet::Subscribe(Subscribe {
            packet_id: id,
            properties: properties(vec![Property::SubscriptionIdentifier(3)]),
            filters,
        }),
        Packet::Unsubscribe(Unsubscribe { packet_id: id, properties: Vec::new(), filters: vec![Text::from("a/+")] }),
        Packet::UnsubAck(UnsubAck { packet_id: id, properties: Vec::new(), reasons: vec![Reason::Success] }),
        Packet::PingReq,
        Packet::PingResp,
    ];
    if version == Version::V5 {
        all.push(Packet::Disconnect(Disconnect { reason: Reason::Success, properties: vec![user()] }));
    }
    all
}

/// Changes a packet somewhere: bits, length, end, flags, or bytes put in.
fn spoil(packet: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = packet.to_vec();
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.below(256) as u8,
            2 => bytes[0] = (bytes[0] & 0xF0) | random.below(16) as u8,
            3 => bytes.insert(at, random.below(256) as u8),
            4 if bytes.len() > 2 => {
                bytes.remove(at);
            }
            _ => bytes[1.min(packet.len() - 1)] = random.below(256) as u8,
        }
    }
    bytes
}

/// What the codec says of the bytes where the broker reads them: `None` if they are not malformed by themselves.
fn verdict(version: Version, is_first: bool, bytes: &[u8]) -> Option<Reason> {
    let mut decoder = Decoder::server(1 << 20);
    let mut input = BytesMut::new();
    if !is_first {
        encode(&Packet::Connect(Box::new(connect(version, "c"))), version, &mut input);
        decoder.decode(&mut input).unwrap().unwrap();
    }
    input.extend_from_slice(bytes);
    decoder.decode(&mut input).err().map(|error| error.reason)
}

async fn try_kind(gateway: &Gateway, version: Version, kind: &Packet, seed: u64) {
    let is_connect = matches!(kind, Packet::Connect(_));
    let mut sound = BytesMut::new();
    encode(kind, version, &mut sound);
    let mut random = Random(seed);
    let mut sent = 0;
    let mut tried = 0_u64;
    while sent < count() {
        tried += 1;
        assert!(tried < 1_000 * count() as u64, "{} cannot be spoiled", kind.name());
        let bytes = spoil(&sound, &mut random);
        let Some(reason) = verdict(version, is_connect, &bytes) else { continue };
        sent += 1;
        let mut client = Client::open(gateway.addr(), version).await;
        if !is_connect {
            client.introduce(connect(version, &format!("m-{seed}"))).await;
        }
        client.send_bytes(&bytes).await;
        // A spoiled CONNECT may have announced another version, whose answer this client cannot read.
        if is_connect {
            use tokio::io::AsyncReadExt;
            let _ = client.stream.read_to_end(&mut Vec::new()).await;
        } else {
            let reason = match reason {
                // A second CONNECT, of a version that nobody speaks.
                Reason::UnsupportedProtocolVersion => Reason::ProtocolError,
                reason => reason,
            };
            let told = (version == Version::V5).then_some(reason);
            assert_eq!(client.closed().await, told, "{} {bytes:02x?}", kind.name());
        }
    }
}

// Whatever is wrong with a packet, its connection ends with the reason, and everything else goes on.
#[tokio::test(flavor = "multi_thread")]
async fn malformed_packets_end_their_connection() {
    let gateway = Gateway::start().await;
    for version in [Version::V311, Version::V5] {
        let kinds = sound_packets(version);
        let tries = kinds.iter().enumerate().map(|(number, kind)| try_kind(&gateway, version, kind, number as u64 + 1));
        futures_util::future::join_all(tries).await;
        gateway.until("all are gone", |gateway| gateway.broker.stats().connections == 0).await;
        gateway.assert_serves().await;
    }
    assert!(gateway.broker.stats().protocol_errors >= 26 * count() as u64 - 2 * count() as u64);
}
