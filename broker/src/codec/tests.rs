//! The codec is total, faithful, and says which clause a bad packet breaks.
#![allow(clippy::unwrap_used)]

use bytes::{BufMut, Bytes, BytesMut};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;
use crate::message::QoS;
use crate::topic::TopicName;

const MAX: usize = 1 << 20;

fn decode(version: Option<Version>, bytes: &[u8]) -> Result<Option<Packet>, DecodeError> {
    let mut decoder = match version {
        Some(version) => Decoder::client(version, MAX),
        None => Decoder::server(MAX),
    };
    decoder.decode(&mut BytesMut::from(bytes))
}

/// The bytes are refused with this clause and this reason.
fn refused(version: Option<Version>, bytes: &[u8], clause: &str, reason: Reason) {
    let error = decode(version, bytes).unwrap_err();
    assert_eq!((error.clause, error.reason), (clause, reason), "{bytes:02x?}");
}

const V311: Option<Version> = Some(Version::V311);
const V5: Option<Version> = Some(Version::V5);

fn text() -> impl Strategy<Value = Text> {
    "[a-zäß€/ 0-9]{0,12}".prop_map(|text| Text::from(text.as_str()))
}

fn topic() -> impl Strategy<Value = TopicName> {
    "[$a-zäß€ 0-9][a-zäß€/ 0-9]{0,20}".prop_map(|text| TopicName::parse(&text).unwrap())
}

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

fn packet_id() -> impl Strategy<Value = PacketId> {
    (1..=u16::MAX).prop_map(|id| PacketId::new(id).unwrap())
}

fn qos() -> impl Strategy<Value = QoS> {
    prop_oneof![Just(QoS::AtMostOnce), Just(QoS::AtLeastOnce), Just(QoS::ExactlyOnce)]
}

/// Any set of properties that a packet of this kind may carry, user properties repeated.
fn properties(allowed: properties::Allowed) -> impl Strategy<Value = Vec<Property>> {
    let all = (
        vec(any::<bool>(), 27),
        any::<(bool, u32, u16, u16, u32)>(),
        (text(), text(), bytes(20)),
        vec((text(), text()), 0..3),
    );
    all.prop_map(move |(chosen, (flag, long, short, nonzero, _), (one, two, binary), users)| {
        use Property as P;
        let nonzero = nonzero.max(1);
        let mut candidates = vec![
            P::PayloadFormatIndicator(flag),
            P::MessageExpiryInterval(long),
            P::ContentType(one.clone()),
            P::ResponseTopic(two.clone()),
            P::CorrelationData(binary.clone()),
            P::SubscriptionIdentifier(long % 268_435_455 + 1),
            P::SessionExpiryInterval(long),
            P::AssignedClientIdentifier(one.clone()),
            P::ServerKeepAlive(short),
            P::AuthenticationMethod(one.clone()),
            P::RequestProblemInformation(flag),
            P::WillDelayInterval(long),
            P::RequestResponseInformation(flag),
            P::ResponseInformation(two.clone()),
            P::ServerReference(two.clone()),
            P::ReasonString(one.clone()),
            P::ReceiveMaximum(nonzero),
            P::TopicAliasMaximum(short),
            P::MaximumQoS(flag),
            P::RetainAvailable(flag),
            P::MaximumPacketSize(u32::from(nonzero)),
            P::WildcardSubscriptionAvailable(flag),
            P::SubscriptionIdentifierAvailable(flag),
            P::SharedSubscriptionAvailable(flag),
        ];
        let mut keep = chosen.into_iter();
        candidates.retain(|property| {
            let mut wire = BytesMut::new();
            properties::put(&mut wire, property);
            keep.next() == Some(true) && properties::decode_one(wire.freeze(), allowed).is_ok()
        });
        candidates.extend(users.into_iter().map(|(key, value)| P::UserProperty(key, value)));
        candidates
    })
}

fn connect(version: Version) -> impl Strategy<Value = Packet> {
    let will = (topic(), bytes(20), qos(), any::<bool>(), properties(properties::allowed::WILL))
        .prop_map(|(topic, payload, qos, retain, properties)| Will { topic, payload, qos, retain, properties });
    let fields = (any::<bool>(), any::<u16>(), text(), option::of(will), option::of(text()), option::of(bytes(9)));
    (fields, properties(properties::allowed::CONNECT)).prop_map(move |(fields, properties)| {
        let (clean_start, keep_alive_s, client_id, will, username, password) = fields;
        let mut connect =
            Connect { version, clean_start, keep_alive_s, client_id, will, username, password, properties };
        if version == Version::V311 {
            connect.properties.clear();
            connect.will.iter_mut().for_each(|will| will.properties.clear());
            connect.password = connect.password.filter(|_| connect.username.is_some());
        }
        Packet::Connect(Box::new(connect))
    })
}

fn publish(version: Version) -> impl Strategy<Value = Packet> {
    let fields = (any::<bool>(), qos(), any::<bool>(), topic(), packet_id(), bytes(200));
    let v5 = (option::of(1..=u16::MAX), any::<bool>(), vec(1_u32..268_435_455, 0..3));
    (fields, v5, properties(properties::allowed::PUBLISH)).prop_map(move |(fields, v5, mut properties)| {
        let (dup, qos, retain, topic, id, payload) = fields;
        let (topic_alias, only_alias, identifiers) = v5;
        properties.retain(|property| !matches!(property, Property::SubscriptionIdentifier(_)));
        let mut others = BytesMut::new();
        properties.iter().for_each(|property| properties::put(&mut others, property));
        let v5 = version == Version::V5;
        Packet::Publish(Publish {
            dup: dup && qos != QoS::AtMostOnce,
            qos,
            retain,
            topic: Some(topic).filter(|_| !(v5 && only_alias && topic_alias.is_some())),
            packet_id: Some(id).filter(|_| qos != QoS::AtMostOnce),
            topic_alias: topic_alias.filter(|_| v5),
            subscription_identifiers: if v5 { identifiers } else { Vec::new() },
            properties: if v5 { others.freeze() } else { Bytes::new() },
            payload,
        })
    })
}

fn ack(version: Version) -> impl Strategy<Value = Packet> {
    (0..4_usize, packet_id(), any::<prop::sample::Index>(), properties(properties::allowed::ACK)).prop_map(
        move |(kind, packet_id, reason, properties)| {
            let reasons = if kind < 2 { ack::PUBACK_REASONS } else { ack::PUBREL_REASONS };
            let reason = Reason::from_code(*reason.get(reasons)).unwrap();
            let ack = match version {
                Version::V311 => Ack::new(packet_id, Reason::Success),
                Version::V5 => Ack { packet_id, reason, properties },
            };
            match kind {
                0 => Packet::PubAck(ack),
                1 => Packet::PubRec(ack),
                2 => Packet::PubRel(ack),
                _ => Packet::PubComp(ack),
            }
        },
    )
}

fn subscription(version: Version) -> impl Strategy<Value = Packet> {
    let retain = prop_oneof![Just(RetainHandling::Always), Just(RetainHandling::IfNew), Just(RetainHandling::Never)];
    let filter = (text(), qos(), any::<bool>(), any::<bool>(), retain).prop_map(
        move |(filter, qos, no_local, retain_as_published, retain_handling)| SubscribeFilter {
            filter,
            options: match version {
                Version::V311 => SubscribeOptions {
                    qos,
                    no_local: false,
                    retain_as_published: false,
                    retain_handling: RetainHandling::Always,
                },
                Version::V5 => SubscribeOptions { qos, no_local, retain_as_published, retain_handling },
            },
        },
    );
    (0..4, packet_id(), vec(filter, 1..4), properties(properties::allowed::SUBSCRIBE)).prop_map(
        move |(kind, packet_id, filters, mut properties)| {
            let v5 = version == Version::V5;
            properties.retain(|_| v5);
            let only_user = |mut properties: Vec<Property>| {
                properties.retain(|property| matches!(property, Property::UserProperty(..)));
                properties
            };
            match kind {
                0 => Packet::Subscribe(Subscribe { packet_id, properties, filters }),
                1 => Packet::SubAck(SubAck {
                    packet_id,
                    properties: only_user(properties),
                    reasons: vec![Reason::GrantedQoS1, Reason::UnspecifiedError],
                }),
                2 => Packet::Unsubscribe(Unsubscribe {
                    packet_id,
                    properties: only_user(properties),
                    filters: filters.into_iter().map(|filter| filter.filter).collect(),
                }),
                _ => Packet::UnsubAck(UnsubAck {
                    packet_id,
                    properties: only_user(properties),
                    reasons: if v5 { vec![Reason::Success, Reason::NoSubscriptionExisted] } else { Vec::new() },
                }),
            }
        },
    )
}

fn other(version: Version) -> impl Strategy<Value = Packet> {
    let connack = (any::<bool>(), any::<bool>(), properties(properties::allowed::CONNACK));
    (0..5, connack, properties(properties::allowed::DISCONNECT), properties(properties::allowed::AUTH)).prop_map(
        move |(kind, (session_present, ok, connack), disconnect, auth)| {
            let v5 = version == Version::V5;
            let only = |properties: Vec<Property>| if v5 { properties } else { Vec::new() };
            match kind {
                0 => Packet::ConnAck(ConnAck {
                    session_present: session_present && ok,
                    reason: if ok { Reason::Success } else { Reason::NotAuthorized },
                    properties: only(connack),
                }),
                1 => Packet::PingReq,
                2 => Packet::PingResp,
                3 => Packet::Disconnect(Disconnect {
                    reason: if v5 { Reason::SessionTakenOver } else { Reason::Success },
                    properties: only(disconnect),
                }),
                _ if v5 => Packet::Auth(Auth { reason: Reason::ContinueAuthentication, properties: auth }),
                _ => Packet::PingReq,
            }
        },
    )
}

/// Any packet of a version.
pub(crate) fn packet(version: Version) -> impl Strategy<Value = Packet> {
    prop_oneof![connect(version), publish(version), ack(version), subscription(version), other(version)]
}

fn versioned() -> impl Strategy<Value = (Version, Packet)> {
    prop_oneof![
        packet(Version::V311).prop_map(|packet| (Version::V311, packet)),
        packet(Version::V5).prop_map(|packet| (Version::V5, packet)),
    ]
}

proptest! {
    // What is encoded decodes to the same packet, and a decoder with any part of it but the last byte waits for more.
    #[test]
    fn round_trip_and_every_split((version, packet) in versioned()) {
        let mut wire = BytesMut::new();
        encode(&packet, version, &mut wire);
        prop_assert_eq!(decode(Some(version), &wire), Ok(Some(packet.clone())));
        for cut in 0..wire.len() {
            let mut decoder = Decoder::client(version, MAX);
            let mut buffer = BytesMut::from(&wire[..cut]);
            prop_assert_eq!(decoder.decode(&mut buffer), Ok(None), "cut at {}", cut);
            buffer.put_slice(&wire[cut..]);
            prop_assert_eq!(decoder.decode(&mut buffer), Ok(Some(packet.clone())));
        }
    }

    // The server's end reads the version from CONNECT and then speaks it.
    #[test]
    fn connect_tells_the_version(connect in prop_oneof![connect(Version::V311), connect(Version::V5)]) {
        let Packet::Connect(fields) = &connect else { unreachable!() };
        let mut wire = BytesMut::new();
        encode(&connect, fields.version, &mut wire);
        let mut decoder = Decoder::server(MAX);
        prop_assert_eq!(decoder.decode(&mut wire), Ok(Some(connect.clone())));
        prop_assert_eq!(decoder.version(), Some(fields.version));
    }

    // No bytes make the codec panic.
    #[test]
    fn arbitrary_bytes(version in 0..3_usize, bytes in vec(any::<u8>(), 0..300)) {
        let version: Option<Version> = [None, V311, V5][version];
        let mut decoder = version.map_or_else(|| Decoder::server(MAX), |version| Decoder::client(version, MAX));
        let mut buffer = BytesMut::from(&bytes[..]);
        while let Ok(Some(_)) = decoder.decode(&mut buffer) {}
    }

    // A packet with one byte changed never makes the codec panic, and what it still accepts, it can write.
    #[test]
    fn damaged_packets((version, packet) in versioned(), at in any::<prop::sample::Index>(), flip in 1..=255_u8) {
        let mut wire = BytesMut::new();
        encode(&packet, version, &mut wire);
        let at = at.index(wire.len());
        wire[at] ^= flip;
        if let Ok(Some(packet)) = decode(Some(version), &wire) {
            let mut again = BytesMut::new();
            encode(&packet, version, &mut again);
            prop_assert_eq!(decode(Some(version), &again), Ok(Some(packet)));
        }
    }
}

// Fixed headers are refused from their first bytes.
#[test]
fn fixed_headers() {
    refused(None, &[0x30], "MQTT-3.1.0-1", Reason::ProtocolError);
    refused(V5, &[0x00], "MQTT-2.1.2", Reason::MalformedPacket);
    refused(V311, &[0xF0], "MQTT-2.2.1 of 3.1.1", Reason::MalformedPacket);
    refused(V5, &[0x36], "MQTT-3.3.1-4", Reason::MalformedPacket);
    refused(V5, &[0x38], "MQTT-3.3.1-2", Reason::MalformedPacket);
    refused(V5, &[0x80], "MQTT-2.1.3-1", Reason::MalformedPacket);
    refused(V5, &[0xC1], "MQTT-2.1.3-1", Reason::MalformedPacket);
    refused(V5, &[0x30, 0xFF, 0xFF, 0xFF, 0xFF], "MQTT-1.5.5", Reason::MalformedPacket);
    refused(V5, &[0xC0, 0x80, 0x00], "MQTT-1.5.5-1", Reason::MalformedPacket);
    // 3.1.1 does not ask for the shortest form.
    assert_eq!(decode(V311, &[0xC0, 0x80, 0x00]), Ok(Some(Packet::PingReq)));
    refused(V5, &[0xC0, 0x01, 0x00], "MQTT-2.1.4", Reason::MalformedPacket);
}

// A packet of exactly the maximum is waited for, one byte more is refused before it is there.
#[test]
fn maximum_packet_size() {
    let mut decoder = Decoder::client(Version::V311, 100);
    assert_eq!(decoder.decode(&mut BytesMut::from(&[0x30, 98][..])), Ok(None));
    let error = decoder.decode(&mut BytesMut::from(&[0x30, 99][..])).unwrap_err();
    assert_eq!(error.reason, Reason::PacketTooLarge);
    let error = decode(None, &[0x10, 0xFF, 0xFF, 0xFF, 0x7F]).unwrap_err();
    assert_eq!(error.reason, Reason::PacketTooLarge);
}

// Each rule of PUBLISH is refused with its clause.
#[test]
fn publish_rules() {
    refused(V311, &[0x32, 5, 0, 1, b'a', 0, 0], "MQTT-2.2.1-3", Reason::ProtocolError);
    refused(V311, &[0x30, 2, 0, 0], "MQTT-3.3.2.1", Reason::ProtocolError);
    refused(V311, &[0x30, 3, 0, 1, b'#'], "MQTT-3.3.2-2", Reason::TopicNameInvalid);
    refused(V311, &[0x30, 3, 0, 1, 0xFF], "MQTT-1.5.4-1", Reason::MalformedPacket);
    refused(V311, &[0x30, 3, 0, 1, 0], "MQTT-1.5.4-2", Reason::MalformedPacket);
    refused(V311, &[0x30, 3, 0, 2, b'a'], "MQTT-2.1.4", Reason::MalformedPacket);
    // Properties: alias 0, expiry twice, one of another packet, a response topic with a wildcard, identifier 0.
    refused(V5, &[0x30, 7, 0, 1, b'a', 3, 0x23, 0, 0], "MQTT-3.3.2-8", Reason::TopicAliasInvalid);
    let twice = [0x30, 14, 0, 1, b'a', 10, 2, 0, 0, 0, 1, 2, 0, 0, 0, 1];
    refused(V5, &twice, "MQTT-2.2.2.2", Reason::ProtocolError);
    refused(V5, &[0x30, 7, 0, 1, b'a', 3, 0x21, 0, 1], "MQTT-2.2.2.2", Reason::MalformedPacket);
    refused(V5, &[0x30, 8, 0, 1, b'a', 4, 8, 0, 1, b'+'], "MQTT-3.3.2-14", Reason::ProtocolError);
    refused(V5, &[0x30, 6, 0, 1, b'a', 2, 0x0B, 0], "MQTT-3.8.2.1.2", Reason::ProtocolError);
    refused(V5, &[0x30, 6, 0, 1, b'a', 2, 1, 2], "MQTT-2.2.2.2", Reason::ProtocolError);
}

// Each rule of SUBSCRIBE and UNSUBSCRIBE is refused with its clause.
#[test]
fn subscribe_rules() {
    refused(V311, &[0x82, 2, 0, 1], "MQTT-3.8.3-2", Reason::ProtocolError);
    refused(V311, &[0x82, 6, 0, 1, 0, 1, b'a', 3], "MQTT-3.8.3.1", Reason::ProtocolError);
    refused(V311, &[0x82, 6, 0, 1, 0, 1, b'a', 4], "MQTT-3.8.3-5", Reason::MalformedPacket);
    refused(V5, &[0x82, 7, 0, 1, 0, 0, 1, b'a', 0x40], "MQTT-3.8.3-5", Reason::MalformedPacket);
    refused(V5, &[0x82, 7, 0, 1, 0, 0, 1, b'a', 0x30], "MQTT-3.8.3.1", Reason::ProtocolError);
    let shared = [&[0x82, 16, 0, 1, 0, 0, 10][..], b"$share/g/a", &[4]].concat();
    refused(V5, &shared, "MQTT-3.8.3-4", Reason::ProtocolError);
    refused(V311, &[0x82, 6, 0, 0, 0, 1, b'a', 0], "MQTT-2.2.1-3", Reason::ProtocolError);
    refused(V311, &[0xA2, 2, 0, 1], "MQTT-3.10.3-2", Reason::ProtocolError);
}

/// A 3.1.1 CONNECT with these flags and this client's payload.
fn connect_bytes(name: &[u8], level: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut body = vec![0, name.len() as u8];
    body.extend(name);
    body.extend([level, flags, 0, 60]);
    body.extend(payload);
    [&[0x10, body.len() as u8][..], &body].concat()
}

// Each rule of CONNECT is refused with its clause, and a wrong version tells in which version to answer.
#[test]
fn connect_rules() {
    let rule = |flags, payload: &[u8], clause, reason| {
        refused(None, &connect_bytes(b"MQTT", 4, flags, payload), clause, reason);
    };
    rule(0b0000_0011, &[0, 0], "MQTT-3.1.2-3", Reason::MalformedPacket);
    rule(0b0000_1010, &[0, 0], "MQTT-3.1.2-11", Reason::MalformedPacket);
    rule(0b0010_0010, &[0, 0], "MQTT-3.1.2-13", Reason::MalformedPacket);
    rule(0b0001_1110, &[0, 0], "MQTT-3.1.2-12", Reason::MalformedPacket);
    rule(0b0100_0010, &[0, 0, 0, 0], "MQTT-3.1.2-22 of 3.1.1", Reason::MalformedPacket);
    rule(0b0000_0010, &[0, 0, 0], "MQTT-2.1.4", Reason::MalformedPacket);
    rule(0b0000_0110, &[0, 0, 0, 1, b'#', 0, 0], "MQTT-3.1.3-11", Reason::TopicNameInvalid);
    for (name, level, version, clause) in [
        (&b"MQTT"[..], 3, Some(Version::V311), "MQTT-3.1.2-2"),
        (b"MQIsdp", 3, Some(Version::V311), "MQTT-3.1.2-2"),
        (b"MQTT", 6, Some(Version::V5), "MQTT-3.1.2-2"),
        (b"HTTP", 4, None, "MQTT-3.1.2-1"),
    ] {
        let mut decoder = Decoder::server(MAX);
        let mut wire = BytesMut::from(&connect_bytes(name, level, 2, &[0, 0])[..]);
        let error = decoder.decode(&mut wire).unwrap_err();
        assert_eq!((error.clause, error.reason), (clause, Reason::UnsupportedProtocolVersion));
        assert_eq!(decoder.version(), version);
    }
}

// Every reason code is found by its number, and no other number is one.
#[test]
fn reason_codes() {
    for reason in Reason::ALL {
        assert_eq!(Reason::from_code(reason.code()), Some(*reason));
    }
    let known = (0..=255).filter(|code| Reason::from_code(*code).is_some()).count();
    assert_eq!(known, Reason::ALL.len());
}

// The message expiry interval is found among the properties that travel with a message, and replaced on the way out.
#[test]
fn expiry_is_found_and_replaced() {
    let mut wire = BytesMut::new();
    properties::put(&mut wire, &Property::UserProperty(Text::from("k"), Text::from("v")));
    properties::put(&mut wire, &Property::MessageExpiryInterval(300));
    properties::put(&mut wire, &Property::PayloadFormatIndicator(true));
    let properties = wire.freeze();
    let found = MessageProperties::read(&properties);
    assert!(found.payload_is_text);
    let (at, seconds) = found.expiry.unwrap();
    assert_eq!(seconds, 300);
    let outgoing = OutgoingPublish {
        dup: false,
        qos: QoS::AtMostOnce,
        retain: false,
        topic: "a",
        packet_id: None,
        topic_alias: None,
        subscription_identifiers: &[7],
        properties: &properties,
        expiry: Some((at, 299)),
        payload: b"x",
    };
    let mut out = BytesMut::new();
    outgoing.encode(Version::V5, &mut out);
    assert_eq!(out.len(), outgoing.len(Version::V5));
    let Ok(Some(Packet::Publish(publish))) = decode(V5, &out) else { panic!("not a PUBLISH") };
    assert_eq!(MessageProperties::read(&publish.properties).expiry, Some((at, 299)));
    assert_eq!(publish.subscription_identifiers, [7]);
}
