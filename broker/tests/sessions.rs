//! Sessions that outlive their connections, and the process.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{Client, Gateway, connect, publish};
use millwright_broker::codec::{Ack, ConnAck, Connect, Disconnect, Packet, Property, Publish, Reason, Version, Will};
use millwright_broker::message::QoS;
use millwright_broker::topic::TopicName;

const BOTH: [Version; 2] = [Version::V311, Version::V5];

/// A CONNECT whose session outlives the connection.
fn lasting(version: Version, id: &str) -> Connect {
    let properties = if version == Version::V5 { vec![Property::SessionExpiryInterval(3_600)] } else { Vec::new() };
    Connect { clean_start: false, properties, ..connect(version, id) }
}

async fn open(gateway: &Gateway, connect: Connect) -> (Client, ConnAck) {
    let (client, connack) = Client::connect_with(gateway.addr(), connect).await;
    assert_eq!(connack.reason, Reason::Success);
    (client, connack)
}

async fn resume(gateway: &Gateway, version: Version, id: &str) -> Client {
    let (client, connack) = open(gateway, lasting(version, id)).await;
    assert!(connack.session_present, "the session of {id} is gone");
    client
}

async fn leave(mut client: Client) {
    client.send(&Packet::Disconnect(Disconnect { reason: Reason::Success, properties: Vec::new() })).await;
    client.closed().await;
}

/// Stops the gateway in order and starts it again on the same directory.
async fn restart(gateway: Gateway) -> Gateway {
    let dir = gateway.stop().await;
    Gateway::on(dir, |_| {}, |_| {}).await
}

fn payload(publish: &Publish) -> &str {
    std::str::from_utf8(&publish.payload).unwrap()
}

// What is published at QoS 1 and 2 while a client is away comes when it is back, in order, also after a restart; its
// subscriptions are still there, and a clean start ends all that. [MQTT-3.1.2-4], [MQTT-3.1.2-5]
#[tokio::test(flavor = "multi_thread")]
async fn messages_wait_for_a_client_that_is_away() {
    for version in BOTH {
        let mut gateway = Gateway::start().await;
        let (mut client, connack) = open(&gateway, lasting(version, "away")).await;
        assert!(!connack.session_present);
        client.subscribe("t/#", QoS::ExactlyOnce).await;
        leave(client).await;
        for round in 0..3 {
            let mut publisher = Client::connect(gateway.addr(), Version::V5, "p").await;
            for number in 0..20 {
                let qos = [QoS::AtLeastOnce, QoS::ExactlyOnce][number % 2];
                publisher.publish("t/x", qos, format!("{round} {number}").as_bytes()).await;
            }
            leave(publisher).await;
            if round != 1 {
                gateway = restart(gateway).await;
            }
            let mut client = resume(&gateway, version, "away").await;
            for number in 0..20 {
                let got = client.message().await;
                assert_eq!(payload(&got), format!("{round} {number}"));
                assert_eq!((got.qos, got.dup), ([QoS::AtLeastOnce, QoS::ExactlyOnce][number % 2], false));
            }
            client.assert_quiet().await;
            leave(client).await;
        }
        let (mut client, connack) = open(&gateway, Connect { clean_start: true, ..lasting(version, "away") }).await;
        assert!(!connack.session_present);
        client.publish("t/x", QoS::AtLeastOnce, b"nobody").await;
        client.assert_quiet().await;
    }
}

// Messages that were sent and not finished come again first, in the order and with the identifiers they had, marked as
// duplicates; a QoS 2 message for which PUBREC came is only released again. [MQTT-4.4.0-1], [MQTT-4.6.0-1]
#[tokio::test(flavor = "multi_thread")]
async fn unfinished_messages_come_again() {
    for (version, restarts) in [(Version::V311, false), (Version::V5, true)] {
        let mut gateway = Gateway::start().await;
        let (mut client, _) = open(&gateway, lasting(version, "again")).await;
        client.subscribe("t", QoS::ExactlyOnce).await;
        client.acknowledges = false;
        let mut publisher = Client::connect(gateway.addr(), Version::V311, "p").await;
        let qos = |number: usize| [QoS::AtLeastOnce, QoS::ExactlyOnce][number % 2];
        let mut ids = Vec::new();
        for number in 0..6 {
            publisher.publish("t", qos(number), number.to_string().as_bytes()).await;
            ids.push(client.message().await.packet_id.unwrap());
        }
        // The first is finished; the fourth, at QoS 2, is received; the others are open.
        client.send(&Packet::PubAck(Ack::new(ids[0], Reason::Success))).await;
        client.send(&Packet::PubRec(Ack::new(ids[3], Reason::Success))).await;
        assert_eq!(client.recv().await, Packet::PubRel(Ack::new(ids[3], Reason::Success)));
        drop(client);
        if restarts {
            gateway = restart(gateway).await;
        }
        let mut publisher = Client::connect(gateway.addr(), Version::V311, "p").await;
        publisher.publish("t", QoS::AtLeastOnce, b"new").await;
        let mut client = resume(&gateway, version, "again").await;
        client.acknowledges = false;
        for number in 1..6 {
            match client.recv().await {
                Packet::PubRel(ack) if number == 3 => {
                    assert_eq!(ack.packet_id, ids[3]);
                    client.send(&Packet::PubComp(Ack::new(ids[3], Reason::Success))).await;
                }
                Packet::Publish(got) => {
                    assert_eq!((payload(&got), got.packet_id), (&*number.to_string(), Some(ids[number])));
                    assert!(got.dup, "{number} is sent again");
                    assert_eq!(got.qos, qos(number));
                }
                other => panic!("{other:?} instead of message {number}"),
            }
        }
        let got = client.message().await;
        assert_eq!((payload(&got), got.dup), ("new", false));
        assert!(!ids[1..].contains(&got.packet_id.unwrap()), "an identifier that is in use was given again");
    }
}

// A QoS 2 publish that was received before the connection broke is not taken again when it is sent again, whatever
// happened in between: with and without a restart, before and after PUBREL. [MQTT-4.3.3-10]
#[tokio::test(flavor = "multi_thread")]
async fn receipts_survive() {
    for (version, restarts) in BOTH.into_iter().flat_map(|version| [(version, false), (version, true)]) {
        let mut gateway = Gateway::start().await;
        let (mut client, _) = open(&gateway, lasting(version, "sender")).await;
        let packet_id = client.packet_id();
        let message = Publish { packet_id: Some(packet_id), ..publish("t", QoS::ExactlyOnce, b"once") };
        client.send(&Packet::Publish(message.clone())).await;
        assert_eq!(client.recv().await, Packet::PubRec(Ack::new(packet_id, Reason::Success)));
        drop(client);
        if restarts {
            gateway = restart(gateway).await;
        }
        let mut client = resume(&gateway, version, "sender").await;
        client.send(&Packet::Publish(Publish { dup: true, ..message })).await;
        assert_eq!(client.recv().await, Packet::PubRec(Ack::new(packet_id, Reason::Success)));
        client.send(&Packet::PubRel(Ack::new(packet_id, Reason::Success))).await;
        assert_eq!(client.recv().await, Packet::PubComp(Ack::new(packet_id, Reason::Success)));
        assert_eq!(gateway.log.head().0, 2, "it was logged twice");
        drop(client);
        if restarts {
            gateway = restart(gateway).await;
        }
        // The identifier is free: the next message with it is another one.
        let mut client = resume(&gateway, version, "sender").await;
        let other = Publish { packet_id: Some(packet_id), ..publish("t", QoS::ExactlyOnce, b"other") };
        client.send(&Packet::Publish(other)).await;
        assert_eq!(client.recv().await, Packet::PubRec(Ack::new(packet_id, Reason::Success)));
        assert_eq!(gateway.log.head().0, 3);
    }
}

// A session lasts as long as its expiry interval says, which DISCONNECT may change; 0 ends it with the connection. What
// is granted is never more than the limit, and the client is told. [MQTT-3.1.2-23], [MQTT-3.14.2-2]
#[tokio::test(flavor = "multi_thread")]
async fn session_expiry() {
    let gateway = Gateway::with(|config| config.limits.session_expiry_max_s = 1_000).await;
    let with = |expiry_s| Connect {
        clean_start: false,
        properties: vec![Property::SessionExpiryInterval(expiry_s)],
        ..connect(Version::V5, "c")
    };
    let (client, connack) = open(&gateway, with(5_000)).await;
    assert!(connack.properties.contains(&Property::SessionExpiryInterval(1_000)), "{connack:?}");
    leave(client).await;
    let (mut client, connack) = open(&gateway, with(1)).await;
    assert!(connack.session_present && !connack.properties.contains(&Property::SessionExpiryInterval(1)));
    let disconnect = |expiry_s| {
        let properties = vec![Property::SessionExpiryInterval(expiry_s)];
        Packet::Disconnect(Disconnect { reason: Reason::Success, properties })
    };
    client.send(&disconnect(900)).await;
    client.closed().await;
    let (mut client, connack) = open(&gateway, with(900)).await;
    assert!(connack.session_present);
    client.send(&disconnect(0)).await;
    client.closed().await;
    let (client, connack) = open(&gateway, with(1)).await;
    assert!(!connack.session_present, "DISCONNECT ended it");
    leave(client).await;
    gateway.until("it expires", |gateway| gateway.log.stats().sessions == 0).await;
    assert_eq!(gateway.broker.stats().sessions_expired, 1);
    let (mut client, connack) = open(&gateway, with(0)).await;
    assert!(!connack.session_present);
    // What CONNECT did not ask for, DISCONNECT cannot have.
    client.send(&disconnect(10)).await;
    assert_eq!(client.closed().await, Some(Reason::ProtocolError));
    let (_client, connack) = open(&gateway, with(0)).await;
    assert!(!connack.session_present, "an interval of 0 ends with the connection");
}

fn with_will(id: &str, delay_s: u32, expiry_s: u32) -> Connect {
    let will = Will {
        topic: TopicName::parse(&format!("will/{id}")).unwrap(),
        payload: Bytes::from_static(b"gone"),
        qos: QoS::AtLeastOnce,
        retain: false,
        properties: vec![Property::WillDelayInterval(delay_s)],
    };
    let properties = vec![Property::SessionExpiryInterval(expiry_s)];
    Connect { clean_start: false, will: Some(will), properties, ..connect(Version::V5, id) }
}

// A will waits for its delay or for the end of the session, whichever is first; a client that is back in time keeps it
// from going out, one that starts anew does not; it survives a restart and goes out once. [MQTT-3.1.3-9]
#[tokio::test(flavor = "multi_thread")]
async fn delayed_wills() {
    let gateway = Gateway::start().await;
    let mut watcher = Client::connect(gateway.addr(), Version::V5, "watcher").await;
    watcher.subscribe("will/#", QoS::AtLeastOnce).await;
    // Back in time, with another will and then without one.
    let (client, _) = open(&gateway, with_will("back", 1, 100)).await;
    drop(client);
    let (client, connack) = open(&gateway, with_will("back", 1, 100)).await;
    assert!(connack.session_present);
    drop(client);
    let client = resume(&gateway, Version::V5, "back").await;
    // At once, by delay, and by the end of the session.
    for (id, delay_s, expiry_s) in [("now", 0, 100), ("delay", 1, 100), ("end", 100, 1), ("short", 100, 0)] {
        drop(open(&gateway, with_will(id, delay_s, expiry_s)).await);
        assert_eq!(watcher.message().await.topic.unwrap().as_str(), format!("will/{id}"));
    }
    // A clean start ends the session that the will belongs to.
    drop(open(&gateway, with_will("anew", 100, 100)).await);
    let (anew, _) = open(&gateway, Connect { clean_start: true, ..with_will("anew", 100, 100) }).await;
    assert_eq!(watcher.message().await.topic.unwrap().as_str(), "will/anew");
    watcher.assert_quiet().await;
    leave(anew).await;
    leave(client).await;
    // One that is due while the gateway is down.
    let (client, _) = open(&gateway, with_will("down", 1, 100)).await;
    leave(watcher).await;
    let dir = gateway.stop().await;
    drop(client);
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let gateway = Gateway::on(dir, |_| {}, |_| {}).await;
    let topic = |gateway: &Gateway| {
        let head = gateway.log.head().0;
        let wills = (1..head).filter(|offset| is_will_of_down(gateway, *offset));
        wills.count()
    };
    gateway.until("the will is published", |gateway| topic(gateway) > 0).await;
    let gateway = restart(gateway).await;
    assert_eq!(topic(&gateway), 1, "published once");
}

fn is_will_of_down(gateway: &Gateway, offset: u64) -> bool {
    let mut reader = gateway.log.reader().unwrap();
    let fetched = reader.read(millwright_broker::log::Offset(offset), Default::default()).unwrap();
    fetched.messages.first().is_some_and(|it| it.message.topic.as_str() == "will/down")
}

// A session belongs to the user who began it.
#[tokio::test(flavor = "multi_thread")]
async fn another_user_does_not_get_the_session() {
    let gateway = Gateway::start().await;
    let user = |name: &str| Connect { username: Some(name.into()), ..lasting(Version::V311, "shared") };
    let (mut client, _) = open(&gateway, user("anna")).await;
    client.subscribe("secret", QoS::AtLeastOnce).await;
    leave(client).await;
    let mut publisher = Client::connect(gateway.addr(), Version::V311, "p").await;
    publisher.publish("secret", QoS::AtLeastOnce, b"x").await;
    let (mut client, connack) = open(&gateway, user("otto")).await;
    assert!(!connack.session_present);
    client.assert_quiet().await;
}

// A slow subscriber with a session loses nothing and keeps nothing in memory: it takes what it can, goes away in between,
// and has had every message at least once and in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_session_loses_nothing() {
    let gateway = Gateway::start().await;
    let receive_max = Property::ReceiveMaximum(5);
    let slow = || {
        let properties = vec![receive_max.clone(), Property::SessionExpiryInterval(3_600)];
        Connect { properties, ..lasting(Version::V5, "slow") }
    };
    let (mut client, _) = open(&gateway, slow()).await;
    client.subscribe("t", QoS::AtLeastOnce).await;
    let publishing = {
        let addr = gateway.addr();
        tokio::spawn(async move {
            let mut publisher = Client::connect(addr, Version::V311, "p").await;
            for number in 0..500 {
                publisher.publish("t", QoS::AtLeastOnce, number.to_string().as_bytes()).await;
            }
        })
    };
    let mut next = 0;
    while next < 500 {
        for _ in 0..37 {
            let got = client.message().await;
            let number: u32 = payload(&got).parse().unwrap();
            assert!(number <= next, "{next} was skipped");
            next = next.max(number + 1);
            if next == 500 {
                break;
            }
        }
        drop(client);
        client = open(&gateway, slow()).await.0;
    }
    publishing.await.unwrap();
}

// A session whose messages retention had to drop is told how many they were, and goes on with what is there.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_lost_messages_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let small = |config: &mut millwright_broker::log::LogConfig| {
        config.quota_bytes = millwright_broker::log::QUOTA_BYTES_MIN;
        config.limits.partition_rows_max = 20;
    };
    let gateway = Gateway::on(dir, |_| {}, small).await;
    let (mut client, _) = open(&gateway, lasting(Version::V5, "away")).await;
    client.subscribe("t", QoS::AtLeastOnce).await;
    leave(client).await;
    let mut publisher = Client::connect(gateway.addr(), Version::V5, "p").await;
    let mut sent = 0_u64;
    // An absent session does not hold publishers back.
    while gateway.log.oldest().0 < 50 {
        publisher.publish("t", QoS::AtLeastOnce, &[7; 60_000]).await;
        sent += 1;
        assert!(sent < 10_000, "nothing was ever dropped");
    }
    let oldest = gateway.log.oldest().0;
    let (mut client, connack) = open(&gateway, lasting(Version::V5, "away")).await;
    assert!(connack.session_present);
    let told = connack.properties.iter().find_map(|property| match property {
        Property::ReasonString(text) => Some(text.as_str().to_owned()),
        _ => None,
    });
    assert!(told.unwrap().contains(&format!("{} messages", oldest - 1)));
    assert_eq!(gateway.broker.stats().lost, oldest - 1);
    for _ in oldest..=sent {
        client.message().await;
    }
    client.assert_quiet().await;
}

// While the log is full, clients with sessions still come, subscribe, get messages at QoS 2 and go; only publishers wait.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_go_on_while_the_log_is_full() {
    let full = |config: &mut millwright_broker::log::LogConfig| {
        config.quota_bytes = millwright_broker::log::QUOTA_BYTES_MIN;
    };
    let gateway = Gateway::on(tempfile::tempdir().unwrap(), |_| {}, full).await;
    let _cursor = gateway.log.cursor("consumer").unwrap();
    let (mut client, _) = open(&gateway, lasting(Version::V5, "s")).await;
    client.subscribe("t", QoS::ExactlyOnce).await;
    leave(client).await;
    let mut publisher = Client::connect(gateway.addr(), Version::V311, "p").await;
    publisher.publish("t", QoS::ExactlyOnce, b"first").await;
    let mut filler = Client::connect(gateway.addr(), Version::V311, "f").await;
    let filling = tokio::spawn(async move {
        loop {
            let packet_id = Some(filler.packet_id());
            let message = Publish { packet_id, ..publish("fill", QoS::AtLeastOnce, &[7; 60_000]) };
            // Blocks when the broker does not read any more.
            filler.send(&Packet::Publish(message)).await;
        }
    });
    gateway.until("the log is full", |gateway| gateway.log.stats().full.is_some()).await;
    let mut client = resume(&gateway, Version::V5, "s").await;
    assert_eq!(payload(&client.message().await), "first");
    client.subscribe("other", QoS::AtLeastOnce).await;
    client.assert_quiet().await;
    leave(client).await;
    let mut client = resume(&gateway, Version::V5, "s").await;
    client.assert_quiet().await;
    filling.abort();
}

/// Every message of `topic` that comes until the client is quiet, acknowledged.
async fn drain(client: &mut Client) -> Vec<String> {
    client.send(&Packet::PingReq).await;
    let mut got = Vec::new();
    loop {
        match client.recv().await {
            Packet::Publish(publish) => {
                got.push(payload(&publish).to_owned());
                if let Some(packet_id) = publish.packet_id {
                    let ack = Ack::new(packet_id, Reason::Success);
                    let qos1 = publish.qos == QoS::AtLeastOnce;
                    client.send(&if qos1 { Packet::PubAck(ack) } else { Packet::PubRec(ack) }).await;
                }
            }
            Packet::PubRel(ack) => client.send(&Packet::PubComp(Ack::new(ack.packet_id, Reason::Success))).await,
            Packet::PingResp => return got,
            other => panic!("{other:?}"),
        }
    }
}

// Each message of a group goes to one member, at every QoS, and all members get their share; another subscription of the
// same client is apart from it. [MQTT-4.8.2-1]
#[tokio::test(flavor = "multi_thread")]
async fn a_group_shares_its_messages() {
    let gateway = Gateway::start().await;
    let mut members = Vec::new();
    for number in 0..3 {
        let mut member = Client::connect(gateway.addr(), BOTH[number % 2], &format!("m{number}")).await;
        assert_eq!(member.subscribe("$share/g/t/+", QoS::ExactlyOnce).await, Reason::GrantedQoS2);
        members.push(member);
    }
    members[0].subscribe("t/1", QoS::AtLeastOnce).await;
    let mut publisher = Client::connect(gateway.addr(), Version::V5, "p").await;
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let topic = format!("t/{}", qos as u8);
        for number in 0..30 {
            publisher.publish(&topic, qos, number.to_string().as_bytes()).await;
        }
        publisher.assert_quiet().await;
        let (mut all, expected) = (Vec::new(), if qos == QoS::AtLeastOnce { 60 } else { 30 });
        let mut shares = [0; 3];
        while all.len() < expected {
            for (share, member) in shares.iter_mut().zip(&mut members) {
                let got = drain(member).await;
                *share += got.len();
                all.extend(got);
            }
        }
        assert!(shares.iter().all(|share| *share >= 5), "{qos:?}: {shares:?}");
        all.sort_by_key(|payload| payload.parse::<u32>().unwrap());
        all.dedup();
        assert_eq!(all.len(), 30, "{qos:?}");
    }
}

// What a member took and did not acknowledge goes to another when its session ends. [MQTT-4.8.2-4]
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_leaves_gives_back() {
    let gateway = Gateway::start().await;
    let mut silent = Client::connect(gateway.addr(), Version::V5, "silent").await;
    silent.acknowledges = false;
    silent.subscribe("$share/g/t", QoS::AtLeastOnce).await;
    let mut publisher = Client::connect(gateway.addr(), Version::V5, "p").await;
    for number in 0..10 {
        publisher.publish("t", QoS::AtLeastOnce, number.to_string().as_bytes()).await;
    }
    for _ in 0..10 {
        silent.message().await;
    }
    let mut other = Client::connect(gateway.addr(), Version::V5, "other").await;
    other.subscribe("$share/g/t", QoS::AtLeastOnce).await;
    other.assert_quiet().await;
    drop(silent);
    for number in 0..10 {
        assert_eq!(payload(&other.message().await), number.to_string());
    }
    other.assert_quiet().await;
}

// The messages of a group wait while all its members are away, over a restart too, and nobody else's messages come twice
// when they are read again for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_group_waits_for_its_members() {
    let mut gateway = Gateway::start().await;
    for id in ["one", "two"] {
        let (mut client, _) = open(&gateway, lasting(Version::V5, id)).await;
        client.subscribe("$share/g/t", QoS::AtLeastOnce).await;
        client.subscribe("own", QoS::AtLeastOnce).await;
        leave(client).await;
    }
    for round in 0..3 {
        let mut publisher = Client::connect(gateway.addr(), Version::V5, "p").await;
        for number in 0..20 {
            publisher.publish("t", QoS::AtLeastOnce, format!("{round} {number}").as_bytes()).await;
        }
        publisher.publish("own", QoS::AtLeastOnce, b"own").await;
        if round > 0 {
            gateway = restart(gateway).await;
        }
        let mut one = resume(&gateway, Version::V5, "one").await;
        let mut two = resume(&gateway, Version::V5, "two").await;
        let mut all = Vec::new();
        while all.len() < 22 {
            all.extend(drain(&mut one).await);
            all.extend(drain(&mut two).await);
        }
        one.assert_quiet().await;
        two.assert_quiet().await;
        assert_eq!(all.iter().filter(|payload| *payload == "own").count(), 2);
        all.retain(|payload| payload != "own");
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 20, "round {round}: {all:?}");
        leave(one).await;
        leave(two).await;
    }
    // Without members and sessions the group is over.
    for id in ["one", "two"] {
        leave(Client::connect(gateway.addr(), Version::V5, id).await).await;
    }
    let mut publisher = Client::connect(gateway.addr(), Version::V5, "p").await;
    publisher.publish("t", QoS::AtLeastOnce, b"nobody").await;
    let mut late = Client::connect(gateway.addr(), Version::V5, "late").await;
    late.subscribe("$share/g/t", QoS::AtLeastOnce).await;
    late.assert_quiet().await;
}
