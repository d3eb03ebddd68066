//! What clients see of the broker, over TCP.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic)]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{Client, Gateway, connect, options, publish};
use millwright_broker::codec::{
    Disconnect, Packet, Property, Reason, RetainHandling, SubscribeOptions, Text, Unsubscribe, Version, Will,
};
use millwright_broker::message::{Message, QoS};
use millwright_broker::topic::{TopicFilter, TopicName};
use millwright_broker::{Users, hash_password};

const BOTH: [Version; 2] = [Version::V311, Version::V5];
const ALL: [QoS; 3] = [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce];

// A message is delivered at the lower of the QoS it was published with and the QoS that was granted, for every pair and
// every pair of versions. [MQTT-3.8.4-8]
#[tokio::test(flavor = "multi_thread")]
async fn every_qos_to_every_qos() {
    let gateway = Gateway::start().await;
    for (number, (from, to)) in [(0, 0), (0, 1), (1, 0), (1, 1)].into_iter().enumerate() {
        let mut publisher = Client::connect(gateway.addr(), BOTH[from], &format!("p{number}")).await;
        for granted in ALL {
            let mut subscriber = Client::connect(gateway.addr(), BOTH[to], "subscriber").await;
            let filter = format!("t{number}/+");
            subscriber.subscribe(&filter, granted).await;
            for published in ALL {
                let topic = format!("t{number}/{}", published as u8);
                assert_eq!(publisher.publish(&topic, published, b"x").await, Reason::Success);
                let got = subscriber.message().await;
                assert_eq!(got.qos, published.min(granted), "{published:?} to {granted:?}");
                assert_eq!((got.topic.unwrap().as_str(), &got.payload[..], got.retain), (&*topic, &b"x"[..], false));
            }
            subscriber.assert_quiet().await;
        }
    }
}

// Wildcards reach what they should; a message that several subscriptions match comes once, at the highest QoS.
#[tokio::test(flavor = "multi_thread")]
async fn overlapping_subscriptions_deliver_once() {
    let gateway = Gateway::start().await;
    let mut subscriber = Client::connect(gateway.addr(), Version::V5, "s").await;
    for (number, (filter, qos)) in
        [("#", QoS::AtMostOnce), ("a/+", QoS::AtLeastOnce), ("a/b", QoS::AtMostOnce)].into_iter().enumerate()
    {
        let id = Property::SubscriptionIdentifier(number as u32 + 1);
        subscriber.subscribe_with(filter, options(qos), vec![id]).await;
    }
    let mut publisher = Client::connect(gateway.addr(), Version::V5, "p").await;
    for (topic, published, qos, ids) in [
        ("a/b", QoS::AtLeastOnce, QoS::AtLeastOnce, &[1, 2, 3][..]),
        ("a/b", QoS::AtMostOnce, QoS::AtMostOnce, &[1, 2, 3]),
        ("a/c", QoS::ExactlyOnce, QoS::AtLeastOnce, &[1, 2]),
        ("x", QoS::AtLeastOnce, QoS::AtMostOnce, &[1]),
    ] {
        publisher.publish(topic, published, b"").await;
        let mut got = subscriber.message().await;
        got.subscription_identifiers.sort();
        assert_eq!((got.topic.unwrap().as_str(), got.qos, &got.subscription_identifiers[..]), (topic, qos, ids));
    }
    publisher.publish("$other", QoS::AtLeastOnce, b"").await;
    subscriber.assert_quiet().await;
}

// After UNSUBSCRIBE nothing comes; unknown filters and invalid ones are answered as each version can.
#[tokio::test(flavor = "multi_thread")]
async fn unsubscribe_and_refused_filters() {
    let gateway = Gateway::start().await;
    let mut client = Client::connect(gateway.addr(), Version::V5, "c").await;
    client.subscribe("a", QoS::AtMostOnce).await;
    client.subscribe("b", QoS::AtLeastOnce).await;
    let filters = ["a", "b", "c"].map(Text::from).to_vec();
    let packet_id = client.packet_id();
    client.send(&Packet::Unsubscribe(Unsubscribe { packet_id, properties: Vec::new(), filters })).await;
    let Packet::UnsubAck(unsuback) = client.recv().await else { panic!("no UNSUBACK") };
    assert_eq!(unsuback.reasons, [Reason::Success, Reason::Success, Reason::NoSubscriptionExisted]);
    client.publish("a", QoS::AtMostOnce, b"").await;
    client.publish("b", QoS::AtLeastOnce, b"").await;
    client.assert_quiet().await;
    assert_eq!(client.subscribe("a/#/b", QoS::AtLeastOnce).await, Reason::TopicFilterInvalid);
    let mut old = Client::connect(gateway.addr(), Version::V311, "old").await;
    assert_eq!(old.subscribe("a/#/b", QoS::AtLeastOnce).await, Reason::UnspecifiedError);
}

// Retained messages are sent at SUBSCRIBE as retain handling says, keep their retain flag only as the options say, are
// deleted by an empty payload, and survive a restart.
#[tokio::test(flavor = "multi_thread")]
async fn retained_messages() {
    let gateway = Gateway::start().await;
    let mut publisher = Client::connect(gateway.addr(), Version::V311, "p").await;
    for qos in ALL {
        let topic = format!("r/{}", qos as u8);
        publisher
            .publish_with(millwright_broker::codec::Publish { retain: true, ..publish(&topic, qos, b"kept") })
            .await;
    }
    let empty = millwright_broker::codec::Publish { retain: true, ..publish("r/1", QoS::AtLeastOnce, b"") };
    publisher.publish_with(empty).await;
    gateway.until("two are retained", |gateway| gateway.log.retained().len() == 2).await;
    let dir = gateway.stop().await;

    let gateway = Gateway::on(dir, |_| {}, |_| {}).await;
    let mut subscriber = Client::connect(gateway.addr(), Version::V5, "s").await;
    for (handling, times) in [
        (RetainHandling::Never, 0),
        (RetainHandling::IfNew, 0),
        (RetainHandling::Always, 1),
        (RetainHandling::Always, 1),
        (RetainHandling::IfNew, 0),
    ] {
        let options = SubscribeOptions { retain_handling: handling, ..options(QoS::AtLeastOnce) };
        subscriber.subscribe_with("r/#", options, Vec::new()).await;
        for _ in 0..times {
            let mut got = [subscriber.message().await, subscriber.message().await]
                .map(|got| (got.topic.unwrap().as_str().to_owned(), got.qos, got.retain));
            got.sort();
            let expected = [("r/0".to_owned(), QoS::AtMostOnce, true), ("r/2".to_owned(), QoS::AtLeastOnce, true)];
            assert_eq!(got, expected);
        }
        subscriber.assert_quiet().await;
    }
    // What is published now carries the flag only for a subscription that asked for it.
    let mut publisher = Client::connect(gateway.addr(), Version::V311, "p").await;
    for (as_published, qos) in [(false, QoS::AtMostOnce), (true, QoS::AtMostOnce), (false, ALL[1]), (true, ALL[1])] {
        let options = SubscribeOptions {
            retain_as_published: as_published,
            retain_handling: RetainHandling::Never,
            ..options(QoS::AtLeastOnce)
        };
        subscriber.subscribe_with("r/#", options, Vec::new()).await;
        let message = millwright_broker::codec::Publish { retain: true, ..publish("r/3", qos, b"new") };
        publisher.publish_with(message).await;
        assert_eq!(subscriber.message().await.retain, as_published);
    }
    gateway.stop().await;
}

// No-local keeps a client's own messages from it, live, logged and retained.
#[tokio::test(flavor = "multi_thread")]
async fn no_local() {
    let gateway = Gateway::start().await;
    let mut client = Client::connect(gateway.addr(), Version::V5, "c").await;
    let mut other = Client::connect(gateway.addr(), Version::V5, "o").await;
    client.publish_with(millwright_broker::codec::Publish { retain: true, ..publish("n", ALL[1], b"own") }).await;
    client.subscribe_with("n", SubscribeOptions { no_local: true, ..options(ALL[2]) }, Vec::new()).await;
    for qos in ALL {
        client.publish("n", qos, b"own").await;
        other.publish("n", qos, b"other").await;
        assert_eq!(client.message().await.payload, &b"other"[..]);
    }
    client.assert_quiet().await;
}

fn with_will(id: &str, version: Version, qos: QoS) -> millwright_broker::codec::Connect {
    let will = Will {
        topic: TopicName::parse(&format!("will/{id}")).unwrap(),
        payload: Bytes::from_static(b"gone"),
        qos,
        retain: true,
        properties: if version == Version::V5 { vec![Property::WillDelayInterval(5)] } else { Vec::new() },
    };
    millwright_broker::codec::Connect { will: Some(will), ..connect(version, id) }
}

// A will is published when the connection breaks, when the client asks for it, after a protocol error and at a
// takeover; not after a plain DISCONNECT. [MQTT-3.1.2-8], [MQTT-3.1.2-10]
#[tokio::test(flavor = "multi_thread")]
async fn wills() {
    let gateway = Gateway::start().await;
    let mut watcher = Client::connect(gateway.addr(), Version::V311, "watcher").await;
    watcher.subscribe("will/#", QoS::AtLeastOnce).await;
    for (version, qos) in BOTH.into_iter().flat_map(|version| [(version, ALL[0]), (version, ALL[1])]) {
        let (client, _) = Client::connect_with(gateway.addr(), with_will("broken", version, qos)).await;
        drop(client);
        let got = watcher.message().await;
        assert_eq!((got.topic.unwrap().as_str(), got.qos, &got.payload[..]), ("will/broken", qos, &b"gone"[..]));

        let (mut client, _) = Client::connect_with(gateway.addr(), with_will("error", version, qos)).await;
        client.send(&Packet::PingResp).await;
        client.closed().await;
        assert_eq!(watcher.message().await.topic.unwrap().as_str(), "will/error");

        let (mut old, _) = Client::connect_with(gateway.addr(), with_will("taken", version, qos)).await;
        let _new = Client::connect(gateway.addr(), version, "taken").await;
        let reason = old.closed().await;
        assert_eq!(reason, (version == Version::V5).then_some(Reason::SessionTakenOver));
        assert_eq!(watcher.message().await.topic.unwrap().as_str(), "will/taken");

        let (mut client, _) = Client::connect_with(gateway.addr(), with_will("polite", version, qos)).await;
        client.send(&Packet::Disconnect(Disconnect { reason: Reason::Success, properties: Vec::new() })).await;
        client.closed().await;
        watcher.assert_quiet().await;
    }
    let (mut client, _) = Client::connect_with(gateway.addr(), with_will("asked", Version::V5, ALL[1])).await;
    let reason = Reason::DisconnectWithWill;
    client.send(&Packet::Disconnect(Disconnect { reason, properties: Vec::new() })).await;
    assert_eq!(watcher.message().await.topic.unwrap().as_str(), "will/asked");
    gateway.until("the wills are retained", |gateway| gateway.log.retained().len() == 4).await;
}

// Only users with the right password come in; a client that tries many is not heard for a while.
#[tokio::test(flavor = "multi_thread")]
async fn authentication() {
    let mut users = Users::new();
    users.insert("plc", &hash_password(b"right").unwrap()).unwrap();
    let gateway = Gateway::with(|config| config.users = Some(users)).await;
    let login = |name: Option<&str>, password: Option<&'static [u8]>, version| {
        let connect = millwright_broker::codec::Connect {
            username: name.map(Text::from),
            password: password.map(Bytes::from_static),
            ..connect(version, "c")
        };
        Client::connect_with(gateway.addr(), connect)
    };
    for version in BOTH {
        let (_client, connack) = login(Some("plc"), Some(b"right"), version).await;
        assert_eq!(connack.reason, Reason::Success);
        for (name, password) in
            [(None, None), (Some("plc"), None), (Some("plc"), Some(&b"wrong"[..])), (Some("nobody"), Some(b"right"))]
        {
            let (mut client, connack) = login(name, password, version).await;
            assert_eq!(connack.reason, Reason::BadUserNameOrPassword, "{name:?}");
            client.closed().await;
        }
    }
    let mut last = Reason::Success;
    for _ in 0..12 {
        last = login(Some("plc"), Some(b"guess"), Version::V5).await.1.reason;
    }
    assert_eq!(last, Reason::ConnectionRateExceeded);
}

// The gateway's own publications reach live and durable subscribers, and are retained on disk or in memory.
#[tokio::test(flavor = "multi_thread")]
async fn own_publications() {
    let gateway = Gateway::start().await;
    let mut subscriber = Client::connect(gateway.addr(), Version::V311, "s").await;
    subscriber.subscribe("mw/#", QoS::AtLeastOnce).await;
    let message = |topic: &str| Message {
        topic: TopicName::parse(topic).unwrap(),
        payload: Bytes::from_static(b"{}"),
        properties: Bytes::new(),
        qos: QoS::AtLeastOnce,
        retain: true,
        origin: 0,
    };
    let publisher = gateway.broker.publisher();
    let offset = publisher.publish(message("mw/alert")).await.unwrap();
    assert_eq!(offset.0, 1);
    publisher.publish_volatile(message("mw/health"));
    let mut got = [subscriber.message().await, subscriber.message().await].map(|got| (got.qos, got.topic.unwrap()));
    got.sort();
    assert_eq!(
        got.map(|(qos, topic)| (qos as u8, topic.as_str().to_owned())),
        [(0, "mw/health".to_owned()), (1, "mw/alert".to_owned())]
    );
    let mut late = Client::connect(gateway.addr(), Version::V5, "late").await;
    late.subscribe("mw/#", QoS::AtLeastOnce).await;
    let got = [late.message().await, late.message().await];
    assert!(got.iter().all(|got| got.retain));
    assert_eq!(gateway.log.head().0, 2, "health is not logged");
}

// Telemetry is logged even at QoS 0, other QoS 0 messages are not, and telemetry is delivered once.
#[tokio::test(flavor = "multi_thread")]
async fn telemetry_is_logged_at_qos_0() {
    let telemetry = vec![TopicFilter::parse("mw/v1/telemetry/#").unwrap()];
    let gateway = Gateway::with(|config| config.telemetry = telemetry).await;
    let mut subscriber = Client::connect(gateway.addr(), Version::V311, "s").await;
    subscriber.subscribe("#", QoS::AtLeastOnce).await;
    let mut publisher = Client::connect(gateway.addr(), Version::V311, "p").await;
    publisher.publish("other", QoS::AtMostOnce, b"").await;
    publisher.publish("mw/v1/telemetry/pump", QoS::AtMostOnce, b"1").await;
    assert_eq!(subscriber.message().await.topic.unwrap().as_str(), "other");
    assert_eq!(subscriber.message().await.topic.unwrap().as_str(), "mw/v1/telemetry/pump");
    gateway.until("it is logged", |gateway| gateway.log.head().0 == 2).await;
    let retained = publish("mw/v1/telemetry/pump", QoS::AtMostOnce, b"2");
    publisher.publish_with(millwright_broker::codec::Publish { retain: true, ..retained }).await;
    assert_eq!(subscriber.message().await.payload, &b"2"[..]);
    assert_eq!((gateway.log.head().0, gateway.log.retained().len()), (3, 1));
    subscriber.assert_quiet().await;
    let fetched = gateway.log.fetch(millwright_broker::log::Offset(1), Default::default()).await.unwrap();
    assert_eq!(fetched.messages[0].message.qos, QoS::AtMostOnce);
}

// MQTT 5: an empty client identifier is assigned one, limits are announced, a session is promised as long as it is kept.
#[tokio::test(flavor = "multi_thread")]
async fn connack_tells_the_terms() {
    let gateway = Gateway::with(|config| {
        config.limits.keep_alive_max_s = 30;
        config.limits.session_expiry_max_s = 50;
    })
    .await;
    let wish = millwright_broker::codec::Connect {
        properties: vec![Property::SessionExpiryInterval(100)],
        ..connect(Version::V5, "")
    };
    let (_client, connack) = Client::connect_with(gateway.addr(), wish).await;
    let has = |wanted: &dyn Fn(&Property) -> bool| connack.properties.iter().any(wanted);
    assert!(has(&|property| matches!(property, Property::AssignedClientIdentifier(id) if id.as_str().len() > 8)));
    assert!(has(&|property| *property == Property::ServerKeepAlive(30)));
    assert!(has(&|property| *property == Property::SessionExpiryInterval(50)));
    assert!(has(&|property| matches!(property, Property::MaximumPacketSize(_))));
    let nameless = millwright_broker::codec::Connect { clean_start: false, ..connect(Version::V311, "") };
    let (mut client, connack) = Client::connect_with(gateway.addr(), nameless).await;
    assert_eq!(connack.reason, Reason::ClientIdentifierNotValid);
    client.closed().await;
}

// The MQTT 5 properties of a message reach a subscriber, its own as they were, with identifiers and aliases of the hop.
#[tokio::test(flavor = "multi_thread")]
async fn properties_travel() {
    let gateway = Gateway::start().await;
    let wish = millwright_broker::codec::Connect {
        properties: vec![Property::TopicAliasMaximum(10)],
        ..connect(Version::V5, "s")
    };
    let (mut subscriber, _) = Client::connect_with(gateway.addr(), wish).await;
    subscriber.subscribe("p", QoS::AtLeastOnce).await;
    let mut old = Client::connect(gateway.addr(), Version::V311, "old").await;
    old.subscribe("p", QoS::AtLeastOnce).await;
    let mut publisher = Client::connect(gateway.addr(), Version::V5, "p").await;
    // A user property and a content type, on the wire.
    let properties = Bytes::from_static(b"\x26\0\x01k\0\x01v\x03\0\x04json");
    for (round, qos) in [QoS::AtLeastOnce, QoS::AtMostOnce, QoS::AtLeastOnce].into_iter().enumerate() {
        let mut message = publish("p", qos, b"x");
        message.properties = properties.clone();
        message.topic_alias = Some(7);
        message.topic = message.topic.filter(|_| round == 0);
        publisher.publish_with(message).await;
        let got = subscriber.message().await;
        assert_eq!((got.properties, got.topic_alias), (properties.clone(), Some(1)));
        assert_eq!(got.topic.map(|topic| topic.as_str().to_owned()), (round == 0).then(|| "p".to_owned()));
        assert_eq!(old.message().await.topic.unwrap().as_str(), "p");
    }
    let mut unknown = publish("p", QoS::AtMostOnce, b"");
    (unknown.topic, unknown.topic_alias) = (None, Some(8));
    publisher.publish_with(unknown).await;
    assert_eq!(publisher.closed().await, Some(Reason::ProtocolError));
}

// A client's maximum packet size is kept, and a message past its expiry is not delivered.
#[tokio::test(flavor = "multi_thread")]
async fn packet_size_and_expiry() {
    let gateway = Gateway::start().await;
    let wish = millwright_broker::codec::Connect {
        properties: vec![Property::MaximumPacketSize(50)],
        ..connect(Version::V5, "s")
    };
    let (mut subscriber, _) = Client::connect_with(gateway.addr(), wish).await;
    subscriber.subscribe("m", QoS::AtLeastOnce).await;
    let mut publisher = Client::connect(gateway.addr(), Version::V5, "p").await;
    publisher.publish("m", QoS::AtLeastOnce, &[1; 100]).await;
    publisher.publish("m", QoS::AtLeastOnce, &[2; 10]).await;
    assert_eq!(subscriber.message().await.payload, vec![2; 10]);
    let mut expiring = publish("e", QoS::AtLeastOnce, b"soon gone");
    expiring.retain = true;
    expiring.properties = Bytes::from_static(&[2, 0, 0, 0, 1]);
    publisher.publish_with(expiring).await;
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    subscriber.subscribe("e", QoS::AtLeastOnce).await;
    subscriber.assert_quiet().await;
    gateway
        .until("both were counted", |gateway| {
            let stats = gateway.broker.stats();
            (stats.too_large, stats.expired) == (1, 1)
        })
        .await;
}

// Shutdown tells MQTT 5 clients why, and the port is free afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn shutdown() {
    let gateway = Gateway::start().await;
    let addr = gateway.addr();
    let mut client = Client::connect(addr, Version::V5, "c").await;
    gateway.stop().await;
    assert_eq!(client.closed().await, Some(Reason::ServerShuttingDown));
    assert!(tokio::net::TcpStream::connect(addr).await.is_err());
}

// A port in use is one clear error.
#[tokio::test(flavor = "multi_thread")]
async fn port_in_use() {
    let gateway = Gateway::start().await;
    let config = millwright_broker::BrokerConfig { listen: gateway.addr(), ..Default::default() };
    let error = millwright_broker::Broker::bind(config, gateway.log.clone()).await.unwrap_err();
    assert!(error.to_string().contains("in use"), "{error}");
}

// Statistics are below `$SYS/broker/`, retained and renewed, for those who ask for them by name; nobody else publishes
// there. [MQTT-4.7.2-1]
#[tokio::test(flavor = "multi_thread")]
async fn sys_topics() {
    let gateway = Gateway::with(|config| config.sys_interval = Duration::from_millis(20)).await;
    let mut client = Client::connect(gateway.addr(), Version::V5, "c").await;
    client.subscribe("#", QoS::AtMostOnce).await;
    client.assert_quiet().await;
    client.subscribe("$SYS/broker/clients/connected", QoS::AtMostOnce).await;
    while client.message().await.payload != b"1"[..] {}
    let other = Client::connect(gateway.addr(), Version::V311, "o").await;
    while client.message().await.payload != b"2"[..] {}
    drop(other);
    while client.message().await.payload != b"1"[..] {}
    let reason = client.publish("$SYS/broker/clients/connected", QoS::AtLeastOnce, b"7").await;
    assert_eq!(reason, Reason::NotAuthorized);
}
