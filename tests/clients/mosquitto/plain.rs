//! The scenarios that both versions of MQTT have.

use anyhow::ensure;

use super::tools::{Sub, kept, publish, publish_lines};
use crate::kind::Turn;
use crate::scenarios::Step;

/// Messages of a scenario that sends many.
pub(super) const MESSAGES: usize = 100;

pub(super) fn numbers() -> Vec<String> {
    (0..MESSAGES).map(|number| number.to_string()).collect()
}

pub(super) fn qos(t: &Turn) -> anyhow::Result<()> {
    for granted in 0..=2 {
        let mut watcher = Sub::new(t, &format!("sub-{granted}"), granted, &[&format!("{granted}/+")], &[])?;
        ensure!(watcher.codes == [granted], "granted {:?}, not {granted}", watcher.codes);
        for published in 0..=2 {
            let (rest, payload) = (format!("{granted}/{published}"), format!("from {published} to {granted}"));
            publish(t, &rest, &payload, published, &[])?;
            let message = watcher.expect(&rest, &payload, published.min(granted))?;
            ensure!(!message.retain, "a live message is marked as retained");
        }
    }
    Ok(())
}

pub(super) fn payloads(t: &Turn) -> anyhow::Result<()> {
    let mut watcher = Sub::new(t, "sub", 2, &["#"], &[])?;
    let all = [
        ("empty", Vec::new()),
        ("bytes", (0..=255).collect()),
        ("grüße/温度/µ", "wärmer".as_bytes().to_vec()),
        ("large", (0..200_000).map(|byte| (byte % 251) as u8).collect()),
    ];
    for (rest, payload) in all {
        for quality in 0..=2 {
            publish(t, rest, &payload, quality, &[])?;
            watcher.expect(rest, &payload, quality)?;
        }
    }
    Ok(())
}

pub(super) fn order(t: &Turn, more: &[&str]) -> anyhow::Result<()> {
    let mut watcher = Sub::new(t, "sub", 2, &["+"], more)?;
    for quality in [1, 2] {
        publish_lines(t, &quality.to_string(), &numbers(), quality)?;
        for text in numbers() {
            watcher.expect(&quality.to_string(), text, quality)?;
        }
    }
    Ok(())
}

/// What a new subscriber gets of `kept/+`.
fn retained_now(t: &Turn) -> anyhow::Result<Vec<(String, String, u8, bool)>> {
    let mut late = Sub::new(t, "late", 2, &["kept/+"], &[])?;
    publish(t, "kept/end", "", 2, &[])?;
    let found = late.until("kept/end")?.into_iter();
    let mut found: Vec<_> = found.map(|m| (m.topic.clone(), m.text(), m.qos, m.retain)).collect();
    found.sort();
    Ok(found)
}

fn keep_and_clear(t: &Turn) -> anyhow::Result<()> {
    publish(t, "kept/gone", "short", 1, &["-r"])?;
    publish(t, "kept/gone", "", 1, &["-r"])
}

pub(super) fn retained(t: &Turn) -> anyhow::Result<()> {
    let mut live = Sub::new(t, "live", 1, &["#"], &[])?;
    for quality in 0..=2 {
        for payload in ["old", "new"] {
            publish(t, &format!("kept/{quality}"), payload, quality, &["-r"])?;
            let message = live.expect(&format!("kept/{quality}"), payload, quality.min(1))?;
            ensure!(!message.retain, "a live message is marked as retained");
        }
    }
    keep_and_clear(t)?;
    let expected: Vec<_> = (0..=2).map(|q| (t.topic(&format!("kept/{q}")), "new".to_owned(), q, true)).collect();
    let found = retained_now(t)?;
    ensure!(found == expected, "retained: expected {expected:?}, got {found:?}");
    Ok(())
}

pub(super) fn retained_restart(t: &Turn) -> anyhow::Result<()> {
    if t.step == Step::Before {
        for quality in [1, 2] {
            publish(t, &format!("kept/{quality}"), "still here", quality, &["-r"])?;
        }
        return keep_and_clear(t);
    }
    let expected: Vec<_> = (1..=2).map(|q| (t.topic(&format!("kept/{q}")), "still here".to_owned(), q, true)).collect();
    let found = retained_now(t)?;
    ensure!(found == expected, "retained: expected {expected:?}, got {found:?}");
    Ok(())
}

pub(super) fn will(t: &Turn) -> anyhow::Result<()> {
    let mut watcher = Sub::new(t, "watcher", 2, &["gone/+"], &[])?;
    let polite = t.topic("gone/polite");
    // With `-E` it says DISCONNECT as soon as it is subscribed.
    Sub::new(t, "polite", 0, &["x"], &["--will-topic", &polite, "--will-payload", "never", "-E"])?
        .line_with("sending DISCONNECT")?;
    for quality in 0..=2 {
        let (rest, qos) = (format!("gone/{quality}"), quality.to_string());
        let will = ["--will-topic", &t.topic(&rest), "--will-payload", "lost", "--will-qos", &qos];
        drop(Sub::new(t, "mortal", 0, &["x"], &will)?);
        watcher.expect(&rest, "lost", quality)?;
    }
    Ok(())
}

pub(super) fn wildcards(t: &Turn) -> anyhow::Result<()> {
    let topics = ["a", "a/b", "a/b/c", "a/x/c", "a/b/c/d", "b/b", "/b", "A/b", "a/b/"];
    let expected: [(&str, &[&str]); 5] = [
        ("a/+/c", &["a/b/c", "a/x/c"]),
        ("a/#", &["a", "a/b", "a/b/c", "a/x/c", "a/b/c/d", "a/b/"]),
        ("+/b", &["a/b", "b/b", "/b", "A/b"]),
        ("#", &topics),
        ("a/b", &["a/b"]),
    ];
    let mut watchers = Vec::new();
    for (number, (filter, _)) in expected.iter().enumerate() {
        watchers.push(Sub::new(t, &format!("sub-{number}"), 1, &[filter, "end/end/end"], &[])?);
    }
    for topic in topics.into_iter().chain(["end/end/end"]) {
        publish(t, topic, topic, 1, &[])?;
    }
    for (watcher, (filter, topics)) in watchers.iter_mut().zip(expected) {
        let mut got: Vec<_> = watcher.until("end/end/end")?.into_iter().map(|message| message.topic).collect();
        let mut expected: Vec<_> = topics.iter().map(|topic| t.topic(topic)).collect();
        got.sort();
        expected.sort();
        ensure!(got == expected, "{filter}: expected {expected:?}, got {got:?}");
    }
    Ok(())
}

pub(super) fn unsubscribe(t: &Turn) -> anyhow::Result<()> {
    let left = t.topic("left");
    let mut watcher = Sub::new(t, "sub", 1, &["left", "kept", "end"], &["-U", &left])?;
    watcher.line_with("received UNSUBACK")?;
    for rest in ["left", "kept", "end"] {
        publish(t, rest, rest, 1, &[])?;
    }
    let topics: Vec<_> = watcher.until("end")?.into_iter().map(|message| message.topic).collect();
    ensure!(topics == [t.topic("kept")], "topics after UNSUBSCRIBE: {topics:?}");
    Ok(())
}

pub(super) fn keep_alive(t: &Turn) -> anyhow::Result<()> {
    let mut watcher = Sub::new(t, "sub", 1, &["x"], &["-k", "5"])?;
    // Two pings are further apart from the subscription than the silence that is granted.
    watcher.line_of("received PINGRESP", 2)?;
    publish(t, "x", "here", 1, &[])?;
    watcher.expect("x", "here", 1)?;
    Ok(())
}

pub(super) fn refused(t: &Turn) -> anyhow::Result<()> {
    let filters: Vec<String> = (0..=t.subscriptions_max).map(|number| t.topic(&format!("n/{number}"))).collect();
    let mut watcher = Sub::raw(t, "sub", 1, &filters, &[])?;
    let mut expected = vec![1; t.subscriptions_max];
    expected.push(if t.is_v5() { 0x97 } else { 0x80 });
    ensure!(watcher.codes == expected, "codes: {:?}", watcher.codes);
    publish(t, &format!("n/{}", t.subscriptions_max), "refused", 1, &[])?;
    publish(t, "n/0", "granted", 1, &[])?;
    watcher.expect("n/0", "granted", 1)?;
    Ok(())
}

pub(super) fn session(t: &Turn) -> anyhow::Result<()> {
    for (quality, first) in [(1, 0), (2, 1)] {
        let (name, filter) = (format!("sleeper-{quality}"), format!("q{quality}/+"));
        let missed: Vec<String> = numbers().into_iter().skip(first).step_by(2).collect();
        if t.step == Step::Before {
            Sub::keep(t, &name, quality, &[&filter])?;
            publish_lines(t, &format!("q{quality}/x"), &missed, quality)?;
            continue;
        }
        // It subscribes again, but what is delivered was published before.
        let mut sleeper = Sub::new(t, &name, quality, &[&filter], &kept(t))?;
        for text in missed {
            sleeper.expect(&format!("q{quality}/x"), text, quality)?;
        }
        publish(t, &format!("q{quality}/y"), "live", quality, &[])?;
        sleeper.expect(&format!("q{quality}/y"), "live", quality)?;
    }
    Ok(())
}

pub(super) fn session_clean(t: &Turn) -> anyhow::Result<()> {
    Sub::keep(t, "sleeper", 1, &["old"])?;
    publish(t, "old", "missed", 1, &[])?;
    let mut second = Sub::new(t, "sleeper", 1, &["end"], &[])?;
    publish(t, "old", "missed", 1, &[])?;
    publish(t, "end", "", 1, &[])?;
    let old = second.until("end")?;
    ensure!(old.is_empty(), "messages of the discarded session: {old:?}");
    Ok(())
}

pub(super) fn sys_topics(t: &Turn) -> anyhow::Result<()> {
    let mut watcher = Sub::raw(t, "sub", 0, &["$SYS/#".to_owned()], &[])?;
    let mut everything = Sub::raw(t, "all", 0, &["#".to_owned()], &[])?;
    let topic = watcher.next()?.topic;
    ensure!(topic.starts_with("$SYS/"), "{topic}");
    publish(t, "end", "", 1, &[])?;
    for message in everything.until("end")? {
        ensure!(!message.topic.starts_with('$'), "`#` gets {}", message.topic);
    }
    Ok(())
}
