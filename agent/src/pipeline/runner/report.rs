//! What is known of the pipeline from outside: the status, health messages, and the view that people see.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use millwright_broker::message::{Message, QoS};
use millwright_broker::topic::TopicName;
use serde::Serialize;

use super::{Runner, STATUS};
use crate::alarm::message::Health;
use crate::clock;
use crate::pipeline::asset::Counters;
use crate::pipeline::queue::QueueFigures;

/// What is known of the pipeline from outside.
#[derive(Debug, Clone, Default, Serialize)]
pub struct PipelineStatus {
    /// λ, μ and backlog of the inference cursor.
    pub queue: QueueFigures,
    /// The next offset to fold.
    pub position: u64,
    /// Messages that were no valid telemetry.
    pub decode_errors: u64,
    /// The last of them.
    pub last_decode_error: Option<String>,
    /// Readings of assets beyond the limit.
    pub refused_readings: u64,
    /// Messages that retention dropped before they were folded.
    pub lost_messages: u64,
    /// All assets.
    pub assets: Vec<AssetStatus>,
}

/// One asset in the status.
#[derive(Debug, Clone, Serialize)]
pub struct AssetStatus {
    /// Its health.
    #[serde(flatten)]
    pub health: Health,
    /// Its counts.
    pub counters: Counters,
    /// The alert that is up.
    pub alert: Option<String>,
}

impl Runner {
    /// Publishes the health that is due and renews the status.
    pub(super) fn report(&mut self) {
        if self.reported.elapsed() < STATUS {
            return;
        }
        self.reported = Instant::now();
        let now_us = clock::utc_us();
        for health in self.reports.due(self.parts.engine.assets(), now_us) {
            if let Some(message) = health_message(&health) {
                self.parts.publisher.publish_volatile(message);
            }
        }
        let disk = self.parts.pulse.on_disk();
        self.board.count_if_due(&self.parts.state, now_us);
        drop(disk);
        self.view.renew_if_due(&self.parts.engine, &self.reports, &self.board, now_us);
        let at_s = self.started.elapsed().as_secs_f64();
        let queue = self.meter.measure(at_s, self.parts.log.head().0, self.parts.position.0);
        let assets = self.parts.engine.assets().iter().map(|asset| AssetStatus {
            health: self.reports.health_of(asset, now_us),
            counters: asset.counters,
            alert: asset.alarm.active().map(|alert| alert.id.clone()),
        });
        self.status.send_replace(Arc::new(PipelineStatus {
            queue,
            position: self.parts.position.0,
            decode_errors: self.decode_errors,
            last_decode_error: self.last_decode_error.clone(),
            refused_readings: self.parts.engine.refused_readings(),
            lost_messages: self.lost_messages,
            assets: assets.collect(),
        }));
    }
}
fn health_message(health: &Health) -> Option<Message> {
    let topic = TopicName::parse(&format!("mw/v1/health/{}", health.asset)).ok()?;
    let payload = serde_json::to_vec(health).ok()?;
    Some(Message {
        topic,
        payload: Bytes::from(payload),
        properties: Bytes::new(),
        qos: QoS::AtMostOnce,
        retain: true,
        origin: 0,
    })
}
