//! The session driven by hand, with a clock that the tests move.
#![allow(clippy::unwrap_used, clippy::panic)]

use super::*;
use crate::auth::AllowAll;
use crate::codec::tests::packet as codec_packet;
use crate::codec::{
    Decoder, PacketId, Property, Publish, RetainHandling, Subscribe, SubscribeFilter, SubscribeOptions, Text,
    Unsubscribe, Will,
};
use crate::log::LogMessage;
use crate::topic::TopicName;

mod found;

/// A session and the client's end of its wire.
struct Wire {
    session: Session,
    decoder: Decoder,
    start: Instant,
    now_ms: u64,
    head: u64,
    /// Offsets offered so far.
    offered: u64,
}

fn connect(version: Version) -> Connect {
    Connect {
        version,
        clean_start: true,
        keep_alive_s: 10,
        client_id: Text::from("c"),
        will: None,
        username: None,
        password: None,
        properties: Vec::new(),
    }
}

fn id(number: u16) -> PacketId {
    PacketId::new(number).unwrap()
}

fn publish(qos: QoS, number: u16) -> Packet {
    Packet::Publish(Publish {
        dup: false,
        qos,
        retain: false,
        topic: Some(TopicName::parse("t").unwrap()),
        packet_id: (qos > QoS::AtMostOnce).then(|| id(number)),
        topic_alias: None,
        subscription_identifiers: Vec::new(),
        properties: Bytes::new(),
        payload: Bytes::from(number.to_string()),
    })
}

impl Wire {
    fn new(limits: Limits, version: Version) -> Wire {
        let start = Instant::now();
        let session = Session::new(Arc::new(limits), Arc::new(AllowAll), start);
        Wire { session, decoder: Decoder::client(version, 1 << 28), start, now_ms: 0, head: 1, offered: 0 }
    }

    /// Connected, CONNACK taken.
    fn open(limits: Limits, connect: Connect) -> Wire {
        let mut wire = Wire::new(limits, connect.version);
        wire.handle(Packet::Connect(Box::new(connect)));
        assert!(matches!(wire.session.poll_event(), Some(Event::Connect(_))));
        assert!(wire.session.identify(Identity { client_id: "c".into(), ..Identity::default() }));
        wire.session.accept(Acceptance { number: 1, ..Acceptance::default() }, wire.moment());
        assert!(matches!(wire.sent()[..], [Packet::ConnAck(ConnAck { reason: Reason::Success, .. })]));
        wire
    }

    fn moment(&self) -> Moment {
        let at = self.start + Duration::from_millis(self.now_ms);
        Moment {
            at,
            utc_us: self.now_ms as i64 * 1_000 + 1,
            head: Offset(self.head),
            filters_fit: true,
            subscriptions_fit: true,
        }
    }

    fn handle(&mut self, packet: Packet) {
        self.session.handle(packet, self.moment());
    }

    fn sent(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        while let Some(packet) = self.decoder.decode(self.session.output()).unwrap() {
            packets.push(packet);
        }
        packets
    }

    fn names(&mut self) -> Vec<&'static str> {
        self.sent().iter().map(Packet::name).collect()
    }

    fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.session.poll_event()).collect()
    }

    fn at(&mut self, ms: u64) -> bool {
        self.now_ms = ms;
        self.session.handle_timeout(self.start + Duration::from_millis(ms));
        self.session.is_open()
    }

    fn subscribe(&mut self, filter: &str, qos: QoS) {
        let options = SubscribeOptions {
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: RetainHandling::Never,
        };
        let filters = vec![SubscribeFilter { filter: Text::from(filter), options }];
        self.handle(Packet::Subscribe(Subscribe { packet_id: id(9), properties: Vec::new(), filters }));
        assert!(!self.session.wants_packets(), "the filter is watched before anything else");
        self.events();
        assert_eq!(self.names(), ["SUBACK"]);
    }

    /// Logs messages and offers them when the session asks for them.
    fn log(&mut self, count: u64, qos: QoS) {
        self.head += count;
        while let Some(from) = self.session.wants_log().filter(|from| from.0 < self.head) {
            self.offered = from.0;
            let message = LogMessage {
                offset: from,
                received_us: self.moment().utc_us,
                topic_id: 1,
                message: Message {
                    topic: TopicName::parse("t").unwrap(),
                    payload: Bytes::from(from.to_string()),
                    properties: Bytes::new(),
                    qos,
                    retain: false,
                    origin: 7,
                },
            };
            self.session.offer(from, vec![Arc::new(message)], Offset(from.0 + 1), self.moment());
        }
    }
}

fn ended(wire: &Wire) -> String {
    wire.session.ended().unwrap().to_string()
}

// A silent client is closed at exactly one and a half keep-alives after its last packet, not a millisecond before.
// [MQTT-3.1.2-22]
#[test]
fn keep_alive() {
    for version in [Version::V311, Version::V5] {
        let mut wire = Wire::open(Limits::default(), connect(version));
        assert!(wire.at(14_999));
        wire.handle(Packet::PingReq);
        assert_eq!(wire.names(), ["PINGRESP"]);
        assert!(wire.at(29_998));
        assert_eq!(wire.session.poll_timeout(), Some(wire.start + Duration::from_millis(29_999)));
        assert!(!wire.at(29_999));
        assert_eq!(wire.session.ended(), Some(&Ended::KeepAlive));
        let expected: &[&str] = if version == Version::V5 { &["DISCONNECT"] } else { &[] };
        assert_eq!(wire.names(), expected);
    }
}

// A keep-alive of 0 is none, and one that the shell holds begins anew afterwards.
#[test]
fn no_keep_alive_and_held_keep_alive() {
    let mut wire = Wire::open(Limits::default(), Connect { keep_alive_s: 0, ..connect(Version::V311) });
    assert_eq!(wire.session.poll_timeout(), None);
    assert!(wire.at(u64::from(u32::MAX)));
    let mut wire = Wire::open(Limits::default(), connect(Version::V311));
    wire.session.hold_keep_alive(true, wire.moment().at);
    assert!(wire.at(100_000));
    wire.session.hold_keep_alive(false, wire.moment().at);
    assert!(wire.at(114_999));
    assert!(!wire.at(115_000));
}

// Without CONNECT the session ends at the deadline; the first packet must be CONNECT and the second must not.
// [MQTT-3.1.0-1], [MQTT-3.1.0-2]
#[test]
fn connect_comes_first_once_and_in_time() {
    let mut wire = Wire::new(Limits::default(), Version::V311);
    wire.at(9_999);
    assert_eq!(wire.session.ended(), None);
    wire.at(10_000);
    assert_eq!(wire.session.ended(), Some(&Ended::ConnectDeadline));
    let mut wire = Wire::new(Limits::default(), Version::V311);
    wire.handle(Packet::PingReq);
    assert!(ended(&wire).contains("MQTT-3.1.0-1"));
    let mut wire = Wire::open(Limits::default(), connect(Version::V5));
    wire.handle(Packet::Connect(Box::new(connect(Version::V5))));
    assert!(ended(&wire).contains("MQTT-3.1.0-2"));
}

// While the shell decides about CONNECT no packet is taken.
#[test]
fn nothing_is_read_while_authenticating() {
    let mut wire = Wire::new(Limits::default(), Version::V311);
    assert!(wire.session.wants_packets());
    wire.handle(Packet::Connect(Box::new(connect(Version::V311))));
    assert!(!wire.session.wants_packets());
    wire.session.refuse(Reason::BadUserNameOrPassword);
    assert!(matches!(wire.sent()[..], [Packet::ConnAck(ConnAck { reason: Reason::BadUserNameOrPassword, .. })]));
    assert!(!wire.session.wants_packets());
}

// Acknowledgements wait for the commit and come in the order of the publishes, whatever their QoS. [MQTT-4.6.0-2]
#[test]
fn acknowledgements_wait_and_keep_their_order() {
    let mut wire = Wire::open(Limits::default(), connect(Version::V311));
    wire.handle(publish(QoS::AtLeastOnce, 3));
    wire.handle(publish(QoS::ExactlyOnce, 1));
    wire.handle(publish(QoS::AtLeastOnce, 2));
    assert_eq!(wire.names(), [""; 0]);
    assert_eq!(wire.session.take_durable(2, usize::MAX).len(), 2);
    assert_eq!(wire.session.take_durable(2, usize::MAX).len(), 1);
    wire.session.committed(1, Reason::Success);
    assert_eq!(wire.sent(), [Packet::PubAck(Ack::new(id(3), Reason::Success))]);
    wire.session.committed(2, Reason::Success);
    let expected = [Packet::PubRec(Ack::new(id(1), Reason::Success)), Packet::PubAck(Ack::new(id(2), Reason::Success))];
    assert_eq!(wire.sent(), expected);
}

// A QoS 2 message is taken once however often it is sent before PUBREL, and its identifier is free after it.
// [MQTT-4.3.3-10]
#[test]
fn qos_2_is_received_exactly_once() {
    let mut wire = Wire::open(Limits::default(), connect(Version::V5));
    wire.handle(publish(QoS::ExactlyOnce, 5));
    wire.handle(publish(QoS::ExactlyOnce, 5));
    assert_eq!(wire.session.take_durable(9, usize::MAX).len(), 1);
    wire.session.committed(1, Reason::Success);
    assert_eq!(wire.names(), ["PUBREC", "PUBREC"]);
    wire.handle(publish(QoS::ExactlyOnce, 5));
    assert_eq!(wire.names(), ["PUBREC"]);
    wire.handle(Packet::PubRel(Ack::new(id(5), Reason::Success)));
    wire.handle(Packet::PubRel(Ack::new(id(5), Reason::Success)));
    let expected =
        [Reason::Success, Reason::PacketIdentifierNotFound].map(|reason| Packet::PubComp(Ack::new(id(5), reason)));
    assert_eq!(wire.sent(), expected);
    wire.handle(publish(QoS::ExactlyOnce, 5));
    assert_eq!(wire.session.take_durable(9, usize::MAX).len(), 1);
    wire.handle(Packet::PubRel(Ack::new(id(5), Reason::Success)));
    assert!(ended(&wire).contains("PUBREL before PUBREC"));
}

// A refused message is refused in its turn: with its reason in MQTT 5, by closing in 3.1.1.
#[test]
fn refused_messages() {
    let mut wire = Wire::open(Limits::default(), connect(Version::V5));
    wire.handle(publish(QoS::AtLeastOnce, 1));
    wire.handle(publish(QoS::ExactlyOnce, 2));
    wire.handle(publish(QoS::AtLeastOnce, 3));
    wire.session.take_durable(9, usize::MAX);
    wire.session.committed(1, Reason::Success);
    wire.session.committed(1, Reason::QuotaExceeded);
    wire.session.committed(1, Reason::Success);
    let expected = [
        Packet::PubAck(Ack::new(id(1), Reason::Success)),
        Packet::PubRec(Ack::new(id(2), Reason::QuotaExceeded)),
        Packet::PubAck(Ack::new(id(3), Reason::Success)),
    ];
    assert_eq!(wire.sent(), expected);
    let mut wire = Wire::open(Limits::default(), connect(Version::V311));
    wire.handle(publish(QoS::AtLeastOnce, 1));
    wire.session.take_durable(9, usize::MAX);
    wire.session.committed(1, Reason::QuotaExceeded);
    assert_eq!(wire.names(), [""; 0]);
    assert!(!wire.session.is_open());
}

// One unacknowledged publish more than the receive maximum closes an MQTT 5 connection. [MQTT-3.3.4-9]
#[test]
fn receive_maximum() {
    let limits = Limits { receive_max: 2, ..Limits::default() };
    let mut wire = Wire::open(limits, connect(Version::V5));
    wire.handle(publish(QoS::AtLeastOnce, 1));
    wire.handle(publish(QoS::ExactlyOnce, 2));
    wire.session.take_durable(9, usize::MAX);
    wire.session.committed(1, Reason::Success);
    wire.handle(publish(QoS::AtLeastOnce, 3));
    wire.handle(publish(QoS::ExactlyOnce, 2));
    assert!(wire.session.is_open());
    wire.handle(publish(QoS::AtLeastOnce, 4));
    assert!(ended(&wire).contains("receive maximum"));
}

// A publisher whose messages wait for the disk is not read beyond its bytes; pings are answered until then.
#[test]
fn inbound_bytes_are_bounded() {
    let limits = Limits { inbound_bytes_max: 1_000, ..Limits::default() };
    let mut wire = Wire::open(limits, connect(Version::V311));
    let mut number = 0;
    while wire.session.wants_packets() {
        wire.handle(Packet::PingReq);
        assert_eq!(wire.names(), ["PINGRESP"]);
        number += 1;
        wire.handle(publish(QoS::AtLeastOnce, number));
    }
    assert!((2..10).contains(&number));
    wire.session.take_durable(1, usize::MAX);
    assert!(!wire.session.wants_packets());
    wire.session.committed(1, Reason::Success);
    assert!(wire.session.wants_packets());
}

// No more messages are on their way than the client's receive maximum; each acknowledgement lets one follow.
#[test]
fn outbound_window() {
    for (qos, acks) in [
        (QoS::AtLeastOnce, &[Packet::PubAck as fn(Ack) -> Packet][..]),
        (QoS::ExactlyOnce, &[Packet::PubRec, Packet::PubComp]),
    ] {
        let receive_max = Property::ReceiveMaximum(2);
        let mut wire = Wire::open(Limits::default(), Connect { properties: vec![receive_max], ..connect(Version::V5) });
        wire.subscribe("#", QoS::ExactlyOnce);
        wire.log(5, qos);
        assert_eq!(wire.names(), ["PUBLISH", "PUBLISH"]);
        for (turn, ack) in acks.iter().enumerate() {
            wire.handle(ack(Ack::new(id(1), Reason::Success)));
            wire.log(0, qos);
            let last = turn + 1 == acks.len();
            assert_eq!(wire.names(), [if last { "PUBLISH" } else { "PUBREL" }]);
        }
    }
}

// Packet identifiers of messages under way are not given to others, however far the counter runs.
#[test]
fn packet_identifiers_are_not_reused_early() {
    let mut wire = Wire::open(Limits::default(), connect(Version::V311));
    wire.subscribe("#", QoS::AtLeastOnce);
    wire.log(1, QoS::AtLeastOnce);
    assert_eq!(wire.names(), ["PUBLISH"]);
    for _ in 0..70_000 {
        wire.log(1, QoS::AtLeastOnce);
        let [Packet::Publish(publish)] = &wire.sent()[..] else { panic!("not one PUBLISH") };
        let packet_id = publish.packet_id.unwrap();
        assert_ne!(packet_id, id(1));
        wire.handle(Packet::PubAck(Ack::new(packet_id, Reason::Success)));
    }
}

// An acknowledgement of the wrong kind is a protocol error; one of nothing is not.
#[test]
fn wrong_acknowledgements() {
    let mut wire = Wire::open(Limits::default(), connect(Version::V5));
    wire.subscribe("#", QoS::ExactlyOnce);
    wire.handle(Packet::PubAck(Ack::new(id(77), Reason::Success)));
    wire.handle(Packet::PubComp(Ack::new(id(77), Reason::Success)));
    wire.handle(Packet::PubRec(Ack::new(id(77), Reason::Success)));
    assert_eq!(wire.sent(), [Packet::PubRel(Ack::new(id(77), Reason::PacketIdentifierNotFound))]);
    wire.log(1, QoS::AtLeastOnce);
    wire.handle(Packet::PubRec(Ack::new(id(1), Reason::Success)));
    assert!(ended(&wire).contains("PUBREC for a QoS 1 message"));
}

// Messages before the SUBSCRIBE are not delivered, and a subscription at QoS 0 does not read the log.
#[test]
fn a_subscription_begins_at_the_head() {
    let mut wire = Wire::open(Limits::default(), connect(Version::V311));
    wire.subscribe("t", QoS::AtMostOnce);
    assert_eq!(wire.session.wants_log(), None);
    wire.log(3, QoS::AtLeastOnce);
    wire.subscribe("#", QoS::AtLeastOnce);
    assert_eq!(wire.session.wants_log(), Some(Offset(4)));
    wire.log(1, QoS::AtLeastOnce);
    let [Packet::Publish(publish)] = &wire.sent()[..] else { panic!("not one PUBLISH") };
    assert_eq!(publish.payload, &b"4"[..]);
}

// Topic aliases belong to the connection: above the maximum, or never given a topic, they end it. [MQTT-3.3.2-9]
#[test]
fn topic_aliases() {
    let limits = Limits { topic_aliases_max: 3, ..Limits::default() };
    let aliased = |alias, topic: Option<&str>| {
        let Packet::Publish(publish) = publish(QoS::AtMostOnce, 0) else { unreachable!() };
        let topic = topic.map(|topic| TopicName::parse(topic).unwrap());
        Packet::Publish(Publish { topic, topic_alias: Some(alias), ..publish })
    };
    let mut wire = Wire::open(limits.clone(), connect(Version::V5));
    for (alias, topic) in [(3, Some("a")), (3, None), (1, Some("b")), (3, Some("c")), (3, None), (1, None)] {
        wire.handle(aliased(alias, topic));
    }
    let topics: Vec<_> = wire.session.take_volatile().iter().map(|message| message.topic.to_string()).collect();
    assert_eq!(topics, ["a", "a", "b", "c", "c", "b"]);
    wire.handle(aliased(2, None));
    assert!(ended(&wire).contains("never given"));
    let mut wire = Wire::open(limits, connect(Version::V5));
    wire.handle(aliased(4, Some("a")));
    let [Packet::Disconnect(disconnect)] = &wire.sent()[..] else { panic!("no DISCONNECT") };
    assert_eq!(disconnect.reason, Reason::TopicAliasInvalid);
}

// The will goes out with everything but a plain DISCONNECT, once.
#[test]
fn wills() {
    let will = Will {
        topic: TopicName::parse("w").unwrap(),
        payload: Bytes::new(),
        qos: QoS::AtLeastOnce,
        retain: true,
        properties: vec![Property::WillDelayInterval(1), Property::PayloadFormatIndicator(true)],
    };
    let wish = Connect { will: Some(will), ..connect(Version::V5) };
    let mut wire = Wire::open(Limits::default(), wish.clone());
    wire.session.disconnected();
    wire.session.disconnected();
    let events = wire.events();
    let [Event::Will(message), Event::Close] = &events[..] else { panic!("{events:?}") };
    assert_eq!((message.properties.as_ref(), message.origin), (&[1, 1][..], 1));
    let mut wire = Wire::open(Limits::default(), wish);
    wire.handle(Packet::Disconnect(Disconnect { reason: Reason::Success, properties: Vec::new() }));
    assert!(matches!(wire.events()[..], [Event::Close]));
}

// Live messages are skipped and counted while the client does not read; durable ones wait.
#[test]
fn full_output() {
    let limits = Limits { outbound_bytes_max: 400, ..Limits::default() };
    let mut wire = Wire::open(limits, connect(Version::V311));
    wire.subscribe("#", QoS::AtLeastOnce);
    let message = |qos| Message {
        topic: TopicName::parse("t").unwrap(),
        payload: Bytes::from_static(&[0; 90]),
        properties: Bytes::new(),
        qos,
        retain: false,
        origin: 7,
    };
    for _ in 0..10 {
        wire.session.deliver_live(&message(QoS::AtMostOnce), wire.moment());
    }
    // At QoS 1 it comes from the log.
    wire.session.deliver_live(&message(QoS::AtLeastOnce), wire.moment());
    let counts = wire.session.take_counts();
    assert_eq!((counts.delivered, counts.skipped), (5, 5));
    assert!(!wire.session.wants_packets());
    assert_eq!(wire.session.wants_log(), None);
    wire.sent();
    assert!(wire.session.wants_packets());
    assert_eq!(wire.session.wants_log(), Some(Offset(1)));
}

// A live message for one subscription is delivered by that subscription's options, whatever the others match, and not at
// all once it is gone.
#[test]
fn live_message_for_one_subscription() {
    let mut wire = Wire::open(Limits::default(), connect(Version::V5));
    for (identifier, filter) in [(1, "#"), (2, "t")] {
        let options = SubscribeOptions {
            qos: QoS::AtMostOnce,
            no_local: false,
            retain_as_published: identifier == 2,
            retain_handling: RetainHandling::Never,
        };
        let filters = vec![SubscribeFilter { filter: Text::from(filter), options }];
        let properties = vec![Property::SubscriptionIdentifier(identifier)];
        wire.handle(Packet::Subscribe(Subscribe { packet_id: id(9), properties, filters }));
        wire.events();
    }
    assert_eq!(wire.names(), ["SUBACK", "SUBACK"]);
    let Packet::Publish(published) = publish(QoS::AtLeastOnce, 1) else { unreachable!() };
    let message = Message {
        topic: published.topic.unwrap(),
        payload: published.payload,
        properties: Bytes::new(),
        qos: QoS::AtLeastOnce,
        retain: true,
        origin: 7,
    };
    let filter = TopicFilter::parse("t").unwrap();
    wire.session.deliver_live_for(&filter, &message, wire.moment());
    let [Packet::Publish(got)] = &wire.sent()[..] else { panic!("not one PUBLISH") };
    assert_eq!((&got.subscription_identifiers[..], got.retain, got.qos), (&[2][..], true, QoS::AtMostOnce));
    wire.handle(Packet::Unsubscribe(Unsubscribe {
        packet_id: id(9),
        properties: Vec::new(),
        filters: vec![Text::from("t")],
    }));
    wire.session.deliver_live_for(&filter, &message, wire.moment());
    assert_eq!(wire.names(), ["UNSUBACK"]);
}

proptest::proptest! {
    // Whatever packets a client sends, in whatever order, the session answers with packets, acknowledges what it took,
    // and once it has ended stays ended.
    #[test]
    fn any_packets(
        v5: bool,
        packets in proptest::collection::vec((codec_packet(Version::V311), codec_packet(Version::V5), 0..4_usize), 1..40),
    ) {
        let version = if v5 { Version::V5 } else { Version::V311 };
        let limits = Limits { receive_max: 5, inflight_max: 3, subscriptions_max: 4, ..Limits::default() };
        let mut wire = Wire::open(limits, connect(version));
        wire.subscribe("#", QoS::ExactlyOnce);
        let (mut taken, mut settled) = (0, 0);
        for (old, new, commits) in packets {
            if wire.session.wants_packets() {
                wire.handle(if v5 { new } else { old });
            }
            for event in wire.events() {
                if let Event::FetchRetained(filter) = event {
                    wire.session.retained(filter, Vec::new(), wire.moment());
                }
            }
            taken += wire.session.take_durable(3, 1_000).len();
            wire.session.take_volatile();
            let commits = commits.min(taken - settled);
            wire.session.committed(commits, if commits == 3 { Reason::QuotaExceeded } else { Reason::Success });
            settled += commits;
            wire.log(1, QoS::ExactlyOnce);
            wire.sent();
        }
        wire.session.disconnected();
        let ended = wire.session.ended().cloned();
        wire.handle(Packet::PingReq);
        wire.session.shut(Reason::ServerShuttingDown);
        proptest::prop_assert_eq!(wire.session.ended().cloned(), ended);
        proptest::prop_assert!(wire.sent().is_empty());
    }
}
