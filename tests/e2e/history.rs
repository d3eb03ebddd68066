//! What a gateway must remember for people: charts of the past, alerts with their notes, silences. Killed at any time.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use harness::client::{Client, Connect};
use harness::gateway::Gateway;
use harness::machine::{FIRST_US, Recording};
use harness::publisher::Publisher;
use harness::wait_for;
use millwright::casebook::{AlertQuery, Case, Note, NoteKind, Notes, Verdict};
use millwright::historian::series::{Series, SeriesQuery};
use millwright::historian::{Historian, HistorianParts};
use millwright::ids::AssetId;
use millwright::state::State;
use millwright_broker::log::{Log, LogConfig};
use millwright_firmware_sim::fault::Fault;
use millwright_firmware_sim::machine::MachineKind;
use serde_json::{Value, json};

use crate::PROGRAM;

const CONFIG: &str = "[commissioning]\nsamples = 400\nextend = false\n";
const ASSET: &str = "pump-1";
/// Kills in the ordinary run.
const ROUNDS: usize = 6;
const ROWS: usize = 1_200;
const BUCKET_ROWS: usize = 10;
/// An end of a silence that no run of the test reaches: a hundred days from now.
const SILENCE: Duration = Duration::from_secs(100 * 86_400);

fn machine() -> Recording {
    Recording::of(ASSET, MachineKind::Pump, 7, ROWS, Some((Fault::BearingWear, 500, 200.0)))
}

fn telemetry(machine: &Recording) -> Publisher {
    let recording = machine.clone();
    Publisher::start("plc-1", &machine.topic(), 32, move |row| recording.frame(row))
}

fn wait_for_rows(gateway: &Gateway, rows: usize) {
    wait_for("the rows to be folded", || {
        let folded = gateway.asset(ASSET).ok()??["counters"]["samples"].as_u64()?;
        (folded >= rows as u64).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", gateway.log()));
}

/// The chart of all rows from the files of a gateway that has stopped, a point for each bucket.
fn chart(data_dir: &Path) -> Series {
    let state = Arc::new(State::open(data_dir).unwrap().state);
    let log = Log::open(LogConfig::new(data_dir)).unwrap().log;
    let historian = Historian::start(HistorianParts {
        dir: data_dir.to_owned(),
        state,
        log: log.clone(),
        sources: Vec::new(),
        quota_bytes: 64 << 20,
        days: 90,
    })
    .unwrap();
    let (asset, points) = (AssetId::parse(ASSET).unwrap(), ROWS / BUCKET_ROWS);
    let to_us = FIRST_US + (ROWS as i64) * 1_000_000;
    let query = SeriesQuery { asset, from_us: FIRST_US, to_us, points, channels: None };
    let series = historian.series(&query).unwrap();
    historian.stop();
    log.close();
    series
}

// A gateway is killed six times while a machine reports, before and after a checkpoint: the chart of the past has every closed
// bucket with the very extremes of the machine's rows, each row once.
#[test]
fn a_kill_leaves_no_hole_in_a_chart() {
    let dir = tempfile::tempdir().unwrap();
    let machine = machine();
    let publisher = telemetry(&machine);
    for round in 1..=ROUNDS {
        let gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
        publisher.progress.set_gateway(Some(gateway.mqtt));
        let until = ROWS * round / (ROUNDS + 1);
        publisher.progress.allow(until);
        wait_for_rows(&gateway, until);
        publisher.progress.set_gateway(None);
        gateway.kill().unwrap();
    }
    let gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    publisher.progress.set_gateway(Some(gateway.mqtt));
    publisher.progress.allow(ROWS);
    wait_for_rows(&gateway, ROWS);
    drop(publisher);
    assert_eq!(gateway.terminate().unwrap(), Some(0));

    let series = chart(&dir.path().join("data"));
    // FIRST_US is a multiple of ten seconds; the last bucket is still open.
    let closed = ROWS / BUCKET_ROWS - 1;
    for (index, begin_us) in series.times_us.iter().enumerate().take(closed) {
        assert_eq!(*begin_us, FIRST_US + (index * BUCKET_ROWS) as i64 * 1_000_000);
        let rows = &machine.rows[index * BUCKET_ROWS..(index + 1) * BUCKET_ROWS];
        for channel in &series.channels {
            let column = machine.channels.iter().position(|name| *name == channel.name).unwrap();
            let values = || rows.iter().map(|row| row[column]).filter(|value| value.is_finite());
            let max = values().fold(f32::NEG_INFINITY, f32::max);
            let min = values().fold(f32::INFINITY, f32::min);
            let (line, mean) = (&channel.line, values().sum::<f32>() / values().count() as f32);
            assert_eq!((line.min[index], line.max[index]), (min, max), "bucket {index} of {}", channel.name);
            assert!((line.mean[index] - mean).abs() <= mean.abs() * 1e-4 + 1e-4, "bucket {index} of {}", channel.name);
        }
        let scored = index * BUCKET_ROWS >= 440;
        assert!(!scored || series.score.max[index].is_finite(), "bucket {index} has no score");
    }
    assert_eq!(series.channels.len(), machine.channels.len());
}

fn next_event(observer: &mut Client, kind: &str) -> Value {
    let topic = format!("mw/v1/event/{ASSET}");
    loop {
        let event: Value = serde_json::from_slice(&observer.next_on(&topic).unwrap().payload).unwrap();
        if event["event"] == kind {
            return event;
        }
    }
}

/// The retained alert of the machine, as who subscribes now gets it.
fn retained(gateway: &Gateway, name: &str) -> Value {
    let mut client = Client::connect(gateway.mqtt, &Connect::new(name)).unwrap();
    let topic = format!("mw/v1/alert/{ASSET}");
    client.subscribe(&topic, 1).unwrap();
    serde_json::from_slice(&client.next_on(&topic).unwrap().payload).unwrap()
}

fn case(data_dir: &Path) -> Case {
    let state = State::open(data_dir).unwrap().state;
    let alerts = state.alerts(&AlertQuery { limit: 10, ..AlertQuery::default() }).unwrap();
    let first = alerts.items.last().expect("an alert was raised");
    state.case(first.number).unwrap().unwrap()
}

// An alert is acknowledged, commented on and judged, and its machine silenced, by messages: each is told once as an event with a
// number of its own, the retained alert says so, and after a kill all of it is still there.
#[test]
fn what_people_say_survives_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let machine = machine();
    let publisher = telemetry(&machine);
    let gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    let mut observer = Client::connect(gateway.mqtt, &Connect::new("observer")).unwrap();
    observer.subscribe("mw/v1/event/+", 1).unwrap();
    publisher.progress.set_gateway(Some(gateway.mqtt));
    publisher.progress.allow(ROWS - 100);
    let raise = next_event(&mut observer, "raise");
    assert_eq!(raise["silenced"], false);
    let alert: u64 = raise["id"].as_str().unwrap().rsplit('/').next().unwrap().parse().unwrap();
    let first = raise["evidence"]["first_to_deviate"].as_array().cloned().unwrap_or_default();
    assert!(!first.is_empty(), "{raise}");

    let now_us = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let until_us = (now_us + SILENCE).as_micros() as u64;
    let orders = [
        json!({"command": "acknowledge", "alert": alert, "by": "anna", "comment": "coming"}),
        json!({"command": "comment", "alert": alert, "by": "ben", "text": "bearing is warm"}),
        json!({"command": "feedback", "alert": alert, "by": "anna", "verdict": "true"}),
        json!({"command": "silence", "asset": ASSET, "by": "anna", "until_us": until_us, "reason": "overhaul"}),
        json!({"command": "comment", "alert": 9_999_999, "by": "ben", "text": "there is no such alert"}),
    ];
    let topic = "mw/v1/gateway/gw-1/command";
    let mut operator = Client::connect(gateway.mqtt, &Connect::new("operator")).unwrap();
    for order in &orders {
        operator.publish(topic, order.to_string().as_bytes(), false).unwrap();
    }
    let mut ids = vec![raise["id"].clone()];
    for (kind, by) in [("acknowledge", "anna"), ("comment", "ben"), ("feedback", "anna"), ("silence", "anna")] {
        let event = next_event(&mut observer, kind);
        assert_eq!((&event["by"], &event["asset"]), (&json!(format!("{by} (MQTT)")), &json!(ASSET)));
        let about = if kind == "silence" { Value::Null } else { raise["id"].clone() };
        assert_eq!(event["alert"], about, "{event}");
        ids.push(event["id"].clone());
    }
    let told = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), told, "{ids:?}");
    let said = wait_for("the retained alert to say so", || {
        let alert = retained(&gateway, "wall");
        alert["silenced_until_us"].is_u64().then_some(alert)
    });
    let before = said.unwrap_or_else(|error| panic!("{error}\n{}", gateway.log()));
    assert_eq!(before["acknowledged"]["by"], "anna (MQTT)");
    publisher.progress.set_gateway(None);
    gateway.kill().unwrap();

    let gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    let after = retained(&gateway, "wall-2");
    assert_eq!((&after["acknowledged"], &after["silenced_until_us"]), (&before["acknowledged"], &json!(until_us)));
    // An alert that goes on while its machine is silenced is told with that.
    let mut observer = Client::connect(gateway.mqtt, &Connect::new("observer-2")).unwrap();
    observer.subscribe("mw/v1/event/+", 1).unwrap();
    publisher.progress.set_gateway(Some(gateway.mqtt));
    publisher.progress.allow(ROWS);
    wait_for_rows(&gateway, ROWS);
    drop(publisher);
    assert_eq!(gateway.terminate().unwrap(), Some(0));

    let case = case(&data_dir);
    assert_eq!((case.summary.number, case.summary.verdict), (alert, Some(Verdict::True)));
    let Notes::List(notes) = &case.summary.notes else { panic!("a case lists its notes") };
    let people: Vec<&Note> = notes
        .iter()
        .filter(|note| !matches!(note.kind, NoteKind::Raise | NoteKind::Update | NoteKind::Clear))
        .collect();
    let said: Vec<_> = people.iter().map(|note| (note.kind, note.by.as_str(), note.text.as_deref())).collect();
    assert_eq!(
        said,
        [
            (NoteKind::Acknowledge, "anna (MQTT)", Some("coming")),
            (NoteKind::Comment, "ben (MQTT)", Some("bearing is warm")),
            (NoteKind::Feedback, "anna (MQTT)", None),
        ]
    );
    let state = State::open(&data_dir).unwrap().state;
    assert_eq!(state.actions(None, 50).unwrap().items.len(), 4);
    assert_eq!(state.silences(0).unwrap().len(), 1);
}

/// What the gateway says it has written today.
fn written_today(gateway: &Gateway) -> u64 {
    let plant: Value = serde_json::from_str(&gateway.get("/api/v1/plant").unwrap().1).unwrap();
    plant["gateway"]["disk"]["written_today_bytes"].as_u64().unwrap()
}

/// What the system says the process has written: 0 where the folder is in memory.
#[cfg(target_os = "linux")]
fn written_by(pid: u32) -> u64 {
    let counters = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    counters.lines().find_map(|line| line.strip_prefix("write_bytes: ")).unwrap().parse().unwrap()
}

// What was written today is all that the process wrote, as the system counts it; it goes on after a stop from its sum, and after a
// kill from what was stored last.
#[cfg(target_os = "linux")]
#[test]
fn what_was_written_today_outlives_the_gateway() {
    let dir = tempfile::Builder::new().tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let start = || Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    let write = |gateway: &Gateway| {
        let before = written_by(gateway.pid());
        let mut client = Client::connect(gateway.mqtt, &Connect::new("writer")).unwrap();
        for _ in 0..40 {
            client.publish("mw/test/written", &[7; 10_000], false).unwrap();
        }
        before
    };
    let gateway = start();
    write(&gateway);
    let all = written_by(gateway.pid());
    wait_for("all to be counted", || (written_today(&gateway) >= all).then_some(())).unwrap();
    let first = written_today(&gateway);
    gateway.terminate().unwrap();

    let gateway = start();
    wait_for("the sum to go on", || (written_today(&gateway) >= first).then_some(())).unwrap();
    let (base, at_start) = (first, write(&gateway));
    let all = written_by(gateway.pid());
    wait_for("the rest to be counted", || (written_today(&gateway) >= base + all).then_some(())).unwrap();
    assert!(all > at_start || all == 0, "nothing was written: {at_start}, then {all}");
    gateway.kill().unwrap();

    let gateway = start();
    wait_for("the sum to go on after a kill", || (written_today(&gateway) >= base).then_some(())).unwrap();
}
