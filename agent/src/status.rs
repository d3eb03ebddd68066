//! What the gateway says about itself: `millwright status`, `/healthz`, `/api/v1/status` and the retained status topic.
//!
//! Owns the shape of the status and the judgement whether the gateway is in trouble. Only reads figures that others keep.

use std::sync::Arc;
use std::time::Instant;

use millwright_broker::log::{Log, LogStats};
use millwright_broker::server::{Broker, BrokerStats};
use serde::Serialize;
use tokio::sync::watch;

use crate::ids::GatewayId;
use crate::pipeline::runner::PipelineStatus;

/// Where the status comes from.
pub struct StatusSource {
    /// This gateway.
    pub gateway: GatewayId,
    /// When it started.
    pub started: Instant,
    /// The log.
    pub log: Log,
    /// The broker.
    pub broker: Arc<Broker>,
    /// The pipeline.
    pub pipeline: watch::Receiver<Arc<PipelineStatus>>,
}

/// The status at one moment.
#[derive(Debug, Serialize)]
pub struct Status {
    /// This gateway.
    pub gateway: String,
    /// `up`, or `down` in the last message before it stops.
    pub state: &'static str,
    /// The program's version.
    pub version: &'static str,
    /// Seconds since it started.
    pub uptime_s: u64,
    /// Why it is not well, if so.
    pub trouble: Option<String>,
    /// The durable log.
    pub log: LogStatus,
    /// The broker.
    pub broker: BrokerStatus,
    /// The pipeline and its assets.
    pub pipeline: PipelineStatus,
}

impl StatusSource {
    /// The status now.
    pub fn status(&self) -> Status {
        Status {
            gateway: self.gateway.to_string(),
            state: "up",
            version: env!("CARGO_PKG_VERSION"),
            uptime_s: self.started.elapsed().as_secs(),
            trouble: self.trouble(),
            log: LogStatus::from(&self.log.stats()),
            broker: BrokerStatus::from(&self.broker.stats()),
            pipeline: PipelineStatus::clone(&self.pipeline.borrow()),
        }
    }

    /// Why clients are not served or the log cannot be written, if so.
    pub fn trouble(&self) -> Option<String> {
        let stats = self.log.stats();
        match &stats.full {
            Some(reason) => Some(reason.to_string()),
            None if !stats.healthy => Some("the log cannot be written: check the disk".to_owned()),
            None => None,
        }
    }
}

/// The durable log's figures that matter from outside.
#[derive(Debug, Serialize)]
pub struct LogStatus {
    /// The offset that the next message gets.
    pub head: u64,
    /// The oldest message on disk.
    pub oldest: u64,
    /// Bytes in use.
    pub bytes: u64,
    /// Bytes that messages may use.
    pub bytes_max: u64,
    /// Messages committed since the start.
    pub rows: u64,
    /// Commits since the start.
    pub commits: u64,
    /// Median time from append to acknowledgement, microseconds.
    pub ack_latency_p50_us: u64,
    /// 99th percentile of it.
    pub ack_latency_p99_us: u64,
    /// Bytes sent to the device for each payload byte since the start: the wear.
    pub write_amplification: f64,
    /// Messages dropped before a cursor had passed them, ever.
    pub lost_rows: u64,
    /// QoS 0 telemetry skipped because the writer's queue was full.
    pub not_queued: u64,
    /// Consumers: name, position and messages behind.
    pub cursors: Vec<(String, u64, u64)>,
}

impl From<&LogStats> for LogStatus {
    fn from(stats: &LogStats) -> LogStatus {
        let cursors = stats.cursors.iter().map(|c| (c.name.clone(), c.position.0, c.backlog_rows));
        LogStatus {
            head: stats.head.0,
            oldest: stats.oldest.0,
            bytes: stats.bytes,
            bytes_max: stats.bytes_max,
            rows: stats.rows,
            commits: stats.commits,
            ack_latency_p50_us: stats.ack_latency_p50_us,
            ack_latency_p99_us: stats.ack_latency_p99_us,
            write_amplification: stats.write_amplification(),
            lost_rows: stats.lost_rows,
            not_queued: stats.not_queued,
            cursors: cursors.collect(),
        }
    }
}
