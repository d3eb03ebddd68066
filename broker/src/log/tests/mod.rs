//! Tests of the log against a real SQLite in temporary directories.
#![allow(clippy::unwrap_used)]

mod append;
mod copy;
mod corruption;
mod full;
mod model;
mod retained;
mod stored;

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rusqlite::Connection;

use super::*;
use crate::message::QoS;
use crate::topic::TopicName;

/// The longest a test waits for something that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

fn message(topic: &str, payload: impl Into<Vec<u8>>) -> Message {
    Message {
        topic: TopicName::parse(topic).unwrap(),
        payload: Bytes::from(payload.into()),
        properties: Bytes::new(),
        qos: QoS::AtLeastOnce,
        retain: false,
        origin: 7,
    }
}

fn append(topic: &str, payload: impl Into<Vec<u8>>) -> Append {
    Append { message: message(topic, payload), log: true, received_us: 1_000 }
}

fn retain(topic: &str, payload: impl Into<Vec<u8>>) -> Append {
    let mut append = append(topic, payload);
    append.message.retain = true;
    append
}

/// A log without delay, so that tests need not wait.
fn config(dir: &Path) -> LogConfig {
    LogConfig { commit_delay: Duration::ZERO, ..LogConfig::new(dir) }
}

/// The smallest log: 7 MiB of data in partitions of 256 KiB.
fn small(dir: &Path, when_full: WhenFull) -> LogConfig {
    LogConfig { quota_bytes: QUOTA_BYTES_MIN, when_full, ..config(dir) }
}

fn open(config: LogConfig) -> Log {
    let opened = Log::open(config).unwrap();
    assert_eq!(opened.set_aside, None);
    opened.log
}

/// Opens the database as any other program may.
fn peek(dir: &Path) -> Connection {
    Connection::open(dir.join("log.db")).unwrap()
}

/// Everything from `from` to the head, read from disk, with the gaps met.
fn read_disk(log: &Log, from: u64) -> (Vec<LogMessage>, Vec<Gap>) {
    let mut disk = reader::DiskReader::open(&log.inner.shared.path).unwrap();
    let (mut messages, mut gaps, mut at) = (Vec::new(), Vec::new(), from);
    while at < log.head().0 {
        let fetched = disk.read(at, log.head().0, FetchLimit::default()).unwrap();
        assert!(fetched.next.0 > at, "no progress at {at}");
        at = fetched.next.0;
        gaps.extend(fetched.lost);
        messages.extend(fetched.messages.iter().map(|message| (**message).clone()));
    }
    (messages, gaps)
}

/// Waits until a condition holds.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "waited too long until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
