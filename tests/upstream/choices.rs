//! What an upstream is asked to send: telemetry no faster than a line bears, condensed, or only how the machines and the gateway are.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use harness::client::{Client, Connect};
use serde_json::Value;

use crate::kind::{Kind, Message, Want};
use crate::scenarios::Scenario;
use crate::stage::Stage;

/// The scenarios.
pub(crate) const CHOICES: [Scenario; 3] = [
    Scenario {
        name: "rate",
        claim: "Telemetry goes no faster than it may, nothing of it is lost, and an alert does not wait for it.",
        play: rate,
    },
    Scenario {
        name: "condensed",
        claim: "Condensed telemetry tells of every sample once, with its smallest, largest and last value.",
        play: condensed,
    },
    Scenario {
        name: "health",
        claim: "Health and status arrive, the newest again and again, and cost next to nothing between.",
        play: health,
    },
];

/// Messages a second, and how many are sent: what fills the bucket of a second goes at once, the rest takes three more.
const RATE: usize = 100;
const HELD: usize = 4 * RATE;
/// Samples of a machine, and of how many machines.
const SAMPLES: usize = 200;
const MACHINES: usize = 3;
/// A span of time over which the gateway's own work is looked at, and the part of it that forwarding nothing must stay below.
const SPAN: Duration = Duration::from_secs(1);
const IDLE_PART_MAX: f64 = 0.5;

fn rate(kind: &dyn Kind) -> anyhow::Result<()> {
    let keys = format!("max_messages_per_s = {RATE}\nbatch_messages = 20");
    let mut stage = Stage::set(kind, Want::default(), &keys)?;
    let begun = Instant::now();
    stage.publish("mw/v1/telemetry/pump-1/json", HELD)?;
    stage.wait_published()?;
    stage.publish("mw/v1/alert/pump-1", 1)?;
    let arrived = stage.check_arrived()?;
    let (took, least) = (begun.elapsed(), Duration::from_secs((HELD / RATE - 1) as u64));
    ensure!(took >= least, "{HELD} messages took {took:?}, less than {least:?}");
    let place = arrived.first.iter().position(|message| message.content == "alert");
    ensure!(place.is_some_and(|place| place < HELD - RATE), "the alert came in place {place:?} of {HELD}");
    Ok(())
}

fn condensed(kind: &dyn Kind) -> anyhow::Result<()> {
    let mut stage = Stage::set_sending(kind, Want::default(), &["telemetry"], "downsample_s = 1")?;
    let machines: Vec<String> = (1..=MACHINES).map(|number| format!("pump-{number}")).collect();
    let mut client = Client::connect(stage.gateway()?.mqtt, &Connect::new("samples"))?;
    for number in 1..=SAMPLES {
        for machine in &machines {
            client.publish(&format!("mw/v1/telemetry/{machine}/json"), sample(number).as_bytes(), false)?;
        }
    }
    for machine in &machines {
        let topic = format!("mw/v1/condensed/{machine}");
        let parts = received(&mut stage, &topic, |parts| {
            let counts: anyhow::Result<Vec<u64>> =
                parts.iter().map(|part| figure(part, "n").map(|n| n as u64)).collect();
            Ok(counts?.iter().sum::<u64>() >= SAMPLES as u64)
        })?;
        let (mut count, mut least, mut most) = (0.0, f64::MAX, f64::MIN);
        for part in &parts {
            count += figure(part, "n")?;
            least = least.min(figure(part, "min")?);
            most = most.max(figure(part, "max")?);
        }
        let last = figure(parts.last().context("a message")?, "last")?;
        ensure!(
            (count, least, most, last) == (SAMPLES as f64, 1.0, SAMPLES as f64, SAMPLES as f64),
            "{machine}: {count} samples from {least} to {most}, the last {last}"
        );
    }
    stage.wait("nothing to be left to deliver", |stage| Ok((stage.status()?["backlog"] == 0).then_some(())))?;
    Ok(())
}

fn sample(number: usize) -> String {
    format!("{{\"seq\": {number}, \"values\": {{\"t\": {number}}}}}")
}

/// A figure of the channel of a condensed message.
fn figure(message: &Message, name: &str) -> anyhow::Result<f64> {
    let told: Value = serde_json::from_slice(&message.payload)?;
    told["channels"]["t"][name].as_f64().with_context(|| format!("no {name} in {told}"))
}

fn health(kind: &dyn Kind) -> anyhow::Result<()> {
    let mut stage = Stage::set_sending(kind, Want::default(), &["health", "status"], "")?;
    let mut client = Client::connect(stage.gateway()?.mqtt, &Connect::new("samples"))?;
    for number in 1..=SAMPLES {
        client.publish("mw/v1/telemetry/pump-1/json", sample(number).as_bytes(), false)?;
    }
    received(&mut stage, "mw/v1/gateway/gw-1/status", |messages| Ok(messages.len() >= 2))?;
    received(&mut stage, "mw/v1/health/pump-1", |messages| Ok(!messages.is_empty()))?;
    ensure!(
        !stage.server.received()?.iter().any(|message| message.topic.starts_with("mw/v1/telemetry")),
        "telemetry was not asked for"
    );
    stage.wait("the gateway to rest", |stage| {
        let pid = stage.gateway()?.pid();
        let (begun, before) = (Instant::now(), worked(pid)?);
        std::thread::sleep(SPAN);
        let part = (worked(pid)? - before) / begun.elapsed().as_secs_f64();
        Ok((part < IDLE_PART_MAX).then_some(()))
    })
}

/// Processor time of a process, seconds.
fn worked(pid: u32) -> anyhow::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit(')').next().context("a process has a name")?;
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |field: usize| anyhow::Ok(fields.get(field).context("a field")?.parse::<u64>()?);
    // User and system time, the 14th and 15th field of all.
    Ok((ticks(11)? + ticks(12)?) as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Waits until those on a topic that arrived are enough.
fn received(
    stage: &mut Stage,
    topic: &str,
    enough: impl Fn(&[Message]) -> anyhow::Result<bool>,
) -> anyhow::Result<Vec<Message>> {
    let patience = Instant::now() + crate::stage::PATIENCE;
    loop {
        let on_topic = stage.server.received()?.iter().filter(|message| message.topic == topic).cloned();
        let messages: Vec<Message> = on_topic.collect();
        if enough(&messages)? {
            return Ok(messages);
        }
        ensure!(Instant::now() < patience, "{} messages on {topic}\n{}", messages.len(), stage.story());
        std::thread::sleep(crate::stage::PAUSE);
    }
}
