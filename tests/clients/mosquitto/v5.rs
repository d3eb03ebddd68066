//! The scenarios that only MQTT 5 has.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, ensure};
use harness::{PATIENCE, wait_for};

use super::plain::{MESSAGES, numbers};
use super::tools::{Message, Sub, kept, publish, publish_to, tool};
use crate::kind::Turn;

const PROPERTIES: [&[&str]; 6] = [
    &["-D", "publish", "content-type", "application/json"],
    &["-D", "publish", "response-topic", "answers/1"],
    &["-D", "publish", "correlation-data", "x-1"],
    &["-D", "publish", "user-property", "unit", "mm/s"],
    &["-D", "publish", "user-property", "unit", "µm"],
    &["-D", "publish", "payload-format-indicator", "1"],
];

fn same_properties(message: &Message) -> anyhow::Result<()> {
    let got = (&message.content_type, &message.response_topic, &message.correlation_data, &message.user_properties);
    let got = (got.0.as_str(), got.1.as_str(), got.2.as_str(), got.3.as_str());
    ensure!(got == ("application/json", "answers/1", "x-1", "unit:mm/s unit:µm"), "properties: {got:?}");
    Ok(())
}

pub(super) fn properties(t: &Turn) -> anyhow::Result<()> {
    let mut watcher = Sub::new(t, "sub", 2, &["#"], &[])?;
    for quality in 0..=2 {
        let rest = format!("live/{quality}");
        publish(t, &rest, "7.1", quality, &PROPERTIES.concat())?;
        same_properties(&watcher.expect(&rest, "7.1", quality)?)?;
    }
    publish(t, "kept", "7.2", 1, &[&["-r"], PROPERTIES.concat().as_slice()].concat())?;
    let message = Sub::new(t, "late", 1, &["kept"], &[])?.expect("kept", "7.2", 1)?;
    ensure!(message.retain, "a retained message is not marked");
    same_properties(&message)
}

pub(super) fn request_response(t: &Turn) -> anyhow::Result<()> {
    let mut answerer = Sub::new(t, "answerer", 1, &["questions"], &[])?;
    let mut asker = tool(t, "mosquitto_rr")
        .args(["-t", &t.topic("questions"), "-e", &t.topic("answers"), "-q", "1", "-m", "6 x 7"])
        .args(["-D", "publish", "correlation-data", "x-1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let asked = answerer.expect("questions", "6 x 7", 1).and_then(|question| {
        let back = ["-D", "publish", "correlation-data", &question.correlation_data];
        ensure!(question.correlation_data == "x-1", "correlation data: {question:?}");
        publish_to(t, &question.response_topic, "42", 1, &back)?;
        wait_for("mosquitto_rr to end", || asker.try_wait().ok().flatten())
    });
    if asked.is_err() {
        let _ = asker.kill();
    }
    let answer = asker.wait_with_output().context("mosquitto_rr")?;
    let answer = String::from_utf8_lossy(&answer.stdout).trim().to_owned();
    asked?;
    ensure!(answer == "42", "the answer is {answer:?}");
    Ok(())
}

pub(super) fn message_expiry(t: &Turn) -> anyhow::Result<()> {
    let mut watcher = Sub::new(t, "sub", 1, &["live"], &[])?;
    let after = |seconds| ["-D", "publish", "message-expiry-interval", seconds];
    publish(t, "live", "x", 1, &after("600"))?;
    let left_s = watcher.expect("live", "x", 1)?.expiry_s;
    ensure!(left_s.is_some_and(|left_s| (1..=600).contains(&left_s)), "message expiry interval: {left_s:?}");
    publish(t, "kept", "long", 1, &[&["-r"], after("600").as_slice()].concat())?;
    publish(t, "kept/short", "short", 1, &[&["-r"], after("1").as_slice()].concat())?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut late = Sub::new(t, "late", 1, &["kept/#"], &[])?;
        publish(t, "kept/end", "", 1, &[])?;
        let topics: Vec<_> = late.until("kept/end")?.into_iter().map(|message| message.topic).collect();
        ensure!(topics.contains(&t.topic("kept")), "expired too early: {topics:?}");
        if topics.len() == 1 {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "still there: {topics:?}");
    }
}

pub(super) fn topic_alias(t: &Turn) -> anyhow::Result<()> {
    // mosquitto_sub itself cannot take aliases: it closes the connection at the first.
    let mut watcher = Sub::new(t, "sub", 2, &["#"], &[])?;
    for (rest, quality) in [("first", 0), ("second", 1), ("third", 2)] {
        // Repetitions are sent with an empty topic.
        publish(t, rest, "x", quality, &["--repeat", "3", "-D", "publish", "topic-alias", "1"])?;
        for _ in 0..3 {
            watcher.expect(rest, "x", quality)?;
        }
    }
    Ok(())
}

pub(super) fn subscription_identifier(t: &Turn) -> anyhow::Result<()> {
    let identified = |id| ["-D", "subscribe", "subscription-identifier", id];
    let mut one = Sub::new(t, "one", 1, &["a/+"], &identified("7"))?;
    let mut two = Sub::new(t, "two", 1, &["#"], &identified("268435455"))?;
    let mut plain = Sub::new(t, "plain", 1, &["a/#"], &[])?;
    publish(t, "a/b", "x", 1, &[])?;
    for (sub, expected) in [(&mut one, Some(7)), (&mut two, Some(268_435_455)), (&mut plain, None)] {
        let got = sub.expect("a/b", "x", 1)?.identifier;
        ensure!(got == expected, "subscription identifier: expected {expected:?}, got {got:?}");
    }
    Ok(())
}

pub(super) fn retain_as_published(t: &Turn) -> anyhow::Result<()> {
    let mut watcher = Sub::new(t, "sub", 1, &["+"], &["--retain-as-published"])?;
    let mut plain = Sub::new(t, "plain", 1, &["+"], &[])?;
    for (rest, options) in [("kept", &["-r"][..]), ("live", &[])] {
        publish(t, rest, "x", 1, options)?;
        let flags = (watcher.expect(rest, "x", 1)?.retain, plain.expect(rest, "x", 1)?.retain);
        ensure!(flags == (rest == "kept", false), "retain of {rest}: {flags:?}");
    }
    Ok(())
}

pub(super) fn shared(t: &Turn) -> anyhow::Result<()> {
    let mut members = Vec::new();
    for name in ["one", "two"] {
        let member = Sub::raw(t, name, 1, &[format!("$share/group/{}", t.topic("work/+")), t.topic("end")], &[])?;
        ensure!(member.codes == [1, 1], "codes of the shared subscription: {:?}", member.codes);
        members.push(member);
    }
    let mut beside = Sub::new(t, "beside", 1, &["work/+"], &[])?;
    super::tools::publish_lines(t, "work/x", &numbers(), 1)?;
    for text in numbers() {
        beside.expect("work/x", text, 1)?;
    }
    // Each member takes what it is given; when all is there, nothing may follow but the end.
    wait_for("the group to get all messages", || {
        (members.iter().map(Sub::printed).sum::<usize>() >= MESSAGES).then_some(())
    })?;
    publish(t, "end", "", 1, &[])?;
    let mut taken = BTreeMap::new();
    for (index, member) in members.iter_mut().enumerate() {
        let part = member.until("end")?;
        ensure!(!part.is_empty(), "member {index} got nothing of {MESSAGES} messages");
        for message in part {
            let twice = taken.insert(message.text().parse::<usize>()?, index);
            ensure!(twice.is_none(), "message {} came twice", message.text());
        }
    }
    ensure!(taken.len() == MESSAGES, "the group got {} of {MESSAGES} messages", taken.len());
    Ok(())
}

pub(super) fn assigned_id(t: &Turn) -> anyhow::Result<()> {
    let mut subs = [Sub::new(t, "", 1, &["x"], &[])?, Sub::new(t, "", 1, &["x"], &[])?];
    let mut ids = Vec::new();
    for sub in &subs {
        // "Client IDENTIFIER received CONNACK (0)"; before, it is "(null)".
        let line = sub.line_with("received CONNACK")?;
        ids.push(line.split(' ').nth(1).unwrap_or_default().to_owned());
    }
    ensure!(ids[0] != ids[1] && ids.iter().all(|id| !id.is_empty() && id != "(null)"), "assigned: {ids:?}");
    publish(t, "x", "here", 1, &[])?;
    for sub in &mut subs {
        sub.expect("x", "here", 1)?;
    }
    Ok(())
}

pub(super) fn packet_size_max(t: &Turn) -> anyhow::Result<()> {
    let mut watcher = Sub::new(t, "sub", 1, &["+"], &["-D", "connect", "maximum-packet-size", "1000"])?;
    for quality in 0..=1 {
        publish(t, "large", vec![b'x'; 2_000], quality, &[])?;
        publish(t, "small", "x", quality, &[])?;
        watcher.expect("small", "x", quality)?;
    }
    Ok(())
}

/// A client with a will that is killed at once.
fn killed(t: &Turn, name: &str, rest: &str, delay_s: &str, more: &[&str]) -> anyhow::Result<()> {
    let topic = t.topic(rest);
    let will = ["--will-topic", &topic, "--will-payload", "lost", "--will-qos", "1"];
    let delay = ["-D", "will", "will-delay-interval", delay_s, "-D", "will", "content-type", "text/plain"];
    Sub::new(t, name, 0, &["x"], &[&will[..], &delay[..], more].concat()).map(drop)
}

pub(super) fn will_delay(t: &Turn) -> anyhow::Result<()> {
    let mut watcher = Sub::new(t, "watcher", 1, &["gone/+"], &[])?;
    killed(t, "late", "gone/late", "1", &kept(t))?;
    let message = watcher.expect("gone/late", "lost", 1)?;
    ensure!(message.content_type == "text/plain", "properties of the will: {message:?}");
    // Who comes back in time leaves no will. [MQTT-3.1.3-9]
    killed(t, "back", "gone/back", "600", &kept(t))?;
    let _back = Sub::new(t, "back", 0, &["x"], &kept(t))?;
    publish(t, "gone/end", "", 1, &[])?;
    let wills = watcher.until("gone/end")?;
    ensure!(wills.is_empty(), "wills of those who came back: {wills:?}");
    Ok(())
}

pub(super) fn will_delay_session_end(t: &Turn) -> anyhow::Result<()> {
    let mut watcher = Sub::new(t, "watcher", 1, &["gone"], &[])?;
    killed(t, "ended", "gone", "600", &[])?;
    watcher.expect("gone", "lost", 1)?;
    Ok(())
}
