//! What the gateway says about itself: `millwright status`, `/healthz`, `/api/v1/status` and the retained status topic.
//!
//! Owns the shape of the status and the judgement whether the gateway is in trouble. Only reads figures that others keep.

use std::time::Instant;

use millwright_broker::log::{Log, LogStats};
use millwright_broker::server::{Broker, BrokerStats};
use serde::Serialize;
use std::sync::Arc;
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
    pub log: LogStats,
    /// The broker.
    pub broker: BrokerStats,
    /// The pipeline and its assets.
    pub pipeline: Arc<PipelineStatus>,
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
            log: self.log.stats(),
            broker: self.broker.stats(),
            pipeline: self.pipeline.borrow().clone(),
        }
    }

    /// Why clients are not served or the log cannot be written, if so.
    pub fn trouble(&self) -> Option<String> {
        self.log.stats().trouble()
    }
}
