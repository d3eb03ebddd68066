//! The whole plant at a glance: every asset, the worst first, and the gateway's own figures.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use super::super::Site;
use crate::alarm::Severity;
use crate::alarm::message::HealthState;
use crate::clock;
use crate::conditions::Condition;
use crate::conditions::disk_use::DiskUse;
use crate::pipeline::view::AssetView;
use crate::upstream::status::UpstreamStatus;

/// `GET /plant`.
#[derive(Serialize)]
pub(crate) struct Plant {
    pub(crate) gateway: GatewayStrip,
    pub(crate) counts: Counts,
    /// The worst first.
    pub(crate) assets: Vec<AssetSummary>,
}

/// The gateway's own figures.
#[derive(Serialize)]
pub(crate) struct GatewayStrip {
    id: String,
    version: &'static str,
    uptime_s: u64,
    trouble: Option<String>,
    conditions: Vec<Condition>,
    queue: Queue,
    disk: DiskUse,
    /// MQTT clients connected.
    clients: u64,
    /// Where messages are forwarded to.
    upstream: Vec<UpstreamStatus>,
    clock: Clock,
}

#[derive(Serialize)]
struct Queue {
    /// Messages that arrive a second.
    lambda: f64,
    /// Messages that can be served a second; null before the first.
    mu: Option<f64>,
    backlog: u64,
    drain_s: Option<f64>,
}

#[derive(Serialize)]
struct Clock {
    utc_us: i64,
    trusted: Option<bool>,
}

/// How many assets are in which state; those that are silenced are in another one too.
#[derive(Default, Serialize)]
pub(crate) struct Counts {
    total: usize,
    alarm: usize,
    recovering: usize,
    silent: usize,
    learning: usize,
    ok: usize,
    silenced: usize,
}

/// One asset in a line.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct AssetSummary {
    pub(crate) asset: String,
    pub(crate) state: HealthState,
    /// Since when it is in this state.
    since_us: i64,
    /// 100 is as learned, 50 is at the alarm threshold.
    health: Option<f32>,
    score: Option<f32>,
    threshold: f32,
    /// The alert that is up.
    alert: Option<OpenAlert>,
    /// Alerts raised in the last 24 hours.
    alerts_24h: u32,
    /// Rows collected and rows needed, while its normal is learned.
    learning: Option<Learning>,
    missing_channels: Vec<String>,
    silenced_until_us: Option<i64>,
    /// When it was last heard, gateway time.
    last_us: i64,
    /// The channel that adds most to the alert that is up.
    top_channel: Option<String>,
}

/// The alert that is up, in short.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct OpenAlert {
    pub(crate) id: String,
    pub(crate) number: u64,
    pub(crate) severity: Severity,
    pub(crate) message: String,
    pub(crate) raised_us: i64,
    pub(crate) acknowledged: bool,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Learning {
    pub(crate) rows: usize,
    pub(crate) of: usize,
}

/// Worse states come first.
fn rank(asset: &AssetSummary) -> u8 {
    match (asset.state, asset.alert.as_ref().map(|alert| alert.severity)) {
        (_, Some(Severity::Critical)) => 0,
        (_, Some(Severity::Warning)) => 1,
        (HealthState::Alarm, None) => 2,
        (HealthState::Recovering, None) => 3,
        (HealthState::Silent, None) => 4,
        (HealthState::Learning, None) => 5,
        (HealthState::Ok, None) => 6,
    }
}

impl Plant {
    /// The plant as it is.
    pub(crate) fn now(site: &Site) -> Plant {
        let views = site.api.views.latest();
        let mut assets: Vec<_> = views.assets.iter().map(|view| AssetSummary::of(view)).collect();
        let counts = Counts::of(&assets);
        assets.sort_by(|a, b| {
            let health = |asset: &AssetSummary| asset.health.unwrap_or(100.0);
            rank(a).cmp(&rank(b)).then(health(a).total_cmp(&health(b))).then_with(|| a.asset.cmp(&b.asset))
        });
        Plant { gateway: GatewayStrip::now(site), counts, assets }
    }
}

impl GatewayStrip {
    fn now(site: &Site) -> GatewayStrip {
        let status = &site.status;
        let condensed = Arc::clone(&status.condition.borrow());
        let figures = status.pipeline.borrow().queue;
        GatewayStrip {
            id: status.gateway.to_string(),
            version: env!("CARGO_PKG_VERSION"),
            uptime_s: status.started.elapsed().as_secs(),
            trouble: status.trouble(),
            conditions: condensed.conditions.clone(),
            queue: Queue {
                lambda: figures.arrivals_per_s,
                mu: figures.service_per_s,
                backlog: figures.backlog,
                drain_s: figures.drain_s,
            },
            disk: condensed.disk_use,
            clients: status.publisher.stats().clients,
            upstream: status.upstreams.status(),
            clock: Clock { utc_us: clock::utc_us(), trusted: condensed.clock_trusted },
        }
    }
}

impl Counts {
    fn of(assets: &[AssetSummary]) -> Counts {
        let mut counts = Counts { total: assets.len(), ..Counts::default() };
        for asset in assets {
            let count = match asset.state {
                HealthState::Alarm => &mut counts.alarm,
                HealthState::Recovering => &mut counts.recovering,
                HealthState::Silent => &mut counts.silent,
                HealthState::Learning => &mut counts.learning,
                HealthState::Ok => &mut counts.ok,
            };
            *count += 1;
            counts.silenced += usize::from(asset.silenced_until_us.is_some());
        }
        counts
    }
}

impl AssetSummary {
    pub(super) fn of(view: &AssetView) -> AssetSummary {
        let alert = view.alert.as_ref().map(|alert| OpenAlert {
            id: alert.id.clone(),
            number: alert.number,
            severity: alert.severity,
            message: alert.message.clone(),
            raised_us: alert.raised_us,
            acknowledged: alert.acknowledged.is_some(),
        });
        AssetSummary {
            asset: view.asset.to_string(),
            state: view.state,
            since_us: view.since_us,
            health: view.health,
            score: view.score,
            threshold: 1.0,
            alert,
            alerts_24h: view.alerts_24h,
            learning: view.learning.map(|(rows, of)| Learning { rows, of }),
            missing_channels: view.missing_channels.iter().map(ToString::to_string).collect(),
            silenced_until_us: view.silence.as_ref().map(|silence| silence.until_us),
            last_us: view.last_us,
            top_channel: view.top_channel().map(str::to_owned),
        }
    }

    /// What of it is worth telling at once: a score that trembles is not.
    pub(crate) fn fingerprint(&self) -> String {
        let percent = self.learning.map(|learning| learning.rows.saturating_mul(100) / learning.of.max(1));
        let alert = self.alert.as_ref().map(|alert| (alert.number, alert.severity, alert.acknowledged));
        format!(
            "{:?} {:?} {:?} {percent:?} {:?} {:?} {}",
            self.state,
            self.health.map(f32::round),
            alert,
            self.missing_channels,
            self.silenced_until_us,
            self.alerts_24h
        )
    }
}

pub(super) async fn plant(State(site): State<Arc<Site>>) -> Json<Plant> {
    Json(Plant::now(&site))
}
