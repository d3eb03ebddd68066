//! Lanes and condensed telemetry over a real log; the peers of [`super::kinds`] are tested as servers, in `tests/upstream`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::time::Duration;

use bytes::Bytes;
use millwright_broker::log::{Append, Log, LogConfig, Offset};
use millwright_broker::message::{Message, QoS};
use millwright_broker::topic::TopicName;
use serde_json::Value;

use super::condense::Condenser;
use super::lane::{Lane, Make};
use super::record::{Content, Origin, Record};
use super::selection::Selection;
use super::{bulk_contents, cursor_names, urgent_contents};
use crate::config::Config;
use crate::config::upstream::{Batching, Contents, UpstreamConfig};
use crate::ids::GatewayId;
use crate::source::SourceMap;

const SECOND_US: i64 = 1_000_000;
const BATCH: Batching = Batching { messages: 3, bytes: 1_000, delay: Duration::ZERO };

fn open(dir: &std::path::Path) -> Log {
    Log::open(LogConfig { commit_delay: Duration::ZERO, ..LogConfig::new(dir) }).unwrap().log
}

fn upstream(more: &str) -> UpstreamConfig {
    let text = format!(
        "[gateway]\nid = \"gw\"\n[[upstream]]\nname = \"up\"\nkind = \"zeromq\"\naddress = \"h:1\"\nack_address = \"h:2\"\n{more}"
    );
    let loaded = Config::parse(&text, "gateway.toml", std::path::Path::new("")).unwrap();
    loaded.config.upstreams.into_iter().next().unwrap()
}

async fn append(log: &Log, received_us: i64, topic: &str, payload: &str) {
    let message = Message {
        topic: TopicName::parse(topic).unwrap(),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        properties: Bytes::new(),
        qos: QoS::AtLeastOnce,
        retain: false,
        origin: 0,
    };
    log.append(vec![Append { message, log: true, received_us }]).await.unwrap();
}

fn origin(log: &Log) -> Origin {
    Origin::new(&GatewayId::parse("gw").unwrap(), log.lineage())
}

fn lane(log: &Log, config: &UpstreamConfig, contents: Contents) -> Lane {
    let selection = Selection::new(config, contents, SourceMap::new(&[]));
    let make = match config.downsample {
        Some(step) => Make::Condensed(Box::new(Condenser::new(selection, step))),
        None => Make::Raw(Box::new(selection)),
    };
    Lane::new(log.cursor("upstream/up").unwrap(), origin(log), make)
}

/// Has a lane read all it has room for.
async fn read_ahead(lane: &mut Lane, log: &Log, batch: Batching, now_us: i64) {
    lane.begin(log, batch, now_us);
    while lane.is_reading() {
        lane.arrived().await.unwrap();
        lane.begin(log, batch, now_us);
    }
}

fn topics(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| record.topic.as_str()).collect()
}

// What is confirmed moves the cursor; what is not comes first the next time, also after a restart, under the same identifier.
#[tokio::test]
async fn what_is_not_confirmed_is_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let config = upstream("");
    let contents = bulk_contents(config.content).unwrap();
    let log = open(dir.path());
    for asset in ["a", "b", "c", "d"] {
        append(&log, 0, &format!("mw/v1/telemetry/{asset}/json"), "{}").await;
    }
    let mut lane_1 = lane(&log, &config, contents);
    read_ahead(&mut lane_1, &log, BATCH, 0).await;
    let first = lane_1.take(BATCH, 3);
    let ids: Vec<String> = first.iter().map(|record| record.id.clone()).collect();
    assert_eq!(lane_1.confirmed(), Offset(1));
    lane_1.confirm(&first, 1);
    assert_eq!(lane_1.confirmed(), Offset(2), "while the delivery is under way");
    lane_1.put_back(first, 2);
    assert_eq!(lane_1.confirmed(), Offset(3));
    let again = lane_1.take(BATCH, 3);
    assert_eq!(topics(&again), ["mw/v1/telemetry/c/json", "mw/v1/telemetry/d/json"]);
    drop(lane_1);
    log.close();

    let log = open(dir.path());
    let mut lane_2 = lane(&log, &config, contents);
    read_ahead(&mut lane_2, &log, BATCH, 0).await;
    let restarted = lane_2.take(BATCH, 9);
    assert_eq!(restarted[0].id, ids[2], "a message keeps its identifier");
    lane_2.put_back(restarted, 2);
    assert_eq!(lane_2.confirmed(), log.head());
    log.close();
}

// A lane passes what its upstream does not want, but never something that waits.
#[tokio::test]
async fn unwanted_messages_do_not_hold_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let config = upstream("filters = [\"mw/v1/telemetry/+/json\"]\nexcept = [\"mw/v1/telemetry/test/#\"]");
    let log = open(dir.path());
    let mut lane = lane(&log, &config, bulk_contents(config.content).unwrap());
    append(&log, 0, "somewhere/else", "1").await;
    append(&log, 0, "mw/v1/telemetry/test/json", "{}").await;
    append(&log, 0, "mw/v1/alert/a", "{}").await;
    read_ahead(&mut lane, &log, BATCH, 0).await;
    assert!(!lane.has_waiting());
    assert_eq!(lane.confirmed(), log.head());
    append(&log, 0, "mw/v1/telemetry/a/json", "{}").await;
    append(&log, 0, "somewhere/else", "2").await;
    read_ahead(&mut lane, &log, BATCH, 0).await;
    assert_eq!(lane.confirmed(), Offset(4), "the telemetry waits");
    let records = lane.take(BATCH, 9);
    assert_eq!(topics(&records), ["mw/v1/telemetry/a/json"]);
    read_ahead(&mut lane, &log, BATCH, 0).await;
    assert_eq!(lane.confirmed(), Offset(4), "it is under way");
    lane.put_back(records, 1);
    assert_eq!(lane.confirmed(), log.head());
    log.close();
}

// Alerts, events and the states of models are a lane of their own; orders, manifests and chunks go nowhere.
#[tokio::test]
async fn urgent_messages_are_kept_apart() {
    let dir = tempfile::tempdir().unwrap();
    let config = upstream("send = [\"alerts\", \"events\", \"models\", \"telemetry\", \"other\"]");
    let log = open(dir.path());
    for topic in [
        "mw/v1/telemetry/a/json",
        "mw/v1/alert/a",
        "mw/v1/event/a",
        "mw/v1/model/m/state/gw",
        "mw/v1/model/m/manifest",
        "mw/v1/model/m/chunk/00/0",
        "mw/v1/gateway/gw/command",
        "plant/x",
    ] {
        append(&log, 0, topic, "{}").await;
    }
    let wide = Batching { messages: 100, ..BATCH };
    let mut urgent = lane(&log, &config, urgent_contents(config.content).unwrap());
    read_ahead(&mut urgent, &log, wide, 0).await;
    let records = urgent.take(wide, 100);
    assert_eq!(topics(&records), ["mw/v1/alert/a", "mw/v1/event/a", "mw/v1/model/m/state/gw"]);
    assert!(records.iter().all(|record| record.content.is_urgent()));
    assert_eq!((records[0].content, &*records[0].key), (Content::Alert, "a"));
    let mut bulk = lane(&log, &config, bulk_contents(config.content).unwrap());
    read_ahead(&mut bulk, &log, wide, 0).await;
    assert_eq!(topics(&bulk.take(wide, 100)), ["mw/v1/telemetry/a/json", "plant/x"]);
    assert_eq!(cursor_names(&config), ["upstream/up", "upstream/up/urgent"]);
    assert_eq!(cursor_names(&upstream("send = [\"health\"]")), [""; 0]);
    log.close();
}

// A delivery keeps to its bounds in messages and bytes, and has one message at least.
#[tokio::test]
async fn deliveries_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let config = upstream("");
    let log = open(dir.path());
    let large = "x".repeat(600);
    for payload in ["1", "2", "3", "4", &large, &large, &"y".repeat(5_000)] {
        append(&log, 0, "mw/v1/telemetry/a/json", payload).await;
    }
    let mut lane = lane(&log, &config, bulk_contents(config.content).unwrap());
    let mut sizes = Vec::new();
    for _ in 0..5 {
        read_ahead(&mut lane, &log, BATCH, 0).await;
        let records = lane.take(BATCH, 100.min(BATCH.messages));
        sizes.push(records.len());
        let count = records.len();
        lane.put_back(records, count);
    }
    assert_eq!(sizes, [3, 2, 1, 1, 0]);
    log.close();
}

// A message that the peer never takes is passed when it is the first, and only then.
#[tokio::test]
async fn a_refused_message_is_passed() {
    let dir = tempfile::tempdir().unwrap();
    let config = upstream("");
    let log = open(dir.path());
    append(&log, 0, "mw/v1/telemetry/a/json", "{}").await;
    append(&log, 0, "mw/v1/telemetry/b/json", "{}").await;
    let mut lane = lane(&log, &config, bulk_contents(config.content).unwrap());
    read_ahead(&mut lane, &log, BATCH, 0).await;
    let records = lane.take(BATCH, 2);
    let ids: Vec<String> = records.iter().map(|record| record.id.clone()).collect();
    lane.put_back(records, 0);
    assert!(!lane.pass(&ids[1]));
    assert!(lane.pass(&ids[0]));
    assert_eq!(lane.confirmed(), Offset(2));
    assert_eq!(topics(&lane.take(BATCH, 2)), ["mw/v1/telemetry/b/json"]);
    log.close();
}

fn sample(seq: u32, time_us: i64, value: f64) -> String {
    format!("{{\"ts\": {time_us}, \"seq\": {seq}, \"values\": {{\"t\": {value}}}}}")
}

/// Times that a device may give, from 2024.
const BEGIN_US: i64 = 1_704_067_200 * SECOND_US;

// A stretch of the log becomes one message an asset, with the figures of each channel; what a device sends twice counts once.
#[tokio::test]
async fn telemetry_is_condensed() {
    let dir = tempfile::tempdir().unwrap();
    let config = upstream("downsample_s = 10\nsend = [\"telemetry\"]");
    let log = open(dir.path());
    for (seq, value) in [(1, 1.0), (2, 5.0), (2, 5.0), (3, 3.0)] {
        let time_us = BEGIN_US + i64::from(seq) * SECOND_US;
        append(&log, time_us, "mw/v1/telemetry/a/json", &sample(seq, time_us, value)).await;
    }
    append(&log, BEGIN_US + 4 * SECOND_US, "mw/v1/telemetry/b/json", &sample(1, BEGIN_US, 7.0)).await;
    let mut lane = lane(&log, &config, bulk_contents(config.content).unwrap());
    read_ahead(&mut lane, &log, BATCH, BEGIN_US + 11 * SECOND_US).await;
    assert!(!lane.has_waiting(), "more of the stretch may be on its way");
    assert_eq!(lane.confirmed(), Offset(1));
    read_ahead(&mut lane, &log, BATCH, BEGIN_US + 13 * SECOND_US).await;
    let records = lane.take(BATCH, 9);
    assert_eq!(topics(&records), ["mw/v1/condensed/a", "mw/v1/condensed/b"]);
    let told: Value = serde_json::from_slice(&records[0].payload).unwrap();
    let expected = serde_json::json!({
        "asset": "a", "from_us": BEGIN_US, "to_us": BEGIN_US + 10 * SECOND_US,
        "channels": {"t": {"n": 3, "min": 1.0, "max": 5.0, "mean": 3.0, "last": 3.0}}
    });
    assert_eq!(told, expected);
    lane.put_back(records, 1);
    assert_eq!(lane.confirmed(), Offset(1), "only the whole stretch is passed");
    let rest = lane.take(BATCH, 9);
    lane.put_back(rest, 1);
    assert_eq!(lane.confirmed(), log.head());
    log.close();
}

// After a restart in the middle of a stretch it is folded again, to the same messages under the same identifiers.
#[tokio::test]
async fn a_stretch_is_folded_again_alike() {
    let dir = tempfile::tempdir().unwrap();
    let config = upstream("downsample_s = 10\nsend = [\"telemetry\"]");
    let contents = bulk_contents(config.content).unwrap();
    let log = open(dir.path());
    for seq in 1..=25 {
        let time_us = BEGIN_US + i64::from(seq) * SECOND_US;
        append(&log, time_us, "mw/v1/telemetry/a/json", &sample(seq, time_us, f64::from(seq))).await;
    }
    let wide = Batching { messages: 100, ..BATCH };
    let mut first = lane(&log, &config, contents);
    read_ahead(&mut first, &log, wide, BEGIN_US).await;
    let before = first.take(wide, 100);
    assert_eq!(before.len(), 2);
    let kept = before.clone();
    first.put_back(before, 1);
    drop(first);
    let mut second = lane(&log, &config, contents);
    read_ahead(&mut second, &log, wide, BEGIN_US).await;
    let again = second.take(wide, 100);
    assert_eq!(again, kept[1..]);
    log.close();
}
