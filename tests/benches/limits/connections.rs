//! Many clients at a time: do they all come in, stay, and get their messages?

use std::time::Instant;

use anyhow::ensure;
use harness::client::{Client, Connect, PINGRESP, PUBLISH};

use crate::table::{Figure, Target};
use crate::{Measured, Options, scratch};

pub(crate) fn run(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let count = options.connections;
    let settings = format!("max_connections = {}\n", count + 10);
    let measured = Measured::start(scratch()?, &settings)?;
    let begin = Instant::now();
    let mut clients = Vec::with_capacity(count);
    for number in 0..count {
        let mut client = Client::connect(measured.gateway.mqtt, &Connect::new(&format!("c-{number}")))?;
        client.subscribe("mw/bench/all", 1)?;
        clients.push(client);
    }
    let connecting = begin.elapsed().as_secs_f64();
    let mut publisher = Client::connect(measured.gateway.mqtt, &Connect::new("publisher"))?;
    let begin = Instant::now();
    publisher.publish("mw/bench/all", b"to everybody", false)?;
    for client in &mut clients {
        let delivery = client.receive_type(PUBLISH)?;
        ensure!(delivery.body.ends_with(b"to everybody"), "another message came");
    }
    let fan_out = begin.elapsed().as_secs_f64();
    let mut answered = 0;
    for client in &mut clients {
        client.send(0xC0, &[])?;
        client.receive_type(PINGRESP)?;
        answered += 1;
    }
    let rss = measured.rss_mib();
    let figure = |name, ours, target| Figure { scenario: "connections".to_owned(), name, ours, peer: None, target };
    let missing = (count - answered) as f64;
    Ok(vec![
        figure("clients at a time", Some(count as f64), None),
        figure("clients that were not served", Some(missing), Some(Target::Max(0.0))),
        figure("s until all were subscribed", Some(connecting), None),
        figure("s until all had one QoS 1 message", Some(fan_out), None),
        figure("RSS MiB", rss, None),
    ])
}
