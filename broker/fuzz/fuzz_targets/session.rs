//! A session, given any packets and bytes, commits, deliveries, timeouts and reconnects in any order.
//!
//! What must hold is asserted by `millwright_broker::fuzzing`; here is what happens, and the shape of an input.
#![no_main]

use arbitrary::Arbitrary;
use bytes::{Bytes, BytesMut};
use libfuzzer_sys::fuzz_target;
use millwright_broker::codec::{
    Ack, Connect, Disconnect, Packet, PacketId, Property, Publish, Reason, RetainHandling, Subscribe, SubscribeFilter,
    SubscribeOptions, Text, Unsubscribe, Version, Will, encode,
};
use millwright_broker::fuzzing::Drive;
use millwright_broker::message::{Message, QoS};
use millwright_broker::topic::TopicName;

/// So long, and no longer, is a sequence.
const STEPS_MAX: usize = 200;

const TOPICS: [&str; 5] = ["a", "a/b", "a/b/c", "$x/a", "d"];
const FILTERS: [&str; 10] =
    ["a", "a/b", "a/#", "+/b", "#", "$x/#", "$share/g/a/#", "$share/h/#", "$share/g/#", "a/#/b"];

#[derive(Debug, Arbitrary)]
struct Input {
    v5: bool,
    connect: Wish,
    steps: Vec<Step>,
}

/// What a CONNECT asks for.
#[derive(Debug, Arbitrary)]
struct Wish {
    clean_start: bool,
    keep_alive_s: u16,
    expiry_s: Option<u8>,
    receive_max: Option<u8>,
    packet_bytes_max: Option<u16>,
    aliases_max: Option<u8>,
    will: Option<u8>,
}

#[derive(Debug, Arbitrary)]
enum Step {
    Raw(Vec<u8>),
    Publish { qos: u8, id: u8, topic: u8, bytes: u16, retain: bool, alias: Option<u8>, expiry_s: Option<u8> },
    PubAck(u8),
    PubRec(u8, bool),
    PubRel(u8),
    PubComp(u8),
    Subscribe { id: u8, filters: [Option<(u8, u8)>; 3], identifier: Option<u16> },
    Unsubscribe(u8, u8),
    Ping,
    Disconnect { will: bool, expiry_s: Option<u8> },
    Commit(u8, bool),
    Append { qos: u8, topic: u8, bytes: u16, expiry_s: Option<u8> },
    AppendMany { count: u8, qos: u8, topic: u8, bytes: u16 },
    Fetch(u8),
    DropOldest(u8),
    Live { topic: u8, bytes: u16 },
    Retained(u8),
    Store,
    Advance(u16),
    Hold(bool),
    TakeOutput(u16),
    Shut,
    Reconnect { wish: Wish, crashes: bool, lets_in: bool },
}

fuzz_target!(|input: Input| {
    let version = if input.v5 { Version::V5 } else { Version::V311 };
    let mut drive = Drive::default();
    drive.receive(&wire(&connect(version, &input.connect), version), true);
    for step in input.steps.iter().take(STEPS_MAX) {
        take(&mut drive, step, version);
    }
    drive.finish();
});

fn wire(packet: &Packet, version: Version) -> BytesMut {
    let mut wire = BytesMut::new();
    encode(packet, version, &mut wire);
    wire
}

fn take(drive: &mut Drive, step: &Step, version: Version) {
    match *step {
        Step::Raw(ref bytes) => drive.receive(bytes, true),
        Step::Commit(count, is_on_disk) => drive.commit(usize::from(count), is_on_disk),
        Step::Append { qos, topic, bytes, expiry_s } => drive.append(message(qos, topic, bytes, expiry_s)),
        Step::AppendMany { count, qos, topic, bytes } => {
            (0..count % 32).for_each(|_| drive.append(message(qos, topic, bytes, None)));
        }
        Step::Fetch(rows) => drive.fetch(usize::from(rows)),
        Step::DropOldest(count) => drive.drop_oldest(usize::from(count)),
        Step::Live { topic, bytes } => drive.live(&message(0, topic, bytes, None)),
        Step::Retained(count) => drive.retained(usize::from(count)),
        Step::Store => drive.store(),
        Step::Advance(ms) => drive.advance(u64::from(ms)),
        Step::Hold(held) => drive.hold(held),
        Step::TakeOutput(count) => drive.take_output(usize::from(count)),
        Step::Shut => drive.shut(),
        Step::Reconnect { ref wish, crashes, lets_in } => {
            drive.reconnect(crashes);
            drive.receive(&wire(&connect(version, wish), version), lets_in);
        }
        _ => drive.receive(&wire(&packet(step), version), true),
    }
}

fn id(id: u8) -> PacketId {
    PacketId::MIN.saturating_add(u16::from(id % 24))
}

fn qos(qos: u8) -> QoS {
    QoS::from_bits(qos % 3).unwrap_or(QoS::AtMostOnce)
}

fn topic(index: u8) -> TopicName {
    TopicName::parse(TOPICS[usize::from(index) % TOPICS.len()]).expect("they are topics")
}

fn filter(index: u8) -> Text {
    Text::from(FILTERS[usize::from(index) % FILTERS.len()])
}

fn payload(bytes: u16) -> Bytes {
    Bytes::from(vec![b'x'; usize::from(bytes % 2_100)])
}

fn properties(expiry_s: Option<u8>) -> Bytes {
    expiry_s.map_or_else(Bytes::new, |expiry_s| Bytes::from(vec![2, 0, 0, 0, expiry_s]))
}

fn message(level: u8, at: u8, bytes: u16, expiry_s: Option<u8>) -> Message {
    let (payload, properties) = (payload(bytes), properties(expiry_s));
    Message { topic: topic(at), payload, properties, qos: qos(level), retain: false, origin: u32::MAX }
}

fn connect(version: Version, wish: &Wish) -> Packet {
    let will = wish.will.map(|bits| Will {
        topic: topic(bits),
        payload: Bytes::new(),
        qos: qos(bits / 8),
        retain: bits & 64 != 0,
        properties: Vec::new(),
    });
    let properties = [
        wish.expiry_s.map(|expiry_s| Property::SessionExpiryInterval(u32::from(expiry_s))),
        wish.receive_max.map(|max| Property::ReceiveMaximum(u16::from(max).max(1))),
        wish.packet_bytes_max.map(|max| Property::MaximumPacketSize(u32::from(max).max(1))),
        wish.aliases_max.map(|max| Property::TopicAliasMaximum(u16::from(max))),
    ];
    Packet::Connect(Box::new(Connect {
        version,
        clean_start: wish.clean_start,
        keep_alive_s: wish.keep_alive_s,
        client_id: Text::from("c"),
        will,
        username: None,
        password: None,
        properties: properties.into_iter().flatten().collect(),
    }))
}

/// The packet of a step that is one.
fn packet(step: &Step) -> Packet {
    match *step {
        Step::Publish { qos: level, id: number, topic: at, bytes, retain, alias, expiry_s } => {
            Packet::Publish(Publish {
                dup: false,
                qos: qos(level),
                retain,
                topic: Some(topic(at)).filter(|_| alias.is_none_or(|alias| alias < 128)),
                packet_id: (qos(level) > QoS::AtMostOnce).then(|| id(number)),
                topic_alias: alias.map(|alias| u16::from(alias % 5)),
                subscription_identifiers: Vec::new(),
                properties: properties(expiry_s),
                payload: payload(bytes),
            })
        }
        Step::PubAck(number) => Packet::PubAck(Ack::new(id(number), Reason::Success)),
        Step::PubRec(number, good) => {
            Packet::PubRec(Ack::new(id(number), if good { Reason::Success } else { Reason::UnspecifiedError }))
        }
        Step::PubRel(number) => Packet::PubRel(Ack::new(id(number), Reason::Success)),
        Step::PubComp(number) => Packet::PubComp(Ack::new(id(number), Reason::Success)),
        Step::Subscribe { id: number, ref filters, identifier } => subscribe(number, filters, identifier),
        Step::Unsubscribe(number, at) => Packet::Unsubscribe(Unsubscribe {
            packet_id: id(number),
            properties: Vec::new(),
            filters: vec![filter(at)],
        }),
        Step::Disconnect { will, expiry_s } => Packet::Disconnect(Disconnect {
            reason: if will { Reason::DisconnectWithWill } else { Reason::Success },
            properties: expiry_s.map(|s| Property::SessionExpiryInterval(u32::from(s))).into_iter().collect(),
        }),
        _ => Packet::PingReq,
    }
}

fn subscribe(number: u8, filters: &[Option<(u8, u8)>; 3], identifier: Option<u16>) -> Packet {
    let wish = |(at, bits): (u8, u8)| SubscribeFilter {
        filter: filter(at),
        options: SubscribeOptions {
            qos: qos(bits),
            no_local: bits & 64 != 0,
            retain_as_published: bits & 128 != 0,
            retain_handling: [RetainHandling::Always, RetainHandling::IfNew, RetainHandling::Never]
                [usize::from(bits / 3) % 3],
        },
    };
    let properties = identifier.map(|id| Property::SubscriptionIdentifier(u32::from(id).max(1)));
    Packet::Subscribe(Subscribe {
        packet_id: id(number),
        properties: properties.into_iter().collect(),
        filters: filters.iter().flatten().copied().map(wish).collect(),
    })
}
