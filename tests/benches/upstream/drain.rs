//! A backlog that was piled up while there was no upstream: how long the gateway takes to have all of it confirmed.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use harness::gateway::Gateway;

use crate::kind::Kind;
use crate::publisher::Publisher;
use crate::table::{Figure, Target};
use crate::{Options, PAYLOAD_BYTES, PROGRAM, bare, config, scratch, start_server};

/// How often it is looked how far it is.
const LOOK: Duration = Duration::from_millis(20);
/// Without progress for so long it has come to a stop.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn run(kind: &dyn Kind, options: &Options) -> anyhow::Result<Vec<Figure>> {
    let dir = scratch()?;
    let server = start_server(kind, dir.path())?;
    let gateway = Gateway::start(PROGRAM, dir.path(), &config(None, dir.path())?)?;
    let messages = pile_up(&gateway, options.messages)?;
    gateway.terminate()?;

    let keys = config(Some(server.as_ref()), dir.path())?;
    let gateway = Gateway::start(PROGRAM, dir.path(), &keys)?;
    let ours = drained(&gateway, messages)?;
    gateway.terminate()?;

    // To the same place, after it: a queue that holds messages already.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let peer = match kind.name() {
        name if name.starts_with("amqp") => {
            let exchange = key(&keys, "exchange").context("an exchange")?;
            runtime.block_on(bare::amqp(server.address(), &exchange, messages))?
        }
        _ => {
            let topic = key(&keys, "topic").unwrap_or_else(|| "millwright.{content}".to_owned());
            runtime.block_on(bare::kafka(server.address(), &topic.replace("{content}", "other"), messages))?
        }
    };
    let rate = |took: Duration| Some(messages as f64 / took.as_secs_f64());
    Ok(vec![Figure {
        scenario: format!("drain, {}", kind.name()),
        name: "messages/s",
        ours: rate(ours),
        peer: rate(peer),
        target: Some(Target::TimesPeerMin(0.8)),
    }])
}

fn pile_up(gateway: &Gateway, messages: usize) -> anyhow::Result<usize> {
    let mut publisher = Publisher::connect(gateway.mqtt, "backlog")?;
    let mut sent = 0;
    while sent < messages {
        sent += publisher.window(&[7; PAYLOAD_BYTES], |_| "bench/backlog".to_owned())?;
    }
    Ok(sent)
}

/// From the first confirmation to the last.
fn drained(gateway: &Gateway, messages: usize) -> anyhow::Result<Duration> {
    let (mut begun, mut seen, mut moved) = (None, 0, Instant::now());
    loop {
        let status = gateway.status()?;
        let confirmed = status["upstreams"][0]["confirmed"].as_u64().unwrap_or(0) as usize;
        if confirmed > seen {
            (seen, moved) = (confirmed, Instant::now());
            // What was confirmed before the first look is not counted.
            begun.get_or_insert((Instant::now(), confirmed));
        }
        if let Some((at, before)) = begun.filter(|_| confirmed >= messages) {
            let counted = messages.saturating_sub(before).max(1);
            return Ok(at.elapsed().mul_f64(messages as f64 / counted as f64));
        }
        ensure!(moved.elapsed() < PATIENCE, "it stands still at {confirmed} of {messages}: {}", status["upstreams"]);
        std::thread::sleep(LOOK);
    }
}

/// A key of the configuration.
fn key(config: &str, name: &str) -> Option<String> {
    let line = config.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "))?;
    Some(line.trim_matches('"').to_owned())
}
