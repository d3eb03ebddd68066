//! What is measured: each scenario's load, its figures and what they must reach.
//!
//! Owns the list and how one run of one broker becomes a [`Sample`]; repeats and prints nothing.

use std::time::Duration;

use anyhow::Context;

use crate::load::Limit;
use crate::peers::{self, Broker, Kind};
use crate::process::Cost;
use crate::table::Target;
use crate::{ingest, latency, load};

/// The commit delay of `gateway.toml` if it names none.
const DEFAULT_COMMIT_DELAY_MS: u64 = 10;

/// The most memory that the gateway may take at full load.
const RSS_MIB_MAX: f64 = 64.0;

/// A scenario.
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) commit_delay_ms: u64,
    /// What is faster for mosquitto: with Nagle's algorithm it needs fewer segments, but waits where few are in flight.
    pub(crate) peer_nodelay: bool,
    pub(crate) work: Work,
    pub(crate) figures: &'static [(&'static str, Metric, Option<Target>)],
}

/// Takes one figure of a run.
pub(crate) type Metric = fn(&Sample) -> Option<f64>;

/// The load.
#[derive(Clone, Copy)]
pub(crate) enum Work {
    Rate(load::Plan),
    Latency(latency::Plan),
    Ingest(ingest::Plan),
}

/// The figures of one run; a message is one that was delivered, or appended.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sample {
    pub(crate) rate: Option<f64>,
    pub(crate) puback_p50_ms: Option<f64>,
    pub(crate) delivery_p50_ms: Option<f64>,
    pub(crate) delivery_p99_ms: Option<f64>,
    pub(crate) cpu_us: Option<f64>,
    pub(crate) switches: Option<f64>,
    pub(crate) generator_us: Option<f64>,
    pub(crate) commits_per_s: Option<f64>,
    pub(crate) messages_per_commit: Option<f64>,
    pub(crate) written_per_byte: Option<f64>,
    pub(crate) rss_mib: Option<f64>,
    pub(crate) missing_percent: Option<f64>,
    /// Acknowledged messages that were not delivered, and deliveries that came twice or out of order.
    pub(crate) broken: u64,
}

const fn durable(name: &'static str, publishers: u32, in_flight: usize, payload_bytes: usize) -> Scenario {
    let figures: &[(&str, Metric, Option<Target>)] = match (publishers, in_flight) {
        (1, 20) => &[("messages/s", |s| s.rate, Some(Target::TimesPeerMin(1.0)))],
        (1, _) => &[("messages/s", |s| s.rate, Some(Target::TimesPeerMin(1.5)))],
        // Memory that is held for each read instead of each message shows here.
        (_, 1) => &[("messages/s", |s| s.rate, None), ("peak RSS MiB", |s| s.rss_mib, Some(Target::Max(RSS_MIB_MAX)))],
        _ => &[
            ("messages/s", |s| s.rate, Some(Target::TimesPeerMin(3.0))),
            ("peak RSS MiB", |s| s.rss_mib, Some(Target::Max(RSS_MIB_MAX))),
        ],
    };
    let plan = load::Plan { publishers, subscribers: 1, qos: 1, payload_bytes, in_flight };
    Scenario { name, commit_delay_ms: 0, peer_nodelay: in_flight < 100, work: Work::Rate(plan), figures }
}

const fn fan(name: &'static str, publishers: u32, subscribers: u32) -> Scenario {
    let plan = load::Plan { publishers, subscribers, qos: 0, payload_bytes: 256, in_flight: 0 };
    let figures: &[(&str, Metric, Option<Target>)] = &[
        ("deliveries/s", |s| s.rate, Some(Target::TimesPeerMin(1.5))),
        ("not delivered %", |s| s.missing_percent, None),
    ];
    Scenario { name, commit_delay_ms: 0, peer_nodelay: false, work: Work::Rate(plan), figures }
}

const fn paced(qos: u8) -> Work {
    Work::Latency(latency::Plan { publishers: 10, messages_per_s: 2_000, qos, payload_bytes: 256 })
}

const fn ingest(name: &'static str, publishers: usize, batch_rows: usize) -> Scenario {
    let plan = ingest::Plan { publishers, batch_rows, payload_bytes: 256 };
    let figures: &[(&str, Metric, Option<Target>)] = &[
        ("rows/s", |s| s.rate, Some(Target::TimesPeerMin(0.7))),
        ("to acknowledgement p50 ms", |s| s.puback_p50_ms, None),
    ];
    Scenario { name, commit_delay_ms: 0, peer_nodelay: false, work: Work::Ingest(plan), figures }
}

/// Everything that is measured, in order.
pub(crate) const ALL: [Scenario; 15] = [
    durable("durable-10-128", 10, 100, 128),
    durable("durable-10-256", 10, 100, 256),
    durable("durable-100-128", 100, 100, 128),
    durable("durable-100-256", 100, 100, 256),
    durable("durable-100x1", 100, 1, 256),
    durable("durable-1x100", 1, 100, 256),
    durable("durable-1x20", 1, 20, 256),
    fan("fan-in", 10, 1),
    fan("fan-out", 1, 100),
    Scenario {
        name: "paced-durable",
        commit_delay_ms: 0,
        peer_nodelay: true,
        work: paced(1),
        figures: &[
            ("to PUBACK p50 ms", |s| s.puback_p50_ms, Some(Target::Max(0.5))),
            ("to subscriber p50 ms", |s| s.delivery_p50_ms, Some(Target::Max(0.5))),
            ("to subscriber p99 ms", |s| s.delivery_p99_ms, Some(Target::Max(2.0))),
            ("CPU µs/message", |s| s.cpu_us, None),
        ],
    },
    Scenario {
        name: "paced-durable-10ms",
        commit_delay_ms: DEFAULT_COMMIT_DELAY_MS,
        peer_nodelay: true,
        work: paced(1),
        figures: &[
            ("to PUBACK p50 ms", |s| s.puback_p50_ms, Some(Target::Max(DEFAULT_COMMIT_DELAY_MS as f64 + 0.5))),
            ("CPU µs/message", |s| s.cpu_us, Some(Target::TimesPeerMax(2.0))),
        ],
    },
    Scenario {
        name: "paced-qos0",
        commit_delay_ms: DEFAULT_COMMIT_DELAY_MS,
        peer_nodelay: true,
        work: paced(0),
        figures: &[
            ("to subscriber p50 ms", |s| s.delivery_p50_ms, Some(Target::TimesPeerMax(1.5))),
            ("to subscriber p99 ms", |s| s.delivery_p99_ms, Some(Target::TimesPeerMax(1.5))),
            ("CPU µs/message", |s| s.cpu_us, None),
        ],
    },
    ingest("ingest-10x1", 10, 1),
    ingest("ingest-10x10", 10, 10),
    ingest("ingest-10x100", 10, 100),
];

impl Scenario {
    /// One run of one broker.
    pub(crate) fn run(&self, kind: Kind, limit: Limit) -> anyhow::Result<Sample> {
        let broker = Broker::start(kind)?;
        match self.work {
            Work::Rate(plan) => rate(&broker, plan, limit),
            Work::Latency(plan) => paced_sample(&broker, plan, limit.time),
            Work::Ingest(_) => Ok(Sample::default()),
        }
        .with_context(|| format!("{} against {kind}", self.name))
    }
}

/// One run of the log, then of a plain file with the same groups.
pub(crate) fn run_ingest(plan: ingest::Plan, time: Duration) -> anyhow::Result<(Sample, Sample)> {
    let dir = peers::scratch()?;
    let log = ingest::log(dir.path(), plan, time)?;
    let group_rows = (log.rows_per_commit.round() as usize).max(1);
    let plain = ingest::plain_file(dir.path(), plan, group_rows, time)?;
    let ours = Sample {
        rate: Some(log.rows_per_s),
        puback_p50_ms: Some(log.ack_p50_us as f64 / 1e3),
        cpu_us: Some(log.cpu_us_per_row),
        commits_per_s: Some(log.commits_per_s),
        messages_per_commit: Some(log.rows_per_commit),
        written_per_byte: Some(log.write_amplification),
        ..Sample::default()
    };
    let peer = Sample {
        rate: Some(plain),
        commits_per_s: Some(plain / group_rows as f64),
        messages_per_commit: Some(group_rows as f64),
        ..Sample::default()
    };
    Ok((ours, peer))
}

/// What every run of a broker has.
struct Counts {
    messages: u64,
    payload_bytes: usize,
    elapsed: Duration,
    generator_cpu_ns: u64,
    cost: Option<Cost>,
    commits: Option<u64>,
}

fn costs(broker: &Broker, counts: &Counts) -> Sample {
    let messages = counts.messages.max(1) as f64;
    let seconds = counts.elapsed.as_secs_f64();
    let per_message = |value: fn(&Cost) -> u64| counts.cost.as_ref().map(|cost| value(cost) as f64 / messages);
    let commits = counts.commits.filter(|commits| *commits > 0).map(|commits| commits as f64);
    Sample {
        rate: Some(messages / seconds),
        cpu_us: per_message(|cost| cost.cpu_ns).map(|ns| ns / 1e3),
        switches: per_message(|cost| cost.switches),
        generator_us: Some(counts.generator_cpu_ns as f64 / 1e3 / messages),
        commits_per_s: commits.map(|commits| commits / seconds),
        messages_per_commit: commits.map(|commits| messages / commits),
        written_per_byte: per_message(|cost| cost.written_bytes).map(|bytes| bytes / counts.payload_bytes as f64),
        rss_mib: broker.peak_rss_mib(),
        ..Sample::default()
    }
}

fn rate(broker: &Broker, plan: load::Plan, limit: Limit) -> anyhow::Result<Sample> {
    let outcome = load::run(broker, plan, limit)?;
    let counts = Counts {
        messages: outcome.delivered,
        payload_bytes: plan.payload_bytes,
        elapsed: outcome.elapsed,
        generator_cpu_ns: outcome.generator_cpu_ns,
        cost: outcome.broker,
        commits: outcome.commits,
    };
    let due = (outcome.delivered + outcome.missing).max(1) as f64;
    Ok(Sample {
        missing_percent: Some(outcome.missing as f64 * 100.0 / due),
        broken: outcome.repeated + if plan.qos > 0 { outcome.missing } else { 0 },
        ..costs(broker, &counts)
    })
}

fn paced_sample(broker: &Broker, plan: latency::Plan, time: Duration) -> anyhow::Result<Sample> {
    let outcome = latency::run(broker, plan, time)?;
    let counts = Counts {
        messages: outcome.sent - outcome.missing,
        payload_bytes: plan.payload_bytes,
        elapsed: outcome.elapsed,
        generator_cpu_ns: outcome.generator_cpu_ns,
        cost: outcome.broker,
        commits: outcome.commits,
    };
    Ok(Sample {
        puback_p50_ms: outcome.acknowledged.map(|latency| latency.p50_ms),
        delivery_p50_ms: outcome.delivered.map(|latency| latency.p50_ms),
        delivery_p99_ms: outcome.delivered.map(|latency| latency.p99_ms),
        missing_percent: Some(outcome.missing as f64 * 100.0 / outcome.sent.max(1) as f64),
        broken: if plan.qos > 0 { outcome.missing } else { 0 },
        ..costs(broker, &counts)
    })
}
