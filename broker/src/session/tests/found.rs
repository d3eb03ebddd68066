//! Bugs that were fixed, each as a case.

use super::*;
use crate::codec::FILTERS_PER_PACKET_MAX;
use crate::live::Live;
use crate::log::sessions::{SessionId, Stage, StoredOutgoing, StoredSession};
use crate::shares::Shares;

fn subscribe(filter: &str, qos: QoS) -> Packet {
    let options =
        SubscribeOptions { qos, no_local: false, retain_as_published: false, retain_handling: RetainHandling::Never };
    let filters = vec![SubscribeFilter { filter: Text::from(filter), options }];
    Packet::Subscribe(Subscribe { packet_id: id(9), properties: Vec::new(), filters })
}

/// A message of 300 bytes in the log.
fn logged(offset: Offset, qos: QoS) -> Arc<LogMessage> {
    let message = Message {
        topic: TopicName::parse("t").unwrap(),
        payload: Bytes::from_static(&[0; 300]),
        properties: Bytes::new(),
        qos,
        retain: false,
        origin: 7,
    };
    Arc::new(LogMessage { offset, received_us: 1, topic_id: 1, message })
}

/// A stored session of an MQTT 5 client, CONNACK taken.
fn stored(limits: Limits, properties: Vec<Property>, left: Option<StoredSession>) -> Wire {
    let properties = [vec![Property::SessionExpiryInterval(60)], properties].concat();
    let mut wire = Wire::new(limits, Version::V5);
    wire.handle(Packet::Connect(Box::new(Connect { properties, ..connect(Version::V5) })));
    wire.events();
    assert!(wire.session.identify(Identity { client_id: "c".into(), ..Identity::default() }));
    let id = Some(SessionId(1));
    wire.session.accept(Acceptance { number: 1, id, stored: left, ..Acceptance::default() }, wire.moment());
    assert_eq!(wire.names(), ["CONNACK"]);
    wire.events();
    wire
}

impl Wire {
    /// Stores what the session has to store, if anything.
    fn store(&mut self) {
        if self.session.take_update(self.moment()).is_some() {
            self.session.stored(self.moment());
        }
    }

    fn acks(&mut self) -> Vec<(&'static str, Reason)> {
        let ack = |packet: Packet| match packet {
            Packet::PubRec(ack) => ("PUBREC", ack.reason),
            Packet::PubComp(ack) => ("PUBCOMP", ack.reason),
            other => (other.name(), Reason::Success),
        };
        self.sent().into_iter().map(ack).collect()
    }
}

fn publish_to(topic: &str, number: u16) -> Packet {
    let Packet::Publish(publish) = publish(QoS::ExactlyOnce, number) else { panic!("no PUBLISH") };
    Packet::Publish(Publish { topic: Some(TopicName::parse(topic).unwrap()), ..publish })
}

// A refusal that is larger than the client takes is not sent; the connection is closed all the same. [MQTT-3.1.2-24]
#[test]
fn a_refusal_fits_the_client_or_is_silent() {
    for (packet_bytes_max, expected) in [(4, &[][..]), (5, &["CONNACK"][..])] {
        let properties = vec![Property::MaximumPacketSize(packet_bytes_max)];
        let mut wire = Wire::new(Limits::default(), Version::V5);
        wire.handle(Packet::Connect(Box::new(Connect { properties, ..connect(Version::V5) })));
        wire.session.refuse(Reason::BadUserNameOrPassword);
        assert_eq!(wire.names(), expected);
        assert!(matches!(wire.events()[..], [Event::Connect(_), Event::Close]));
    }
}

// QoS 2 messages that wait for their identifiers to be stored count against the output: a stored session does not take more
// of the log into memory than one that stores nothing.
#[test]
fn what_is_held_counts_as_output() {
    let mut wire = stored(Limits { outbound_bytes_max: 1_000, ..Limits::default() }, Vec::new(), None);
    wire.handle(subscribe("#", QoS::ExactlyOnce));
    wire.events();
    wire.store();
    assert_eq!(wire.names(), ["SUBACK"]);
    wire.head = 10;
    let mut offered = 0;
    while let Some(from) = wire.session.wants_log().filter(|from| from.0 < wire.head) {
        offered += 1;
        wire.session.offer(from, vec![logged(from, QoS::ExactlyOnce)], Offset(from.0 + 1), wire.moment());
    }
    assert_eq!(offered, 2, "half of the output is the bound for what comes from the log");
    wire.store();
    assert_eq!(wire.names(), ["PUBLISH", "PUBLISH"]);
}

// A message that waits for its identifier to be stored cannot be acknowledged: refused before it was sent, it would go out under
// an identifier that is nobody's, beyond the receive maximum.
#[test]
fn what_is_held_is_not_acknowledged() {
    let mut wire = stored(Limits::default(), vec![Property::ReceiveMaximum(1)], None);
    wire.handle(subscribe("#", QoS::ExactlyOnce));
    wire.events();
    wire.store();
    assert_eq!(wire.names(), ["SUBACK"]);
    wire.head = 3;
    let from = wire.session.wants_log().unwrap();
    let messages = vec![logged(Offset(1), QoS::ExactlyOnce), logged(Offset(2), QoS::ExactlyOnce)];
    wire.session.offer(from, messages, Offset(3), wire.moment());
    wire.handle(Packet::PubRec(Ack::new(id(1), Reason::QuotaExceeded)));
    wire.session.pump(wire.moment());
    assert_eq!(wire.names(), [""; 0]);
    wire.store();
    assert_eq!(wire.names(), ["PUBLISH"], "the second one waits for the first");
}

// A client that is in two groups and has a subscription of its own gets a message three times, one after the other if it takes
// one at a time. [MQTT-3.3.4-9]
#[test]
fn copies_of_a_message_keep_to_the_receive_maximum() {
    let properties = vec![Property::ReceiveMaximum(1)];
    let mut wire = Wire::open(Limits::default(), Connect { properties, ..connect(Version::V5) });
    let (shares, reader) = (Shares::new(Vec::new()), Live::default().reader());
    for filter in ["$share/g/t", "$share/h/t", "t"] {
        wire.handle(subscribe(filter, QoS::AtLeastOnce));
        for event in wire.events() {
            if let Event::Join { filter, .. } = event {
                let (member, start) = shares.join(&filter, (1, reader.key()), Offset(1));
                wire.session.joined(member, start, false, wire.moment());
            }
        }
    }
    assert_eq!(wire.names(), ["SUBACK", "SUBACK", "SUBACK"]);
    wire.head = 2;
    assert_eq!(wire.session.wants_log(), Some(Offset(1)));
    let message = logged(Offset(1), QoS::AtLeastOnce);
    wire.session.offer(Offset(1), vec![Arc::clone(&message)], Offset(2), wire.moment());
    for number in 1..=3 {
        let [Packet::Publish(publish)] = &wire.sent()[..] else { panic!("not one PUBLISH") };
        assert_eq!(publish.packet_id, Some(id(number)));
        assert_eq!(wire.session.wants_returned(), None);
        wire.handle(Packet::PubAck(Ack::new(id(number), Reason::Success)));
        if let Some(offset) = wire.session.wants_returned() {
            wire.session.offer_returned(offset, Some(&message), wire.moment());
        }
    }
    assert_eq!(wire.names(), [""; 0]);
}

// A QoS 2 message that comes a second time is the same message whatever it looks like now: were it refused for its topic, the
// identifier would be free for the client while its message is taken, and the next one would be taken twice. [MQTT-4.3.3-10]
#[test]
fn a_second_copy_is_not_judged_again() {
    let mut wire = Wire::open(Limits::default(), connect(Version::V5));
    wire.handle(publish_to("t", 1));
    wire.handle(publish_to("$SYS/t", 1));
    assert_eq!(wire.session.take_durable(9, 9_999).len(), 1);
    wire.session.committed(1, Reason::Success);
    assert_eq!(wire.acks(), [("PUBREC", Reason::Success); 2]);
    wire.handle(Packet::PubRel(Ack::new(id(1), Reason::Success)));
    assert_eq!(wire.acks(), [("PUBCOMP", Reason::Success)]);
}

// A refusal that waits behind other acknowledgements does not free the identifier of a later message.
#[test]
fn a_refusal_frees_only_its_own_identifier() {
    let mut wire = Wire::open(Limits::default(), connect(Version::V5));
    wire.handle(publish_to("t", 7));
    wire.handle(publish_to("$SYS/t", 1));
    wire.handle(publish_to("t", 1));
    assert_eq!(wire.session.take_durable(9, 9_999).len(), 2);
    wire.session.committed(1, Reason::Success);
    assert_eq!(wire.acks(), [("PUBREC", Reason::Success), ("PUBREC", Reason::NotAuthorized)]);
    wire.session.committed(1, Reason::Success);
    assert_eq!(wire.acks(), [("PUBREC", Reason::Success)]);
    wire.handle(Packet::PubRel(Ack::new(id(1), Reason::Success)));
    assert_eq!(wire.acks(), [("PUBCOMP", Reason::Success)], "the identifier is known");
}

// A message that the log refuses is refused as often as it was sent.
#[test]
fn a_second_copy_is_refused_with_the_first() {
    let mut wire = Wire::open(Limits::default(), connect(Version::V5));
    wire.handle(publish_to("t", 1));
    wire.handle(publish_to("t", 2));
    wire.handle(publish_to("t", 1));
    assert_eq!(wire.session.take_durable(9, 9_999).len(), 2);
    wire.session.committed(1, Reason::QuotaExceeded);
    wire.session.committed(1, Reason::Success);
    let refused = ("PUBREC", Reason::QuotaExceeded);
    assert_eq!(wire.acks(), [refused, ("PUBREC", Reason::Success), refused]);
    wire.handle(Packet::PubRel(Ack::new(id(1), Reason::Success)));
    assert_eq!(wire.acks(), [("PUBCOMP", Reason::PacketIdentifierNotFound)]);
}

// A PUBREC that comes before the message is sent again is answered when it is stored, not before: the client would forget the
// identifier, and a crash would deliver the message a second time.
#[test]
fn a_release_waits_for_the_store_on_a_resumed_session() {
    let outgoing = vec![StoredOutgoing {
        packet_id: id(5),
        sequence: 0,
        offset: Offset(1),
        stage: Stage::Received,
        retained: false,
    }];
    let left = StoredSession {
        id: SessionId(1),
        username: None,
        read_from: Offset(2),
        subscriptions: Vec::new(),
        outgoing,
        incoming: Vec::new(),
        will: None,
    };
    let mut wire = stored(Limits::default(), Vec::new(), Some(left));
    wire.head = 2;
    wire.session.pump(wire.moment());
    assert_eq!(wire.session.wants_log(), Some(Offset(1)));
    wire.handle(Packet::PubRec(Ack::new(id(5), Reason::Success)));
    let message = logged(Offset(1), QoS::ExactlyOnce);
    wire.session.offer(Offset(1), vec![message], Offset(2), wire.moment());
    assert_eq!(wire.names(), [""; 0]);
    wire.store();
    assert_eq!(wire.names(), ["PUBREL"], "once");
}

// Filters that wait for their retained messages are no more than the client has subscriptions, however often it changes them,
// and no more than one packet's behind SUBACKs that wait for the store.
#[test]
fn filters_that_wait_are_bounded() {
    let mut wire = stored(Limits::default(), Vec::new(), None);
    let options = SubscribeOptions {
        qos: QoS::AtMostOnce,
        no_local: false,
        retain_as_published: false,
        retain_handling: RetainHandling::Always,
    };
    let mut rounds = 0;
    while wire.session.wants_packets() && rounds < 10_000 {
        rounds += 1;
        let text = format!("f/{rounds}");
        let filters = vec![SubscribeFilter { filter: Text::from(&*text), options }];
        wire.handle(Packet::Subscribe(Subscribe { packet_id: id(9), properties: Vec::new(), filters }));
        let filters = vec![Text::from(&*text)];
        wire.handle(Packet::Unsubscribe(Unsubscribe { packet_id: id(9), properties: Vec::new(), filters }));
        wire.events();
    }
    assert_eq!(rounds, FILTERS_PER_PACKET_MAX);
    wire.store();
    let fetched = wire.events().into_iter().filter(|event| matches!(event, Event::FetchRetained(_))).count();
    assert_eq!(fetched, 0, "nothing is subscribed any more");
}
