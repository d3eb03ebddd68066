//! The historian with its real files: what is written is shown, whatever is waiting, written twice, or dropped.

use std::collections::BTreeMap;

use millwright_broker::log::{Append, LogConfig};
use millwright_broker::message::{Message, QoS};
use millwright_broker::topic::TopicName;
use proptest::prelude::*;

use super::recorder::{BUCKET_US, Bucket, Recorded, Stat};
use super::series::{Series, SeriesQuery, Source};
use super::*;
use crate::clock::SECOND_US;
use crate::ids::{AssetId, ChannelName};
use crate::state::Checkpoint;

const HOUR_US: i64 = 3_600 * SECOND_US;
/// 2026-01-01 00:00 UTC.
const BEGIN_US: i64 = 1_767_225_600 * SECOND_US;

/// A historian in a folder of its own, fed as the pipeline feeds it.
struct Plant {
    dir: tempfile::TempDir,
    state: Arc<State>,
    log: Log,
    historian: Arc<Historian>,
}

impl Plant {
    fn new(quota_bytes: u64) -> Plant {
        let dir = tempfile::tempdir().unwrap();
        let state = Arc::new(State::open(dir.path()).unwrap().state);
        let log = Log::open(LogConfig::new(dir.path())).unwrap().log;
        let historian = Historian::start(Plant::parts(&dir, &state, &log, quota_bytes)).unwrap();
        Plant { dir, state, log, historian }
    }

    fn parts(dir: &tempfile::TempDir, state: &Arc<State>, log: &Log, quota_bytes: u64) -> HistorianParts {
        HistorianParts {
            dir: dir.path().to_owned(),
            state: Arc::clone(state),
            log: log.clone(),
            sources: Vec::new(),
            quota_bytes,
            days: 90,
        }
    }

    /// What a checkpoint does with the buckets that were closed before it.
    fn checkpoint(&self, recorded: Vec<Recorded>) {
        let checkpoint = Checkpoint { recorded, ..Checkpoint::default() };
        if let Some(number) = self.state.commit(&checkpoint).unwrap().journal {
            self.historian.take(number, checkpoint.recorded);
        }
    }

    /// The process is killed: what is in memory is gone.
    fn restart(&mut self) {
        self.historian.stop();
        self.historian = Historian::start(Plant::parts(&self.dir, &self.state, &self.log, 64 << 20)).unwrap();
    }

    fn series(&self, from_us: i64, to_us: i64, points: usize) -> Series {
        let query = SeriesQuery { asset: asset(), from_us, to_us, points, channels: None };
        self.historian.series(&query).unwrap()
    }
}

impl Drop for Plant {
    fn drop(&mut self) {
        self.historian.stop();
        self.log.close();
    }
}

fn asset() -> AssetId {
    AssetId::parse("pump").unwrap()
}

fn stat(value: f32) -> Stat {
    Stat { min: value - 1.0, max: value + 1.0, mean: value }
}

fn recorded(channels: &[&str], buckets: Vec<Bucket>) -> Recorded {
    let channels = channels.iter().map(|name| ChannelName::parse(name).unwrap()).collect();
    Recorded { asset: asset(), channels, buckets }
}

fn bucket(start_us: i64, values: &[f32]) -> Bucket {
    Bucket { start_us, rows: 10, channels: values.iter().map(|value| stat(*value)).collect(), score: stat(0.5) }
}

fn day(first: i64, buckets: i64) -> Vec<Bucket> {
    (first..first + buckets).map(|k| bucket(BEGIN_US + k * BUCKET_US, &[k as f32, -1.0])).collect()
}

// A day of buckets is shown with its one peak at every width of the chart, before and after it was written to the file.
#[test]
fn no_peak_is_lost() {
    let plant = Plant::new(64 << 20);
    let mut buckets = day(0, 8_640);
    buckets[4_321].channels[0].max = 1e6;
    for some in buckets.chunks(1_000) {
        plant.checkpoint(vec![recorded(&["flow", "pressure"], some.to_vec())]);
    }
    for written in [false, true] {
        if written {
            plant.historian.write().unwrap();
            assert!(plant.state.journal().unwrap().rows.is_empty());
        }
        for (points, source) in
            [(2_000, Source::Fine), (600, Source::Fine), (288, Source::Coarse), (10, Source::Coarse)]
        {
            let series = plant.series(BEGIN_US, BEGIN_US + 24 * HOUR_US, points);
            assert_eq!((series.source, written), (source, written));
            assert!((1..=points + 1).contains(&series.times_us.len()), "{} points", series.times_us.len());
            let flow = &series.channels[0].line;
            let peak = flow.max.iter().position(|value| *value == 1e6).unwrap();
            let at_us = BEGIN_US + 4_321 * BUCKET_US;
            assert!((series.times_us[peak]..series.times_us[peak] + series.step_us).contains(&at_us));
            assert_eq!(flow.min[0], -1.0);
            assert_eq!(series.score.max[0], 1.5);
        }
    }
}

// What was in the journal when the process was killed is there after it, once, and written again it stays the same.
#[test]
fn the_journal_survives_a_kill() {
    let mut plant = Plant::new(64 << 20);
    plant.checkpoint(vec![recorded(&["flow", "pressure"], day(0, 100))]);
    plant.historian.write().unwrap();
    plant.checkpoint(vec![recorded(&["flow", "pressure"], day(90, 60))]);
    let before = plant.series(BEGIN_US, BEGIN_US + HOUR_US, 600);
    plant.restart();
    assert_eq!(format!("{:?}", plant.series(BEGIN_US, BEGIN_US + HOUR_US, 600)), format!("{before:?}"));
    plant.historian.write().unwrap();
    assert_eq!(format!("{:?}", plant.series(BEGIN_US, BEGIN_US + HOUR_US, 600)), format!("{before:?}"));
    let known = before.channels[0].line.mean.iter().filter(|mean| mean.is_finite()).count();
    assert_eq!(known, 150);
}

// Channels are kept by name: an asset that begins anew with its channels in another order goes on with the same lines; a
// channel that is new has nothing before; only the asked ones are shown, in the asked order.
#[test]
fn channels_are_kept_by_name() {
    let plant = Plant::new(64 << 20);
    plant.checkpoint(vec![recorded(&["flow", "pressure"], vec![bucket(BEGIN_US, &[1.0, 2.0])])]);
    plant.historian.write().unwrap();
    let anew = vec![bucket(BEGIN_US + BUCKET_US, &[20.0, 10.0, 30.0])];
    plant.checkpoint(vec![recorded(&["pressure", "flow", "speed"], anew)]);
    let series = plant.series(BEGIN_US, BEGIN_US + 2 * BUCKET_US, 2);
    let lines: Vec<_> = series.channels.iter().map(|c| (c.name.as_str(), c.line.mean[0], c.line.mean[1])).collect();
    assert_eq!(lines[..2], [("flow", 1.0, 10.0), ("pressure", 2.0, 20.0)]);
    assert!(lines[2].1.is_nan() && lines[2].2 == 30.0);
    let channels = Some(vec!["speed".to_owned(), "unknown".to_owned(), "flow".to_owned()]);
    let query = SeriesQuery { asset: asset(), from_us: BEGIN_US, to_us: BEGIN_US + 2 * BUCKET_US, points: 2, channels };
    let some = plant.historian.series(&query).unwrap();
    assert_eq!(some.channels.iter().map(|c| c.name.as_str()).collect::<Vec<_>>(), ["speed", "unknown", "flow"]);
    assert!(some.channels[1].line.max.iter().all(|value| value.is_nan()));
    assert_eq!(some.channels[2].line.mean, [1.0, 10.0]);
}

// Near the quota the oldest goes, of the fine tier first; what is left is whole, and the file stays below quota and a tenth.
#[test]
fn the_quota_holds() {
    let plant = Plant::new(2 << 20);
    // Ten days of two channels are about 3.7 MB in the fine tier.
    for k in 0..80 {
        plant.checkpoint(vec![recorded(&["flow", "pressure"], day(k * 1_080, 1_080))]);
        plant.historian.write().unwrap();
    }
    let bytes = std::fs::metadata(store::path_in(plant.dir.path())).unwrap().len();
    assert!(bytes <= (2 << 20) + (2 << 20) / 10, "{bytes}");
    assert_eq!(plant.historian.status().trouble, None);
    let end_us = BEGIN_US + 240 * HOUR_US;
    let last_day = plant.series(end_us - 24 * HOUR_US, end_us, 600);
    assert_eq!(last_day.source, Source::Fine);
    assert!(last_day.channels[0].line.mean.iter().all(|mean| mean.is_finite()));
    let all = plant.series(BEGIN_US, end_us, 600);
    assert!(all.channels[0].line.mean[0].is_finite(), "the coarse tier goes back to the beginning");
}

// A file that is no database is set aside whole; history goes on in a new one with what waited.
#[test]
fn a_damaged_file_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(store::path_in(dir.path()), vec![0x5a; 100_000]).unwrap();
    let state = Arc::new(State::open(dir.path()).unwrap().state);
    let log = Log::open(LogConfig::new(dir.path())).unwrap().log;
    let historian = Historian::start(Plant::parts(&dir, &state, &log, 64 << 20)).unwrap();
    let plant = Plant { dir, state, log, historian };
    plant.checkpoint(vec![recorded(&["flow"], day(0, 10))]);
    assert!(plant.historian.write().is_err());
    plant.historian.write().unwrap();
    let names = std::fs::read_dir(plant.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(names.into_iter().any(|name| name.to_string_lossy().starts_with("history.db.corrupt-")));
    assert_eq!(plant.series(BEGIN_US, BEGIN_US + 10 * BUCKET_US, 10).times_us.len(), 10);
}

// With a quota of 0 nothing is kept, nothing is counted as left out, and a chart says why there is none.
#[test]
fn history_can_be_off() {
    let plant = Plant::new(0);
    assert!(plant.historian.admit(vec![recorded(&["flow"], day(0, 1))]).is_empty());
    assert_eq!(plant.historian.status().skipped_buckets, 0);
    let query = SeriesQuery { asset: asset(), from_us: 0, to_us: 1, points: 1, channels: None };
    assert!(matches!(plant.historian.series(&query), Err(HistoryError::Off)));
}

/// Telemetry as JSON, received when it was measured.
fn telemetry(second: i64, flow: f32) -> Append {
    let time_us = BEGIN_US + second * SECOND_US;
    let payload = format!(r#"{{"ts": {}, "values": {{"flow": {flow}}}}}"#, time_us / 1_000);
    let message = Message {
        topic: TopicName::parse("mw/v1/telemetry/pump/json").unwrap(),
        payload: payload.into_bytes().into(),
        properties: Vec::new().into(),
        qos: QoS::AtLeastOnce,
        retain: false,
        origin: 0,
    };
    Append { message, log: true, received_us: time_us }
}

// A short span is shown row by row from the log, with the score of each row's bucket; rows that are more than the points are
// merged and no peak is lost; a span of which the log has dropped a part is the buckets' to show, one that begins before the machine
// is not.
#[tokio::test]
async fn a_short_span_is_shown_row_by_row() {
    let plant = Plant::new(64 << 20);
    plant.checkpoint(vec![recorded(&["flow"], day(55, 360))]);
    let rows = (600..1_200).map(|second| telemetry(second, if second == 777 { 1e6 } else { second as f32 }));
    plant.log.append(rows.collect()).await.unwrap();
    let at = |second: i64| BEGIN_US + second * SECOND_US;
    let close = plant.series(at(700), at(800), 100);
    assert_eq!((close.source, close.step_us, close.times_us.len()), (Source::Raw, 0, 100));
    assert_eq!((close.times_us[5], close.channels[0].line.mean[5]), (at(705), 705.0));
    assert_eq!(close.score.max[5], 1.5);
    let merged = plant.series(at(700), at(800), 30);
    assert_eq!((merged.source, merged.step_us), (Source::Raw, 100 * SECOND_US / 30 + 1));
    assert!(merged.times_us.len() <= 31 && merged.channels[0].line.max.contains(&1e6));
    assert_eq!(plant.series(at(500), at(800), 300).source, Source::Fine);
    let young = Plant::new(64 << 20);
    young.checkpoint(vec![recorded(&["flow"], day(60, 100))]);
    young.log.append((600..800).map(|second| telemetry(second, 1.0)).collect()).await.unwrap();
    let first = young.series(at(0), at(800), 800);
    assert_eq!((first.source, first.times_us.len()), (Source::Raw, 200));
    assert_eq!(plant.series(at(700), at(1_200), 50).source, Source::Fine);
}

/// A step of the model-based test.
#[derive(Debug, Clone)]
enum Step {
    /// A checkpoint with buckets that begin here, with this value.
    Checkpoint(i64, Vec<f32>),
    Write,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0_i64..400, prop::collection::vec(-100.0_f32..100.0, 1..40)).prop_map(|(at, values)| Step::Checkpoint(at, values)),
        2 => Just(Step::Write),
        1 => Just(Step::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    // Whatever is checkpointed, overwritten, written and interrupted in whatever order: a chart shows what a map from time to
    // the last bucket would, merged to the asked points.
    #[test]
    fn charts_show_what_a_map_would(steps in prop::collection::vec(step(), 1..25), points in 1_usize..500) {
        let mut plant = Plant::new(64 << 20);
        let mut model: BTreeMap<i64, f32> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Checkpoint(at, values) => {
                    let starts = (at..).map(|k| BEGIN_US + k * BUCKET_US);
                    let buckets: Vec<_> = starts.zip(&values).map(|(start, value)| bucket(start, &[*value])).collect();
                    model.extend(buckets.iter().zip(&values).map(|(bucket, value)| (bucket.start_us, *value)));
                    plant.checkpoint(vec![recorded(&["flow"], buckets)]);
                }
                Step::Write => plant.historian.write().unwrap(),
                Step::Restart => plant.restart(),
            }
        }
        let series = plant.series(BEGIN_US, BEGIN_US + 440 * BUCKET_US, points);
        let line = series.channels.first().map(|channel| channel.line.clone()).unwrap_or_default();
        for (index, begin_us) in series.times_us.iter().enumerate() {
            let within: Vec<f32> = model.range(*begin_us..begin_us + series.step_us).map(|(_, value)| *value).collect();
            let shown = line.max.get(index).copied().unwrap_or(f32::NAN);
            if within.is_empty() {
                prop_assert!(shown.is_nan());
            } else {
                prop_assert_eq!(shown, within.iter().copied().fold(f32::NEG_INFINITY, f32::max) + 1.0);
                prop_assert_eq!(line.min[index], within.iter().copied().fold(f32::INFINITY, f32::min) - 1.0);
                let mean = within.iter().sum::<f32>() / within.len() as f32;
                prop_assert!((line.mean[index] - mean).abs() < 0.01);
            }
        }
    }
}
