//! What a hostile or broken client can do: end its own connection, nothing else.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::{Client, Gateway, connect};
use millwright_broker::codec::{
    ConnAck, Connect, PROPERTIES_PER_PACKET_MAX, Packet, PacketId, Property, Reason, Text, UnsubAck, Version,
};
use millwright_broker::message::QoS;
use tokio::io::AsyncReadExt;

const BOTH: [Version; 2] = [Version::V311, Version::V5];

// A PUBLISH to a topic that begins with a non-ASCII character is delivered.
#[tokio::test(flavor = "multi_thread")]
async fn non_ascii_topic() {
    let gateway = Gateway::start().await;
    let mut subscriber = Client::connect(gateway.addr(), Version::V311, "s").await;
    subscriber.subscribe("#", QoS::AtMostOnce).await;
    let mut publisher = Client::connect(gateway.addr(), Version::V311, "p").await;
    for (topic, qos) in [("éa", QoS::AtMostOnce), ("€/b", QoS::AtLeastOnce), ("日本/c", QoS::ExactlyOnce)] {
        publisher.publish(topic, qos, b"x").await;
        assert_eq!(subscriber.message().await.topic.unwrap().as_str(), topic);
    }
    gateway.assert_serves().await;
}

// A client identifier with characters of topics may connect twice; the first connection is replaced.
#[tokio::test(flavor = "multi_thread")]
async fn strange_client_identifier_twice() {
    let gateway = Gateway::start().await;
    for version in BOTH {
        let mut first = Client::connect(gateway.addr(), version, "a+b$c#d/e").await;
        first.subscribe("#", QoS::AtMostOnce).await;
        let mut second = Client::connect(gateway.addr(), version, "a+b$c#d/e").await;
        second.subscribe("#", QoS::AtMostOnce).await;
        first.closed().await;
        gateway.assert_serves().await;
    }
    assert!(gateway.broker.stats().takeovers >= 2);
}

// A session that is not clean, with a shared subscription and an unacknowledged message, may disconnect and come back.
#[tokio::test(flavor = "multi_thread")]
async fn shared_subscription_with_unacked_message() {
    let gateway = Gateway::start().await;
    for version in BOTH {
        let wish = Connect { clean_start: false, ..connect(version, "s") };
        let (mut subscriber, _) = Client::connect_with(gateway.addr(), wish.clone()).await;
        subscriber.acknowledges = false;
        subscriber.subscribe("$share/group/a", QoS::AtLeastOnce).await;
        subscriber.subscribe("a", QoS::AtLeastOnce).await;
        let mut publisher = Client::connect(gateway.addr(), version, "p").await;
        publisher.publish("a", QoS::AtLeastOnce, b"x").await;
        subscriber.message().await;
        subscriber.message().await;
        drop(subscriber);
        let (mut subscriber, connack) = Client::connect_with(gateway.addr(), wish).await;
        for _ in 0..if connack.session_present { 2 } else { 0 } {
            assert!(subscriber.message().await.dup);
        }
        subscriber.subscribe("$share/group/a", QoS::AtLeastOnce).await;
        gateway.assert_serves().await;
    }
}

// A slow subscriber that is taken over and then drained leaves the broker alone.
#[tokio::test(flavor = "multi_thread")]
async fn slow_subscriber_taken_over_and_drained() {
    let gateway = Gateway::with(|config| config.limits.outbound_bytes_max = 16 * 1024).await;
    let mut slow = Client::connect(gateway.addr(), Version::V311, "slow").await;
    slow.subscribe("flood/#", QoS::AtMostOnce).await;
    let mut publisher = Client::connect(gateway.addr(), Version::V311, "p").await;
    let mut sent = 0;
    while gateway.broker.stats().skipped < 1_000 {
        publisher.publish("flood/a", QoS::AtMostOnce, &[0; 4_000]).await;
        sent += 1;
        assert!(sent < 1_000_000, "nothing was skipped");
    }
    let mut new = Client::connect(gateway.addr(), Version::V311, "slow").await;
    new.subscribe("flood/#", QoS::AtMostOnce).await;
    let mut drained = Vec::new();
    // The old connection ends; what was under way may still come.
    let _ = slow.stream.read_to_end(&mut drained).await;
    gateway.assert_serves().await;
}

// A client that sends what only a server sends is disconnected, and told why if it can be.
#[tokio::test(flavor = "multi_thread")]
async fn packets_of_a_server() {
    let gateway = Gateway::start().await;
    let packet_id = PacketId::new(1).unwrap();
    for version in BOTH {
        for packet in [
            Packet::ConnAck(ConnAck { session_present: false, reason: Reason::Success, properties: Vec::new() }),
            Packet::UnsubAck(UnsubAck { packet_id, properties: Vec::new(), reasons: vec![Reason::Success] }),
            Packet::PingResp,
            Packet::Connect(Box::new(connect(version, "again"))),
        ] {
            // In place of CONNECT, and after it.
            let mut client = Client::open(gateway.addr(), version).await;
            if !matches!(packet, Packet::Connect(_)) {
                client.send(&packet).await;
                assert_eq!(client.closed().await, None);
            }
            let mut client = Client::connect(gateway.addr(), version, "c").await;
            client.send(&packet).await;
            assert_eq!(client.closed().await, (version == Version::V5).then_some(Reason::ProtocolError));
        }
    }
    gateway.assert_serves().await;
}

// A silent client and one that sends half a CONNECT are closed at the deadline, and others are served meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn silence_and_half_a_connect() {
    let gateway = Gateway::with(|config| config.limits.connect_deadline = Duration::from_millis(300)).await;
    let mut silent = Client::open(gateway.addr(), Version::V311).await;
    let mut half = Client::open(gateway.addr(), Version::V311).await;
    half.send_bytes(&[0x10, 20, 0, 4, b'M', b'Q']).await;
    gateway.assert_serves().await;
    assert_eq!((silent.closed().await, half.closed().await), (None, None));
    gateway.until("both are gone", |gateway| gateway.broker.stats().connections == 0).await;
}

// A huge remaining length is refused before anything is buffered, and so is what is no length at all.
#[tokio::test(flavor = "multi_thread")]
async fn huge_lengths() {
    let gateway = Gateway::start().await;
    for bytes in [&[0x10, 0xFF, 0xFF, 0xFF, 0x7F][..], &[0x10, 0xFF, 0xFF, 0xFF, 0xFF], &[0xFF; 100], &[0; 100]] {
        let mut client = Client::open(gateway.addr(), Version::V311).await;
        client.send_bytes(bytes).await;
        assert_eq!(client.closed().await, None);
    }
    let mut client = Client::connect(gateway.addr(), Version::V5, "c").await;
    client.send_bytes(&[0x30, 0xFF, 0xFF, 0xFF, 0x7F]).await;
    assert_eq!(client.closed().await, Some(Reason::PacketTooLarge));
    gateway.assert_serves().await;
}

// Lists are bounded: more filters or properties in a packet than a client has a use for are refused.
#[tokio::test(flavor = "multi_thread")]
async fn endless_lists() {
    let gateway = Gateway::start().await;
    let user = Property::UserProperty(Text::from("k"), Text::from("v"));
    let wish = Connect { properties: vec![user; PROPERTIES_PER_PACKET_MAX + 1], ..connect(Version::V5, "c") };
    let (mut client, connack) = Client::connect_with(gateway.addr(), wish).await;
    assert_eq!(connack.reason, Reason::QuotaExceeded);
    client.closed().await;
    let gateway = Gateway::with(|config| config.limits.subscriptions_max = 2).await;
    let mut client = Client::connect(gateway.addr(), Version::V5, "c").await;
    client.subscribe("a", QoS::AtMostOnce).await;
    client.subscribe("b", QoS::AtMostOnce).await;
    assert_eq!(client.subscribe("c", QoS::AtMostOnce).await, Reason::QuotaExceeded);
    assert_eq!(client.subscribe("b", QoS::AtLeastOnce).await, Reason::GrantedQoS1);
}

// Connections beyond the limit are turned away, and places are given back.
#[tokio::test(flavor = "multi_thread")]
async fn connection_limit() {
    let gateway = Gateway::with(|config| config.limits.connections_max = 2).await;
    let _one = Client::connect(gateway.addr(), Version::V311, "one").await;
    let two = Client::connect(gateway.addr(), Version::V311, "two").await;
    let mut three = Client::open(gateway.addr(), Version::V311).await;
    three.closed().await;
    assert_eq!(gateway.broker.stats().turned_away, 1);
    drop(two);
    gateway.until("a place is free", |gateway| gateway.broker.stats().connections == 1).await;
    Client::connect(gateway.addr(), Version::V311, "three").await;
}

// Silent connections do not keep others out: the oldest makes room.
#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_make_room() {
    let gateway = Gateway::with(|config| config.limits.connecting_max = 2).await;
    let mut silent =
        [Client::open(gateway.addr(), Version::V311).await, Client::open(gateway.addr(), Version::V311).await];
    gateway.until("two are connecting", |gateway| gateway.broker.stats().connections == 2).await;
    let mut served = Vec::new();
    for number in 0..5 {
        served.push(Client::connect(gateway.addr(), Version::V311, &format!("served-{number}")).await);
    }
    assert_eq!(silent[0].closed().await, None);
    assert_eq!(gateway.broker.stats().turned_away, 1);
    silent[1].send(&Packet::Connect(Box::new(connect(Version::V311, "late")))).await;
    assert!(matches!(silent[1].recv().await, Packet::ConnAck(_)));
    for client in &mut served {
        client.assert_quiet().await;
    }
}
