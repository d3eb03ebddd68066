//! The memory that the broker holds for its clients, over real sockets: a budget for all of them together.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::{Client, Gateway, publish};
use millwright_broker::codec::{Packet, Version};
use millwright_broker::log::{Append, WhenFull};
use millwright_broker::message::{Message, QoS};
use millwright_broker::topic::TopicName;

const BUDGET: usize = 4 << 20;
const SHARE: usize = 64 << 10;

fn with_budget(config: &mut millwright_broker::BrokerConfig) {
    config.limits.buffered_bytes_max = BUDGET;
    config.limits.connections_max = 60;
}

/// The most that was held over some time.
async fn most_held(gateway: &Gateway, time: Duration) -> usize {
    let (begun, mut most) = (std::time::Instant::now(), 0);
    while begun.elapsed() < time {
        most = most.max(gateway.broker.stats().buffered_bytes);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    usize::try_from(most).unwrap()
}

// While the log is full, many publishers of large packets are held back at the budget, a share and a packet each, instead of
// at their own limits together; when the log goes on, so do they, and every publish is acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn publishers_share_a_budget() {
    const PUBLISHERS: usize = 40;
    const PACKETS: usize = 10;
    const BYTES: usize = 200_000;
    let gateway = Gateway::on(tempfile::tempdir().unwrap(), with_budget, |config| {
        config.quota_bytes = 32 << 20;
        config.when_full = WhenFull::Refuse;
    })
    .await;
    let cursor = gateway.log.cursor("stands still").unwrap();
    // Filled by the log's owner, so that all that the broker holds is the publishers'.
    let log = gateway.log.clone();
    let filler = tokio::spawn(async move {
        let topic = TopicName::parse("fill").unwrap();
        let (payload, properties) = (vec![1; BYTES].into(), bytes::Bytes::new());
        let message = Message { topic, payload, properties, qos: QoS::AtLeastOnce, retain: false, origin: 0 };
        while log.append(vec![Append { message: message.clone(), log: true, received_us: 1 }]).await.is_ok() {}
    });
    gateway.until("the log to be full", |gateway| gateway.log.stats().full.is_some()).await;
    let publishers: Vec<_> = (0..PUBLISHERS)
        .map(|n| {
            let addr = gateway.addr();
            tokio::spawn(async move {
                let mut client = Client::connect(addr, Version::V311, &format!("p{n}")).await;
                for _ in 0..PACKETS {
                    let mut packet = publish("p", QoS::AtLeastOnce, &vec![2; BYTES]);
                    packet.packet_id = Some(client.packet_id());
                    client.send(&Packet::Publish(packet)).await;
                }
                client
            })
        })
        .collect();
    gateway.until("publishers to be held back", |gateway| gateway.broker.stats().held_back > 0).await;
    let most = most_held(&gateway, Duration::from_secs(1)).await;
    let bound = BUDGET + PUBLISHERS * (SHARE + 2 * BYTES);
    assert!(most > BUDGET && most <= bound, "{most} of {bound}");
    filler.abort();
    let log = gateway.log.clone();
    let keeps_up = tokio::spawn(async move {
        loop {
            cursor.advance(log.head());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    for publisher in publishers {
        let mut client = publisher.await.unwrap();
        for _ in 0..PACKETS {
            assert!(matches!(client.recv().await, Packet::PubAck(_)));
        }
    }
    gateway.until("all to be given back", |gateway| gateway.broker.stats().buffered_bytes < SHARE as u64).await;
    assert_eq!(gateway.broker.stats().held_back, 0);
    keeps_up.abort();
}

// Many subscribers that do not read are given no more than the budget, and a share each; when they read, each gets everything
// in order.
#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_share_a_budget() {
    const READERS: usize = 20;
    const COUNT: u32 = 400;
    const BYTES: usize = 50_000;
    let gateway = Gateway::with(with_budget).await;
    let mut readers = Vec::new();
    for n in 0..READERS {
        let mut reader = Client::connect(gateway.addr(), Version::V311, &format!("r{n}")).await;
        reader.subscribe("n", QoS::AtLeastOnce).await;
        readers.push(reader);
    }
    let mut publisher = Client::connect(gateway.addr(), Version::V311, "p").await;
    for n in 0..COUNT {
        let mut payload = n.to_be_bytes().to_vec();
        payload.resize(BYTES, 0);
        publisher.publish("n", QoS::AtLeastOnce, &payload).await;
    }
    gateway.until("readers to be held back", |gateway| gateway.broker.stats().held_back > 0).await;
    let most = most_held(&gateway, Duration::from_millis(500)).await;
    let bound = BUDGET + READERS * (2 * SHARE + 3 * BYTES);
    assert!(most > BUDGET && most <= bound, "{most} of {bound}");
    for mut reader in readers {
        tokio::spawn(async move {
            for expected in 0..COUNT {
                assert_eq!(reader.message().await.payload[..4], expected.to_be_bytes());
            }
        })
        .await
        .unwrap();
    }
    gateway.until("all to be given back", |gateway| gateway.broker.stats().buffered_bytes < SHARE as u64).await;
    assert_eq!((gateway.broker.stats().held_back, gateway.broker.stats().lost), (0, 0));
}

// While memory is short, QoS 0 messages to subscribers that do not read are skipped and counted; one that reads gets them all,
// and the log's messages are not among those that are skipped.
#[tokio::test(flavor = "multi_thread")]
async fn live_messages_are_skipped_while_memory_is_short() {
    const READERS: usize = 20;
    const BYTES: usize = 50_000;
    const LIVE: u32 = 50;
    let gateway = Gateway::with(with_budget).await;
    let mut readers = Vec::new();
    for n in 0..READERS {
        let mut reader = Client::connect(gateway.addr(), Version::V311, &format!("r{n}")).await;
        reader.subscribe("logged", QoS::AtLeastOnce).await;
        reader.subscribe("live", QoS::AtMostOnce).await;
        readers.push(reader);
    }
    let mut publisher = Client::connect(gateway.addr(), Version::V311, "p").await;
    let mut logged = 0_u32;
    while gateway.broker.stats().held_back == 0 {
        assert!(logged < 1_000, "nobody is held back");
        let mut payload = logged.to_be_bytes().to_vec();
        payload.resize(BYTES, 0);
        publisher.publish("logged", QoS::AtLeastOnce, &payload).await;
        logged += 1;
    }
    assert_eq!(gateway.broker.stats().skipped, 0, "nothing was published at QoS 0");
    let mut attentive = Client::connect(gateway.addr(), Version::V311, "attentive").await;
    attentive.subscribe("live", QoS::AtMostOnce).await;
    for expected in 0..LIVE {
        publisher.publish("live", QoS::AtMostOnce, &expected.to_be_bytes()).await;
        assert_eq!(attentive.message().await.payload[..], expected.to_be_bytes());
    }
    gateway.until("live messages to be skipped", |gateway| gateway.broker.stats().skipped > 0).await;
    for mut reader in readers {
        let mut next = 0;
        while next < logged {
            let message = reader.message().await;
            if message.topic.is_some_and(|topic| topic.as_str() == "logged") {
                assert_eq!(message.payload[..4], next.to_be_bytes());
                next += 1;
            }
        }
    }
    assert_eq!(gateway.broker.stats().lost, 0);
}
