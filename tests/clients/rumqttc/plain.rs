//! The scenarios that both versions of MQTT have.

use anyhow::ensure;

use super::peer::{Peer, Wishes};
use crate::kind::Turn;
use crate::scenarios::Step;

/// Messages of a scenario that sends many.
pub(super) const MESSAGES: usize = 100;

pub(super) fn numbers() -> Vec<String> {
    (0..MESSAGES).map(|number| number.to_string()).collect()
}

pub(super) async fn qos(t: &Turn) -> anyhow::Result<()> {
    let mut publisher = Peer::new(t, "pub").await?;
    for granted in 0..=2 {
        let mut watcher = Peer::new(t, &format!("sub-{granted}")).await?;
        let code = watcher.subscribe(&format!("{granted}/+"), granted).await?;
        ensure!(code == granted, "granted {code}, not {granted}");
        for published in 0..=2 {
            let (rest, payload) = (format!("{granted}/{published}"), format!("from {published} to {granted}"));
            publisher.publish(&rest, payload.clone(), published, false).await?;
            let message = watcher.expect(&rest, payload, published.min(granted)).await?;
            ensure!(!message.retain, "a live message is marked as retained");
        }
    }
    Ok(())
}

pub(super) async fn payloads(t: &Turn) -> anyhow::Result<()> {
    let (mut watcher, mut publisher) = (Peer::new(t, "sub").await?, Peer::new(t, "pub").await?);
    watcher.subscribe("#", 2).await?;
    let all = [
        ("empty", Vec::new()),
        ("bytes", (0..=255).collect()),
        ("grüße/温度/µ", "wärmer".as_bytes().to_vec()),
        ("large", (0..200_000).map(|byte| (byte % 251) as u8).collect()),
    ];
    for (rest, payload) in all {
        for quality in 0..=2 {
            publisher.publish(rest, payload.clone(), quality, false).await?;
            watcher.expect(rest, &payload, quality).await?;
        }
    }
    Ok(())
}

pub(super) async fn order(t: &Turn) -> anyhow::Result<()> {
    let watcher = Peer::new(t, "sub").await?;
    in_order(watcher, Peer::new(t, "pub").await?).await
}

pub(super) async fn in_order(mut watcher: Peer<'_>, mut publisher: Peer<'_>) -> anyhow::Result<()> {
    watcher.subscribe("+", 2).await?;
    for quality in [1, 2] {
        publisher.publish_all(&quality.to_string(), &numbers(), quality).await?;
        for text in numbers() {
            watcher.expect(&quality.to_string(), text, quality).await?;
        }
    }
    Ok(())
}

/// What a new subscriber gets of `kept/+`.
async fn retained_now(t: &Turn, publisher: &mut Peer<'_>) -> anyhow::Result<Vec<(String, String, u8, bool)>> {
    let mut late = Peer::new(t, "late").await?;
    late.subscribe("kept/+", 2).await?;
    publisher.publish("kept/end", "", 2, false).await?;
    let found = late.until("kept/end").await?.into_iter();
    let mut found: Vec<_> = found.map(|m| (m.topic.clone(), m.text(), m.qos, m.retain)).collect();
    found.sort();
    Ok(found)
}

async fn clear(publisher: &mut Peer<'_>) -> anyhow::Result<()> {
    publisher.publish("kept/gone", "short", 1, true).await?;
    publisher.publish("kept/gone", "", 1, true).await
}

pub(super) async fn retained(t: &Turn) -> anyhow::Result<()> {
    let (mut live, mut publisher) = (Peer::new(t, "live").await?, Peer::new(t, "pub").await?);
    live.subscribe("#", 1).await?;
    for quality in 0..=2 {
        for payload in ["old", "new"] {
            publisher.publish(&format!("kept/{quality}"), payload, quality, true).await?;
            let message = live.expect(&format!("kept/{quality}"), payload, quality.min(1)).await?;
            ensure!(!message.retain, "a live message is marked as retained");
        }
    }
    clear(&mut publisher).await?;
    let expected: Vec<_> = (0..=2).map(|q| (t.topic(&format!("kept/{q}")), "new".to_owned(), q, true)).collect();
    let found = retained_now(t, &mut publisher).await?;
    ensure!(found == expected, "retained: expected {expected:?}, got {found:?}");
    Ok(())
}

pub(super) async fn retained_restart(t: &Turn) -> anyhow::Result<()> {
    let mut publisher = Peer::new(t, "pub").await?;
    if t.step == Step::Before {
        for quality in [1, 2] {
            publisher.publish(&format!("kept/{quality}"), "still here", quality, true).await?;
        }
        return clear(&mut publisher).await;
    }
    let expected: Vec<_> = (1..=2).map(|q| (t.topic(&format!("kept/{q}")), "still here".to_owned(), q, true)).collect();
    let found = retained_now(t, &mut publisher).await?;
    ensure!(found == expected, "retained: expected {expected:?}, got {found:?}");
    Ok(())
}

pub(super) async fn will(t: &Turn) -> anyhow::Result<()> {
    let mut watcher = Peer::new(t, "watcher").await?;
    watcher.subscribe("gone/+", 2).await?;
    let mortal = |topic, payload, qos| Wishes { will: Some((topic, payload, qos)), ..Wishes::default() };
    Peer::connect(t, "polite", mortal("gone/polite", "never", 1)).await?.leave().await?;
    for (topic, quality) in [("gone/0", 0), ("gone/1", 1), ("gone/2", 2)] {
        Peer::connect(t, "mortal", mortal(topic, "lost", quality)).await?.vanish().await;
        watcher.expect(topic, "lost", quality).await?;
    }
    Ok(())
}

pub(super) async fn wildcards(t: &Turn) -> anyhow::Result<()> {
    let topics = ["a", "a/b", "a/b/c", "a/x/c", "a/b/c/d", "b/b", "/b", "A/b", "a/b/"];
    let expected: [(&str, &[&str]); 5] = [
        ("a/+/c", &["a/b/c", "a/x/c"]),
        ("a/#", &["a", "a/b", "a/b/c", "a/x/c", "a/b/c/d", "a/b/"]),
        ("+/b", &["a/b", "b/b", "/b", "A/b"]),
        ("#", &topics),
        ("a/b", &["a/b"]),
    ];
    let mut publisher = Peer::new(t, "pub").await?;
    let mut watchers = Vec::new();
    for (number, (filter, _)) in expected.iter().enumerate() {
        let mut watcher = Peer::new(t, &format!("sub-{number}")).await?;
        watcher.subscribe(filter, 1).await?;
        watcher.subscribe("end/end/end", 1).await?;
        watchers.push(watcher);
    }
    for topic in topics.into_iter().chain(["end/end/end"]) {
        publisher.publish(topic, topic, 1, false).await?;
    }
    for (watcher, (filter, topics)) in watchers.iter_mut().zip(expected) {
        let mut got: Vec<_> = watcher.until("end/end/end").await?.into_iter().map(|message| message.topic).collect();
        let mut expected: Vec<_> = topics.iter().map(|topic| t.topic(topic)).collect();
        got.sort();
        expected.sort();
        ensure!(got == expected, "{filter}: expected {expected:?}, got {got:?}");
    }
    Ok(())
}

pub(super) async fn unsubscribe(t: &Turn) -> anyhow::Result<()> {
    let (mut watcher, mut publisher) = (Peer::new(t, "sub").await?, Peer::new(t, "pub").await?);
    for rest in ["left", "kept", "end"] {
        watcher.subscribe(rest, 1).await?;
    }
    let codes = (watcher.unsubscribe("left").await?, watcher.unsubscribe("never").await?);
    ensure!(!t.is_v5() || codes == (vec![0], vec![0x11]), "codes of UNSUBACK: {codes:?}");
    for rest in ["left", "kept", "end"] {
        publisher.publish(rest, rest, 1, false).await?;
    }
    let topics: Vec<_> = watcher.until("end").await?.into_iter().map(|message| message.topic).collect();
    ensure!(topics == [t.topic("kept")], "topics after UNSUBSCRIBE: {topics:?}");
    Ok(())
}

pub(super) async fn takeover(t: &Turn) -> anyhow::Result<()> {
    let mut watcher = Peer::new(t, "watcher").await?;
    watcher.subscribe("gone", 1).await?;
    let mortal = Wishes { will: Some(("gone", "lost", 1)), ..Wishes::default() };
    let mut first = Peer::connect(t, "twin", mortal).await?;
    let mut second = Peer::new(t, "twin").await?;
    let reason = first.closed().await?;
    ensure!(!t.is_v5() || reason == Some(0x8E), "reason of the disconnect: {reason:?}");
    watcher.expect("gone", "lost", 1).await?;
    second.subscribe("still", 1).await?;
    second.publish("still", "here", 1, false).await?;
    second.expect("still", "here", 1).await?;
    Ok(())
}

pub(super) async fn keep_alive(t: &Turn) -> anyhow::Result<()> {
    // rumqttc takes nothing shorter in MQTT 5.
    let keep_alive_s = if t.is_v5() { 5 } else { 2 };
    let wishes = Wishes { keep_alive_s: Some(keep_alive_s), ..Wishes::default() };
    let (mut watcher, mut publisher) = (Peer::connect(t, "sub", wishes).await?, Peer::new(t, "pub").await?);
    watcher.subscribe("x", 1).await?;
    // Two pings are further apart from the subscription than the silence that is granted.
    for _ in 0..2 {
        watcher.pong().await?;
    }
    publisher.publish("x", "here", 1, false).await?;
    watcher.expect("x", "here", 1).await?;
    Ok(())
}

pub(super) async fn refused(t: &Turn) -> anyhow::Result<()> {
    let mut watcher = Peer::new(t, "sub").await?;
    for number in 0..t.subscriptions_max {
        let code = watcher.subscribe(&format!("n/{number}"), 1).await?;
        ensure!(code == 1, "code of subscription {number}: {code:#x}");
    }
    let expected = if t.is_v5() { 0x97 } else { 0x80 };
    let code = watcher.subscribe("one/more", 1).await?;
    ensure!(code == expected, "code beyond the limit: {code:#x}");
    let code = watcher.subscribe("n/0", 0).await?;
    ensure!(code == 0, "code of a known filter: {code:#x}");
    watcher.unsubscribe("n/0").await?;
    let code = watcher.subscribe("one/more", 1).await?;
    ensure!(code == 1, "code after one was given back: {code:#x}");
    watcher.publish("one/more", "here", 1, false).await?;
    watcher.expect("one/more", "here", 1).await?;
    Ok(())
}

pub(super) async fn session(t: &Turn) -> anyhow::Result<()> {
    let mut sleeper = Peer::connect(t, "sleeper", Wishes::kept()).await?;
    if t.step == Step::Before {
        ensure!(!sleeper.session_present, "session present at the first visit");
        for quality in 0..=2 {
            sleeper.subscribe(&format!("q{quality}/+"), quality).await?;
        }
        sleeper.leave().await?;
        let mut publisher = Peer::new(t, "pub").await?;
        for (quality, text) in [1, 2].into_iter().cycle().zip(numbers()) {
            publisher.publish(&format!("q{quality}/x"), text, quality, false).await?;
        }
        return Ok(());
    }
    ensure!(sleeper.session_present, "no session present at the return");
    let mut got = Vec::new();
    for _ in 0..MESSAGES {
        got.push(sleeper.next().await?);
    }
    // Order is promised for a topic at one QoS. [MQTT-4.6.0-6]
    for (quality, first) in [(1, 0), (2, 1)] {
        let topic = t.topic(&format!("q{quality}/x"));
        let missed: Vec<_> = got.iter().filter(|m| m.topic == topic && m.qos == quality).map(|m| m.text()).collect();
        let expected: Vec<_> = numbers().into_iter().skip(first).step_by(2).collect();
        ensure!(missed == expected, "missed at QoS {quality}: expected {expected:?}, got {missed:?}");
    }
    let mut publisher = Peer::new(t, "pub").await?;
    for quality in 0..=2 {
        publisher.publish(&format!("q{quality}/y"), "live", quality, false).await?;
        sleeper.expect(&format!("q{quality}/y"), "live", quality).await?;
    }
    Ok(())
}

pub(super) async fn session_clean(t: &Turn) -> anyhow::Result<()> {
    let mut first = Peer::connect(t, "sleeper", Wishes::kept()).await?;
    first.subscribe("old", 1).await?;
    first.leave().await?;
    let mut publisher = Peer::new(t, "pub").await?;
    publisher.publish("old", "missed", 1, false).await?;
    let mut second = Peer::new(t, "sleeper").await?;
    ensure!(!second.session_present, "session present after a clean start");
    second.subscribe("end", 1).await?;
    publisher.publish("old", "missed", 1, false).await?;
    publisher.publish("end", "", 1, false).await?;
    let old = second.until("end").await?;
    ensure!(old.is_empty(), "messages of the discarded session: {old:?}");
    second.leave().await?;
    let third = Peer::connect(t, "sleeper", Wishes::kept()).await?;
    ensure!(!third.session_present, "session present although the last one was clean");
    Ok(())
}

pub(super) async fn redelivery(t: &Turn) -> anyhow::Result<()> {
    let mut absent = Peer::connect(t, "sleeper", Wishes { never_ack: true, ..Wishes::kept() }).await?;
    let mut publisher = Peer::new(t, "pub").await?;
    absent.subscribe("x", 1).await?;
    for text in ["0", "1", "2"] {
        publisher.publish("x", text, 1, false).await?;
        absent.expect("x", text, 1).await?;
    }
    absent.vanish().await;
    let mut back = Peer::connect(t, "sleeper", Wishes::kept()).await?;
    ensure!(back.session_present, "no session present at the return");
    for text in ["0", "1", "2"] {
        ensure!(back.expect("x", text, 1).await?.dup, "sent again without the DUP flag");
    }
    Ok(())
}

pub(super) async fn sys_topics(t: &Turn) -> anyhow::Result<()> {
    let (mut watcher, mut everything) = (Peer::new(t, "sub").await?, Peer::new(t, "all").await?);
    watcher.subscribe_raw("$SYS/#", 0).await?;
    everything.subscribe_raw("#", 0).await?;
    let topic = watcher.next().await?.topic;
    ensure!(topic.starts_with("$SYS/"), "{topic}");
    everything.publish("end", "", 1, false).await?;
    for message in everything.until("end").await? {
        ensure!(!message.topic.starts_with('$'), "`#` gets {}", message.topic);
    }
    Ok(())
}
