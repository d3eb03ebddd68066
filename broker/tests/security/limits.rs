//! Limits: what is too large, too deep, too many or too fast is refused, and nobody else notices.

use std::time::{Duration, Instant};

use millwright_broker::codec::{Connect, Packet, Property, Reason, Text, Version, Will};
use millwright_broker::message::QoS;
use millwright_broker::topic::TopicName;

use crate::common::{Client, Gateway, connect, publish};

// Topics and filters beyond the configured length and depth are refused, in publishes, subscriptions and wills.
#[tokio::test(flavor = "multi_thread")]
async fn long_and_deep_topics() {
    let gateway = Gateway::with(|config| {
        config.limits.topic_bytes_max = 20;
        config.limits.topic_levels_max = 3;
    })
    .await;
    let long = "a".repeat(21);
    for topic in [long.as_str(), "a/b/c/d"] {
        let mut client = Client::connect(gateway.addr(), Version::V5, "c").await;
        assert_eq!(client.publish(topic, QoS::AtLeastOnce, b"").await, Reason::TopicNameInvalid);
        assert_eq!(client.subscribe(topic, QoS::AtMostOnce).await, Reason::TopicFilterInvalid);
        client.publish(topic, QoS::AtMostOnce, b"").await;
        assert_eq!(client.closed().await, Some(Reason::TopicNameInvalid));
        let topic = TopicName::parse(topic).unwrap();
        let will = Will { topic, payload: "".into(), qos: QoS::AtMostOnce, retain: false, properties: Vec::new() };
        let wish = Connect { will: Some(will), ..connect(Version::V5, "w") };
        assert_eq!(Client::connect_with(gateway.addr(), wish).await.1.reason, Reason::TopicNameInvalid);
    }
    let mut client = Client::connect(gateway.addr(), Version::V5, "c").await;
    assert_eq!(client.publish(&"a".repeat(20), QoS::AtLeastOnce, b"").await, Reason::Success);
    assert_eq!(client.publish("a/b/c", QoS::AtLeastOnce, b"").await, Reason::Success);
    gateway.assert_serves().await;
}

// Packets, client identifiers and CONNECTs beyond their limits end in a refusal that says which; the largest that fits is taken.
#[tokio::test(flavor = "multi_thread")]
async fn oversized_everything() {
    const PACKET: usize = 10_000;
    let gateway = Gateway::with(|config| config.limits.packet_bytes_max = PACKET).await;
    for (version, told) in [(Version::V311, None), (Version::V5, Some(Reason::PacketTooLarge))] {
        // 1 + 2 bytes of fixed header, 2 + 1 of the topic, 2 of the identifier, 1 of properties in MQTT 5.
        let fits = PACKET - 8 - usize::from(version == Version::V5);
        let mut client = Client::connect(gateway.addr(), version, "c").await;
        assert_eq!(client.publish("t", QoS::AtLeastOnce, &vec![0; fits]).await, Reason::Success);
        client.send(&Packet::Publish(publish("t", QoS::AtMostOnce, &vec![0; PACKET]))).await;
        assert_eq!(client.closed().await, told);
        let wish = Connect { client_id: Text::from("x".repeat(513).as_str()), ..connect(version, "") };
        let (_, connack) = Client::connect_with(gateway.addr(), wish).await;
        assert_eq!(connack.reason, Reason::ClientIdentifierNotValid);
        // A CONNECT is smaller, whatever the limit of other packets is.
        let wish = Connect {
            username: Some(Text::from("u")),
            password: Some(vec![0; 40_000].into()),
            ..connect(version, "c")
        };
        let mut client = Client::open(gateway.addr(), version).await;
        client.send(&Packet::Connect(Box::new(wish))).await;
        client.closed().await;
    }
    let many = (0..2_000).map(|_| Property::UserProperty("k".into(), "v".into())).collect();
    let wish = Connect { properties: many, ..connect(Version::V5, "c") };
    let mut client = Client::open(gateway.addr(), Version::V5).await;
    client.send(&Packet::Connect(Box::new(wish))).await;
    client.closed().await;
    gateway.assert_serves().await;
}

// All clients together have only so many subscriptions; when some go, others may have them.
#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_in_total() {
    let gateway = Gateway::with(|config| config.limits.subscriptions_total_max = 10).await;
    let mut first = Client::connect(gateway.addr(), Version::V5, "first").await;
    for number in 0..10 {
        assert_eq!(first.subscribe(&format!("t/{number}"), QoS::AtMostOnce).await, Reason::Success);
    }
    let mut second = Client::connect(gateway.addr(), Version::V5, "second").await;
    assert_eq!(second.subscribe("t", QoS::AtMostOnce).await, Reason::QuotaExceeded);
    // One that is there may be changed.
    assert_eq!(first.subscribe("t/1", QoS::AtLeastOnce).await, Reason::GrantedQoS1);
    drop(first);
    gateway.until("the first is gone", |gateway| gateway.broker.stats().connections == 1).await;
    assert_eq!(second.subscribe("t", QoS::AtMostOnce).await, Reason::Success);
    gateway.assert_serves().await;
}

// One network does not take all places.
#[tokio::test(flavor = "multi_thread")]
async fn connections_of_one_network() {
    let gateway = Gateway::with(|config| config.limits.connections_per_network_max = 3).await;
    let mut served = Vec::new();
    for number in 0..3 {
        served.push(Client::connect(gateway.addr(), Version::V5, &format!("c-{number}")).await);
    }
    assert_eq!(Client::open(gateway.addr(), Version::V5).await.closed().await, None);
    assert_eq!(gateway.broker.stats().turned_away, 1);
    served.pop();
    gateway.until("one is gone", |gateway| gateway.broker.stats().connections == 2).await;
    served.push(Client::connect(gateway.addr(), Version::V5, "again").await);
    for client in &mut served {
        client.assert_quiet().await;
    }
}

// A client that publishes faster than it may is slowed down, not cut off, and loses nothing; others are not slowed.
#[tokio::test(flavor = "multi_thread")]
async fn publishing_too_fast() {
    let gateway = Gateway::with(|config| config.limits.publishes_per_s_max = 200).await;
    let mut subscriber = Client::connect(gateway.addr(), Version::V5, "s").await;
    subscriber.subscribe("fast", QoS::AtMostOnce).await;
    let mut fast = Client::connect(gateway.addr(), Version::V5, "fast").await;
    let start = Instant::now();
    for _ in 0..1_000 {
        fast.publish("fast", QoS::AtMostOnce, b"x").await;
    }
    gateway.assert_serves().await;
    for _ in 0..1_000 {
        subscriber.message().await;
    }
    // A burst of 400, then 200 a second; what is left of a read, 256 messages at most, is handed on at once.
    assert!(start.elapsed() >= Duration::from_millis(1_700), "{:?}", start.elapsed());
    fast.assert_quiet().await;
}

// A subscriber that never reads, over TLS or not, holds up neither publishers nor other subscribers, and is let go.
#[tokio::test(flavor = "multi_thread")]
async fn slow_readers() {
    let gateway = Gateway::with(|config| config.limits.outbound_bytes_max = 64 * 1024).await;
    let mut slow = Vec::new();
    for (number, qos) in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce].into_iter().enumerate() {
        let mut client = Client::connect(gateway.addr(), Version::V5, &format!("slow-{number}")).await;
        client.subscribe("flood", qos).await;
        slow.push(client);
    }
    let mut reader = Client::connect(gateway.addr(), Version::V5, "reader").await;
    reader.subscribe("flood", QoS::AtLeastOnce).await;
    let mut publisher = Client::connect(gateway.addr(), Version::V5, "p").await;
    // More than sockets buffer.
    for number in 0..600_u32 {
        let mut payload = vec![0; 50_000];
        payload[..4].copy_from_slice(&number.to_be_bytes());
        assert_eq!(publisher.publish("flood", QoS::AtLeastOnce, &payload).await, Reason::Success);
        assert_eq!(reader.message().await.payload[..4], number.to_be_bytes());
    }
    gateway.assert_serves().await;
    // Those that read the log have missed nothing.
    for number in 0..600_u32 {
        assert_eq!(slow[1].message().await.payload[..4], number.to_be_bytes());
    }
}
