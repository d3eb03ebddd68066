//! One machine: what has arrived from it, what its normal is, how it scores.
//!
//! Owns everything the gateway knows of one asset and is stepped by one task only ([`super::engine`]). Never
//! touches the log, the state file or a clock. What it needs to go on after a restart is a [`SavedAsset`] of about one
//! window of rows.

use std::sync::Arc;

use millwright_models::State;
use serde::{Deserialize, Serialize};

use super::devices::Devices;
use super::fleet::{Installed, Origin};
use super::history::{History, RowReport, SavedHistory};
use super::learning::{Learned, Learning, LearningSettings, SavedLearning};
use super::rows::Rows;
use super::stream::{Arrival, Streams};
use crate::alarm::Alarm;
use crate::historian::recorder::{Recorded, Recorder};
use crate::ids::{AssetId, ChannelName};
use crate::source::Reading;

/// Rows saved for an asset that has no model yet: enough to hold missing values and to show a signal.
const SAVED_ROWS_MIN: usize = 20;
/// A silence longer than this many windows ends a window: nothing in it would be left had the rows come.
const GAP_WINDOWS: i64 = 1;
/// Intervals between rows that the typical one is averaged over.
const INTERVAL_AVERAGE_ROWS: i64 = 16;

/// What has happened to an asset's samples since it was first seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Samples taken in.
    pub samples: u64,
    /// Samples scored.
    pub scored: u64,
    /// Readings recognised as sent before.
    pub duplicates: u64,
    /// Readings older than what was already used.
    pub late: u64,
    /// Sequence numbers that never came.
    pub gaps: u64,
    /// Values that were missing or not finite.
    pub missing_values: u64,
    /// Values of channels beyond the limit.
    pub refused_values: u64,
    /// Times the window began anew after a silence.
    pub window_restarts: u64,
    /// Samples a model could not score.
    pub score_errors: u64,
}

/// Whether the asset's normal is known.
#[derive(Debug)]
pub enum Phase {
    /// Collecting rows to learn from.
    Learning(Learning),
    /// Scored by a model.
    Monitoring(Arc<Installed>),
}

/// The last score and what made it.
#[derive(Debug, Clone, Default)]
pub struct LastScore {
    /// 1.0 is the alarm threshold.
    pub score: f32,
    /// The row's device time.
    pub time_us: i64,
}

/// One machine.
#[derive(Debug)]
pub struct Asset {
    /// Its name.
    pub id: AssetId,
    /// What its devices have sent.
    streams: Streams,
    /// Its newest rows.
    pub history: History,
    /// Learning or monitoring.
    pub phase: Phase,
    /// A model that takes over as soon as the history fills its window, so that no sample goes unscored.
    next: Option<Arc<Installed>>,
    /// The model before the one in use, to go back to.
    previous: Option<Arc<Installed>>,
    /// Contract channel → history channel of the model in use.
    columns: Vec<usize>,
    /// Its alarm.
    pub alarm: Alarm,
    /// Counts.
    pub counters: Counters,
    /// The last score.
    pub last: Option<LastScore>,
    /// Gateway time of the last reading.
    pub received_us: i64,
    /// The devices it comes from.
    pub devices: Devices,
    /// Until when its alerts are to stay quiet, gateway time; kept by whoever keeps the casebook.
    pub silenced_until_us: Option<i64>,
    /// What is kept for charts of the past.
    pub recorder: Recorder,
    /// Learning anew, while the model in use goes on scoring.
    relearning: Option<Learning>,
    /// What came of it.
    relearned: Option<Learned>,
    since: Since,
    bucket_us: i64,
    last_time_us: Option<i64>,
    interval_us: i64,
    dirty: bool,
}

/// Since when the asset is in its state.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Since {
    learning: bool,
    state: State,
    us: i64,
}

/// A window to score: its rows are in the batch.
pub struct Window<'a> {
    /// The model to score it with.
    pub model: &'a Arc<Installed>,
    /// The newest row's device time.
    pub time_us: i64,
}

/// Why an asset does not learn anew.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommissionRefused {
    /// Nobody knows it.
    #[error("asset `{0}` is unknown: nothing has come from it yet; check the name")]
    Unknown(AssetId),
    /// It would not score.
    #[error(
        "asset `{asset}` is scored by the pushed model `{model}`, which goes before what is learned: roll it back first"
    )]
    Pushed {
        /// The asset.
        asset: AssetId,
        /// The model.
        model: String,
    },
    /// The gateway does not learn.
    #[error("this gateway learns nothing by its configuration: set `samples` in [commissioning]")]
    Off,
}

/// What came of one row besides a window.
pub enum RowOutcome {
    /// The row is in a window that was appended to the buffer; score it.
    Window,
    /// Nothing to score.
    None,
    /// Commissioning came to an end.
    Learned(Learned),
}

impl Asset {
    /// A machine seen for the first time.
    pub fn new(id: AssetId, learning: LearningSettings) -> Asset {
        Asset {
            id,
            streams: Streams::default(),
            history: History::default(),
            phase: Phase::Learning(Learning::new(learning)),
            next: None,
            previous: None,
            columns: Vec::new(),
            alarm: Alarm::default(),
            counters: Counters::default(),
            last: None,
            received_us: 0,
            devices: Devices::default(),
            silenced_until_us: None,
            recorder: Recorder::default(),
            relearning: None,
            relearned: None,
            since: Since { learning: true, state: State::Ok, us: 0 },
            bucket_us: 0,
            last_time_us: None,
            interval_us: 0,
            dirty: true,
        }
    }

    /// Decides whether a reading is used, and counts it.
    pub fn admit(&mut self, reading: &Reading, received_us: i64) -> bool {
        self.dirty = true;
        self.received_us = received_us;
        if self.since.us == 0 {
            self.since.us = received_us;
        }
        let first_us = reading.times_us.first().copied().unwrap_or(received_us);
        let arrival = match &reading.stream {
            Some(position) => self.streams.observe(position, first_us),
            None if self.last_time_us == Some(first_us) => Arrival::Duplicate,
            None => Arrival::Fresh,
        };
        self.devices.note(reading, arrival, received_us);
        match arrival {
            // Without sequence numbers only the very same device time is taken for a repetition: a clock that was set
            // back must not silence a machine.
            Arrival::Fresh => true,
            Arrival::Gap { missed } => {
                self.counters.gaps = self.counters.gaps.saturating_add(missed);
                true
            }
            Arrival::Duplicate => {
                self.counters.duplicates += 1;
                false
            }
            Arrival::Late => {
                self.counters.late += 1;
                false
            }
        }
    }

    /// Where the channels of a reading stand in this asset's rows.
    pub fn positions(&mut self, names: &[ChannelName]) -> Vec<Option<usize>> {
        let mut report = RowReport::default();
        let positions = self.history.positions(names, &mut report);
        self.counters.refused_values = self.counters.refused_values.saturating_add(report.refused);
        positions
    }

    /// Takes one row and appends its window, if there is one, to `windows` (row-major [samples][channels]).
    pub fn push_row(
        &mut self,
        time_us: i64,
        positions: &[Option<usize>],
        values: &[f32],
        windows: &mut Vec<f32>,
    ) -> RowOutcome {
        self.note_time(time_us);
        let mut report = RowReport::default();
        self.history.push(time_us, positions, values, &mut report);
        self.bucket_us = self.recorder.note_row(time_us, self.history.channels().len(), positions, values);
        self.counters.samples += 1;
        self.counters.missing_values = self.counters.missing_values.saturating_add(report.missing);
        self.switch_when_ready();
        self.relearn();
        match &mut self.phase {
            Phase::Learning(learning) => match learning.push(self.id.as_str(), &self.history) {
                Learned::NotYet => RowOutcome::None,
                learned => RowOutcome::Learned(learned),
            },
            Phase::Monitoring(model) => {
                let model = Arc::clone(model);
                if self.append_window(&model, windows) { RowOutcome::Window } else { RowOutcome::None }
            }
        }
    }

    /// The bucket of the last row.
    pub fn bucket_us(&self) -> i64 {
        self.bucket_us
    }

    /// Learns on, beside the model in use.
    fn relearn(&mut self) {
        let Some(learning) = &mut self.relearning else { return };
        match learning.push(self.id.as_str(), &self.history) {
            Learned::NotYet | Learned::Extended => {}
            learned => {
                if matches!(learned, Learned::Model(_)) {
                    self.relearning = None;
                }
                self.relearned = Some(learned);
            }
        }
    }

    /// What came of learning anew, once.
    pub fn take_relearned(&mut self) -> Option<Learned> {
        self.relearned.take()
    }

    /// Begins to learn its normal anew. A model of its own goes on scoring until the new one is learned.
    ///
    /// # Errors
    /// A pushed model scores it, or nothing is learned here.
    pub fn commission(&mut self, learning: LearningSettings) -> Result<(), CommissionRefused> {
        if learning.rows == 0 {
            return Err(CommissionRefused::Off);
        }
        self.dirty = true;
        match self.assigned().cloned() {
            Some(model) if model.origin == Origin::Pushed => {
                return Err(CommissionRefused::Pushed { asset: self.id.clone(), model: model.name.to_string() });
            }
            Some(model) => self.relearning = Some(Learning::anew(learning, model.version.saturating_add(1))),
            None => self.phase = Phase::Learning(Learning::new(learning)),
        }
        Ok(())
    }

    /// Rows collected and rows needed, while it learns for the first time or anew.
    pub fn learning(&self) -> Option<(usize, usize)> {
        match &self.phase {
            Phase::Learning(learning) => Some(learning.progress()),
            Phase::Monitoring(_) => self.relearning.as_ref().map(Learning::progress),
        }
    }

    /// Takes the score of a row.
    pub fn note_score(&mut self, time_us: i64, bucket_us: i64, score: f32) {
        self.last = Some(LastScore { score, time_us });
        self.history.note_score(time_us, score);
        self.recorder.note_score(bucket_us, score);
    }

    /// Follows since when the asset is in its state.
    pub fn note_state(&mut self) {
        let (learning, state) = (matches!(self.phase, Phase::Learning(_)), self.alarm.state());
        if (learning, state) != (self.since.learning, self.since.state) {
            self.since = Since { learning, state, us: self.received_us };
        }
    }

    /// Since when it is in its state (learning, or that of its alarm), gateway time, UTC microseconds.
    pub fn since_us(&self) -> i64 {
        self.since.us
    }

    /// Notices a silence that ends the window, and follows the typical interval between rows.
    fn note_time(&mut self, time_us: i64) {
        if let Some(last) = self.last_time_us {
            let step_us = time_us.saturating_sub(last).saturating_abs();
            let window_us = self.interval_us.saturating_mul(self.window_rows() as i64);
            if self.interval_us > 0 && step_us > window_us.saturating_mul(GAP_WINDOWS) {
                self.history.restart();
                self.counters.window_restarts += 1;
            } else if self.interval_us == 0 {
                self.interval_us = step_us;
            } else {
                self.interval_us += (step_us - self.interval_us) / INTERVAL_AVERAGE_ROWS;
            }
        }
        self.last_time_us = Some(time_us);
    }

    /// The typical time between two rows, device time in microseconds; 0 before the second.
    pub fn interval_us(&self) -> i64 {
        self.interval_us
    }

    fn window_rows(&self) -> usize {
        match &self.phase {
            Phase::Learning(_) => SAVED_ROWS_MIN,
            Phase::Monitoring(model) => model.model.contract().samples,
        }
    }

    /// Copies the newest rows in the model's channel order; false while there are too few, or a channel is unknown.
    fn append_window(&mut self, model: &Installed, windows: &mut Vec<f32>) -> bool {
        let contract = model.model.contract();
        if self.history.row_count() < contract.samples {
            return false;
        }
        let start = windows.len();
        let mut known: Vec<Option<f32>> = contract.channels.iter().map(|channel| channel.normal).collect();
        for row in self.history.newest(contract.samples) {
            for (column, last) in self.columns.iter().zip(&mut known) {
                if let Some(value) = row.values.get(*column).filter(|value| value.is_finite()) {
                    *last = Some(*value);
                }
                // A channel that is unknown since before the window stands at its learned normal: it adds nothing.
                windows.push(last.unwrap_or(f32::NAN));
            }
        }
        let complete = windows.iter().skip(start).all(|value| value.is_finite());
        if !complete {
            windows.truncate(start);
            self.counters.score_errors += 1;
        }
        complete
    }

    /// Whether all channels of a model have been seen from this asset; else the first that has not.
    pub fn missing_channel<'m>(&self, model: &'m Installed) -> Option<&'m str> {
        let names = model.model.contract().channels.iter().map(|channel| channel.name.as_str());
        names.into_iter().find(|name| self.history.index_of(name).is_none())
    }

    /// Makes `model` the next one; it takes over with the first row that fills its window.
    pub fn assign(&mut self, model: Arc<Installed>) {
        if let Some(current) = self.assigned().filter(|current| current.sha256 != model.sha256) {
            self.previous = Some(Arc::clone(current));
        }
        self.relearning = None;
        self.take_next(model);
    }

    fn take_next(&mut self, model: Arc<Installed>) {
        self.dirty = true;
        self.history.reserve(model.model.contract().samples);
        self.next = Some(model);
        self.switch_when_ready();
    }

    /// Takes a model away from this asset: it goes back to the one before, or to `otherwise`, or learns anew. Returns whether it
    /// had the model.
    pub fn take_back(&mut self, sha256: &str, otherwise: Option<&Arc<Installed>>, learning: LearningSettings) -> bool {
        if self.assigned().is_none_or(|assigned| assigned.sha256 != sha256) {
            return false;
        }
        self.dirty = true;
        self.next = None;
        // One that was only about to take over leaves nothing behind.
        if self.model().is_none_or(|model| model.sha256 != sha256) {
            return true;
        }
        match self.previous.take().or_else(|| otherwise.cloned()) {
            Some(model) => self.take_next(model),
            None => {
                self.relearning = None;
                self.phase = Phase::Learning(Learning::new(learning));
            }
        }
        true
    }

    /// The model to go back to.
    pub fn previous(&self) -> Option<&Arc<Installed>> {
        self.previous.as_ref()
    }

    fn switch_when_ready(&mut self) {
        let Some(next) = &self.next else { return };
        let was_scored = matches!(&self.phase, Phase::Monitoring(model) if self.history.row_count() >= model.model.contract().samples);
        if was_scored && self.history.row_count() < next.model.contract().samples {
            return;
        }
        let columns: Option<Vec<usize>> =
            next.model.contract().channels.iter().map(|channel| self.history.index_of(&channel.name)).collect();
        if let (Some(columns), Some(next)) = (columns, self.next.take()) {
            self.columns = columns;
            self.phase = Phase::Monitoring(next);
            self.note_state();
        }
    }

    /// The model in use.
    pub fn model(&self) -> Option<&Arc<Installed>> {
        match &self.phase {
            Phase::Monitoring(model) => Some(model),
            Phase::Learning(_) => None,
        }
    }

    /// The model in use, or the one about to be.
    pub fn assigned(&self) -> Option<&Arc<Installed>> {
        self.next.as_ref().or(self.model())
    }

    /// Channels the model needs that have no value now.
    pub fn missing_channels(&self) -> Vec<&str> {
        let channels = self.history.channels().iter();
        channels.filter(|channel| channel.missing_rows > 0).map(|channel| channel.name.as_str()).collect()
    }

    /// What to save if anything changed since the last call, and the rows to learn from that no disk holds yet.
    pub fn take_dirty(&mut self) -> Option<Changed> {
        if !std::mem::take(&mut self.dirty) {
            return None;
        }
        let (saved, more) = (self.save(), self.save_more());
        let new_rows = match (&mut self.phase, &mut self.relearning) {
            (Phase::Learning(learning), _) | (Phase::Monitoring(_), Some(learning)) => learning.take_unsaved(),
            (Phase::Monitoring(_), None) => (0, Rows::default()),
        };
        let previous = self.previous.as_ref().map(|model| model.key());
        Some(Changed { id: self.id.clone(), saved, more, previous, new_rows })
    }

    /// The buckets closed since the last call, with the channels' names.
    pub fn take_recorded(&mut self) -> Option<Recorded> {
        let buckets = self.recorder.take_closed();
        let channels = self.history.channels().iter().map(|channel| channel.name.clone()).collect();
        (!buckets.is_empty()).then(|| Recorded { asset: self.id.clone(), channels, buckets })
    }

    fn save_more(&self) -> SavedMore {
        let relearning = self.relearning.as_ref().map(|learning| (learning.save(), learning.version()));
        SavedMore { since: self.since, relearning, recorder: self.recorder.clone() }
    }

    fn save(&self) -> SavedAsset {
        SavedAsset {
            streams: self.streams.clone(),
            history: self.history.save(self.window_rows().max(SAVED_ROWS_MIN)),
            learning: match &self.phase {
                Phase::Learning(learning) => Some(learning.save()),
                Phase::Monitoring(_) => None,
            },
            model: self.assigned().map(|model| model.key()),
            alarm: self.alarm.clone(),
            counters: self.counters,
            received_us: self.received_us,
            last_time_us: self.last_time_us,
            interval_us: self.interval_us,
        }
    }

    /// The reverse of saving. `models` are the saved one and the one before, if they could be loaded; without the first the asset
    /// learns anew.
    pub fn restore(
        id: AssetId,
        (saved, more): (SavedAsset, Option<SavedMore>),
        (model, previous): (Option<Arc<Installed>>, Option<Arc<Installed>>),
        learning: LearningSettings,
        rows: Rows,
    ) -> Asset {
        let mut asset = Asset::new(id, learning);
        asset.streams = saved.streams;
        asset.history = History::restore(&saved.history);
        asset.alarm = saved.alarm;
        asset.counters = saved.counters;
        asset.received_us = saved.received_us;
        asset.last_time_us = saved.last_time_us;
        asset.interval_us = saved.interval_us;
        asset.dirty = false;
        let mut relearning = None;
        if let Some(saved_learning) = saved.learning {
            asset.phase = Phase::Learning(Learning::restore(learning, saved_learning, 1, rows));
        } else if let Some((saved_learning, version)) = more.as_ref().and_then(|more| more.relearning) {
            let learning = Learning::restore(learning, saved_learning, version, rows);
            match &model {
                Some(_) => relearning = Some(learning),
                None => asset.phase = Phase::Learning(learning),
            }
        }
        if let Some(model) = model {
            asset.assign(model);
            asset.dirty = false;
        }
        asset.relearning = relearning;
        asset.previous = previous;
        // A file from before there was more begins with what can be told: it was so when it was last heard.
        asset.since.us = saved.received_us;
        asset.note_state();
        if let Some(more) = more {
            asset.since = more.since;
            asset.recorder = more.recorder;
            asset.note_state();
        }
        asset
    }
}

/// An asset that changed since the last checkpoint.
#[derive(Debug)]
pub struct Changed {
    /// Which.
    pub id: AssetId,
    /// Its state.
    pub saved: SavedAsset,
    /// What is saved besides.
    pub more: SavedMore,
    /// The model to go back to.
    pub previous: Option<super::fleet::ModelKey>,
    /// Rows to learn from that are not on disk yet, and the index of the first.
    pub new_rows: (usize, Rows),
}

/// What is saved of an [`Asset`] beside [`SavedAsset`], which has kept its form since the first schema.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedMore {
    since: Since,
    relearning: Option<(SavedLearning, u64)>,
    recorder: Recorder,
}

/// An [`Asset`] as it is written to disk.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedAsset {
    streams: Streams,
    history: SavedHistory,
    learning: Option<SavedLearning>,
    /// The model in use.
    pub model: Option<super::fleet::ModelKey>,
    alarm: Alarm,
    counters: Counters,
    received_us: i64,
    last_time_us: Option<i64>,
    interval_us: i64,
}
