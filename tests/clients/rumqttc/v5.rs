//! The scenarios that only MQTT 5 has.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::Bytes;
use harness::PATIENCE;
use rumqttc::v5::mqttbytes::v5::{LastWillProperties, PublishProperties, RetainForwardRule};

use super::peer::{LONG_S, Message, Peer, Wishes};
use super::plain::{MESSAGES, in_order, numbers};
use crate::kind::Turn;

fn published_properties() -> PublishProperties {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    PublishProperties {
        payload_format_indicator: Some(1),
        response_topic: Some("answers/1".to_owned()),
        correlation_data: Some((0..=255).collect()),
        user_properties: vec![pair("unit", "mm/s"), pair("unit", "µm"), pair("a", "")],
        content_type: Some("application/json".to_owned()),
        ..PublishProperties::default()
    }
}

fn same_properties(message: &Message) -> anyhow::Result<()> {
    let (expected, mut got) = (published_properties(), message.properties.clone());
    got.topic_alias = None;
    ensure!(got == expected, "properties: expected {expected:?}, got {got:?}");
    Ok(())
}

pub(super) async fn properties(t: &Turn) -> anyhow::Result<()> {
    let (mut watcher, mut publisher) = (Peer::new(t, "sub").await?, Peer::new(t, "pub").await?);
    watcher.subscribe("#", 2).await?;
    for quality in 0..=2 {
        let rest = format!("live/{quality}");
        publisher.publish_with(&t.topic(&rest), "7.1", quality, false, published_properties()).await?;
        same_properties(&watcher.expect(&rest, "7.1", quality).await?)?;
    }
    publisher.publish_with(&t.topic("kept"), "7.2", 1, true, published_properties()).await?;
    let mut late = Peer::new(t, "late").await?;
    late.subscribe("kept", 1).await?;
    let message = late.expect("kept", "7.2", 1).await?;
    ensure!(message.retain, "a retained message is not marked");
    same_properties(&message)
}

pub(super) async fn request_response(t: &Turn) -> anyhow::Result<()> {
    let (mut asker, mut answerer) = (Peer::new(t, "asker").await?, Peer::new(t, "answerer").await?);
    answerer.subscribe("questions", 1).await?;
    asker.subscribe("answers", 1).await?;
    let correlation_data = Some(Bytes::from_static(&[0, 1]));
    let response_topic = Some(t.topic("answers"));
    let asked = PublishProperties {
        response_topic,
        correlation_data: correlation_data.clone(),
        ..PublishProperties::default()
    };
    asker.publish_with(&t.topic("questions"), "6 x 7", 1, false, asked).await?;
    let question = answerer.expect("questions", "6 x 7", 1).await?.properties;
    let topic = question.response_topic.context("a question without a response topic")?;
    let answer = PublishProperties { correlation_data: question.correlation_data, ..PublishProperties::default() };
    answerer.publish_with(&topic, "42", 1, false, answer).await?;
    let got = asker.expect("answers", "42", 1).await?.properties.correlation_data;
    ensure!(got == correlation_data, "correlation data: {got:?}");
    Ok(())
}

pub(super) async fn message_expiry(t: &Turn) -> anyhow::Result<()> {
    let (mut watcher, mut publisher) = (Peer::new(t, "sub").await?, Peer::new(t, "pub").await?);
    let after = |seconds| PublishProperties { message_expiry_interval: Some(seconds), ..PublishProperties::default() };
    watcher.subscribe("live", 1).await?;
    publisher.publish_with(&t.topic("live"), "x", 1, false, after(600)).await?;
    let left_s = watcher.expect("live", "x", 1).await?.properties.message_expiry_interval;
    ensure!(left_s.is_some_and(|left_s| (1..=600).contains(&left_s)), "message expiry interval: {left_s:?}");
    publisher.publish_with(&t.topic("kept"), "long", 1, true, after(600)).await?;
    publisher.publish_with(&t.topic("kept/short"), "short", 1, true, after(1)).await?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut late = Peer::new(t, "late").await?;
        late.subscribe("kept/#", 1).await?;
        publisher.publish("kept/end", "", 1, false).await?;
        let topics: Vec<_> = late.until("kept/end").await?.into_iter().map(|message| message.topic).collect();
        ensure!(topics.contains(&t.topic("kept")), "expired too early: {topics:?}");
        if topics.len() == 1 {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "still there: {topics:?}");
    }
}

pub(super) async fn topic_alias(t: &Turn) -> anyhow::Result<()> {
    let wishes = Wishes { topic_alias_max: Some(5), ..Wishes::default() };
    let (mut watcher, mut publisher) = (Peer::connect(t, "sub", wishes).await?, Peer::new(t, "pub").await?);
    let granted = publisher.granted.as_ref().and_then(|granted| granted.topic_alias_max).unwrap_or_default();
    ensure!(granted >= 2, "the broker grants {granted} aliases");
    watcher.subscribe("#", 2).await?;
    let stands = |alias: u8| PublishProperties { topic_alias: Some(alias.into()), ..PublishProperties::default() };
    for round in ["first", "second"] {
        for alias in [1, 2] {
            let rest = format!("{round}/{alias}");
            publisher.publish_with(&t.topic(&rest), "with its topic", alias, false, stands(alias)).await?;
            watcher.expect(&rest, "with its topic", alias).await?;
        }
        for alias in [1, 2, 1, 2] {
            publisher.publish_with("", "by its alias", alias, false, stands(alias)).await?;
            watcher.expect(&format!("{round}/{alias}"), "by its alias", alias).await?;
        }
    }
    Ok(())
}

pub(super) async fn subscription_identifier(t: &Turn) -> anyhow::Result<()> {
    let (mut watcher, mut publisher) = (Peer::new(t, "sub").await?, Peer::new(t, "pub").await?);
    for (rest, identifier) in [("a/+", Some(7)), ("#", Some(268_435_455)), ("plain", None), ("end", Some(9))] {
        watcher.subscribe_with(rest, identifier, |_| {}).await?;
    }
    for rest in ["a/b", "c", "end"] {
        publisher.publish(rest, "x", 1, false).await?;
    }
    let mut found: BTreeMap<String, BTreeSet<usize>> = BTreeMap::new();
    for message in watcher.until("end").await? {
        found.entry(message.topic).or_default().extend(message.properties.subscription_identifiers);
    }
    let expected = BTreeMap::from([(t.topic("a/b"), [7, 268_435_455].into()), (t.topic("c"), [268_435_455].into())]);
    ensure!(found == expected, "subscription identifiers: expected {expected:?}, got {found:?}");
    Ok(())
}

pub(super) async fn no_local(t: &Turn) -> anyhow::Result<()> {
    let (mut both, mut other) = (Peer::new(t, "both").await?, Peer::new(t, "other").await?);
    both.subscribe_with("x", None, |filter| filter.nolocal = true).await?;
    for quality in 0..=2 {
        both.publish("x", "own", quality, false).await?;
        other.publish("x", "other's", quality, false).await?;
        both.expect("x", "other's", quality.min(1)).await?;
    }
    Ok(())
}

pub(super) async fn retain_as_published(t: &Turn) -> anyhow::Result<()> {
    let (mut watcher, mut plain) = (Peer::new(t, "sub").await?, Peer::new(t, "plain").await?);
    let mut publisher = Peer::new(t, "pub").await?;
    watcher.subscribe_with("+", None, |filter| filter.preserve_retain = true).await?;
    plain.subscribe("+", 1).await?;
    for retain in [true, false] {
        let rest = retain.to_string();
        publisher.publish(&rest, "x", 1, retain).await?;
        let flags = (watcher.expect(&rest, "x", 1).await?.retain, plain.expect(&rest, "x", 1).await?.retain);
        ensure!(flags == (retain, false), "retain of {rest}: {flags:?}");
    }
    Ok(())
}

pub(super) async fn retain_handling(t: &Turn) -> anyhow::Result<()> {
    let (mut publisher, mut watcher) = (Peer::new(t, "pub").await?, Peer::new(t, "sub").await?);
    publisher.publish("kept", "x", 1, true).await?;
    watcher.subscribe("end", 1).await?;
    let steps = [
        (RetainForwardRule::Never, 0),
        (RetainForwardRule::OnEverySubscribe, 1),
        (RetainForwardRule::OnEverySubscribe, 1),
        // The filter is known.
        (RetainForwardRule::OnNewSubscribe, 0),
    ];
    for (rule, expected) in steps {
        given(&mut watcher, &mut publisher, rule, expected).await?;
    }
    watcher.unsubscribe("kept").await?;
    given(&mut watcher, &mut publisher, RetainForwardRule::OnNewSubscribe, 1).await
}

/// Subscribes, and checks how many retained messages come.
async fn given(
    watcher: &mut Peer<'_>,
    publisher: &mut Peer<'_>,
    rule: RetainForwardRule,
    expected: usize,
) -> anyhow::Result<()> {
    let asked = rule.clone();
    watcher.subscribe_with("kept", None, |filter| filter.retain_forward_rule = rule).await?;
    publisher.publish("end", "", 1, false).await?;
    let count = watcher.until("end").await?.len();
    ensure!(count == expected, "{asked:?} gives {count} retained messages, not {expected}");
    Ok(())
}

pub(super) async fn shared(t: &Turn) -> anyhow::Result<()> {
    let mut members = [Peer::new(t, "one").await?, Peer::new(t, "two").await?];
    let (mut publisher, mut beside) = (Peer::new(t, "pub").await?, Peer::new(t, "beside").await?);
    beside.subscribe("work/+", 1).await?;
    for member in &mut members {
        let code = member.subscribe_raw(&format!("$share/group/{}", t.topic("work/+")), 1).await?;
        ensure!(code == 1, "code of the shared subscription: {code:#x}");
        member.subscribe("end", 1).await?;
    }
    for text in numbers() {
        publisher.publish("work/x", text, 1, false).await?;
    }
    for text in numbers() {
        beside.expect("work/x", text, 1).await?;
    }
    // Each member takes what it is given; when all is there, nothing may follow but the end.
    let deadline = Instant::now() + PATIENCE;
    while members[0].waiting()? + members[1].waiting()? < MESSAGES && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    publisher.publish("end", "", 1, false).await?;
    let mut taken = BTreeMap::new();
    for (index, member) in members.iter_mut().enumerate() {
        let part = member.until("end").await?;
        ensure!(!part.is_empty(), "member {index} got nothing of {MESSAGES} messages");
        for message in part {
            let twice = taken.insert(message.text().parse::<usize>()?, index);
            ensure!(twice.is_none(), "message {} came twice", message.text());
        }
    }
    ensure!(taken.len() == MESSAGES, "the group got {} of {MESSAGES} messages", taken.len());
    Ok(())
}

pub(super) async fn server_keep_alive(t: &Turn) -> anyhow::Result<()> {
    let watcher = Peer::connect(t, "sub", Wishes { keep_alive_s: Some(65_000), ..Wishes::default() }).await?;
    let told_s = watcher.granted.as_ref().and_then(|granted| granted.server_keep_alive);
    ensure!(told_s.is_none_or(|told_s| (1..=65_000).contains(&told_s)), "server keep alive: {told_s:?}");
    Ok(())
}

pub(super) async fn assigned_id(t: &Turn) -> anyhow::Result<()> {
    let (mut one, mut two) = (Peer::new(t, "").await?, Peer::new(t, "").await?);
    let assigned =
        |peer: &Peer<'_>| peer.granted.as_ref().and_then(|granted| granted.assigned_client_identifier.clone());
    let ids = (assigned(&one), assigned(&two));
    ensure!(ids.0.is_some() && ids.1.is_some() && ids.0 != ids.1, "assigned client identifiers: {ids:?}");
    one.subscribe("x", 1).await?;
    two.publish("x", "here", 1, false).await?;
    one.expect("x", "here", 1).await?;
    Ok(())
}

pub(super) async fn receive_maximum(t: &Turn) -> anyhow::Result<()> {
    let watcher = Peer::connect(t, "sub", Wishes { receive_max: Some(1), ..Wishes::default() }).await?;
    in_order(watcher, Peer::new(t, "pub").await?).await
}

pub(super) async fn packet_size_max(t: &Turn) -> anyhow::Result<()> {
    let wishes = Wishes { packet_bytes_max: Some(1_000), ..Wishes::default() };
    let (mut watcher, mut publisher) = (Peer::connect(t, "sub", wishes).await?, Peer::new(t, "pub").await?);
    watcher.subscribe("+", 1).await?;
    for quality in 0..=1 {
        publisher.publish("large", vec![0; 2_000], quality, false).await?;
        publisher.publish("small", "x", quality, false).await?;
        watcher.expect("small", "x", quality).await?;
    }
    Ok(())
}

pub(super) async fn session_expiry(t: &Turn) -> anyhow::Result<()> {
    let short = || Wishes { keep_s: Some(1), ..Wishes::default() };
    Peer::connect(t, "short", short()).await?.leave().await?;
    Peer::connect(t, "long", Wishes::kept()).await?.leave().await?;
    // Each return begins the interval anew, so the absence grows until it is longer than the interval.
    let mut absence = Duration::from_secs(2);
    loop {
        tokio::time::sleep(absence).await;
        let back = Peer::connect(t, "short", short()).await?;
        if !back.session_present {
            break;
        }
        ensure!(absence < Duration::from_secs(16), "a session that expires after 1 s is there after {absence:?}");
        back.leave().await?;
        absence *= 2;
    }
    let long = Peer::connect(t, "long", Wishes::kept()).await?;
    ensure!(long.session_present, "a session that expires after {LONG_S} s is gone");
    Ok(())
}

fn will_properties(delay_s: u32) -> LastWillProperties {
    LastWillProperties {
        delay_interval: Some(delay_s),
        payload_format_indicator: None,
        message_expiry_interval: None,
        content_type: Some("text/plain".to_owned()),
        response_topic: None,
        correlation_data: None,
        user_properties: vec![("a".to_owned(), "b".to_owned())],
    }
}

pub(super) async fn will_delay(t: &Turn) -> anyhow::Result<()> {
    let mut watcher = Peer::new(t, "watcher").await?;
    watcher.subscribe("gone/+", 1).await?;
    let mortal = |topic, delay_s| Wishes {
        will: Some((topic, "lost", 1)),
        will_properties: Some(will_properties(delay_s)),
        ..Wishes::kept()
    };
    Peer::connect(t, "late", mortal("gone/late", 1)).await?.vanish().await;
    let got = watcher.expect("gone/late", "lost", 1).await?.properties;
    let expected = will_properties(1);
    ensure!(
        (&got.content_type, &got.user_properties) == (&expected.content_type, &expected.user_properties),
        "properties of the will: {got:?}"
    );
    // Who comes back in time leaves no will. [MQTT-3.1.3-9]
    Peer::connect(t, "back", mortal("gone/back", 600)).await?.vanish().await;
    let mut back = Peer::connect(t, "back", Wishes::kept()).await?;
    back.publish("gone/end", "", 1, false).await?;
    let wills = watcher.until("gone/end").await?;
    ensure!(wills.is_empty(), "wills of those who came back: {wills:?}");
    Ok(())
}

pub(super) async fn will_delay_session_end(t: &Turn) -> anyhow::Result<()> {
    let mut watcher = Peer::new(t, "watcher").await?;
    watcher.subscribe("gone", 1).await?;
    let wishes =
        Wishes { will: Some(("gone", "lost", 1)), will_properties: Some(will_properties(600)), ..Wishes::default() };
    Peer::connect(t, "ended", wishes).await?.vanish().await;
    watcher.expect("gone", "lost", 1).await?;
    Ok(())
}
