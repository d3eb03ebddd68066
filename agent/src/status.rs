//! What the gateway says about itself: `millwright status`, `/healthz`, `/api/v1/status` and the retained status topic.
//!
//! Owns the shape of the status and the judgement whether the gateway is in trouble. Only reads figures that others keep.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use millwright_broker::log::{Log, LogStats};
use millwright_broker::{BrokerStats, Publisher};
use serde::Serialize;
use tokio::sync::watch;

use crate::conditions::watch::Condensed;
use crate::conditions::{Condition, Severity};
use crate::ids::GatewayId;
use crate::models::steward::ModelsView;
use crate::pipeline::runner::PipelineStatus;
use crate::upstream::UpstreamView;
use crate::upstream::status::UpstreamStatus;

/// Where the status comes from.
pub struct StatusSource {
    /// This gateway.
    pub gateway: GatewayId,
    /// When it started.
    pub started: Instant,
    /// The log.
    pub log: Log,
    /// Where MQTT is served.
    pub mqtt: SocketAddr,
    /// The broker's figures.
    pub publisher: Publisher,
    /// The pipeline.
    pub pipeline: watch::Receiver<Arc<PipelineStatus>>,
    /// Pushed models.
    pub models: watch::Receiver<Arc<ModelsView>>,
    /// What is running out.
    pub condition: watch::Receiver<Arc<Condensed>>,
    /// Where messages are forwarded to.
    pub upstreams: UpstreamView,
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
    /// What is running out, critical ones first.
    pub conditions: Vec<Condition>,
    /// The durable log.
    pub log: LogStatus,
    /// The broker.
    pub broker: BrokerStatus,
    /// The pipeline and its assets.
    pub pipeline: PipelineStatus,
    /// Where messages are forwarded to.
    pub upstreams: Vec<UpstreamStatus>,
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
            conditions: self.condition.borrow().conditions.clone(),
            log: LogStatus::from(&self.log.stats()),
            broker: BrokerStatus::new(self.mqtt, &self.publisher.stats()),
            pipeline: PipelineStatus::clone(&self.pipeline.borrow()),
            upstreams: self.upstreams.status(),
        }
    }

    /// Why clients are not served or the log cannot be written, if so.
    pub fn trouble(&self) -> Option<String> {
        let stats = self.log.stats();
        match &stats.full {
            Some(reason) => Some(reason.to_string()),
            None if !stats.healthy => Some("the log cannot be written: check the disk".to_owned()),
            None => self.told(Severity::Critical).next(),
        }
    }

    /// What needs somebody's attention although all works, a line each.
    pub fn warnings(&self) -> Vec<String> {
        self.told(Severity::Warning).collect()
    }

    fn told(&self, severity: Severity) -> impl Iterator<Item = String> + use<> {
        let now = Arc::clone(&self.condition.borrow());
        let up = now.conditions.clone().into_iter().filter(move |up| up.severity == severity);
        up.map(|up| format!("{}: {}; {}", up.code, up.text, up.remedy))
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
            cursors: cursors.collect(),
        }
    }
}

/// The broker's figures that matter from outside; counts are since the start.
#[derive(Debug, Serialize)]
pub struct BrokerStatus {
    /// Where MQTT is served.
    pub listen: SocketAddr,
    /// Clients connected now.
    pub clients: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections turned away because there were too many.
    pub turned_away: u64,
    /// TLS or WebSocket handshakes that failed.
    pub handshakes_failed: u64,
    /// Logins with a wrong user name or password.
    pub logins_wrong: u64,
    /// Publishes and subscriptions that access rules do not allow.
    pub denied: u64,
    /// CONNECTs refused.
    pub refused: u64,
    /// Connections that ended because the client broke the protocol.
    pub protocol_errors: u64,
    /// Publishes received at QoS 0.
    pub received_volatile: u64,
    /// Publishes committed.
    pub received_durable: u64,
    /// Publishes sent.
    pub delivered: u64,
    /// QoS 0 deliveries skipped because a subscriber was too slow.
    pub skipped: u64,
    /// Messages that retention dropped before a subscriber had read them.
    pub lost: u64,
    /// Telemetry at QoS 0 that was not logged because the log's queue was full.
    pub telemetry_not_logged: u64,
}

impl BrokerStatus {
    fn new(listen: SocketAddr, stats: &BrokerStats) -> BrokerStatus {
        BrokerStatus {
            listen,
            clients: stats.clients,
            accepted: stats.accepted,
            turned_away: stats.turned_away,
            handshakes_failed: stats.handshakes_failed,
            logins_wrong: stats.logins_wrong,
            denied: stats.denied,
            refused: stats.refused,
            protocol_errors: stats.protocol_errors,
            received_volatile: stats.received_volatile,
            received_durable: stats.received_durable,
            delivered: stats.delivered,
            skipped: stats.skipped.saturating_add(stats.fan_out_dropped),
            lost: stats.lost,
            telemetry_not_logged: stats.telemetry_not_logged,
        }
    }
}
