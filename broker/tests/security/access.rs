//! Access rules: every way round them that MQTT offers, tried.

use std::sync::Arc;

use millwright_broker::codec::{Connect, Packet, Property, Publish, Reason, SubscribeOptions, Text, Version, Will};
use millwright_broker::message::QoS;
use millwright_broker::topic::TopicName;
use millwright_broker::{AccessPattern, AccessRule, AccessRules, Users, hash_password};

use crate::common::{Client, Gateway, options, publish};
use crate::pki::login;

const PASSWORD: &str = "correct horse";
const BOTH: [Version; 2] = [Version::V311, Version::V5];

fn patterns(patterns: &[&str]) -> Vec<AccessPattern> {
    patterns.iter().map(|pattern| AccessPattern::parse(pattern).unwrap()).collect()
}

/// `press` may publish below its own name and read what is for it; `boss` may do everything.
async fn start() -> Gateway {
    let rules = [
        AccessRule {
            groups: vec!["plcs".into()],
            publish: patterns(&["t/%u/#", "c/%c"]),
            subscribe: patterns(&["for/%u/+"]),
            ..AccessRule::default()
        },
        AccessRule {
            users: vec!["boss".into()],
            publish: patterns(&["#"]),
            subscribe: patterns(&["#", "$SYS/#"]),
            ..AccessRule::default()
        },
    ];
    Gateway::with(|config| {
        let mut users = Users::new();
        let hash = hash_password(PASSWORD.as_bytes()).unwrap();
        for name in ["press", "boss", "idle"] {
            users.insert(name, &hash).unwrap();
        }
        config.users = Some(users);
        config.authorize = Arc::new(AccessRules::new(&rules, [("press", "plcs")]));
    })
    .await
}

async fn client(gateway: &Gateway, version: Version, user: &str) -> Client {
    let id = format!("{user}-id");
    let (client, connack) = Client::connect_with(gateway.addr(), login(version, &id, user, PASSWORD)).await;
    assert_eq!(connack.reason, Reason::Success);
    client
}

/// A client that sees everything.
async fn boss(gateway: &Gateway) -> Client {
    let mut boss = client(gateway, Version::V5, "boss").await;
    boss.subscribe("#", QoS::AtMostOnce).await;
    boss
}

async fn assert_serves(gateway: &Gateway, boss: &mut Client) {
    let mut press = client(gateway, Version::V5, "press").await;
    assert_eq!(press.publish("t/press/ok", QoS::AtLeastOnce, b"ok").await, Reason::Success);
    assert_eq!(&*boss.message().await.payload, b"ok", "something else came first");
}

// A publish outside the rules is refused with the reason in MQTT 5, ends the connection in 3.1.1, is dropped at QoS 0, and
// nobody ever sees it.
#[tokio::test(flavor = "multi_thread")]
async fn publishes_outside_the_rules() {
    let gateway = start().await;
    let mut boss = boss(&gateway).await;
    let outside =
        ["t", "t/other/x", "t/pres/x", "t/press2/x", "for/press/x", "c/other", "T/press/x", "/t/press", "$x/t"];
    for topic in outside {
        let mut press = client(&gateway, Version::V5, "press").await;
        for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
            assert_eq!(press.publish(topic, qos, b"no").await, Reason::NotAuthorized, "{topic}");
        }
        for version in BOTH {
            let mut press = client(&gateway, version, "press").await;
            press.publish(topic, QoS::AtMostOnce, b"no").await;
            press.assert_quiet().await;
        }
        let mut press = client(&gateway, Version::V311, "press").await;
        let packet_id = Some(press.packet_id());
        let forbidden = Publish { packet_id, ..publish(topic, QoS::AtLeastOnce, b"no") };
        press.send(&Packet::Publish(forbidden)).await;
        press.closed().await;
    }
    for topic in ["t/press", "t/press/x/y", "c/press-id"] {
        let mut press = client(&gateway, Version::V5, "press").await;
        assert_eq!(press.publish(topic, QoS::ExactlyOnce, b"yes").await, Reason::Success, "{topic}");
        assert_eq!(&*boss.message().await.payload, b"yes", "{topic}");
    }
    assert_eq!(gateway.broker.stats().denied, outside.len() as u64 * 5);
    assert_serves(&gateway, &mut boss).await;
}

// A topic alias does not carry a publish past the rules, whether it is given a forbidden topic or moved to one.
#[tokio::test(flavor = "multi_thread")]
async fn aliases_are_no_way_round() {
    let gateway = start().await;
    let mut boss = boss(&gateway).await;
    let mut press = client(&gateway, Version::V5, "press").await;
    let with_alias = |topic: Option<&str>| Publish {
        topic: topic.map(|topic| TopicName::parse(topic).unwrap()),
        topic_alias: Some(1),
        ..publish("unused", QoS::AtLeastOnce, b"by alias")
    };
    assert_eq!(press.publish_with(with_alias(Some("t/other/x"))).await, Reason::NotAuthorized);
    assert_eq!(press.publish_with(with_alias(None)).await, Reason::NotAuthorized);
    assert_eq!(press.publish_with(with_alias(Some("t/press/x"))).await, Reason::Success);
    assert_eq!(press.publish_with(with_alias(None)).await, Reason::Success);
    assert_eq!(press.publish_with(with_alias(Some("t/other/x"))).await, Reason::NotAuthorized);
    assert_eq!(press.publish_with(with_alias(None)).await, Reason::NotAuthorized);
    for _ in 0..2 {
        assert_eq!(boss.message().await.topic.unwrap().as_str(), "t/press/x");
    }
    assert_serves(&gateway, &mut boss).await;
}

// A subscription that could match anything outside the rules is refused as a whole, shared or not, retained messages included.
#[tokio::test(flavor = "multi_thread")]
async fn subscriptions_outside_the_rules() {
    let gateway = start().await;
    let mut boss = boss(&gateway).await;
    let kept = Publish { retain: true, ..publish("for/other/x", QoS::AtLeastOnce, b"kept") };
    assert_eq!(boss.publish_with(kept).await, Reason::Success);
    boss.message().await;
    let outside = [
        "#",
        "+/+/+",
        "for/#",
        "for/+/x",
        "for/press/#",
        "for/press",
        "for/other/x",
        "t/press/#",
        "$SYS/#",
        "$SYS/broker/x",
        "$share/g/#",
        "$share/g/for/other/x",
        "$share/for/press/x/y",
    ];
    for version in BOTH {
        for filter in outside {
            let mut press = client(&gateway, version, "press").await;
            let reason = press.subscribe(filter, QoS::AtLeastOnce).await;
            let expected = if version == Version::V5 { Reason::NotAuthorized } else { Reason::UnspecifiedError };
            assert_eq!(reason, expected, "{filter}");
            press.assert_quiet().await;
        }
        let mut press = client(&gateway, version, "press").await;
        for filter in ["for/press/+", "for/press/x", "$share/g/for/press/+"] {
            assert_eq!(press.subscribe(filter, QoS::AtLeastOnce).await, Reason::GrantedQoS1, "{filter}");
        }
        let mut idle = client(&gateway, version, "idle").await;
        assert!(idle.subscribe("for/idle/x", QoS::AtMostOnce).await.is_error(), "a user without a rule may do nothing");
    }
    assert_serves(&gateway, &mut boss).await;
}

// A will outside the rules is refused with CONNECT, and never published; one inside them is.
#[tokio::test(flavor = "multi_thread")]
async fn wills_outside_the_rules() {
    let gateway = start().await;
    let mut boss = boss(&gateway).await;
    let with_will = |version, topic: &str| Connect {
        will: Some(Will {
            topic: TopicName::parse(topic).unwrap(),
            payload: "will".into(),
            qos: QoS::AtLeastOnce,
            retain: true,
            properties: Vec::new(),
        }),
        ..login(version, "w", "press", PASSWORD)
    };
    for version in BOTH {
        for topic in ["t/other/will", "$SYS/broker/will", "for/press/x"] {
            let (mut client, connack) = Client::connect_with(gateway.addr(), with_will(version, topic)).await;
            assert_eq!(connack.reason, Reason::NotAuthorized, "{topic}");
            client.closed().await;
        }
        let (client, connack) = Client::connect_with(gateway.addr(), with_will(version, "t/press/will")).await;
        assert_eq!(connack.reason, Reason::Success);
        drop(client);
        assert_eq!(boss.message().await.topic.unwrap().as_str(), "t/press/will");
    }
    assert_serves(&gateway, &mut boss).await;
}

// A retained publish outside the rules is not kept; nor can a retained message of others be deleted.
#[tokio::test(flavor = "multi_thread")]
async fn retained_messages_are_out_of_reach() {
    let gateway = start().await;
    let mut boss = boss(&gateway).await;
    let retained = |topic: &str, qos, payload: &[u8]| Publish { retain: true, ..publish(topic, qos, payload) };
    boss.publish_with(retained("mine", QoS::AtLeastOnce, b"kept")).await;
    boss.message().await;
    let mut press = client(&gateway, Version::V5, "press").await;
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce] {
        press.publish_with(retained("mine", qos, b"")).await;
        press.publish_with(retained("t/other/x", qos, b"planted")).await;
    }
    press.assert_quiet().await;
    let wish = SubscribeOptions { ..options(QoS::AtMostOnce) };
    boss.subscribe_with("mine", wish, Vec::new()).await;
    assert_eq!(&*boss.message().await.payload, b"kept");
    boss.subscribe_with("t/other/x", wish, Vec::new()).await;
    boss.assert_quiet().await;
    assert_serves(&gateway, &mut boss).await;
}

// A session that is taken up again has only the subscriptions that the rules allow now.
#[tokio::test(flavor = "multi_thread")]
async fn rules_hold_for_stored_subscriptions() {
    let gateway = Gateway::start().await;
    let wish = |version| Connect {
        clean_start: false,
        properties: vec![Property::SessionExpiryInterval(600)],
        ..login(version, "s", "press", PASSWORD)
    };
    let (mut client, _) = Client::connect_with(gateway.addr(), wish(Version::V5)).await;
    client.subscribe("for/press/x", QoS::AtLeastOnce).await;
    client.subscribe("for/other/x", QoS::AtLeastOnce).await;
    drop(client);
    let dir = gateway.stop().await;
    let rule = AccessRule {
        users: vec!["press".into()],
        publish: patterns(&["#"]),
        subscribe: patterns(&["for/press/+"]),
        ..AccessRule::default()
    };
    let change = |config: &mut millwright_broker::BrokerConfig| {
        let mut users = Users::new();
        users.insert("press", &hash_password(PASSWORD.as_bytes()).unwrap()).unwrap();
        config.users = Some(users);
        config.authorize = Arc::new(AccessRules::new(&[rule], []));
    };
    let gateway = Gateway::on(dir, change, |_| {}).await;
    let (mut client, connack) = Client::connect_with(gateway.addr(), wish(Version::V5)).await;
    assert!(connack.session_present);
    let login = login(Version::V5, "p", "press", PASSWORD);
    let (mut publisher, _) = Client::connect_with(gateway.addr(), login).await;
    publisher.publish("for/other/x", QoS::AtLeastOnce, b"no").await;
    publisher.publish("for/press/x", QoS::AtLeastOnce, b"yes").await;
    assert_eq!(&*client.message().await.payload, b"yes");
}

// Names that a client may choose do not reach another level or client: `%c` and `%u` stand for one level as it is.
#[tokio::test(flavor = "multi_thread")]
async fn chosen_names_do_not_open_levels() {
    let gateway = start().await;
    let mut boss = boss(&gateway).await;
    for id in ["#", "+", "a/b", "other/#"] {
        let wish = Connect { client_id: Text::from(id), ..login(Version::V5, "", "press", PASSWORD) };
        let (mut press, connack) = Client::connect_with(gateway.addr(), wish).await;
        assert_eq!(connack.reason, Reason::Success);
        for topic in ["c/a/b", "c/other", "c/x"] {
            assert_eq!(press.publish(topic, QoS::AtLeastOnce, b"no").await, Reason::NotAuthorized, "{id} {topic}");
        }
    }
    assert_serves(&gateway, &mut boss).await;
}
