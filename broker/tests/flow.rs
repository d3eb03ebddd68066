//! Many messages: nothing acknowledged is lost, nothing grows, order is kept.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::Duration;

use bytes::BytesMut;
use common::{Client, Gateway, options, publish};
use millwright_broker::codec::{Packet, PacketId, Subscribe, SubscribeFilter, Text, Version, encode};
use millwright_broker::log::WhenFull;
use millwright_broker::message::QoS;

/// Publishes `count` numbered messages with `in_flight` unacknowledged at a time; acknowledgements come in order.
async fn publish_numbers(client: &mut Client, topic: &str, count: u32, in_flight: u32) {
    let id = |number: u32| PacketId::new((number % 60_000) as u16 + 1).unwrap();
    let mut sent = 0;
    for acknowledged in 0..count {
        let mut out = BytesMut::new();
        while sent < count && sent < acknowledged + in_flight {
            let mut message = publish(topic, QoS::AtLeastOnce, &sent.to_be_bytes());
            message.packet_id = Some(id(sent));
            encode(&Packet::Publish(message), Version::V311, &mut out);
            sent += 1;
        }
        client.send_bytes(&out).await;
        match client.recv().await {
            Packet::PubAck(ack) => assert_eq!(ack.packet_id, id(acknowledged), "acknowledged out of order"),
            other => panic!("{other:?} instead of PUBACK"),
        }
    }
}

// A slow QoS 1 subscriber gets every one of 30,000 messages, in order, long after the publisher is done.
#[tokio::test(flavor = "multi_thread")]
async fn slow_subscriber_gets_everything() {
    const COUNT: u32 = 30_000;
    let gateway = Gateway::on(
        tempfile::tempdir().unwrap(),
        |config| config.limits.outbound_bytes_max = 32 * 1024,
        // The tail is far too short to hold them: most are read from disk.
        |config| config.limits.tail_rows_max = 1_000,
    )
    .await;
    let mut subscriber = Client::connect(gateway.addr(), Version::V311, "slow").await;
    subscriber.subscribe("n/#", QoS::AtLeastOnce).await;
    let mut publisher = Client::connect(gateway.addr(), Version::V311, "p").await;
    publish_numbers(&mut publisher, "n/1", COUNT, 500).await;
    for expected in 0..COUNT {
        let got = subscriber.message().await;
        assert_eq!((got.payload.as_ref(), got.dup), (&expected.to_be_bytes()[..], false));
        if expected % 1_000 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    subscriber.assert_quiet().await;
    assert_eq!(gateway.broker.stats().lost, 0);
}

// A subscriber that never acknowledges gets one window of messages and holds up nobody.
#[tokio::test(flavor = "multi_thread")]
async fn window_of_a_subscriber_that_never_acknowledges() {
    let gateway = Gateway::with(|config| config.limits.inflight_max = 10).await;
    let mut stuck = Client::connect(gateway.addr(), Version::V5, "stuck").await;
    stuck.acknowledges = false;
    stuck.subscribe("n", QoS::AtLeastOnce).await;
    let mut other = Client::connect(gateway.addr(), Version::V5, "other").await;
    other.subscribe("n", QoS::AtLeastOnce).await;
    let mut publisher = Client::connect(gateway.addr(), Version::V311, "p").await;
    publish_numbers(&mut publisher, "n", 100, 20).await;
    for expected in 0..100_u32 {
        assert_eq!(other.message().await.payload.as_ref(), expected.to_be_bytes());
    }
    for expected in 0..10_u32 {
        assert_eq!(stuck.message().await.payload.as_ref(), expected.to_be_bytes());
    }
    stuck.assert_quiet().await;
}

// Several publishers and subscribers at once: each subscriber gets each publisher's messages, complete and in order.
#[tokio::test(flavor = "multi_thread")]
async fn many_to_many() {
    const PUBLISHERS: usize = 4;
    const COUNT: u32 = 2_000;
    let gateway = Gateway::start().await;
    let mut tasks = Vec::new();
    for subscriber in 0..3 {
        let mut client = Client::connect(gateway.addr(), Version::V5, &format!("s{subscriber}")).await;
        client.subscribe("n/+", QoS::AtLeastOnce).await;
        tasks.push(tokio::spawn(async move {
            let mut next = [0_u32; PUBLISHERS];
            for _ in 0..PUBLISHERS as u32 * COUNT {
                let got = client.message().await;
                let publisher: usize = got.topic.unwrap().as_str()[2..].parse().unwrap();
                assert_eq!(got.payload.as_ref(), next[publisher].to_be_bytes());
                next[publisher] += 1;
            }
        }));
    }
    for publisher in 0..PUBLISHERS {
        let mut client = Client::connect(gateway.addr(), Version::V311, &format!("p{publisher}")).await;
        tasks.push(tokio::spawn(async move {
            publish_numbers(&mut client, &format!("n/{publisher}"), COUNT, 50).await;
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}

// Every QoS 0 message is delivered or counted, for a subscriber that reads fast, and for one that does not read.
#[tokio::test(flavor = "multi_thread")]
async fn live_messages_are_delivered_or_counted() {
    const COUNT: u64 = 20_000;
    let gateway = Gateway::with(|config| config.limits.outbound_bytes_max = 64 * 1024).await;
    let mut fast = Client::connect(gateway.addr(), Version::V311, "fast").await;
    fast.subscribe("v/+", QoS::AtMostOnce).await;
    let mut silent = Client::connect(gateway.addr(), Version::V311, "silent").await;
    silent.subscribe("v/#", QoS::AtLeastOnce).await;
    let reading = tokio::spawn(async move {
        let (mut got, mut last) = (0_u64, None);
        loop {
            let number = u32::from_be_bytes(fast.message().await.payload[..4].try_into().unwrap());
            if number == u32::MAX {
                return got;
            }
            assert!(last.is_none_or(|last| last < number), "out of order");
            last = Some(number);
            got += 1;
        }
    });
    let mut publisher = Client::connect(gateway.addr(), Version::V311, "p").await;
    for number in 0..COUNT as u32 {
        let mut payload = number.to_be_bytes().to_vec();
        payload.resize(1_000, 0);
        publisher.publish("v/1", QoS::AtMostOnce, &payload).await;
    }
    let accounted = |gateway: &Gateway| {
        let stats = gateway.broker.stats();
        stats.delivered + stats.skipped + stats.fan_out_dropped
    };
    gateway.until("all are accounted for", |gateway| accounted(gateway) == 2 * COUNT).await;
    while !reading.is_finished() {
        publisher.publish("v/1", QoS::AtMostOnce, &[255; 4]).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let got = reading.await.unwrap();
    assert!(gateway.broker.stats().delivered >= got);
    assert!(gateway.broker.stats().skipped > 0, "the silent subscriber was to skip");
}

// One publisher's QoS 0 messages come to each of 100 subscribers that read, complete and in order.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_subscribers_get_everything() {
    // Together less than the output of a connection and live fan-out hold: complete however busy the machine is.
    const COUNT: u32 = 1_000;
    let gateway = Gateway::start().await;
    let mut tasks = Vec::new();
    for subscriber in 0..100 {
        let mut client = Client::connect(gateway.addr(), Version::V311, &format!("s{subscriber}")).await;
        client.subscribe("fan/+", QoS::AtMostOnce).await;
        tasks.push(tokio::spawn(async move {
            for expected in 0..COUNT {
                assert_eq!(client.message().await.payload.as_ref(), expected.to_be_bytes());
            }
            client.assert_quiet().await;
        }));
    }
    let mut publisher = Client::connect(gateway.addr(), Version::V311, "p").await;
    for number in 0..COUNT {
        publisher.publish("fan/out", QoS::AtMostOnce, &number.to_be_bytes()).await;
    }
    for task in tasks {
        task.await.unwrap();
    }
    let stats = gateway.broker.stats();
    assert_eq!((stats.delivered, stats.skipped, stats.fan_out_dropped), (100 * u64::from(COUNT), 0, 0));
}

// A QoS 0 subscriber that does not read holds nobody back: 40 MB pass it, of which it costs no more memory than its output
// and what the system's sockets buffer; the rest is skipped and counted.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_subscriber_neither_holds_nor_grows() {
    const COUNT: u64 = 4_000;
    const BYTES: usize = 10_000;
    let gateway = Gateway::start().await;
    let mut silent = Client::connect(gateway.addr(), Version::V311, "silent").await;
    silent.subscribe("v/#", QoS::AtMostOnce).await;
    let mut publisher = Client::connect(gateway.addr(), Version::V311, "p").await;
    for _ in 0..COUNT {
        publisher.publish("v/1", QoS::AtMostOnce, &[7; BYTES]).await;
    }
    let accounted = |gateway: &Gateway| {
        let stats = gateway.broker.stats();
        stats.delivered + stats.skipped + stats.fan_out_dropped
    };
    gateway.until("all are accounted for", |gateway| accounted(gateway) == COUNT).await;
    // Linux lets a socket's two buffers on loopback grow to about 10 MB by default.
    let held_bytes = gateway.broker.stats().delivered as usize * BYTES;
    assert!(held_bytes < 20_000_000, "{held_bytes} bytes wait for a client that does not read");
    gateway.assert_serves().await;
}

// A client gets what it publishes right after its SUBSCRIBE, in the same segment.
#[tokio::test]
async fn published_right_after_subscribing() {
    let gateway = Gateway::start().await;
    let mut client = Client::connect(gateway.addr(), Version::V311, "c").await;
    let mut out = BytesMut::new();
    for number in 1..=20 {
        let filters = vec![SubscribeFilter {
            filter: Text::from(format!("t/{number}").as_str()),
            options: options(QoS::AtMostOnce),
        }];
        let packet_id = PacketId::new(number).unwrap();
        encode(&Packet::Subscribe(Subscribe { packet_id, properties: Vec::new(), filters }), Version::V311, &mut out);
        encode(&Packet::Publish(publish(&format!("t/{number}"), QoS::AtMostOnce, b"x")), Version::V311, &mut out);
    }
    client.send_bytes(&out).await;
    let (mut acknowledged, mut got) = (0, 0);
    while (acknowledged, got) != (20, 20) {
        match client.recv().await {
            Packet::SubAck(_) => acknowledged += 1,
            Packet::Publish(_) => got += 1,
            other => panic!("{other:?}"),
        }
        assert!(got <= acknowledged, "a message before the SUBACK of its filter");
    }
}

// While the log is full, publishes wait unacknowledged, the client's pings are answered, and everything goes on when a
// cursor frees the log.
#[tokio::test(flavor = "multi_thread")]
async fn full_log_holds_acknowledgements() {
    let gateway = Gateway::on(
        tempfile::tempdir().unwrap(),
        |_| {},
        |config| {
            config.quota_bytes = millwright_broker::log::QUOTA_BYTES_MIN;
            config.when_full = WhenFull::Refuse;
        },
    )
    .await;
    let cursor = gateway.log.cursor("consumer").unwrap();
    let mut publisher = Client::connect(gateway.addr(), Version::V311, "p").await;
    let mut sent = 0_u32;
    let mut acknowledged = 0_u32;
    // One message at a time until one is not acknowledged.
    loop {
        let mut message = publish("fill", QoS::AtLeastOnce, &[7; 60_000]);
        message.packet_id = Some(publisher.packet_id());
        publisher.send(&Packet::Publish(message)).await;
        sent += 1;
        let acked = tokio::time::timeout(Duration::from_secs(1), publisher.recv()).await;
        match acked {
            Ok(Packet::PubAck(_)) => acknowledged += 1,
            Ok(other) => panic!("{other:?} instead of PUBACK"),
            Err(_) if gateway.log.stats().full.is_some() => break,
            Err(_) => panic!("no PUBACK though the log is not full"),
        }
        assert!(sent < 10_000, "the log never filled");
    }
    publisher.assert_quiet().await;
    let mut other = Client::connect(gateway.addr(), Version::V5, "other").await;
    other.subscribe("live", QoS::AtMostOnce).await;
    other.publish("live", QoS::AtMostOnce, b"x").await;
    other.message().await;
    cursor.advance(gateway.log.head());
    assert!(matches!(publisher.recv().await, Packet::PubAck(_)));
    assert_eq!(gateway.log.head().0, u64::from(acknowledged) + 2);
}
