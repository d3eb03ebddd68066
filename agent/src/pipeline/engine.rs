//! The fold: readings in, scores and events out.
//!
//! Owns all assets and steps them in the order of the log; the only place where a reading meets a model. Never
//! touches the log, the state file, the network or a clock, so that `evaluate`, tests and live telemetry run the very
//! same code. Bounds: [`ASSETS_MAX`] assets, [`BATCH_WINDOWS`] windows waiting for a model.

use std::collections::HashMap;
use std::sync::Arc;

use millwright_broker::pulse::Pulse;
use millwright_models::commission::Commissioned;
use millwright_models::{Finding, ModelName, State};

use super::asset::{Asset, Changed, CommissionRefused, RowOutcome, SavedAsset, SavedMore};
use super::fleet::{Fleet, Installed, Origin};
use super::install;
use super::learning::{Learned, LearningSettings};
use super::rows::Rows;
use crate::alarm::evidence::{Evidence, Observation};
use crate::alarm::message::{AlertEvent, EventKind};
use crate::alarm::{ActiveAlert, AlarmSettings, Change};
use crate::historian::recorder::Recorded;
use crate::ids::{AssetId, GatewayId};
use crate::source::Reading;

/// Assets one gateway watches; readings of further ones are refused and counted. At 8 channels an asset takes about
/// 8 KB, so this is about 80 MB.
pub const ASSETS_MAX: usize = 10_000;
/// Windows collected before the models run: enough to fill their batches, few enough that evidence still finds its rows.
const BATCH_WINDOWS: usize = 128;
/// Windows in one run of a model; larger batches gain nothing and cost memory.
const RUN_WINDOWS_MAX: usize = 64;

/// How assets are learned and watched.
#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// Named in events.
    pub gateway: GatewayId,
    /// Commissioning.
    pub learning: LearningSettings,
    /// Alarms.
    pub alarm: AlarmSettings,
}

/// One scored row.
#[derive(Debug, Clone, Copy)]
pub struct RowScore {
    /// Device time of the row, UTC microseconds.
    pub time_us: i64,
    /// 1.0 is the alarm threshold.
    pub score: f32,
    /// The episode state after the row.
    pub state: State,
}

/// What the fold produced and its owner must store or publish.
#[derive(Debug)]
pub enum Output {
    /// An alert was raised, updated or cleared.
    Event(Box<AlertEvent>),
    /// The gateway learned an asset's normal; the bytes are the model.
    Commissioned {
        /// The model in use from now on.
        model: Arc<Installed>,
        /// The ONNX file.
        onnx: Vec<u8>,
    },
}

/// The fold over all assets.
#[derive(Debug)]
pub struct Engine {
    settings: EngineSettings,
    assets: Vec<Asset>,
    index: HashMap<AssetId, usize>,
    fleet: Fleet,
    batch: Batch,
    outputs: Vec<Output>,
    next_event: u64,
    refused_readings: u64,
    /// Whether somebody takes the buckets for charts of the past, and how many wait.
    recording: bool,
    recorded: usize,
}

/// Windows waiting for their models.
#[derive(Debug, Default)]
struct Batch {
    values: Vec<f32>,
    windows: Vec<PendingWindow>,
    /// Beats at each run of a model: slow models are no hang, one that never ends is.
    pulse: Pulse,
}

#[derive(Debug)]
struct PendingWindow {
    asset: usize,
    model: Arc<Installed>,
    start: usize,
    end: usize,
    time_us: i64,
    bucket_us: i64,
}

/// The result for one window.
struct WindowScore {
    score: f32,
    contribution: Vec<f32>,
    finding: Option<Finding>,
}

impl Engine {
    /// An engine without assets; events are numbered from `next_event`.
    pub fn new(settings: EngineSettings, next_event: u64) -> Engine {
        Engine {
            settings,
            assets: Vec::new(),
            index: HashMap::new(),
            fleet: Fleet::default(),
            batch: Batch::default(),
            outputs: Vec::new(),
            next_event,
            refused_readings: 0,
            recording: false,
            recorded: 0,
        }
    }

    /// The assets, in the order first seen.
    pub fn assets(&self) -> &[Asset] {
        &self.assets
    }

    /// This gateway, as events name it.
    pub fn gateway(&self) -> &GatewayId {
        &self.settings.gateway
    }

    /// One asset.
    pub fn asset(&self, id: &AssetId) -> Option<&Asset> {
        self.index.get(id).and_then(|index| self.assets.get(*index))
    }

    fn asset_mut(&mut self, id: &AssetId) -> Option<&mut Asset> {
        self.index.get(id).and_then(|index| self.assets.get_mut(*index))
    }

    /// Lets an asset learn its normal anew; a model of its own scores on until the new one is learned.
    ///
    /// # Errors
    /// It is unknown, or nothing would come of it.
    pub fn commission(&mut self, id: &AssetId) -> Result<(), CommissionRefused> {
        let learning = self.settings.learning;
        let asset = self.asset_mut(id).ok_or_else(|| CommissionRefused::Unknown(id.clone()))?;
        asset.commission(learning)
    }

    /// Alerts of an asset are to stay quiet until a time (gateway time), or no longer. Nothing where the asset is unknown.
    pub fn silence(&mut self, id: &AssetId, until_us: Option<i64>) {
        if let Some(asset) = self.asset_mut(id) {
            asset.silenced_until_us = until_us;
        }
    }

    /// Puts back an asset that was saved.
    pub fn restore_asset(
        &mut self,
        id: AssetId,
        saved: (SavedAsset, Option<SavedMore>),
        models: (Option<Arc<Installed>>, Option<Arc<Installed>>),
        rows: Rows,
    ) {
        let asset = Asset::restore(id.clone(), saved, models, self.settings.learning, rows);
        self.index.insert(id, self.assets.len());
        self.assets.push(asset);
    }

    /// Puts rows from before a restart in front of an asset's history, for evidence only.
    pub fn prepend_history(&mut self, id: &AssetId, older: &super::history::History) {
        if let Some(asset) = self.asset_mut(id) {
            asset.history.prepend_older(older);
        }
    }

    /// Puts back a pushed model, without checking it against the assets again.
    pub fn restore_fleet(&mut self, model: Arc<Installed>) {
        self.fleet.install(model);
    }

    /// The number the next event will get.
    pub fn next_event(&self) -> u64 {
        self.next_event
    }

    /// Takes the number of an event that is told by somebody else, as an id: what is said about alerts is numbered with them.
    pub fn take_event_id(&mut self) -> String {
        let id = format!("{}/{}", self.settings.gateway, self.next_event);
        self.next_event += 1;
        id
    }

    /// Readings of assets beyond [`ASSETS_MAX`].
    pub fn refused_readings(&self) -> u64 {
        self.refused_readings
    }

    /// Takes a reading: its rows become windows, and full batches are scored. `observe` sees every scored row.
    pub fn ingest(&mut self, reading: &Reading, received_us: i64, observe: &mut dyn FnMut(&AssetId, RowScore)) {
        let Some(index) = self.asset_index(&reading.asset) else {
            self.refused_readings = self.refused_readings.saturating_add(1);
            return;
        };
        let Some(asset) = self.assets.get_mut(index) else { return };
        if !asset.admit(reading, received_us) {
            return;
        }
        let positions = asset.positions(&reading.channels);
        self.offer_fleet_model(index);
        let width = reading.channels.len().max(1);
        for (time_us, values) in reading.times_us.iter().zip(reading.values.chunks(width)) {
            self.push_row(index, *time_us, &positions, values, observe);
        }
    }

    fn push_row(
        &mut self,
        index: usize,
        time_us: i64,
        positions: &[Option<usize>],
        values: &[f32],
        observe: &mut dyn FnMut(&AssetId, RowScore),
    ) {
        let Some(asset) = self.assets.get_mut(index) else { return };
        let start = self.batch.values.len();
        let closed = asset.recorder.closed_count();
        let outcome = asset.push_row(time_us, positions, values, &mut self.batch.values);
        match self.recording {
            true => self.recorded += asset.recorder.closed_count().saturating_sub(closed),
            false => asset.recorder.forget_closed(),
        }
        let relearned = asset.take_relearned();
        match outcome {
            RowOutcome::None => {}
            RowOutcome::Learned(learned) => self.finish_learning(index, learned),
            RowOutcome::Window => {
                if let Some(model) = asset.model() {
                    let model = Arc::clone(model);
                    let end = self.batch.values.len();
                    let bucket_us = asset.bucket_us();
                    self.batch.windows.push(PendingWindow { asset: index, model, start, end, time_us, bucket_us });
                }
                if self.batch.windows.len() >= BATCH_WINDOWS {
                    self.flush(observe);
                }
            }
        }
        if let Some(learned) = relearned {
            self.finish_learning(index, learned);
        }
    }

    fn asset_index(&mut self, id: &AssetId) -> Option<usize> {
        if let Some(index) = self.index.get(id) {
            return Some(*index);
        }
        if self.assets.len() >= ASSETS_MAX {
            return None;
        }
        self.index.insert(id.clone(), self.assets.len());
        self.assets.push(Asset::new(id.clone(), self.settings.learning));
        Some(self.assets.len() - 1)
    }

    /// A pushed model that fits takes over from learning, also for an asset that first appears after the push.
    fn offer_fleet_model(&mut self, index: usize) {
        let Some(asset) = self.assets.get_mut(index) else { return };
        let Some(model) = self.fleet.model_for(&asset.id) else { return };
        let same = asset.assigned().is_some_and(|assigned| assigned.sha256 == model.sha256);
        if !same && asset.missing_channel(model).is_none() {
            asset.assign(Arc::clone(model));
        }
    }

    fn finish_learning(&mut self, index: usize, learned: Learned) {
        let Some(asset) = self.assets.get_mut(index) else { return };
        match learned {
            Learned::NotYet | Learned::Extended => {}
            Learned::Failed(error) => {
                tracing::error!(asset = %asset.id, %error, "commissioning failed and begins anew");
            }
            Learned::Model(commissioned) => {
                let Commissioned { onnx, report, .. } = *commissioned;
                match install::commissioned(&asset.id, &onnx) {
                    Ok(model) => {
                        tracing::info!(asset = %asset.id, rows = report.rows_used, "learned its normal");
                        let model = Arc::new(model);
                        asset.assign(Arc::clone(&model));
                        self.outputs.push(Output::Commissioned { model, onnx });
                    }
                    Err(error) => tracing::error!(asset = %asset.id, %error, "the learned model does not load"),
                }
            }
        }
    }

    /// Installs a pushed model for the assets it names; from the next row of each it scores.
    ///
    /// # Errors
    /// An asset it is for lacks one of its channels, or there are too many models.
    pub fn install(&mut self, model: &Arc<Installed>) -> Result<Installation, InstallError> {
        for asset in self.assets.iter().filter(|asset| model.is_for(&asset.id)) {
            if let Some(channel) = asset.missing_channel(model) {
                return Err(InstallError::Channel { asset: asset.id.to_string(), channel: channel.to_owned() });
            }
        }
        if !self.fleet.install(Arc::clone(model)) {
            return Err(InstallError::TooMany);
        }
        let mut installation = Installation::default();
        for asset in self.assets.iter_mut().filter(|asset| model.is_for(&asset.id)) {
            asset.assign(Arc::clone(model));
            installation.assets += 1;
            installation.previous.extend(asset.previous().map(|model| (asset.id.to_string(), model.sha256.clone())));
        }
        Ok(installation)
    }

    /// What [`Engine::install`] said of a model that is installed.
    pub fn installation(&self, sha256: &str) -> Installation {
        let mut installation = Installation::default();
        let with = |asset: &&Asset| asset.assigned().is_some_and(|model| model.sha256 == sha256);
        for asset in self.assets.iter().filter(with) {
            installation.assets += 1;
            installation.previous.extend(asset.previous().map(|model| (asset.id.to_string(), model.sha256.clone())));
        }
        installation
    }

    /// A pushed model that is installed.
    pub fn model(&self, sha256: &str) -> Option<Arc<Installed>> {
        self.fleet.find(sha256).cloned()
    }

    /// Takes a pushed model away again: `previous`, the version before it, takes its place, and each asset goes back to
    /// the model it had. Returns how many assets did.
    pub fn roll_back(&mut self, model: &ModelName, sha256: &str, previous: Option<Arc<Installed>>) -> usize {
        self.fleet.remove(model);
        if let Some(previous) = previous {
            self.fleet.install(previous);
        }
        let mut back = 0;
        for asset in &mut self.assets {
            let otherwise = self.fleet.model_for(&asset.id).filter(|model| asset.missing_channel(model).is_none());
            back += usize::from(asset.take_back(sha256, otherwise, self.settings.learning));
        }
        back
    }

    /// Scores everything that waits and steps the alarms in the order of the rows.
    pub fn flush(&mut self, observe: &mut dyn FnMut(&AssetId, RowScore)) {
        let batch = std::mem::take(&mut self.batch);
        let scores = batch.score();
        for (window, score) in batch.windows.iter().zip(scores) {
            match score {
                Some(score) => self.apply(window, &score, &batch, observe),
                None => {
                    window.model.tally.count(false);
                    if let Some(asset) = self.assets.get_mut(window.asset) {
                        asset.counters.score_errors += 1;
                    }
                }
            }
        }
        // The allocations are kept for the next batch.
        self.batch = batch.cleared();
    }

    fn apply(
        &mut self,
        window: &PendingWindow,
        result: &WindowScore,
        batch: &Batch,
        observe: &mut dyn FnMut(&AssetId, RowScore),
    ) {
        let Some(asset) = self.assets.get_mut(window.asset) else { return };
        asset.counters.scored += 1;
        window.model.tally.count(true);
        asset.note_score(window.time_us, window.bucket_us, result.score);
        let changed = asset.alarm.step(window.time_us, result.score, &self.settings.alarm);
        asset.note_state();
        observe(&asset.id, RowScore { time_us: window.time_us, score: result.score, state: asset.alarm.state() });
        if let Some((change, alert)) = changed {
            let observation = Observation {
                contract: window.model.model.contract(),
                window: batch.values.get(window.start..window.end).unwrap_or_default(),
                contribution: &result.contribution,
                finding: result.finding,
                time_us: window.time_us,
            };
            self.emit(window, change, alert, result.score, &observation);
        }
    }

    fn emit(
        &mut self,
        window: &PendingWindow,
        change: Change,
        mut alert: ActiveAlert,
        score: f32,
        observation: &Observation<'_>,
    ) {
        let id = self.take_event_id();
        let Some(asset) = self.assets.get_mut(window.asset) else { return };
        let kind = match change {
            Change::Raise => {
                asset.alarm.name_active(id.clone());
                alert.id.clone_from(&id);
                EventKind::Raise
            }
            Change::Update => EventKind::Update,
            Change::Clear => EventKind::Clear,
        };
        let mut evidence = Evidence::gather(observation, &asset.history, alert.onset_us);
        if kind == EventKind::Raise {
            evidence.note_first_to_deviate(observation, &asset.history);
        }
        let silenced = asset.silenced_until_us.is_some_and(|until_us| asset.received_us < until_us);
        let event = AlertEvent {
            id,
            alert: alert.id.clone(),
            event: kind,
            gateway: self.settings.gateway.to_string(),
            asset: asset.id.to_string(),
            severity: alert.severity,
            state: asset.alarm.state(),
            time_us: window.time_us,
            onset_us: alert.onset_us,
            raised_us: alert.raised_us,
            score,
            peak_score: alert.peak_score,
            threshold: 1.0,
            model: window.model.as_ref().into(),
            message: evidence.sentence(&asset.id, kind),
            silenced,
            evidence,
        };
        self.outputs.push(Output::Event(Box::new(event)));
    }

    /// What has come out since the last call.
    pub fn take_outputs(&mut self) -> Vec<Output> {
        std::mem::take(&mut self.outputs)
    }

    /// Whether anything waits to be stored.
    pub fn has_outputs(&self) -> bool {
        !self.outputs.is_empty()
    }

    /// The assets that changed since the last call.
    pub fn take_changed(&mut self) -> Vec<Changed> {
        self.assets.iter_mut().filter_map(Asset::take_dirty).collect()
    }

    /// Shows on `pulse` that models come to an end.
    pub fn show_on(&mut self, pulse: Pulse) {
        self.batch.pulse = pulse;
    }

    /// Keeps buckets for charts of the past from now on, until they are taken.
    pub fn record(&mut self) {
        self.recording = true;
    }

    /// Buckets for charts of the past that wait to be taken.
    pub fn recorded_count(&self) -> usize {
        self.recorded
    }

    /// Takes them, at a checkpoint: every row that was folded before has its score.
    pub fn take_recorded(&mut self) -> Vec<Recorded> {
        if std::mem::take(&mut self.recorded) == 0 {
            return Vec::new();
        }
        self.assets.iter_mut().filter_map(Asset::take_recorded).collect()
    }
}

/// Which assets a model scores, and what scored them before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Installation {
    /// How many assets it scores.
    pub assets: usize,
    /// Asset and SHA-256 of the model it goes back to.
    pub previous: Vec<(String, String)>,
}

/// Why a pushed model was not installed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InstallError {
    /// It was made for other machines.
    #[error(
        "asset `{asset}` has never sent the channel `{channel}` that the model needs: push it for other assets, or fix the channel's name"
    )]
    Channel {
        /// The asset.
        asset: String,
        /// The channel.
        channel: String,
    },
    /// See [`super::fleet::FLEET_MODELS_MAX`].
    #[error("{} models are installed, and that is the limit: remove one first", super::fleet::FLEET_MODELS_MAX)]
    TooMany,
}

impl Batch {
    /// Scores all windows, grouped by model; `None` where the model failed.
    fn score(&self) -> Vec<Option<WindowScore>> {
        let mut scores: Vec<Option<WindowScore>> = self.windows.iter().map(|_| None).collect();
        let mut order: Vec<usize> = (0..self.windows.len()).collect();
        let model_of = |index: &usize| self.windows.get(*index).map(|window| Arc::as_ptr(&window.model));
        order.sort_by_key(|index| model_of(index).map(<*const Installed>::addr));
        for same_model in order.chunk_by(|a, b| model_of(a) == model_of(b)) {
            for run in same_model.chunks(RUN_WINDOWS_MAX) {
                self.score_run(run, &mut scores);
            }
        }
        scores
    }

    fn score_run(&self, run: &[usize], scores: &mut [Option<WindowScore>]) {
        let Some(model) = run.first().and_then(|index| self.windows.get(*index)).map(|window| &window.model) else {
            return;
        };
        let windows: Vec<f32> = run
            .iter()
            .filter_map(|index| self.windows.get(*index))
            .filter_map(|window| self.values.get(window.start..window.end))
            .flatten()
            .copied()
            .collect();
        let channels = model.model.contract().channels.len().max(1);
        self.pulse.beat();
        match model.model.score(&windows, run.len()) {
            Ok(result) => {
                let results = result.score.iter().zip(result.contribution.chunks(channels));
                for (row, (index, (score, contribution))) in run.iter().zip(results).enumerate() {
                    if let Some(slot) = scores.get_mut(*index) {
                        let (contribution, finding) = (contribution.to_vec(), result.finding.get(row).copied());
                        *slot = Some(WindowScore { score: *score, contribution, finding });
                    }
                }
            }
            Err(error) if run.len() > 1 => {
                // One bad window must not cost the others their score.
                tracing::warn!(?model, %error, "a batch failed and is scored one by one");
                run.iter().for_each(|index| self.score_run(std::slice::from_ref(index), scores));
            }
            Err(error) => tracing::warn!(?model, %error, "a window could not be scored"),
        }
    }

    fn cleared(mut self) -> Batch {
        self.values.clear();
        self.windows.clear();
        self
    }
}

impl From<&Installed> for crate::alarm::message::ModelRef {
    fn from(model: &Installed) -> Self {
        let commissioned = model.origin == Origin::Commissioned;
        Self { name: model.name.to_string(), version: model.version, sha256: model.sha256.clone(), commissioned }
    }
}
