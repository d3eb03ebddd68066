//! The broker's benchmarks: the gateway against mosquitto, and its log against a plain file.
//!
//! `cargo bench -p millwright-tests --bench broker -- [--only NAME] [--runs 5] [--seconds 3] [--quick] [--connect HOST:PORT]`
//!
//! Brokers take turns, and every figure is the median of its runs. Nothing depends on the clock but the figures: the exit
//! status is 1 only if a run does not work, or the gateway lost, repeated or reordered an acknowledged message.
//! `docs/BENCHMARKS.md` says what each figure means.
#![allow(clippy::print_stdout, reason = "the tables are what this program is for")]

mod ingest;
mod latency;
mod load;
mod packet;
mod peers;
#[path = "../process.rs"]
mod process;
mod scenario;
mod spent;
#[path = "../table.rs"]
mod table;

use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;

use load::Limit;
use peers::Kind;
use scenario::{Metric, Sample, Scenario, Work};
use spent::Spent;
use table::{Figure, median};

/// Runs of `--quick`, which shows that the benchmark works and measures nothing.
const QUICK: Limit = Limit { time: Duration::from_millis(200), messages: 2_000 };

/// A broker that drops everything takes no more than this from a publisher, whatever the time.
const MESSAGES_MAX: u64 = 20_000_000;

#[derive(Parser)]
#[command(about = "Measures the gateway's broker against mosquitto, and its log against a plain file.")]
struct Options {
    /// Only scenarios whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Runs of each broker in each scenario; they take turns.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// How long each run publishes.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// One short run of everything: shows that the benchmark works, its figures mean nothing.
    #[arg(long)]
    quick: bool,
    /// Measures against this running broker instead of mosquitto.
    #[arg(long, value_name = "HOST:PORT", value_parser = address)]
    connect: Option<SocketAddr>,
    /// Measures only the gateway.
    #[arg(long)]
    alone: bool,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn address(text: &str) -> anyhow::Result<SocketAddr> {
    text.to_socket_addrs()?.next().context("no such host")
}

fn main() -> anyhow::Result<ExitCode> {
    let mut options = Options::parse();
    if cfg!(debug_assertions) && !options.quick {
        println!("Built without optimisation: only `--quick` makes sense.\n");
        options.quick = true;
    }
    let peer = peer(&options);
    let time = Duration::try_from_secs_f64(options.seconds).context("--seconds")?;
    let (runs, limit) = match options.quick {
        true => (1, QUICK),
        false => (options.runs.max(1), Limit { time, messages: MESSAGES_MAX }),
    };
    println!("{}\nat the start: {}", process::machine(), condition()?);
    println!("medians of {runs} runs of {:.1} s, gateway and peer in turn\n", limit.time.as_secs_f64());
    let (mut figures, mut spent, mut broken) = (Vec::new(), Vec::new(), 0);
    for scenario in scenario::ALL.iter().filter(|scenario| scenario.name.contains(&options.only)) {
        let (ours, theirs) = measure(scenario, peer, runs, limit)?;
        broken += ours.iter().map(|sample| sample.broken).sum::<u64>();
        figures.extend(scenario.figures.iter().map(|(name, metric, target)| Figure {
            scenario: scenario.name.to_owned(),
            name,
            ours: median(ours.iter().map(metric)),
            peer: median(theirs.iter().map(metric)),
            target: *target,
        }));
        let (our_name, peer_name) = match scenario.work {
            Work::Ingest(_) => ("log".to_owned(), Some("plain file".to_owned())),
            _ => ("gateway".to_owned(), peer.map(|kind| kind.to_string())),
        };
        spent.push(summary(scenario, our_name, &ours));
        spent.extend(peer_name.map(|name| summary(scenario, name, &theirs)));
    }
    println!("{}", table::figures(&figures));
    println!("What a message cost (medians; messages/s: least and most of the runs):\n\n{}", spent::table(&spent));
    println!("at the end: {}", condition()?);
    if broken > 0 {
        println!("\nThe gateway lost, repeated or reordered {broken} messages that it must not.");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

/// How busy the machine and its disk are: figures of a busy one mean little.
fn condition() -> anyhow::Result<String> {
    let sync_ms = ingest::sync_ms(peers::scratch()?.path())?;
    Ok(format!("load average {}, the disk syncs a page in {sync_ms:.2} ms", process::load_average()))
}

fn peer(options: &Options) -> Option<Kind> {
    if options.alone {
        return None;
    }
    if let Some(addr) = options.connect {
        println!("The peer is the broker at {addr}.");
        return Some(Kind::Running(addr));
    }
    match peers::mosquitto_version() {
        Some(version) => {
            println!("The peer is {version}, in memory only, without limits.");
            // Each scenario chooses what is faster.
            Some(Kind::Mosquitto { tcp_nodelay: true })
        }
        None => {
            println!("mosquitto is not installed: only the gateway is measured.");
            None
        }
    }
}

/// The runs of the gateway, and those of the peer.
fn measure(
    scenario: &Scenario,
    peer: Option<Kind>,
    runs: usize,
    limit: Limit,
) -> anyhow::Result<(Vec<Sample>, Vec<Sample>)> {
    let peer = peer.map(|kind| match kind {
        Kind::Mosquitto { .. } => Kind::Mosquitto { tcp_nodelay: scenario.peer_nodelay },
        other => other,
    });
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for run in 1..=runs {
        if let Work::Ingest(plan) = scenario.work {
            let (log, plain) = scenario::run_ingest(plan, limit.time)?;
            ours.push(log);
            theirs.push(plain);
        } else {
            ours.push(scenario.run(Kind::Gateway { commit_delay_ms: scenario.commit_delay_ms }, limit)?);
            if let Some(peer) = peer {
                theirs.push(scenario.run(peer, limit)?);
            }
        }
        let rates: Vec<String> = [ours.last(), theirs.last()]
            .into_iter()
            .flatten()
            .map(|sample| format!("{:.0}/s", sample.rate.unwrap_or_default()))
            .collect();
        eprintln!("{} {run}/{runs}: {}", scenario.name, rates.join(", peer "));
    }
    Ok((ours, theirs))
}

fn summary(scenario: &Scenario, broker: String, samples: &[Sample]) -> Spent {
    let middle = |metric: Metric| median(samples.iter().map(metric));
    Spent {
        scenario: scenario.name.to_owned(),
        broker,
        rates: samples.iter().filter_map(|sample| sample.rate).collect(),
        cpu_us: middle(|s| s.cpu_us),
        switches: middle(|s| s.switches),
        generator_us: middle(|s| s.generator_us),
        commits_per_s: middle(|s| s.commits_per_s),
        messages_per_commit: middle(|s| s.messages_per_commit),
        written_per_byte: middle(|s| s.written_per_byte),
        rss_mib: middle(|s| s.rss_mib),
        missing_percent: middle(|s| s.missing_percent),
    }
}
