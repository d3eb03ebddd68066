//! Judges the gateway every second and tells what changed: in the log output, and as a retained MQTT message.
//!
//! The alert is published volatile and retained in memory, so that it gets through while the log is full. Each message holds
//! all conditions that are up; an empty list is the all-clear. Never writes to the log, and to `state.db` only how much was written
//! today, once a minute at most.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millwright_broker::log::Log;
use millwright_broker::message::{Message, QoS};
use millwright_broker::topic::TopicName;
use millwright_broker::{Publisher, TlsState};
use serde::Serialize;
use tokio::sync::watch;

use super::disk_use::{DiskMeter, DiskUse};
use super::written::Written;
use super::{Condition, Judge, Measurements, Severity, Share, measure};
use crate::clock;
use crate::historian::Historian;
use crate::ids::GatewayId;
use crate::state::State;
use crate::upstream::UpstreamView;

/// How often the gateway is judged.
const JUDGE_EVERY: Duration = Duration::from_secs(1);
/// Texts change with their numbers: an alert that only has new ones is published this many judgements apart.
const RENEW_EVERY: u32 = 10;

/// The conditions that are up, and the figures that were judged.
#[derive(Debug, Clone, Default)]
pub struct Condensed {
    /// Critical ones first.
    pub conditions: Vec<Condition>,
    /// The file system of the data directory.
    pub disk: Option<Share>,
    /// What the gateway uses of it.
    pub disk_use: DiskUse,
    /// Whether the clock can be trusted; `None` if nobody knows.
    pub clock_trusted: Option<bool>,
    /// File descriptors.
    pub files: Option<Share>,
    /// Memory.
    pub memory: Option<Share>,
    /// When the TLS certificate ends, in seconds since 1970 UTC.
    pub certificate_until_s: Option<i64>,
}

/// What the judging needs.
pub struct WatchParts {
    /// This gateway.
    pub gateway: GatewayId,
    /// The log that is watched.
    pub log: Log,
    /// Whether it drops what is still needed.
    pub drops_oldest: bool,
    /// The directory whose file system is watched.
    pub data_dir: PathBuf,
    /// Where the day's wear is kept.
    pub state: Arc<State>,
    /// For the alert, and the broker's figures.
    pub publisher: Publisher,
    /// How the certificates stand.
    pub tls: Box<dyn Fn() -> Option<TlsState> + Send + Sync>,
    /// The history that is watched.
    pub history: Arc<Historian>,
    /// The upstreams that are watched.
    pub upstreams: UpstreamView,
    /// Where the conditions are told.
    pub view: watch::Sender<Arc<Condensed>>,
}

/// The alert as it is published.
#[derive(Serialize)]
struct Alert<'a> {
    gateway: &'a str,
    at_us: i64,
    /// `ok`, or the severity of the worst condition.
    state: &'static str,
    conditions: &'a [Condition],
}

/// Judges until told to stop.
pub async fn run(parts: WatchParts, mut stop: watch::Receiver<bool>) {
    let parts = Arc::new(parts);
    let mut judge = Judge::default();
    let mut meter = DiskMeter::default();
    let mut written = Written::resume(&parts.state).await;
    let mut told: Vec<Condition> = Vec::new();
    let mut since_told = 0;
    publish(&parts, &[]);
    loop {
        // Counting files and asking the file system may block.
        let measured = {
            let parts = Arc::clone(&parts);
            tokio::task::spawn_blocking(move || (measure_all(&parts), measure::written_bytes())).await
        };
        if let Ok((measured, by_system)) = measured {
            let now_us = clock::utc_us();
            written.note().await;
            let written_today_bytes = written.count(now_us, by_system, measured.log.device_bytes);
            let conditions = judge.judge(now_us, &measured).to_vec();
            log_changes(&told, &conditions);
            since_told += 1;
            let same = told.iter().map(key).eq(conditions.iter().map(key));
            if !same || (since_told >= RENEW_EVERY && told != conditions) {
                publish(&parts, &conditions);
                (told, since_told) = (conditions.clone(), 0);
            }
            parts.view.send_replace(Arc::new(Condensed {
                conditions,
                disk: measured.disk,
                disk_use: meter.measure(now_us, &measured.log, measured.disk, written_today_bytes),
                clock_trusted: measure::clock_trusted(now_us),
                files: measured.files,
                memory: measured.memory,
                certificate_until_s: measured.tls.map(|tls| tls.not_after_s),
            }));
        }
        tokio::select! {
            () = tokio::time::sleep(JUDGE_EVERY) => {}
            _ = stop.wait_for(|stop| *stop) => break,
        }
    }
    written.stop().await;
}

fn measure_all(parts: &WatchParts) -> Measurements {
    let broker = parts.publisher.stats();
    Measurements {
        log: parts.log.stats(),
        drops_oldest: parts.drops_oldest,
        disk: measure::disk(&parts.data_dir),
        files: measure::files(),
        memory: measure::memory(),
        buffered: Share { used: broker.buffered_bytes, max: broker.buffered_bytes_max },
        tls: (parts.tls)(),
        history: parts.history.status(),
        upstreams: parts.upstreams.status(),
    }
}

fn key(condition: &Condition) -> (&'static str, Severity) {
    (condition.code, condition.severity)
}

fn log_changes(before: &[Condition], now: &[Condition]) {
    for up in now.iter().filter(|up| !before.iter().any(|was| key(was) == key(up))) {
        match up.severity {
            Severity::Critical => tracing::error!(condition = up.code, remedy = up.remedy, "critical: {}", up.text),
            Severity::Warning => tracing::warn!(condition = up.code, remedy = up.remedy, "warning: {}", up.text),
        }
    }
    for gone in before.iter().filter(|was| !now.iter().any(|up| key(up) == key(was))) {
        tracing::info!(condition = gone.code, "cleared: {} of {}", gone.severity.word(), gone.code);
    }
}

fn publish(parts: &WatchParts, conditions: &[Condition]) {
    let gateway = parts.gateway.to_string();
    let state = conditions.iter().map(|up| up.severity).max().map_or("ok", Severity::word);
    let alert = Alert { gateway: &gateway, at_us: clock::utc_us(), state, conditions };
    let topic = TopicName::parse(&format!("mw/v1/gateway/{gateway}/alert"));
    if let (Ok(topic), Ok(payload)) = (topic, serde_json::to_vec(&alert)) {
        let (payload, properties) = (Bytes::from(payload), Bytes::new());
        let qos = QoS::AtMostOnce;
        parts.publisher.publish_volatile(Message { topic, payload, properties, qos, retain: true, origin: 0 });
    }
}
