//! The fold, driven without a log: what a restart, a resend, a hole or a new model may change, and what not.

use std::sync::Arc;

use millwright_models::commission::{Subject, commission_subject};
use millwright_models::onnx::{AttributeProto, ModelProto, NodeProto};
use millwright_models::runtime::LoadLimits;
use millwright_models::{Params, State};
use prost::Message as _;

use super::asset::{Changed, CommissionRefused};
use super::board::Board;
use super::engine::{Engine, EngineSettings, InstallError, Output, RowScore};
use super::fleet::{Installed, Origin};
use super::health::{HealthReports, HealthTiming};
use super::install;
use super::learning::LearningSettings;
use super::live::{LIVE_EVERY, LiveBatch, LiveFeed, LiveSender};
use super::view;
use crate::alarm::AlarmSettings;
use crate::alarm::message::{AlertEvent, EventKind, HealthState};
use crate::clock::SECOND_US;
use crate::historian::recorder::Bucket;
use crate::ids::{AssetId, ChannelName, GatewayId};
use crate::source::{Reading, StreamPosition};

const LEARNED_ROWS: usize = 200;
const CHANNELS: [&str; 3] = ["flow", "pressure", "temperature"];

fn settings() -> EngineSettings {
    EngineSettings {
        gateway: GatewayId::parse("gw").unwrap(),
        learning: LearningSettings { rows: LEARNED_ROWS, extend: false, params: Params::default() },
        alarm: AlarmSettings::default(),
    }
}

/// A machine that breathes, and from row `fault_at` on loses pressure.
fn row(k: usize, fault_at: usize) -> [f32; 3] {
    let t = k as f32;
    // A cheap noise that repeats on every platform: the low bits of a multiplicative hash.
    let noise =
        |salt: u32| (u32::try_from(k).unwrap() ^ salt).wrapping_mul(2_654_435_761) as f32 / u32::MAX as f32 - 0.5;
    let load = (t / 37.0).sin();
    let lost = if k >= fault_at { 2.0 } else { 0.0 };
    [10.0 + load + 0.2 * noise(1), 5.0 + 0.5 * load + 0.1 * noise(2) - lost, 60.0 + 0.3 * noise(3)]
}

fn reading(asset: &str, k: usize, fault_at: usize) -> Reading {
    Reading {
        asset: AssetId::parse(asset).unwrap(),
        stream: Some(StreamPosition { device: "plc".into(), boot: Some(1), seq: k as u64, device_time: true }),
        channels: CHANNELS.iter().map(|name| ChannelName::parse(name).unwrap()).collect(),
        times_us: vec![k as i64 * SECOND_US],
        values: row(k, fault_at).to_vec(),
    }
}

/// The fold with everything it has said.
struct Run {
    engine: Engine,
    events: Vec<AlertEvent>,
    scores: Vec<(String, RowScore)>,
    models: Vec<Arc<Installed>>,
    buckets: Vec<Bucket>,
}

impl Run {
    fn new() -> Run {
        let mut engine = Engine::new(settings(), 1);
        engine.record();
        Run { engine, events: Vec::new(), scores: Vec::new(), models: Vec::new(), buckets: Vec::new() }
    }

    fn feed(&mut self, readings: impl IntoIterator<Item = Reading>) {
        let scores = &mut self.scores;
        for reading in readings {
            let received_us = reading.times_us[0];
            self.engine.ingest(&reading, received_us, &mut |asset, score| scores.push((asset.to_string(), score)));
        }
        self.engine.flush(&mut |asset, score| scores.push((asset.to_string(), score)));
        for output in self.engine.take_outputs() {
            match output {
                Output::Event(event) => self.events.push(*event),
                Output::Commissioned { model, .. } => self.models.push(model),
            }
        }
    }

    /// What a crash right after a checkpoint leaves, as a new engine.
    fn restart(&mut self) {
        let mut engine = Engine::new(settings(), self.engine.next_event());
        engine.record();
        self.take_buckets();
        for changed in self.engine.take_changed() {
            let Changed { id, saved, more, previous: _, new_rows } = changed;
            // The saved form goes through its bytes, as it does on disk.
            let bytes = postcard::to_stdvec(&saved).unwrap();
            let saved: super::asset::SavedAsset = postcard::from_bytes(&bytes).unwrap();
            let model = saved.model.as_ref().and_then(|key| self.models.iter().find(|m| m.sha256 == key.sha256));
            engine.restore_asset(id, (saved, Some(more)), (model.cloned(), None), new_rows.1);
        }
        self.engine = engine;
    }

    /// A checkpoint takes the buckets that were closed before it.
    fn take_buckets(&mut self) {
        self.buckets.extend(self.engine.take_recorded().into_iter().flat_map(|recorded| recorded.buckets));
    }

    fn happened(&self) -> Vec<(String, EventKind, i64)> {
        self.events.iter().map(|event| (event.asset.clone(), event.event, event.time_us)).collect()
    }
}

fn model(name: &str, version: u64, channels: &[&str], samples: usize, assets: &str) -> Arc<Installed> {
    let names: Vec<String> = channels.iter().map(|name| (*name).to_owned()).collect();
    let rows: Vec<f32> = (0..600).flat_map(|k| row(k, usize::MAX).into_iter().take(channels.len())).collect();
    let params = Params { window: samples, ..Params::default() };
    let made = commission_subject(&Subject::new(name, version, &names), &rows, &params).unwrap();
    let installed = install::load(&made.onnx, Origin::Pushed, vec![assets.to_owned()], &LoadLimits::default());
    Arc::new(installed.unwrap())
}

// A machine is learned, watched quietly, flagged when it fails, and the evidence names the sensor.
#[test]
fn a_fault_is_flagged_with_its_sensor() {
    let mut run = Run::new();
    run.feed((0..500).map(|k| reading("pump", k, 400)));
    let raised: Vec<&AlertEvent> = run.events.iter().filter(|event| event.event == EventKind::Raise).collect();
    assert_eq!(raised.len(), 1, "{:?}", run.happened());
    assert!((400..430).contains(&(raised[0].onset_us / SECOND_US)), "{}", raised[0].onset_us);
    assert_eq!(raised[0].evidence.sensors[0].channel, "pressure");
    let first = &raised[0].evidence.first_to_deviate[0];
    assert_eq!((first.channel.as_str(), first.at_us), ("pressure", 400 * SECOND_US));
    assert!(raised[0].evidence.sensors[0].observed < raised[0].evidence.sensors[0].expected.unwrap());
    let signal = &raised[0].evidence.signal[0];
    assert!(!signal.before.is_empty() && !signal.after.is_empty());
    assert_eq!(signal.times_us.len(), signal.before.len() + signal.after.len());
    assert_eq!(run.scores.len(), 500 - LEARNED_ROWS, "every row after the learned ones is scored");
}

// Whenever the process stops, the scores, the events, their numbers and the buckets for charts are those of an uninterrupted
// run.
#[test]
fn a_restart_changes_nothing() {
    let mut whole = Run::new();
    whole.feed((0..500).map(|k| reading("pump", k, 400)));
    whole.take_buckets();
    assert_eq!(whole.buckets.len(), 49);
    for stop in [1, 57, LEARNED_ROWS - 1, LEARNED_ROWS, LEARNED_ROWS + 1, 399, 405, 410, 411, 450, 499] {
        let mut run = Run::new();
        run.feed((0..stop).map(|k| reading("pump", k, 400)));
        run.restart();
        run.feed((stop..500).map(|k| reading("pump", k, 400)));
        assert_eq!(run.happened(), whole.happened(), "stopped at {stop}");
        run.take_buckets();
        assert_eq!(run.buckets, whole.buckets, "stopped at {stop}");
        let ids = |run: &Run| run.events.iter().map(|event| event.id.clone()).collect::<Vec<_>>();
        assert_eq!(ids(&run), ids(&whole), "stopped at {stop}");
        let scores = |run: &Run| run.scores.iter().map(|(_, s)| (s.time_us, s.score, s.state)).collect::<Vec<_>>();
        assert_eq!(scores(&run), scores(&whole), "stopped at {stop}");
    }
}

// A frame that comes again, at once or after a restart, is not scored again.
#[test]
fn a_resend_is_not_scored_twice() {
    let mut run = Run::new();
    run.feed((0..300).map(|k| reading("pump", k, usize::MAX)));
    run.feed((290..300).map(|k| reading("pump", k, usize::MAX)));
    run.restart();
    run.feed((290..310).map(|k| reading("pump", k, usize::MAX)));
    assert_eq!(run.scores.len(), 310 - LEARNED_ROWS);
    let counters = run.engine.assets()[0].counters;
    assert_eq!((counters.samples, counters.scored, counters.duplicates), (310, 110, 20));
}

// Windows of many assets go through one shared model in batches and give what each alone would give.
#[test]
fn assets_are_scored_in_batches_as_alone() {
    let shared = model("shared", 1, &CHANNELS, 20, "pump-*");
    let names: Vec<String> = (0..30).map(|n| format!("pump-{n}")).collect();
    let fault_at = |n: usize| 60 + n;
    let mut together = Run::new();
    together.engine.install(&shared).unwrap();
    together.feed((0..120).flat_map(|k| {
        let each = names.iter().enumerate();
        each.map(move |(n, name)| reading(name, k, fault_at(n))).collect::<Vec<_>>()
    }));
    for (n, name) in names.iter().enumerate() {
        let mut alone = Run::new();
        alone.engine.install(&shared).unwrap();
        (0..120).for_each(|k| alone.feed([reading(name, k, fault_at(n))]));
        let own: Vec<&RowScore> = together.scores.iter().filter(|(asset, _)| asset == name).map(|(_, s)| s).collect();
        assert_eq!(own.len(), alone.scores.len());
        for (batched, (_, single)) in own.iter().zip(&alone.scores) {
            assert!((batched.score - single.score).abs() <= 1e-5 * single.score.max(1.0), "{name}");
            assert_eq!(batched.state, single.state, "{name}");
        }
    }
    assert!(together.events.iter().any(|event| event.event == EventKind::Raise));
}

// A new model takes over without a row unscored, also when its window is longer than the one before.
#[test]
fn a_new_model_leaves_no_row_unscored() {
    for samples in [5, 20, 150] {
        let mut run = Run::new();
        run.feed((0..210).map(|k| reading("pump", k, usize::MAX)));
        let pushed = model("pump", 2, &CHANNELS, samples, "pump");
        assert_eq!(run.engine.install(&pushed).unwrap().assets, 1);
        run.feed((210..450).map(|k| reading("pump", k, usize::MAX)));
        let times: Vec<i64> = run.scores.iter().map(|(_, score)| score.time_us / SECOND_US).collect();
        assert_eq!(times, (LEARNED_ROWS as i64..450).collect::<Vec<_>>(), "window of {samples}");
        assert_eq!(run.engine.assets()[0].model().unwrap().version, 2);
    }
}

// A model that needs a channel which its asset does not send is refused, and the old one runs on.
#[test]
fn a_model_for_other_channels_is_refused() {
    let mut run = Run::new();
    run.feed((0..210).map(|k| reading("pump", k, usize::MAX)));
    let before = run.engine.assets()[0].model().unwrap().sha256.clone();
    let wrong = model("pump", 2, &["flow", "speed"], 20, "*");
    let refused = run.engine.install(&wrong).unwrap_err();
    assert_eq!(refused, InstallError::Channel { asset: "pump".into(), channel: "speed".into() });
    run.feed((210..220).map(|k| reading("pump", k, usize::MAX)));
    assert_eq!(run.engine.assets()[0].model().unwrap().sha256, before);
    assert_eq!(run.scores.len(), 220 - LEARNED_ROWS);
}

// A channel that vanishes is held, then stands at its learned normal: the machine is scored on without a false alarm.
#[test]
fn a_vanished_channel_is_no_fault_of_the_machine() {
    let mut run = Run::new();
    run.feed((0..600).map(|k| {
        let mut reading = reading("pump", k, usize::MAX);
        if k >= 300 {
            reading.channels = reading.channels.iter().take(2).cloned().collect();
            reading.values.truncate(2);
        }
        reading
    }));
    assert_eq!(run.scores.len(), 600 - LEARNED_ROWS);
    assert_eq!(run.happened(), []);
    let asset = &run.engine.assets()[0];
    assert_eq!(asset.missing_channels(), ["temperature"]);
    assert_eq!(asset.counters.missing_values, 300);
}

// Values that are not finite and a channel that appears later are counted and change no score.
#[test]
fn odd_values_and_new_channels_are_counted() {
    let mut run = Run::new();
    run.feed((0..400).map(|k| {
        let mut reading = reading("pump", k, usize::MAX);
        if k % 50 == 0 {
            reading.values[1] = f32::INFINITY;
        }
        if k >= 300 {
            reading.channels = reading.channels.iter().cloned().chain([ChannelName::parse("new").unwrap()]).collect();
            reading.values.push(1.0);
        }
        reading
    }));
    assert_eq!(run.happened(), []);
    let asset = &run.engine.assets()[0];
    assert_eq!((asset.counters.missing_values, asset.counters.scored), (8, 200));
    assert_eq!(asset.history.channels().len(), 4);
}

// After a silence of more than a window nothing of the time before is mixed into a score.
#[test]
fn a_long_silence_begins_a_new_window() {
    let mut run = Run::new();
    run.feed((0..250).map(|k| reading("pump", k, usize::MAX)));
    run.feed((250..280).map(|k| {
        let mut reading = reading("pump", k, usize::MAX);
        reading.times_us[0] += 3_600 * SECOND_US;
        reading
    }));
    let counters = run.engine.assets()[0].counters;
    assert_eq!(counters.window_restarts, 1);
    // 19 rows fill the window again, the twentieth is scored.
    assert_eq!(counters.scored, 250 - LEARNED_ROWS as u64 + 11);
    assert!(run.scores.iter().all(|(_, score)| score.state == State::Ok));
}

/// A model whose value is the mean pressure, healthy at 5 bar and in alarm below 4: the learned graph with another heart.
fn pressure_model() -> Arc<Installed> {
    let rows: Vec<f32> = (0..600).map(|k| row(k, usize::MAX)[1]).collect();
    let names = ["pressure".to_owned()];
    let made = commission_subject(&Subject::new("pump", 2, &names), &rows, &Params::default()).unwrap();
    let mut file = ModelProto::decode(made.onnx.as_slice()).unwrap();
    // The golden vectors are those of the learned score.
    file.metadata_props.retain(|entry| entry.key != "millwright.golden");
    let kind = [("output", "regression"), ("unit", "bar"), ("healthy", "5"), ("alarm_below", "4")];
    let metadata = kind.map(|(key, value)| (format!("millwright.{key}"), value.to_owned()));
    let graph = file.graph.as_mut().unwrap();
    let attribute = |name: &str, ints: &[i64], i: Option<i64>| {
        let r#type = if i.is_some() { 2 } else { 7 };
        AttributeProto { name: name.to_owned(), ints: ints.to_vec(), i, r#type, ..AttributeProto::default() }
    };
    graph.node = vec![NodeProto {
        op_type: "ReduceMean".to_owned(),
        input: vec!["window".to_owned()],
        output: vec!["value".to_owned()],
        attribute: vec![attribute("axes", &[1, 2], None), attribute("keepdims", &[], Some(0))],
        ..NodeProto::default()
    }];
    graph.initializer.clear();
    graph.output.retain(|output| output.name == "score");
    graph.output[0].name = "value".to_owned();
    let onnx = millwright_models::onnx::set_metadata(&file.encode_to_vec(), &metadata).unwrap();
    Arc::new(install::load(&onnx, Origin::Pushed, vec!["pump".to_owned()], &LoadLimits::default()).unwrap())
}

// A model that gives a value instead of a score alarms when the value has passed its limit, and the alert tells the value.
#[test]
fn a_regression_alarms_and_tells_its_value() {
    let mut run = Run::new();
    run.engine.install(&pressure_model()).unwrap();
    run.feed((0..500).map(|k| reading("pump", k, 400)));
    let raised: Vec<&AlertEvent> = run.events.iter().filter(|event| event.event == EventKind::Raise).collect();
    assert_eq!(raised.len(), 1, "{:?}", run.happened());
    assert!((400..430).contains(&(raised[0].onset_us / SECOND_US)), "{}", raised[0].onset_us);
    let finding = raised[0].evidence.finding.as_deref().unwrap();
    assert!(finding.starts_with("3.") && finding.ends_with(" bar"), "{finding}");
    assert!(raised[0].message.contains(finding), "{}", raised[0].message);
    assert_eq!((raised[0].model.version, raised[0].evidence.sensors[0].channel.as_str()), (2, "pressure"));
}

// A machine that learns anew is scored on by its model, through a restart in the middle, until the next version takes over
// without a row unscored.
#[test]
fn learning_anew_stops_no_scoring() {
    let pump = AssetId::parse("pump").unwrap();
    let mut run = Run::new();
    run.feed((0..300).map(|k| reading("pump", k, usize::MAX)));
    run.engine.commission(&pump).unwrap();
    assert_eq!(run.engine.assets()[0].learning(), Some((0, LEARNED_ROWS)));
    run.feed((300..400).map(|k| reading("pump", k, usize::MAX)));
    run.restart();
    assert_eq!(run.engine.assets()[0].learning(), Some((100, LEARNED_ROWS)));
    assert_eq!(run.engine.assets()[0].model().unwrap().version, 1);
    run.feed((400..550).map(|k| reading("pump", k, usize::MAX)));
    assert_eq!(run.engine.assets()[0].learning(), None);
    assert_eq!(run.engine.assets()[0].model().unwrap().version, 2);
    let times: Vec<i64> = run.scores.iter().map(|(_, score)| score.time_us / SECOND_US).collect();
    assert_eq!(times, (LEARNED_ROWS as i64..550).collect::<Vec<_>>());
}

// A machine that a pushed model scores does not learn anew, and one that nobody knows neither; a push ends the learning.
#[test]
fn a_pushed_model_goes_before_learning_anew() {
    let pump = AssetId::parse("pump").unwrap();
    let mut run = Run::new();
    assert_eq!(run.engine.commission(&pump), Err(CommissionRefused::Unknown(pump.clone())));
    run.feed((0..300).map(|k| reading("pump", k, usize::MAX)));
    run.engine.commission(&pump).unwrap();
    run.engine.install(&model("pump", 7, &CHANNELS, 20, "pump")).unwrap();
    assert_eq!(run.engine.assets()[0].learning(), None);
    assert!(matches!(run.engine.commission(&pump), Err(CommissionRefused::Pushed { .. })));
}

// An alert of a silenced machine is raised as ever and says that it is silenced; after the end of the silence it does not.
#[test]
fn a_silenced_machine_alarms_quietly() {
    for (until_s, silenced) in [(10_000, true), (300, false)] {
        let mut run = Run::new();
        run.feed((0..300).map(|k| reading("pump", k, 400)));
        run.engine.silence(&AssetId::parse("pump").unwrap(), Some(until_s * SECOND_US));
        run.feed((300..500).map(|k| reading("pump", k, 400)));
        let raised: Vec<bool> = run.events.iter().map(|event| event.silenced).collect();
        assert!(!raised.is_empty() && raised.iter().all(|told| *told == silenced), "{raised:?}");
    }
}

// The newest rows are shown with their scores, in columns; what has no value or no score is null.
#[test]
fn the_newest_rows_are_shown() {
    let mut run = Run::new();
    run.feed((0..LEARNED_ROWS + 3).map(|k| {
        let mut reading = reading("pump", k, usize::MAX);
        if k == 0 {
            reading.values[2] = f32::NAN;
        }
        reading
    }));
    let asset = &run.engine.assets()[0];
    let newest = LiveBatch::newest(asset, 5);
    let last = LEARNED_ROWS as i64 + 2;
    assert_eq!(newest.times_us, (last - 4..=last).map(|k| k * SECOND_US).collect::<Vec<_>>());
    let scored: Vec<bool> = newest.scores.iter().map(|score| score.is_finite()).collect();
    assert_eq!(scored, [false, false, true, true, true]);
    assert_eq!(newest.channels[1].values[4], row(LEARNED_ROWS + 2, usize::MAX)[1]);
    let json: serde_json::Value = serde_json::from_str(&newest.json()).unwrap();
    assert_eq!((json["scores"][0].is_null(), json["channels"][2]["name"].as_str()), (true, Some("temperature")));
}

// Rows of a watched machine are sent once each, those of others not at all; when nobody watches any more nothing is sent.
#[test]
fn watched_machines_are_fed_live() {
    let (feed, pump) = (LiveFeed::new(), AssetId::parse("pump").unwrap());
    let (mut rows, mut live) = (feed.rows(), LiveSender::new(Arc::clone(&feed)));
    let mut run = Run::new();
    let both = |k| ["pump", "fan"].map(|asset| reading(asset, k, usize::MAX));
    run.feed((0..10).flat_map(both));
    let watching = feed.watch(vec![pump.clone()]).unwrap();
    live.send_if_due(&run.engine);
    run.feed((10..15).flat_map(both));
    std::thread::sleep(LIVE_EVERY);
    live.send_if_due(&run.engine);
    let batch = rows.try_recv().unwrap();
    assert_eq!((&batch.asset, batch.times_us.len(), batch.times_us[0]), (&pump, 5, 10 * SECOND_US));
    assert!(rows.try_recv().is_err());
    drop(watching);
    run.feed((15..20).flat_map(both));
    std::thread::sleep(LIVE_EVERY);
    live.send_if_due(&run.engine);
    assert!(rows.try_recv().is_err() && !live.is_watched());
}

// The view of a machine that has learned its normal has the band in which its values are expected, the alert that is up, and
// since when its state is what it is.
#[test]
fn the_view_shows_what_is_known() {
    let mut run = Run::new();
    run.feed((0..LEARNED_ROWS + 5).map(|k| reading("pump", k, usize::MAX)));
    let timing = HealthTiming { beat_us: 60 * SECOND_US, silent_after_us: 60 * SECOND_US };
    let (reports, mut board) = (HealthReports::new(timing), Board::default());
    let now_us = (LEARNED_ROWS as i64 + 5) * SECOND_US;
    let (mut sender, views) = view::views();
    sender.renew_if_due(&run.engine, &reports, &board, now_us);
    let seen = Arc::clone(&views.latest().assets[0]);
    assert_eq!((seen.state, seen.since_us), (HealthState::Ok, (LEARNED_ROWS as i64 - 1) * SECOND_US));
    let pressure = &seen.channels()[1];
    let expected = pressure.expected.unwrap();
    let last = pressure.last.unwrap();
    assert!(expected.low.unwrap() < last && last < expected.high.unwrap(), "{pressure:?}");
    assert_eq!((seen.devices[0].device.as_deref(), seen.devices[0].skew_us), (Some("plc"), Some(0)));

    run.feed((LEARNED_ROWS + 5..LEARNED_ROWS + 100).map(|k| reading("pump", k, LEARNED_ROWS + 10)));
    run.events.iter().for_each(|event| board.note_event(event));
    let (mut sender, views) = view::views();
    sender.renew_if_due(&run.engine, &reports, &board, now_us + 3_600 * SECOND_US);
    let seen = Arc::clone(&views.latest().assets[0]);
    assert_eq!((seen.state, seen.since_us), (HealthState::Silent, seen.last_us));
    assert_eq!((seen.top_channel(), seen.alert.as_ref().unwrap().number), (Some("pressure"), 1));
}
