//! What people see of the plant: one view of every machine, renewed once a second while somebody looks.
//!
//! Owns the shape of the view and when it is renewed: every [`VIEW_EVERY`] while it is asked for, else every [`IDLE_EVERY`]. What
//! has not changed is shared with the view before: a machine costs about a kilobyte once. Never changes anything.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::asset::{Asset, Counters};
use super::board::{Board, OpenAlert};
use super::devices::DeviceFigures;
use super::engine::Engine;
use super::fleet::Installed;
use super::health::HealthReports;
use crate::alarm::deviation::Expected;
use crate::alarm::message::{HealthState, health_index};
use crate::casebook::Silence;
use crate::clock::SECOND_US;
use crate::ids::{AssetId, ChannelName};

/// How often the view is renewed while somebody looks.
const VIEW_EVERY: Duration = Duration::from_secs(1);
/// How often otherwise, so that who begins to look sees nothing old.
const IDLE_EVERY: Duration = Duration::from_secs(5);
/// Who has not asked for so long does not look any more.
const LOOKING: Duration = Duration::from_secs(10);
/// The view of a machine that has been quiet for longer is not made anew.
const QUIET_US: i64 = 60 * SECOND_US;

/// All machines.
#[derive(Debug, Clone, Default)]
pub struct PlantView {
    /// Gateway time, UTC microseconds.
    pub at_us: i64,
    /// In the order first seen.
    pub assets: Vec<Arc<AssetView>>,
}

/// One machine.
#[derive(Debug, Clone)]
pub struct AssetView {
    /// Its name.
    pub asset: AssetId,
    /// Its state.
    pub state: HealthState,
    /// Since when it is in it, gateway time, UTC microseconds.
    pub since_us: i64,
    /// 100 is as learned, 50 at the threshold.
    pub health: Option<f32>,
    /// The last score; 1.0 is the threshold.
    pub score: Option<f32>,
    /// The alert that is up.
    pub alert: Option<Arc<OpenAlert>>,
    /// Alerts of the last day.
    pub alerts_24h: u32,
    /// Rows collected and rows needed, while it learns for the first time or anew.
    pub learning: Option<(usize, usize)>,
    /// Channels that have no value now.
    pub missing_channels: Vec<ChannelName>,
    /// Its alerts are to stay quiet.
    pub silence: Option<Arc<Silence>>,
    /// When it was last heard, gateway time, UTC microseconds.
    pub last_us: i64,
    /// The typical time between two rows, device time in microseconds; 0 before the second.
    pub interval_us: i64,
    /// The newest value of each channel; `None` where it is unknown.
    pub values: Vec<(ChannelName, Option<f32>)>,
    /// The model that scores it.
    pub model: Option<Arc<Installed>>,
    /// Counts.
    pub counters: Counters,
    /// The devices that feed it.
    pub devices: Vec<DeviceFigures>,
}

/// One channel of a machine.
#[derive(Debug, Clone, PartialEq)]
pub struct ChannelView {
    /// Its name.
    pub name: ChannelName,
    /// The unit that the model names.
    pub unit: Option<String>,
    /// The newest value.
    pub last: Option<f32>,
    /// Where its values are expected, if the model says.
    pub expected: Option<Expected>,
}

impl PlantView {
    /// One machine.
    pub fn asset(&self, asset: &AssetId) -> Option<&Arc<AssetView>> {
        self.assets.iter().find(|view| view.asset == *asset)
    }
}

impl AssetView {
    /// Its channels, with what the model in use says of each.
    pub fn channels(&self) -> Vec<ChannelView> {
        let contract = self.model.as_ref().map(|model| model.model.contract());
        let view = |(name, last): &(ChannelName, Option<f32>)| {
            let channels = contract.map(|contract| contract.channels.as_slice()).unwrap_or_default();
            let known = channels.iter().find(|channel| channel.name == name.as_str());
            ChannelView {
                name: name.clone(),
                unit: known.and_then(|channel| channel.unit.clone()),
                last: *last,
                expected: known.and_then(Expected::of),
            }
        };
        self.values.iter().map(view).collect()
    }

    /// The channel that adds most to the alert that is up.
    pub fn top_channel(&self) -> Option<&str> {
        self.alert.as_ref()?.top_channel.as_deref()
    }
}

/// The view as those see it who look.
#[derive(Debug, Clone)]
pub struct Views {
    latest: watch::Receiver<Arc<PlantView>>,
    wanted: Arc<AtomicBool>,
}

impl Views {
    /// The newest view; asking for it keeps it new.
    pub fn latest(&self) -> Arc<PlantView> {
        self.wanted.store(true, Ordering::Relaxed);
        Arc::clone(&self.latest.borrow())
    }

    /// Waits for the next view.
    ///
    /// # Errors
    /// The pipeline has stopped.
    pub async fn next(&mut self) -> Result<Arc<PlantView>, watch::error::RecvError> {
        self.wanted.store(true, Ordering::Relaxed);
        self.latest.changed().await?;
        Ok(Arc::clone(&self.latest.borrow_and_update()))
    }
}

/// The pipeline's end.
#[derive(Debug)]
pub struct ViewSender {
    told: watch::Sender<Arc<PlantView>>,
    wanted: Arc<AtomicBool>,
    looked: Option<Instant>,
    made: Option<Instant>,
    before: HashMap<AssetId, Arc<AssetView>>,
}

/// Both ends.
pub fn views() -> (ViewSender, Views) {
    let (told, latest) = watch::channel(Arc::new(PlantView::default()));
    let wanted = Arc::new(AtomicBool::new(false));
    let views = Views { latest, wanted: Arc::clone(&wanted) };
    (ViewSender { told, wanted, looked: None, made: None, before: HashMap::new() }, views)
}

impl ViewSender {
    /// Renews the view, if it is time.
    pub fn renew_if_due(&mut self, engine: &Engine, reports: &HealthReports, board: &Board, now_us: i64) {
        if self.wanted.swap(false, Ordering::Relaxed) {
            self.looked = Some(Instant::now());
        }
        let looking = self.looked.is_some_and(|looked| looked.elapsed() < LOOKING);
        let every = if looking { VIEW_EVERY } else { IDLE_EVERY };
        if self.made.is_some_and(|made| made.elapsed() < every) {
            return;
        }
        self.made = Some(Instant::now());
        let assets: Vec<_> =
            engine.assets().iter().map(|asset| self.asset_view(asset, reports, board, now_us)).collect();
        self.before = assets.iter().map(|view| (view.asset.clone(), Arc::clone(view))).collect();
        self.told.send_replace(Arc::new(PlantView { at_us: now_us, assets }));
    }

    fn asset_view(&self, asset: &Asset, reports: &HealthReports, board: &Board, now_us: i64) -> Arc<AssetView> {
        let (state, since_us) = reports.state_of(asset, now_us);
        let (alert, silence) = (board.alert(&asset.id), board.silence(&asset.id, now_us));
        let alerts_24h = board.raised(&asset.id);
        if let Some(before) = self.before.get(&asset.id) {
            let quiet = now_us.saturating_sub(asset.received_us) > QUIET_US && before.last_us == asset.received_us;
            let same_alert = same(before.alert.as_ref(), alert) && same(before.silence.as_ref(), silence);
            let same_model = same(before.model.as_ref(), asset.model());
            if quiet && same_alert && same_model && (before.state, before.alerts_24h) == (state, alerts_24h) {
                return Arc::clone(before);
            }
        }
        let score = asset.last.as_ref().map(|last| last.score);
        let newest = asset.history.newest(1).next();
        let value = |index: usize| newest.and_then(|row| row.values.get(index)).copied().filter(|v| v.is_finite());
        let channels = asset.history.channels();
        Arc::new(AssetView {
            asset: asset.id.clone(),
            state,
            since_us,
            health: score.map(health_index),
            score,
            alert: alert.cloned(),
            alerts_24h,
            learning: asset.learning(),
            missing_channels: channels.iter().filter(|c| c.missing_rows > 0).map(|c| c.name.clone()).collect(),
            silence: silence.cloned(),
            last_us: asset.received_us,
            interval_us: asset.interval_us(),
            values: channels.iter().enumerate().map(|(index, c)| (c.name.clone(), value(index))).collect(),
            model: asset.model().cloned(),
            counters: asset.counters,
            devices: asset.devices.at(now_us),
        })
    }
}

fn same<T>(left: Option<&Arc<T>>, right: Option<&Arc<T>>) -> bool {
    match (left, right) {
        (None, None) => true,
        (Some(left), Some(right)) => Arc::ptr_eq(left, right),
        _ => false,
    }
}
