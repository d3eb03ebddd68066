//! Resident memory: idle, with idle clients, and after many messages, client identifiers and topics.

use std::time::Duration;

use harness::client::{Client, Connect};

use crate::publisher::Publisher;
use crate::table::{Figure, Target};
use crate::{Measured, Options, scratch};

/// Idle clients.
const CLIENTS: usize = 1_000;

/// Memory settles within this: buffers are given back, the log's tail is full.
const SETTLE: Duration = Duration::from_secs(2);

/// The share of the work after which memory should have found its level.
const WARM_UP: u64 = 5;

/// More messages than the log's tail holds.
const TAIL_ROWS: usize = 150_000;

/// What an allocator keeps more or less of between two looks, in MiB.
const GROWTH_MIB_MAX: f64 = 4.0;

pub(crate) fn run(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let mut figures = idle()?;
    figures.extend(growth("messages", options.messages, |addr, from, to| {
        let mut publisher = Publisher::connect(addr, "p")?;
        let mut sent = from;
        while sent < to {
            sent += publisher.window(&[7; 100], |_| "mw/bench/same".to_owned())? as u64;
        }
        Ok(())
    })?);
    figures.extend(growth("client identifiers", u64::from(options.names), |addr, from, to| {
        for number in from..to {
            let mut client = Client::connect(addr, &Connect::new(&format!("client-{number}")))?;
            client.send(0xE0, &[])?;
        }
        Ok(())
    })?);
    figures.extend(growth("topics", u64::from(options.names), |addr, from, to| {
        let mut publisher = Publisher::connect(addr, "p")?;
        if from == 0 {
            fill_tail(&mut publisher)?;
        }
        let mut sent = from;
        while sent < to {
            sent += publisher.window(&[7; 100], |number| format!("mw/bench/topic-{}", sent + number as u64))? as u64;
        }
        Ok(())
    })?);
    Ok(figures)
}

/// The newest messages stay in memory, up to a bound; what they take is not what topics take.
fn fill_tail(publisher: &mut Publisher) -> anyhow::Result<()> {
    let mut sent = 0;
    while sent < TAIL_ROWS {
        sent += publisher.window(&[7; 100], |_| "mw/bench/same".to_owned())?;
    }
    Ok(())
}

fn figure(name: &'static str, ours: Option<f64>, max: f64) -> Figure {
    Figure { scenario: "memory".to_owned(), name, ours, peer: None, target: Some(Target::Max(max)) }
}

fn idle() -> anyhow::Result<Vec<Figure>> {
    let measured = Measured::start(scratch()?, "max_connections = 2000\n")?;
    std::thread::sleep(SETTLE);
    let idle = figure("idle RSS MiB", measured.rss_mib(), 25.0);
    let clients: Result<Vec<Client>, _> = (0..CLIENTS)
        .map(|number| Client::connect(measured.gateway.mqtt, &Connect::new(&format!("c-{number}"))))
        .collect();
    let _clients = clients?;
    std::thread::sleep(SETTLE);
    Ok(vec![idle, figure("RSS MiB with 1,000 idle clients", measured.rss_mib(), 60.0)])
}

/// By how much memory grows between a fifth of the work and all of it.
fn growth(
    what: &'static str,
    count: u64,
    work: impl Fn(std::net::SocketAddr, u64, u64) -> anyhow::Result<()>,
) -> anyhow::Result<Vec<Figure>> {
    let measured = Measured::start(scratch()?, "")?;
    let first = count / WARM_UP;
    work(measured.gateway.mqtt, 0, first)?;
    std::thread::sleep(SETTLE);
    let before = measured.rss_mib();
    work(measured.gateway.mqtt, first, count)?;
    std::thread::sleep(SETTLE);
    let after = measured.rss_mib();
    let (all, grown) = match what {
        "messages" => ("RSS MiB after all messages", "growth MiB over the last 80 % of the messages"),
        "topics" => ("RSS MiB after all topics", "growth MiB over the last 80 % of the topics"),
        _ => ("RSS MiB after all client identifiers", "growth MiB over the last 80 % of the client identifiers"),
    };
    let growth = after.zip(before).map(|(after, before)| (after - before).max(0.0));
    let level = Figure { scenario: "memory".to_owned(), name: all, ours: after, peer: None, target: None };
    Ok(vec![level, figure(grown, growth, GROWTH_MIB_MAX)])
}
