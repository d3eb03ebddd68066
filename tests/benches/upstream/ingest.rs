//! Publishers that are never idle, with and without forwarding: what it costs them.

use std::time::{Duration, Instant};

use harness::gateway::Gateway;

use crate::kind::{Kind, Server};
use crate::publisher::Publisher;
use crate::table::{Figure, Target, median};
use crate::{Options, PAYLOAD_BYTES, PROGRAM, config, scratch, start_server};

pub(crate) fn run(kind: &dyn Kind, options: &Options) -> anyhow::Result<Vec<Figure>> {
    let dir = scratch()?;
    let server = start_server(kind, dir.path())?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..options.runs {
        without.push(Some(rate(None, options.seconds)?));
        with.push(Some(rate(Some(server.as_ref()), options.seconds)?));
    }
    Ok(vec![Figure {
        scenario: format!("ingest beside {}", kind.name()),
        name: "messages/s",
        ours: median(with),
        peer: median(without),
        target: Some(Target::TimesPeerMin(0.9)),
    }])
}

/// Messages a second that are acknowledged.
fn rate(server: Option<&dyn Server>, seconds: u64) -> anyhow::Result<f64> {
    let dir = scratch()?;
    let gateway = Gateway::start(PROGRAM, dir.path(), &config(server, dir.path())?)?;
    let mut publisher = Publisher::connect(gateway.mqtt, "ingest")?;
    let (begun, mut sent) = (Instant::now(), 0);
    while begun.elapsed() < Duration::from_secs(seconds) {
        sent += publisher.window(&[7; PAYLOAD_BYTES], |_| "bench/ingest".to_owned())?;
    }
    let rate = sent as f64 / begun.elapsed().as_secs_f64();
    gateway.terminate()?;
    Ok(rate)
}
