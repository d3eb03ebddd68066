//! Bugs that were fixed, each as a case.

use super::*;
use crate::live::Live;
use crate::log::sessions::SessionId;
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
    let limits = Limits { outbound_bytes_max: 1_000, ..Limits::default() };
    let mut wire = Wire::new(limits, Version::V5);
    let properties = vec![Property::SessionExpiryInterval(60)];
    wire.handle(Packet::Connect(Box::new(Connect { properties, ..connect(Version::V5) })));
    wire.events();
    assert!(wire.session.identify(Identity { client_id: "c".into(), ..Identity::default() }));
    let id = Some(SessionId(1));
    wire.session.accept(Acceptance { number: 1, id, ..Acceptance::default() }, wire.moment());
    wire.handle(subscribe("#", QoS::ExactlyOnce));
    wire.events();
    assert!(wire.session.take_update(wire.moment()).is_some());
    wire.session.stored(wire.moment());
    assert_eq!(wire.names(), ["CONNACK", "SUBACK"]);
    wire.head = 10;
    let mut offered = 0;
    while let Some(from) = wire.session.wants_log().filter(|from| from.0 < wire.head) {
        offered += 1;
        wire.session.offer(from, vec![logged(from, QoS::ExactlyOnce)], Offset(from.0 + 1), wire.moment());
    }
    assert_eq!(offered, 2, "half of the output is the bound for what comes from the log");
    assert!(wire.session.take_update(wire.moment()).is_some());
    wire.session.stored(wire.moment());
    assert_eq!(wire.names(), ["PUBLISH", "PUBLISH"]);
}

// A message that waits for its identifier to be stored cannot be acknowledged: refused before it was sent, it would go out under
// an identifier that is nobody's, beyond the receive maximum.
#[test]
fn what_is_held_is_not_acknowledged() {
    let mut wire = Wire::new(Limits::default(), Version::V5);
    let properties = vec![Property::SessionExpiryInterval(60), Property::ReceiveMaximum(1)];
    wire.handle(Packet::Connect(Box::new(Connect { properties, ..connect(Version::V5) })));
    wire.events();
    assert!(wire.session.identify(Identity { client_id: "c".into(), ..Identity::default() }));
    let stored = Some(SessionId(1));
    wire.session.accept(Acceptance { number: 1, id: stored, ..Acceptance::default() }, wire.moment());
    wire.handle(subscribe("#", QoS::ExactlyOnce));
    wire.events();
    assert!(wire.session.take_update(wire.moment()).is_some());
    wire.session.stored(wire.moment());
    assert_eq!(wire.names(), ["CONNACK", "SUBACK"]);
    wire.head = 3;
    let from = wire.session.wants_log().unwrap();
    let messages = vec![logged(Offset(1), QoS::ExactlyOnce), logged(Offset(2), QoS::ExactlyOnce)];
    wire.session.offer(from, messages, Offset(3), wire.moment());
    wire.handle(Packet::PubRec(Ack::new(id(1), Reason::QuotaExceeded)));
    wire.session.pump(wire.moment());
    assert_eq!(wire.names(), [""; 0]);
    assert!(wire.session.take_update(wire.moment()).is_some());
    wire.session.stored(wire.moment());
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
