//! Exports of real files: what was put into the log, the history and the casebook is in the table, exactly.

use std::path::Path;

use millwright_broker::log::{Append, Log, LogConfig};
use millwright_broker::message::{Message, QoS};
use millwright_broker::topic::TopicName;
use millwright_wire::{Header, encode};

use super::*;
use crate::alarm::Severity;
use crate::alarm::evidence::Evidence;
use crate::alarm::message::{AlertEvent, EventKind, ModelRef};
use crate::casebook::{AuditEntry, Note, NoteKind, Verdict};
use crate::historian::recorder::{BUCKET_US, Bucket, Recorded, Stat};
use crate::state::{Checkpoint, Deed, State};

/// 2026-03-02T06:00:00Z, a multiple of five minutes.
const BEGIN_US: i64 = 1_772_431_200 * SECOND_US;

/// A data directory with a log.
struct Plant {
    dir: tempfile::TempDir,
    log: Log,
}

impl Drop for Plant {
    fn drop(&mut self) {
        self.log.close();
    }
}

impl Plant {
    fn new() -> Plant {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::open(LogConfig::new(dir.path())).unwrap().log;
        Plant { dir, log }
    }

    fn append(&self, messages: Vec<(String, Vec<u8>, i64)>) {
        let append = |(topic, payload, received_us): (String, Vec<u8>, i64)| {
            let message = Message {
                topic: TopicName::parse(&topic).unwrap(),
                payload: payload.into(),
                properties: Vec::new().into(),
                qos: QoS::AtLeastOnce,
                retain: false,
                origin: 0,
            };
            Append { message, log: true, received_us }
        };
        let batch = messages.into_iter().map(append).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(self.log.append(batch)).unwrap();
    }

    fn export(&self, request: &Request) -> Result<(String, Told), ExportError> {
        export(self.dir.path(), request)
    }
}

fn export(dir: &Path, request: &Request) -> Result<(String, Told), ExportError> {
    let mut out = Vec::new();
    let plan = Plan::make(Place { data_dir: dir, sources: &[] }, request.clone(), &mut |_| true)?;
    let told = plan.write(&mut out, &mut |_| true)?;
    Ok((String::from_utf8(out).unwrap(), told))
}

fn readings(assets: &[&str]) -> Request {
    Request {
        assets: assets.iter().map(|name| AssetId::parse(name).unwrap()).collect(),
        ..Request::new(What::Readings)
    }
}

/// A frame of one row that came a second after it was measured.
fn frame(asset: &str, sequence: u64, at_s: i64, values: &[(&'static str, f32)]) -> (String, Vec<u8>, i64) {
    let (channels, values): (Vec<&str>, Vec<f32>) = values.iter().copied().unzip();
    let time_us = BEGIN_US + at_s * SECOND_US;
    let header = Header {
        asset,
        device: "plc-1",
        boot_id: 1,
        sequence,
        first_sample_us: time_us,
        interval_us: 1_000_000,
        channels: &channels,
    };
    let mut buffer = [0; 4_096];
    let bytes = encode(&header, &values, &mut buffer).unwrap().to_vec();
    (format!("mw/v1/telemetry/{asset}"), bytes, time_us + SECOND_US)
}

fn pump(sequence: u64, at_s: i64) -> (String, Vec<u8>, i64) {
    frame("pump-1", sequence, at_s, &[("flow", 30.0 + at_s as f32 / 10.0), ("pressure", 4.0)])
}

// Of one asset the table is a column for each channel, in the layout that models are trained on: what was repeated is there once, what came
// late is in its place, a value that is missing is empty, and a moment whose channels came in two messages is one row.
#[test]
fn raw_readings_are_a_row_for_each_moment() {
    let plant = Plant::new();
    plant.append(vec![
        pump(0, 0),
        pump(1, 1),
        pump(1, 1),
        pump(3, 3),
        pump(2, 2),
        frame("fan-2", 0, 1, &[("speed", 1_480.5)]),
        frame("pump-1", 4, 4, &[("flow", f32::NAN), ("pressure", 4.25)]),
        (
            "mw/v1/telemetry/pump-1/json".to_owned(),
            br#"{"ts": "2026-03-02T06:00:03Z", "values": {"speed": 7}}"#.to_vec(),
            BEGIN_US + 5 * SECOND_US,
        ),
        ("mw/v1/telemetry/pump-1".to_owned(), b"nonsense".to_vec(), BEGIN_US + 5 * SECOND_US),
    ]);
    let (text, told) = plant.export(&readings(&["pump-1"])).unwrap();
    let expected = "time,flow,pressure,speed\n\
        2026-03-02T06:00:00Z,30,4,\n\
        2026-03-02T06:00:01Z,30.1,4,\n\
        2026-03-02T06:00:02Z,30.2,4,\n\
        2026-03-02T06:00:03Z,30.3,4,7\n\
        2026-03-02T06:00:04Z,,4.25,\n";
    assert_eq!(text, expected);
    assert_eq!((told.rows, told.assets, told.repeated_readings, told.merged_rows), (5, 1, 1, 1), "{told:?}");
    assert_eq!((told.decode_errors, told.late_rows, told.messages), (1, 0, 9), "{told:?}");
    assert_eq!(told.span_us, Some((BEGIN_US, BEGIN_US + 4 * SECOND_US)));
}

// Of several assets each row says whose it is, in the order of time and then of names; a channel that an asset lacks is empty.
#[test]
fn several_assets_are_told_apart() {
    let plant = Plant::new();
    plant.append(vec![pump(0, 0), frame("fan-2", 0, 0, &[("speed", 1_480.5)]), pump(1, 1)]);
    let (text, told) = plant.export(&readings(&[])).unwrap();
    let expected = "time,asset,flow,pressure,speed\n\
        2026-03-02T06:00:00Z,fan-2,,,1480.5\n\
        2026-03-02T06:00:00Z,pump-1,30,4,\n\
        2026-03-02T06:00:01Z,pump-1,30.1,4,\n";
    assert_eq!((text.as_str(), told.assets), (expected, 2));
    let chosen = Request { channels: vec![ChannelName::parse("pressure").unwrap()], ..readings(&["pump-1", "fan-2"]) };
    let (text, _) = plant.export(&chosen).unwrap();
    assert_eq!(text, "time,asset,pressure\n2026-03-02T06:00:00Z,pump-1,4\n2026-03-02T06:00:01Z,pump-1,4\n");
}

// A span takes its first moment and not its last, by the device's time; an empty one says what there is.
#[test]
fn a_span_is_by_device_time() {
    let plant = Plant::new();
    plant.append((0..10).map(|second| pump(second as u64, second)).collect());
    let at = |second: i64| Some(BEGIN_US + second * SECOND_US);
    let (text, told) = plant.export(&Request { from_us: at(3), to_us: at(5), ..readings(&["pump-1"]) }).unwrap();
    assert_eq!((told.rows, told.span_us), (2, at(3).zip(at(4))), "{text}");
    let empty = plant.export(&Request { from_us: at(60), ..readings(&["pump-1"]) }).unwrap_err();
    assert_eq!(empty.fault(), Fault::Missing);
    assert!(empty.to_string().contains("came from 2026-03-02T06:00:01Z to 2026-03-02T06:00:10Z"), "{empty}");
    let backwards = plant.export(&Request { from_us: at(5), to_us: at(5), ..readings(&[]) }).unwrap_err();
    assert!(matches!(backwards, ExportError::Span));
}

// A name that nothing has is refused with those that there are, and no more of them than can be read.
#[test]
fn unknown_names_are_told_with_the_known_ones() {
    let plant = Plant::new();
    plant.append((0..LISTED_MAX + 5).map(|n| frame(&format!("pump-{n:02}"), 0, 0, &[("flow", 1.0)])).collect());
    let refused = plant.export(&readings(&["pomp"])).unwrap_err().to_string();
    assert!(refused.contains("`pomp` in the log; there is `pump-00`") && refused.ends_with("and 5 more"), "{refused}");
    let unknown = Request { channels: vec![ChannelName::parse("Flow").unwrap()], ..readings(&["pump-03"]) };
    assert_eq!(
        plant.export(&unknown).unwrap_err().to_string(),
        "no exported asset has a channel `Flow`; there is `flow`"
    );
}

// More rows than wait in memory come out in order all the same when they come nearly in order, and each once; one that comes later than
// those that were written already is written and counted.
#[test]
fn what_waits_in_memory_is_bounded() {
    let plant = Plant::new();
    let rows = HELD + 500;
    let swapped = |n: i64| if n % 2 == 0 { n + 1 } else { n - 1 };
    let mut messages: Vec<_> = (0..rows).map(|n| json(swapped(n))).collect();
    messages.push(json(-5));
    messages
        .into_iter()
        .fold(Vec::new(), |mut batch, message| {
            batch.push(message);
            if batch.len() == 1_000 {
                plant.append(std::mem::take(&mut batch));
            }
            batch
        })
        .chunks(1_000)
        .for_each(|rest| plant.append(rest.to_vec()));
    let (text, told) = plant.export(&readings(&["m"])).unwrap();
    assert_eq!((told.rows, told.late_rows), (rows as u64 + 1, 1), "{told:?}");
    let times: Vec<&str> = text.lines().skip(1).map(|line| line.split(',').next().unwrap()).collect();
    let late = times.windows(2).filter(|pair| pair[0] >= pair[1]).count();
    assert_eq!(late, 1);
}

const HELD: i64 = 65_536;

/// A row a minute, all in one message.
fn json(minute: i64) -> (String, Vec<u8>, i64) {
    let time_us = BEGIN_US + minute * 60 * SECOND_US;
    let text = format!("{{\"ts\": {time_us}, \"values\": {{\"v\": {minute}}}}}");
    ("mw/v1/telemetry/m/json".to_owned(), text.into_bytes(), BEGIN_US + HELD * 60 * SECOND_US)
}

// The words of the options mean what they say, and everything else is refused with what may be said.
#[test]
fn words_are_read_or_refused() {
    let step = |text: &str| match parse_every(text) {
        Ok(Every::Step(step_us)) => Some(step_us / SECOND_US),
        Ok(Every::Raw) => Some(0),
        Err(_) => None,
    };
    for (text, expected) in [("raw", 0), ("10s", 10), ("70s", 70), ("5m", 300), ("1h", 3_600), ("31d", 2_678_400)] {
        assert_eq!(step(text), Some(expected), "{text}");
    }
    for text in ["", "s", "0s", "5s", "-10s", "+10s", "15s", "10", "1w", "32d", "99999999999999999999h", "10ş", "1 h"]
    {
        assert_eq!(step(text), None, "{text}");
    }
    assert_eq!(parse_time("2026-03-02T06:00:00Z").unwrap(), BEGIN_US);
    assert_eq!(parse_time("1772431200").unwrap(), BEGIN_US);
    assert!(parse_time("yesterday").unwrap_err().to_string().starts_with("`yesterday` is no time: write it as"));
    assert!(parse_what("all").is_err() && parse_format("xlsx").is_err());
    let alerts = Request { every: Every::Step(60 * SECOND_US), ..Request::new(What::Alerts) };
    assert!(matches!(export(Path::new("/nowhere"), &alerts), Err(ExportError::OfReadings("`every`"))));
}

fn bucket(number: i64, flow: f32) -> Bucket {
    let stat = Stat { min: flow - 1.0, max: flow + 2.0, mean: flow };
    let score = Stat { min: 0.1, max: 0.5, mean: 0.25 };
    Bucket { start_us: BEGIN_US + number * BUCKET_US, rows: 10, channels: vec![stat], score }
}

fn recorded(asset: &str, buckets: Vec<Bucket>) -> Recorded {
    let channels = vec![ChannelName::parse("flow").unwrap()];
    Recorded { asset: AssetId::parse(asset).unwrap(), channels, buckets }
}

// Downsampled readings are mean, smallest and largest of the buckets in a step, and the score, whether a bucket is in the historian's
// file, waits for it, or both; the whole span, however many points.
#[test]
fn downsampled_readings_are_folded_from_buckets() {
    let plant = Plant::new();
    let state = std::sync::Arc::new(State::open(plant.dir.path()).unwrap().state);
    let parts = crate::historian::HistorianParts {
        dir: plant.dir.path().to_owned(),
        state: std::sync::Arc::clone(&state),
        log: plant.log.clone(),
        sources: Vec::new(),
        quota_bytes: 64 << 20,
        days: 90,
    };
    let historian = crate::historian::Historian::start(parts).unwrap();
    let checkpoint = |buckets: Vec<Bucket>| {
        let checkpoint = Checkpoint { recorded: vec![recorded("pump-1", buckets)], ..Checkpoint::default() };
        let number = state.commit(&checkpoint).unwrap().journal.unwrap();
        historian.take(number, checkpoint.recorded);
    };
    // 25,000 buckets are more than a chart shows and more chunks than one read takes.
    let all = 25_000;
    checkpoint((0..all - 4).map(|number| bucket(number, (number % 60) as f32)).collect());
    historian.write().unwrap();
    checkpoint((all - 4..all).map(|number| bucket(number, (number % 60) as f32)).collect());
    historian.stop();

    let every = |text: &str| Request { every: parse_every(text).unwrap(), ..readings(&["pump-1"]) };
    let (text, told) = plant.export(&every("10s")).unwrap();
    assert_eq!(told.rows, all as u64);
    assert_eq!(text.lines().next(), Some("time,flow,flow.min,flow.max,score,score.min,score.max"));
    assert_eq!(text.lines().nth(2), Some("2026-03-02T06:00:10Z,1,0,3,0.25,0.1,0.5"));
    assert!(text.ends_with(",39,38,41,0.25,0.1,0.5\n"), "the last bucket waits: {}", text.lines().last().unwrap());

    // Ten minutes are sixty buckets of 0 to 59.
    let (text, told) = plant.export(&every("10m")).unwrap();
    assert_eq!(told.rows, (all as u64).div_ceil(60));
    assert!(text.lines().skip(1).take(400).all(|line| line.ends_with(",29.5,-1,61,0.25,0.1,0.5")), "{text}");
    let coarse = plant.export(&Request { from_us: Some(BEGIN_US + 3_600 * SECOND_US), ..every("1h") }).unwrap();
    assert_eq!(coarse.0.lines().nth(1), Some("2026-03-02T07:00:00Z,29.5,-1,61,0.25,0.1,0.5"));

    let unknown = plant.export(&Request { assets: vec![AssetId::parse("fan").unwrap()], ..every("10s") }).unwrap_err();
    assert_eq!(unknown.to_string(), "there is nothing of asset `fan` in the history; there is `pump-1`");
    let none = plant.export(&Request { to_us: Some(BEGIN_US), ..every("10s") }).unwrap_err();
    assert_eq!(none.fault(), Fault::Missing, "{none}");
}

// Alerts are one row each with the last verdict, feedback is one row for each verdict; a span is that in which the alert was raised.
#[test]
fn alerts_and_feedback_are_rows() {
    let dir = tempfile::tempdir().unwrap();
    let state = State::open(dir.path()).unwrap().state;
    let raised = raise(7, "pump-1", BEGIN_US + 60 * SECOND_US);
    let other = raise(9, "fan-2", BEGIN_US + 3_600 * SECOND_US);
    state.commit(&Checkpoint { events: vec![raised, other], ..Checkpoint::default() }).unwrap();
    let deeds = vec![
        feedback(7, BEGIN_US + 100 * SECOND_US, Verdict::False),
        feedback(7, BEGIN_US + 200 * SECOND_US, Verdict::True),
    ];
    state.commit(&Checkpoint { deeds, ..Checkpoint::default() }).unwrap();

    let (text, told) = export(dir.path(), &Request::new(What::Alerts)).unwrap();
    assert_eq!((told.rows, told.assets), (2, 2));
    let mut lines = text.lines();
    assert_eq!(
        lines.next(),
        Some(
            "asset,alert,id,onset,raised,cleared,severity,state,peak_score,first_channel,model,model_version,verdict,acknowledged,\
             acknowledged_by,notes,silenced,message"
        )
    );
    let first: Vec<&str> = lines.next().unwrap().split(',').collect();
    assert_eq!((first[0], first[1], first[4], first[5]), ("pump-1", "7", "2026-03-02T06:01:00Z", ""), "{text}");
    assert_eq!((first[6], first[12], first[15]), (word(Severity::Warning).as_str(), "true", "2"), "{text}");

    let (text, told) = export(dir.path(), &Request::new(What::Feedback)).unwrap();
    assert_eq!(told.rows, 2);
    let first = text.lines().nth(1).unwrap();
    assert!(first.ends_with(",,false,2026-03-02T06:01:40Z,anna,\"bearing, outer ring\""), "{first}");

    let later = Request { from_us: Some(BEGIN_US + 3_600 * SECOND_US), ..Request::new(What::Feedback) };
    let (text, told) = export(dir.path(), &later).unwrap();
    assert_eq!((text.lines().count(), told.rows, told.notes.len()), (1, 0, 1), "an empty table is told: {told:?}");
}

/// What somebody said of an alert.
fn feedback(alert: u64, at_us: i64, verdict: Verdict) -> Deed {
    let (by, action, subject) = ("anna".to_owned(), "feedback".to_owned(), format!("gw-1/{alert}"));
    let text = Some("bearing, outer ring".to_owned());
    let note = Note { at_us, by: by.clone(), kind: NoteKind::Feedback, text, verdict: Some(verdict) };
    let audit = AuditEntry { number: 0, at_us, by, action, subject, text: None };
    Deed { asset: "pump-1".to_owned(), audit, note: Some((alert, note)), silence: None }
}

/// The event that raises an alert.
fn raise(number: u64, asset: &str, raised_us: i64) -> AlertEvent {
    AlertEvent {
        id: format!("gw-1/{number}"),
        alert: format!("gw-1/{number}"),
        event: EventKind::Raise,
        gateway: "gw-1".to_owned(),
        asset: asset.to_owned(),
        severity: Severity::Warning,
        state: millwright_models::State::Alarm,
        time_us: raised_us,
        onset_us: raised_us - 30 * SECOND_US,
        raised_us,
        score: 2.0,
        peak_score: 2.5,
        threshold: 1.0,
        model: ModelRef { name: "pump".to_owned(), version: 3, sha256: "a".repeat(64), commissioned: true },
        message: "flow is low".to_owned(),
        silenced: false,
        evidence: Evidence { finding: None, sensors: Vec::new(), signal: Vec::new(), first_to_deviate: Vec::new() },
    }
}

fn word(severity: Severity) -> String {
    serde_json::to_value(severity).unwrap().as_str().unwrap().to_owned()
}

/// Files that the tests of `models/train` read.
const READ_BY_TRAINING: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/train/tests/exported");

// The files that the readers in `models/train` are tested with are what is written today. With MILLWRIGHT_UPDATE set they are
// written anew.
#[test]
fn training_is_tested_with_what_is_written() {
    let plant = Plant::new();
    let value = |at_s: i64, factor: f32| ((at_s as f32 * factor).sin() * 100.0).round() / 100.0;
    let pump = |at_s| {
        frame("pump-1", at_s as u64, at_s, &[("flow", 32.0 + value(at_s, 0.7)), ("pressure", 4.0 + value(at_s, 0.3))])
    };
    let fan = |at_s| {
        frame("fan-2", at_s as u64, at_s, &[("speed", if at_s == 7 { f32::NAN } else { 1_480.0 + value(at_s, 0.5) })])
    };
    plant.append((0..120).flat_map(|at_s| [pump(at_s), fan(at_s)]).collect());
    check_example("one.csv", plant.export(&readings(&["pump-1"])).unwrap().0.as_bytes());
    check_example("several.csv", plant.export(&readings(&[])).unwrap().0.as_bytes());

    let state = State::open(plant.dir.path()).unwrap().state;
    let at = |second: i64| BEGIN_US + second * SECOND_US;
    let raises = [(3, 40), (5, 70), (8, 90)].map(|(number, second)| raise(number, "pump-1", at(second)));
    let clears = raises.clone().map(|raise| AlertEvent {
        event: EventKind::Clear,
        time_us: raise.raised_us + 10 * SECOND_US,
        onset_us: raise.onset_us,
        ..raise
    });
    let shorter = |event: AlertEvent| AlertEvent { onset_us: event.raised_us - 5 * SECOND_US, ..event };
    let events = raises.into_iter().chain(clears).map(shorter).collect();
    let deeds = vec![
        feedback(3, at(200), Verdict::True),
        feedback(5, at(201), Verdict::KnownWork),
        feedback(8, at(202), Verdict::False),
    ];
    let buckets = (0..40).map(|number| bucket(number, number as f32)).collect();
    state.commit(&Checkpoint { events, recorded: vec![recorded("pump-1", buckets)], ..Checkpoint::default() }).unwrap();
    state.commit(&Checkpoint { deeds, ..Checkpoint::default() }).unwrap();
    check_example("alerts.csv", export(plant.dir.path(), &Request::new(What::Alerts)).unwrap().0.as_bytes());
    let every = Request { every: Every::Step(BUCKET_US), ..readings(&["pump-1"]) };
    check_example("every-10s.csv", plant.export(&every).unwrap().0.as_bytes());
}

fn check_example(name: &str, written: &[u8]) {
    let path = Path::new(READ_BY_TRAINING).join(name);
    if std::env::var_os("MILLWRIGHT_UPDATE").is_some() {
        std::fs::write(&path, written).unwrap();
    }
    assert!(
        std::fs::read(&path).unwrap() == written,
        "{name} is not what is written now: run with MILLWRIGHT_UPDATE=1"
    );
}

// The Parquet file that the reader in `models/train` is tested with holds the table of the CSV beside it.
#[cfg(feature = "parquet")]
#[test]
fn parquet_holds_the_table_that_csv_does() {
    use ::parquet::file::reader::{FileReader, SerializedFileReader};
    use ::parquet::record::Field;

    let plant = Plant::new();
    plant.append((0..120).map(|at_s| pump(at_s as u64, at_s)).collect());
    let mut out = Vec::new();
    let request = Request { format: Format::Parquet, ..readings(&["pump-1"]) };
    let plan = Plan::make(Place { data_dir: plant.dir.path(), sources: &[] }, request, &mut |_| true).unwrap();
    plan.write(&mut out, &mut |_| true).unwrap();
    let rows = |bytes: Vec<u8>| {
        let reader = SerializedFileReader::new(bytes::Bytes::from(bytes)).unwrap();
        let rows = reader.get_row_iter(None).unwrap().map(|row| {
            let row = row.unwrap();
            row.get_column_iter().map(|(name, field)| (name.clone(), field.clone())).collect::<Vec<(String, Field)>>()
        });
        rows.collect::<Vec<_>>()
    };
    let path = Path::new(READ_BY_TRAINING).join("one.parquet");
    if std::env::var_os("MILLWRIGHT_UPDATE").is_some() {
        std::fs::write(&path, &out).unwrap();
    }
    let written = rows(out);
    assert_eq!(written.len(), 120);
    let third = [
        ("time".to_owned(), Field::TimestampMicros(BEGIN_US + 2 * SECOND_US)),
        ("flow".to_owned(), Field::Float(30.2)),
        ("pressure".to_owned(), Field::Float(4.0)),
    ];
    assert_eq!(written[2], third);
    assert!(
        rows(std::fs::read(&path).unwrap()) == written,
        "one.parquet is not what is written now: run with MILLWRIGHT_UPDATE=1"
    );
}
