//! A model's rehearsal: what it would have done with the telemetry that a gateway has stored.
//!
//! Owns running the pipeline's own fold over the log, from the first message of the asked days on, with the model under test
//! installed for its assets, and what is told of it. Nothing is learned, stored or published. Reads beside the running gateway and
//! never writes. Holds what the fold holds and at most [`ALERTS_LISTED_MAX`] alerts; further ones are counted.

pub mod words;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use millwright_broker::log::{FetchLimit, LogMessage, Offset, ReadError, StoredLog};
use millwright_models::contract::Contract;
use serde::Serialize;

use crate::alarm::Severity;
use crate::alarm::message::{AlertEvent, EventKind};
use crate::clock::{self, SECOND_US};
use crate::config::Config;
use crate::gateway::engine_settings;
use crate::ids::AssetId;
use crate::pipeline::asset::Asset;
use crate::pipeline::engine::{Engine, EngineSettings, Output};
use crate::pipeline::fleet::Installed;
use crate::pipeline::history::WINDOW_ROWS_MAX;
use crate::pipeline::learning::LearningSettings;
use crate::source::{Reading, SourceMap};

/// Alerts that are listed, about 300 bytes each.
pub const ALERTS_LISTED_MAX: usize = 1_000;
/// Sensors named with an alert.
const CHANNELS_LISTED: usize = 3;
/// Models named as those that raised the stored alerts.
const STORED_MODELS_MAX: usize = 16;
/// What the topics of events begin with; the asset follows.
const EVENT_PREFIX: &str = "mw/v1/event/";
/// Runs that the time of one inference is the median of.
const TIMED_RUNS: usize = 33;

/// What the model would have done.
#[derive(Debug, Clone, Serialize)]
pub struct Rehearsal {
    /// The model's name.
    pub model: String,
    /// Its version.
    pub version: u64,
    /// SHA-256 of its file.
    pub sha256: String,
    /// Patterns of the assets it was tested for.
    pub patterns: Vec<String>,
    /// Days asked for.
    pub days: u32,
    /// The oldest message that the log holds, UTC microseconds; `None` when it holds none.
    pub log_begins_us: Option<i64>,
    /// When the first and the last message that was folded arrived.
    pub span_us: Option<(i64, i64)>,
    /// Messages read.
    pub messages: u64,
    /// Messages of these assets that were no valid telemetry.
    pub decode_errors: u64,
    /// The last of them.
    pub last_decode_error: Option<String>,
    /// Messages that retention dropped while they were read, or that could not be read.
    pub lost_messages: u64,
    /// Readings of assets beyond the limit.
    pub refused_readings: u64,
    /// Rows of these assets.
    pub rows: u64,
    /// Rows scored.
    pub scored: u64,
    /// Alerts that would have been raised.
    pub alerts: u64,
    /// Alerts that the gateway raised for these assets in the same messages.
    pub stored_alerts: u64,
    /// The models that raised them.
    pub stored_models: BTreeSet<String>,
    /// One run of one window of the model's own normal values, median, microseconds.
    pub inference_us: f64,
    /// Fold of one row, microseconds: windows, inference in batches, explanation, alarm.
    pub fold_us_per_row: Option<f64>,
    /// By asset.
    pub assets: Vec<AssetRehearsal>,
}

/// One machine.
#[derive(Debug, Clone, Default, Serialize)]
pub struct AssetRehearsal {
    /// Its name.
    pub asset: String,
    /// Rows folded.
    pub rows: u64,
    /// Rows scored; before the first full window there is no score.
    pub scored: u64,
    /// Rows that the model could not score.
    pub score_errors: u64,
    /// A channel that the model needs and the asset never sent: nothing is scored then.
    pub missing_channel: Option<String>,
    /// The highest score; 1.0 is the alarm threshold.
    pub peak_score: Option<f32>,
    /// Alerts raised.
    pub alerts_raised: u64,
    /// The first of them, by time.
    pub alerts: Vec<RehearsedAlert>,
    /// Alerts that the gateway raised in the same messages.
    pub stored_alerts: u64,
}

/// An alert that would have been raised. Times are device times, UTC microseconds.
#[derive(Debug, Clone, Serialize)]
pub struct RehearsedAlert {
    /// When.
    pub raised_us: i64,
    /// The same as text.
    pub raised: String,
    /// Where its episode began.
    pub onset_us: i64,
    /// When it was cleared; `None` while it was up at the end.
    pub cleared_us: Option<i64>,
    /// From raised to cleared.
    pub duration_s: Option<f64>,
    /// Its highest severity.
    pub severity: Severity,
    /// Its highest score.
    pub peak_score: f32,
    /// Sensors by contribution when it was raised.
    pub channels: Vec<String>,
    /// What the crew would have been told.
    pub message: String,
}

/// What is folded.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// How many days to go back, as far as the log does.
    pub days: u32,
    /// From when on back, UTC microseconds.
    pub until_us: i64,
}

/// Runs `model` over the log, until its end or until `stop` says so; it is asked after every few hundred messages.
///
/// # Errors
/// The log cannot be read.
pub fn run(
    log: &mut StoredLog,
    config: &Config,
    model: &Arc<Installed>,
    span: Span,
    stop: &dyn Fn() -> bool,
) -> Result<Rehearsal, ReadError> {
    let Span { days, until_us: now_us } = span;
    let since_us = now_us.saturating_sub(i64::from(days).saturating_mul(24 * 3_600 * SECOND_US));
    let span = log.span()?;
    let oldest = log.read(span.oldest, span.head, FetchLimit { rows: 1, bytes: 1 })?;
    let mut at = log.begin_since(since_us)?.max(span.oldest);
    let mut fold = Fold::new(config, model, since_us);
    fold.told.days = days;
    fold.told.log_begins_us = oldest.messages.first().map(|message| message.received_us);
    // The head of the start: a gateway that goes on writing does not keep the rehearsal from ending.
    while at < span.head && !stop() {
        let fetched = log.read(at, span.head, FetchLimit::default())?;
        if let Some(gap) = &fetched.lost {
            fold.told.lost_messages += gap.to.0.saturating_sub(gap.from.0);
        }
        fold.take(&fetched.messages);
        if fetched.next <= at {
            break;
        }
        at = Offset(fetched.next.0);
    }
    Ok(fold.conclude(now_us))
}

/// The fold while it runs.
struct Fold<'f> {
    gateway: &'f str,
    model: &'f Arc<Installed>,
    since_us: i64,
    sources: SourceMap,
    engine: Engine,
    /// Decoded and not yet folded, with the time of arrival.
    readings: Vec<(i64, Reading)>,
    /// At most one for each asset of the engine and one for each asset with stored alerts.
    by_asset: HashMap<String, Tally>,
    listed: usize,
    folding: Duration,
    told: Rehearsal,
}

#[derive(Default)]
struct Tally {
    told: AssetRehearsal,
    /// Index of the alert that is up, when it is listed.
    open: Option<usize>,
}

impl Fold<'_> {
    fn new<'f>(config: &'f Config, model: &'f Arc<Installed>, since_us: i64) -> Fold<'f> {
        let settings = engine_settings(config);
        // Nothing is learned: an asset waits until it has sent the channels of the model.
        let learning = LearningSettings { rows: 0, extend: false, ..settings.learning };
        let mut engine = Engine::new(EngineSettings { learning, ..settings }, 1);
        engine.restore_fleet(Arc::clone(model));
        let told = Rehearsal {
            model: model.name.to_string(),
            version: model.version,
            sha256: model.sha256.clone(),
            patterns: model.assets.clone(),
            days: 0,
            log_begins_us: None,
            span_us: None,
            messages: 0,
            decode_errors: 0,
            last_decode_error: None,
            lost_messages: 0,
            refused_readings: 0,
            rows: 0,
            scored: 0,
            alerts: 0,
            stored_alerts: 0,
            stored_models: BTreeSet::new(),
            inference_us: 0.0,
            fold_us_per_row: None,
            assets: Vec::new(),
        };
        Fold {
            gateway: config.gateway.id.as_str(),
            model,
            since_us,
            sources: SourceMap::new(&config.sources),
            engine,
            readings: Vec::new(),
            by_asset: HashMap::new(),
            listed: 0,
            folding: Duration::ZERO,
            told,
        }
    }

    /// Decodes and folds messages in the order of the log.
    fn take(&mut self, messages: &[Arc<LogMessage>]) {
        for message in messages {
            self.told.messages += 1;
            let in_span = message.received_us >= self.since_us;
            if in_span {
                self.note_event(message);
            }
            self.decode(message, in_span);
        }
        self.fold();
    }

    /// What came before the asked days is decoded for what the decoder remembers (births, open rows), and not folded.
    fn decode(&mut self, message: &LogMessage, in_span: bool) {
        let Some(route) = self.sources.resolve(&message.message.topic) else { return };
        let wanted = self.model.is_for(route.asset());
        // A Sparkplug message of another asset may say what the aliases of this one mean.
        if !wanted && route.format() != "sparkplug" {
            return;
        }
        let received_us = message.received_us;
        let mut decoded = Vec::new();
        self.sources.handle_timeout(received_us, &mut decoded);
        let outcome = self.sources.decode(&route, &message.message.payload, received_us, &mut decoded);
        if !in_span {
            return;
        }
        if let (Err(error), true) = (outcome, wanted) {
            self.told.decode_errors += 1;
            self.told.last_decode_error = Some(error.to_string());
        }
        self.gather(received_us, decoded);
    }

    fn gather(&mut self, received_us: i64, decoded: Vec<Reading>) {
        let mine: Vec<_> = decoded.into_iter().filter(|reading| self.model.is_for(&reading.asset)).collect();
        if !mine.is_empty() {
            let (first_us, _) = self.told.span_us.unwrap_or((received_us, received_us));
            self.told.span_us = Some((first_us, received_us));
        }
        self.readings.extend(mine.into_iter().map(|reading| (received_us, reading)));
    }

    fn fold(&mut self) {
        let begun = Instant::now();
        let by_asset = &mut self.by_asset;
        let mut observe = |asset: &AssetId, row: crate::pipeline::engine::RowScore| {
            let tally = by_asset.entry(asset.to_string()).or_default();
            tally.told.peak_score = Some(tally.told.peak_score.map_or(row.score, |peak| peak.max(row.score)));
        };
        for (received_us, reading) in self.readings.drain(..) {
            self.engine.ingest(&reading, received_us, &mut observe);
        }
        self.engine.flush(&mut observe);
        self.folding += begun.elapsed();
        for output in self.engine.take_outputs() {
            if let Output::Event(event) = output {
                self.note_alert(&event);
            }
        }
    }

    fn note_alert(&mut self, event: &AlertEvent) {
        let tally = self.by_asset.entry(event.asset.clone()).or_default();
        if event.event == EventKind::Raise {
            tally.told.alerts_raised += 1;
            tally.open = (self.listed < ALERTS_LISTED_MAX).then_some(tally.told.alerts.len());
            if tally.open.is_some() {
                self.listed += 1;
                tally.told.alerts.push(RehearsedAlert::of(event));
            }
        }
        if let Some(alert) = tally.open.and_then(|open| tally.told.alerts.get_mut(open)) {
            alert.severity = alert.severity.max(event.severity);
            alert.peak_score = alert.peak_score.max(event.peak_score);
            if event.event == EventKind::Clear {
                alert.cleared_us = Some(event.time_us);
                alert.duration_s = Some(event.time_us.saturating_sub(alert.raised_us) as f64 / SECOND_US as f64);
                tally.open = None;
            }
        }
    }

    /// Counts an alert that the gateway itself raised.
    fn note_event(&mut self, message: &LogMessage) {
        let Some(asset) = message.message.topic.as_str().strip_prefix(EVENT_PREFIX) else { return };
        let known = AssetId::parse(asset).is_ok_and(|asset| self.model.is_for(&asset));
        let Some(event) = known.then(|| serde_json::from_slice::<AlertEvent>(&message.message.payload).ok()).flatten()
        else {
            return;
        };
        if event.event == EventKind::Raise && event.gateway == self.gateway {
            self.by_asset.entry(asset.to_owned()).or_default().told.stored_alerts += 1;
            if self.told.stored_models.len() < STORED_MODELS_MAX {
                self.told.stored_models.insert(format!("{} v{}", event.model.name, event.model.version));
            }
        }
    }

    fn conclude(mut self, now_us: i64) -> Rehearsal {
        // Rows of single numbers that no further message completes.
        let mut waiting = Vec::new();
        self.sources.handle_timeout(now_us, &mut waiting);
        self.gather(now_us, waiting);
        self.fold();
        let mut told = self.told;
        for asset in self.engine.assets() {
            let tally = self.by_asset.entry(asset.id.to_string()).or_default();
            count(asset, self.model, &mut tally.told);
        }
        told.refused_readings = self.engine.refused_readings();
        told.assets = self.by_asset.into_iter().map(|(asset, tally)| AssetRehearsal { asset, ..tally.told }).collect();
        told.assets.sort_by(|a, b| a.asset.cmp(&b.asset));
        let sum = |of: fn(&AssetRehearsal) -> u64| told.assets.iter().map(of).sum::<u64>();
        (told.rows, told.scored) = (sum(|asset| asset.rows), sum(|asset| asset.scored));
        (told.alerts, told.stored_alerts) = (sum(|asset| asset.alerts_raised), sum(|asset| asset.stored_alerts));
        told.fold_us_per_row = (told.rows > 0).then(|| self.folding.as_secs_f64() * 1e6 / told.rows as f64);
        told.inference_us = inference_us(self.model);
        told
    }
}

fn count(asset: &Asset, model: &Installed, told: &mut AssetRehearsal) {
    told.rows = asset.counters.samples;
    told.scored = asset.counters.scored;
    told.score_errors = asset.counters.score_errors;
    told.missing_channel = asset.missing_channel(model).map(str::to_owned);
    // The peak of an alert that is still up is told by the asset's alarm, not by an event.
    if let (Some(active), Some(alert)) = (asset.alarm.active(), told.alerts.last_mut())
        && active.raised_us == alert.raised_us
    {
        alert.peak_score = alert.peak_score.max(active.peak_score);
    }
}

impl RehearsedAlert {
    fn of(event: &AlertEvent) -> RehearsedAlert {
        RehearsedAlert {
            raised_us: event.raised_us,
            raised: clock::rfc3339(event.raised_us),
            onset_us: event.onset_us,
            cleared_us: None,
            duration_s: None,
            severity: event.severity,
            peak_score: event.peak_score,
            channels: event.evidence.sensors.iter().take(CHANNELS_LISTED).map(|s| s.channel.clone()).collect(),
            message: event.message.clone(),
        }
    }
}

impl Rehearsal {
    /// Why no row could be scored whatever was sent, if that is so.
    pub fn window_too_long(contract: &Contract) -> Option<String> {
        (contract.samples > WINDOW_ROWS_MAX).then(|| {
            let samples = contract.samples;
            format!(
                "the model's window has {samples} samples, and the gateway keeps {WINDOW_ROWS_MAX}: it never scores"
            )
        })
    }
}

/// The median time of one window at the model's normals.
fn inference_us(model: &Installed) -> f64 {
    let contract = model.model.contract();
    let row: Vec<f32> = contract.channels.iter().map(|channel| channel.normal.unwrap_or(0.0)).collect();
    let window = row.repeat(contract.samples);
    let mut times: Vec<Duration> = (0..TIMED_RUNS)
        .map(|_| {
            let begun = Instant::now();
            // A model that cannot score its normals was refused when it was loaded.
            let _ = model.model.score(&window, 1);
            begun.elapsed()
        })
        .collect();
    times.sort();
    times.get(TIMED_RUNS / 2).map_or(0.0, |median| median.as_secs_f64() * 1e6)
}
