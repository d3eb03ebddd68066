//! What every kind of upstream has to stand; what it is asked to send is in [`crate::choices`].

use std::collections::HashSet;

use anyhow::{Context, ensure};
use harness::client::{Client, Connect};

use crate::kind::{Flaw, Kind, Want};
use crate::secrets::Secrets;
use crate::stage::{Random, Stage, is_long};

/// One of them.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) claim: &'static str,
    pub(crate) play: fn(&dyn Kind) -> anyhow::Result<()>,
}

/// All of them.
pub(crate) const SCENARIOS: [Scenario; 12] = [
    Scenario {
        name: "order",
        claim: "Everything published at QoS 1 arrives once, in order, with its identifier, headers and exact bytes.",
        play: order,
    },
    Scenario {
        name: "gzip",
        claim: "Packed payloads say so, and unpack to the bytes that were published.",
        play: gzip,
    },
    Scenario { name: "alerts", claim: "An alert overtakes the telemetry that waits for a server.", play: alerts },
    Scenario {
        name: "cuts",
        claim: "The connection is cut at random points while messages flow: nothing is lost, what comes twice is the same, \
                and connections leave nothing behind.",
        play: cuts,
    },
    Scenario {
        name: "stall",
        claim: "A connection over which nothing comes any more is given up, and another one delivers.",
        play: stall,
    },
    Scenario {
        name: "silence",
        claim: "Attempts to reach a server that takes connections and never answers leave nothing behind.",
        play: silence,
    },
    Scenario {
        name: "refused",
        claim: "A message that the server refuses for its size is left out, counted and told; the others arrive.",
        play: refused,
    },
    Scenario {
        name: "restarts",
        claim: "The server is stopped and killed while messages flow: nothing is lost, what comes twice is the same.",
        play: restarts,
    },
    Scenario {
        name: "crash",
        claim: "The gateway is killed while it forwards: nothing is lost, what comes twice is the same.",
        play: crash,
    },
    Scenario {
        name: "password",
        claim: "A wrong password is told with a remedy; with the right one the backlog drains by itself.",
        play: |kind| repaired(kind, Flaw::Password),
    },
    Scenario {
        name: "target",
        claim: "What is missing on the server is told with a remedy; once it is there the backlog drains by itself.",
        play: |kind| repaired(kind, Flaw::Target),
    },
    Scenario { name: "tls", claim: "Everything arrives over TLS.", play: tls },
];

/// Messages of each topic in the scenarios without failures.
const MESSAGES: usize = 700;
/// Cuts of the connection, in the short and in the long form.
const CUTS: usize = 12;
const CUTS_LONG: usize = 50;
/// Stops of the server: every second one kills it.
const STOPS: usize = 2;
const STOPS_LONG: usize = 10;
/// A cut comes after fewer bytes than this.
const CUT_BYTES_MAX: u64 = 400_000;
/// Messages that are added each time while a cut is waited for, about 70 KB of payload.
const MORE: usize = 100;
/// Descriptors and threads that may be more after all cuts than before: a connection that is being made or ended just then.
const MORE_HELD_MAX: usize = 12;
/// Attempts to reach a silent server, each a second long, and what may be held in the end: the last one's, and by then the log's readers
/// of two lanes.
const ATTEMPTS: u64 = 12;
const SOME_HELD_MAX: usize = 9;

fn order(kind: &dyn Kind) -> anyhow::Result<()> {
    let mut stage = Stage::set(kind, Want::default(), "")?;
    for topic in ["line/1/press", "line/2/oven temperature", "mw/v1/telemetry/pump-1/json"] {
        stage.publish(topic, MESSAGES)?;
    }
    let arrived = stage.check_arrived()?;
    ensure!(arrived.repeated == 0, "{} messages came twice although nothing failed", arrived.repeated);
    for message in &arrived.first {
        let content = if message.topic.starts_with("mw/") { "telemetry" } else { "other" };
        ensure!(message.content == content, "{} came as {}", message.topic, message.content);
        ensure!(message.encoding.is_none(), "nothing is packed");
        // After 2020 and before 2100: microseconds, not another unit.
        let received_us: i64 = message.received_us.parse()?;
        ensure!((1_577_836_800_000_000..4_102_444_800_000_000).contains(&received_us), "{received_us}");
    }
    Ok(())
}

fn gzip(kind: &dyn Kind) -> anyhow::Result<()> {
    let mut stage = Stage::set(kind, Want::default(), "compression = \"gzip\"")?;
    stage.publish("line/1/press", MESSAGES)?;
    // Readers unpack what says that it is packed.
    let arrived = stage.check_arrived()?;
    let packed = arrived.first.iter().filter(|message| message.encoding.as_deref() == Some("gzip")).count();
    ensure!(packed > 0 || kind.name().starts_with("kafka"), "nothing is packed");
    Ok(())
}

fn alerts(kind: &dyn Kind) -> anyhow::Result<()> {
    let mut stage = Stage::set(kind, Want::default(), "batch_messages = 100")?;
    stage.wait("a connection", |stage| Ok((stage.status()?["link"] == "connected").then_some(())))?;
    stage.proxy.close();
    stage.publish("line/1/press", 3 * MESSAGES)?;
    stage.wait_published()?;
    stage.publish("mw/v1/alert/pump-1", 1)?;
    stage.wait_published()?;
    let (server, is_named) = (stage.server.address(), stage.server.names_itself());
    stage.proxy.lead_to(server, is_named);
    let arrived = stage.check_arrived()?;
    let place = arrived.first.iter().position(|message| message.content == "alert");
    // What was under way when the connection ended may come before.
    ensure!(place.is_some_and(|place| place <= 200), "the alert came in place {place:?}");
    Ok(())
}

fn cuts(kind: &dyn Kind) -> anyhow::Result<()> {
    let mut random = Random::new();
    let seed = random.seed();
    let mut stage = Stage::set(kind, Want::default(), "")?;
    let mut play = || {
        for topic in ["line/1/press", "line/2/oven"] {
            stage.publish(topic, MORE)?;
        }
        stage.wait("a connection", |stage| Ok((stage.status()?["link"] == "connected").then_some(())))?;
        let held = stage.held()?;
        for round in 1..=if is_long() { CUTS_LONG } else { CUTS } {
            stage.proxy.cut_after(random.below(CUT_BYTES_MAX) as usize);
            stage.wait("a cut", |stage| {
                if stage.proxy.cuts() >= round {
                    return Ok(Some(()));
                }
                stage.feed(MORE)?;
                Ok(None)
            })?;
        }
        let arrived = stage.check_arrived()?;
        // Kafka's clients mend a cut by themselves, with another connection.
        ensure!(failures(&stage)? > 0 || stage.proxy.accepted() > stage.proxy.cuts(), "no cut was noticed");
        stage.wait("old connections to leave nothing behind", |stage| {
            let now = stage.held()?;
            Ok((now.0 <= held.0 + MORE_HELD_MAX && now.1 <= held.1 + MORE_HELD_MAX).then_some(()))
        })?;
        eprintln!(
            "{}: {} messages, {} of them again, over {} connections",
            kind.name(),
            arrived.first.len(),
            arrived.repeated,
            stage.proxy.accepted()
        );
        Ok(())
    };
    play().map_err(|error: anyhow::Error| error.context(format!("MILLWRIGHT_SEED={seed}")))
}

fn stall(kind: &dyn Kind) -> anyhow::Result<()> {
    let mut stage = Stage::set(kind, Want::default(), "timeout_s = 2")?;
    stage.publish("line/1/press", MESSAGES)?;
    stage.wait("messages to flow", |stage| Ok((confirmed(stage)? > 0).then_some(())))?;
    stage.proxy.hold(true);
    stage.allow_more(MESSAGES);
    stage.wait("the stall to be seen", |stage| Ok(stage.status()?["error"].is_string().then_some(())))?;
    stage.proxy.hold(false);
    stage.check_arrived().map(drop)
}

fn silence(kind: &dyn Kind) -> anyhow::Result<()> {
    let mut stage = Stage::set(kind, Want::default(), "timeout_s = 1")?;
    stage.wait("a connection", |stage| Ok((stage.status()?["link"] == "connected").then_some(())))?;
    let held = stage.held()?;
    stage.proxy.hold(true);
    stage.publish("line/1/press", MORE)?;
    stage.wait("many attempts", |stage| Ok((failures(stage)? >= ATTEMPTS).then_some(())))?;
    stage.wait("old attempts to leave nothing behind", |stage| {
        let now = stage.held()?;
        // Fewer than attempts: each may not leave one behind.
        Ok((now.0 <= held.0 + SOME_HELD_MAX && now.1 <= held.1 + SOME_HELD_MAX).then_some(()))
    })?;
    stage.proxy.hold(false);
    stage.check_arrived().map(drop)
}

fn refused(kind: &dyn Kind) -> anyhow::Result<()> {
    let size = kind.size_max().context("a server with a limit")?;
    let mut stage =
        Stage::set(kind, Want::default(), "[broker]\nlisten = \"127.0.0.1:0\"\nmax_packet_bytes = 16777216")?;
    stage.publish("line/1/press", MORE)?;
    stage.wait_published()?;
    let mut client = Client::connect(stage.gateway()?.mqtt, &Connect::new("large"))?;
    client.publish("line/2/picture", &vec![7; size + 1_000], false)?;
    stage.publish("line/3/oven", MORE)?;
    stage.wait_published()?;
    stage.wait("the message to be left out", |stage| {
        let status = stage.status()?;
        Ok((status["refused"] == 1 && status["backlog"] == 0).then_some(()))
    })?;
    ensure!(stage.gateway()?.log().contains("line/2/picture"), "it is not told");
    let arrived: HashSet<&str> = stage.server.received()?.iter().map(|message| message.topic.as_str()).collect();
    ensure!(arrived == HashSet::from(["line/1/press", "line/3/oven"]), "{arrived:?}");
    Ok(())
}

fn restarts(kind: &dyn Kind) -> anyhow::Result<()> {
    let mut stage = Stage::set(kind, Want { alone: true, ..Want::default() }, "")?;
    for topic in ["line/1/press", "line/2/oven"] {
        stage.publish(topic, MORE)?;
    }
    for round in 0..if is_long() { STOPS_LONG } else { STOPS } {
        let seen = confirmed(&stage)?;
        // It is stopped while messages flow, not before or after.
        stage.wait("messages to flow", |stage| {
            stage.feed(MORE)?;
            Ok((confirmed(stage)? > seen).then_some(()))
        })?;
        // The first stop is an orderly one: RabbitMQ 3.10 forgets a quorum queue that was made seconds before it is killed.
        stage.stop_server(round % 2 == 1)?;
        stage.allow_more(MORE);
        stage.wait("the outage to be seen", |stage| Ok(stage.status()?["error"].is_string().then_some(())))?;
        stage.start_server()?;
    }
    stage.check_arrived().map(drop)
}

fn crash(kind: &dyn Kind) -> anyhow::Result<()> {
    let mut stage = Stage::set(kind, Want::default(), "")?;
    for topic in ["line/1/press", "line/2/oven"] {
        stage.publish(topic, MORE)?;
    }
    for _ in 0..if is_long() { STOPS_LONG } else { STOPS } {
        stage.wait("messages to flow", |stage| {
            stage.feed(MORE)?;
            Ok((confirmed(stage)? > 0).then_some(()))
        })?;
        stage.server.received()?;
        stage.allow_more(10 * MORE);
        let before = stage.acknowledged();
        stage.wait("more messages", |stage| Ok((stage.acknowledged() > before).then_some(())))?;
        stage.kill_gateway()?;
        // Read as it comes: the mock cluster keeps a few megabytes of a partition.
        stage.server.received()?;
        stage.start_gateway()?;
    }
    stage.check_arrived().map(drop)
}

fn repaired(kind: &dyn Kind, flaw: Flaw) -> anyhow::Result<()> {
    let mut stage = Stage::set(kind, Want { flaw: Some(flaw), ..Want::default() }, "")?;
    stage.publish("line/1/press", MESSAGES)?;
    stage.wait_published()?;
    let error = stage.wait("the mistake to be told", |stage| {
        let status = stage.status()?;
        // What is wrong, and what to do; a server that is still starting may be told of first.
        let told = status["error"].as_str().filter(|error| error.contains("; "));
        let told = told.filter(|_| status["backlog"].as_u64() >= Some(MESSAGES as u64));
        Ok(told.map(str::to_owned))
    })?;
    ensure!(!error.contains(crate::secrets::PASSWORD) && !error.contains("wrong horse"), "a password is told");
    ensure!(!stage.gateway()?.log().contains("wrong horse"), "a password is logged");
    let dir = stage.dir.path().to_owned();
    stage.server.repair(&dir)?;
    let arrived = stage.check_arrived()?;
    ensure!(arrived.repeated == 0, "{} messages came twice", arrived.repeated);
    eprintln!("{}: {error}", kind.name());
    Ok(())
}

fn tls(kind: &dyn Kind) -> anyhow::Result<()> {
    let mut stage = Stage::set(kind, Want { tls: Some(Secrets::get()?), ..Want::default() }, "")?;
    stage.publish("line/1/press", MESSAGES)?;
    stage.check_arrived().map(drop)
}

fn failures(stage: &Stage) -> anyhow::Result<u64> {
    Ok(stage.status()?["failures"].as_u64().unwrap_or_default())
}

fn confirmed(stage: &Stage) -> anyhow::Result<u64> {
    Ok(stage.status()?["confirmed"].as_u64().unwrap_or_default())
}
