//! Killing a process that appends: what it was told is on disk, is on disk.
//!
//! The test binary starts itself as the process to kill (`child_appends_until_killed`, ignored otherwise).
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use millwright_broker::log::{Append, FetchLimit, Limits, Log, LogConfig, Offset, QUOTA_BYTES_MIN, verify};
use millwright_broker::message::{Message, QoS};
use millwright_broker::topic::TopicName;

const DIR: &str = "LOG_CRASH_DIR";
/// Kills; more until partitions were dropped too, as a slow disk takes longer to fill the log.
const ROUNDS: u64 = 12;
const ROUNDS_MAX: u64 = 100;
const PUBLISHERS: u64 = 8;

/// Small partitions, so that kills fall into rolling and dropping them too.
fn config(dir: &Path) -> LogConfig {
    let limits = Limits { partition_rows_max: 400, tail_rows_max: 100, ..Limits::default() };
    LogConfig { quota_bytes: QUOTA_BYTES_MIN, commit_delay: Duration::from_millis(1), limits, ..LogConfig::new(dir) }
}

fn row(publisher: u64, sequence: u64, retain: bool) -> Append {
    let mut payload = format!("{publisher} {sequence} ").into_bytes();
    payload.resize(3_000, b'.');
    let message = Message {
        topic: TopicName::parse(&format!("p/{publisher}")).unwrap(),
        payload: Bytes::from(payload),
        properties: Bytes::new(),
        qos: QoS::AtLeastOnce,
        retain,
        origin: 1,
    };
    Append { message, log: true, received_us: 1 }
}

/// Publisher and sequence number of a row.
fn identity(payload: &[u8]) -> (u64, u64) {
    let text = std::str::from_utf8(payload).unwrap();
    let mut words = text.split(' ').map(|word| word.parse().unwrap());
    (words.next().unwrap(), words.next().unwrap())
}

// What runs in the process that is killed: publishers that say what was acknowledged, and a consumer that says how far
// it advanced its cursor.
#[test]
#[ignore = "started by acknowledged_messages_survive_kill"]
fn child_appends_until_killed() {
    let dir = std::env::var_os(DIR).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let log = Log::open(config(Path::new(&dir))).unwrap().log;
        let cursor = log.cursor("consumer").unwrap();
        let mut head = log.watch_head();
        for publisher in 0..PUBLISHERS {
            tokio::spawn(publish(log.clone(), publisher));
        }
        loop {
            // Said before it is done: after the kill the cursor may be anywhere up to here. At the start too: a log that the last process
            // left full grows only when the cursor has moved.
            say(&format!("cursor {}", log.head()));
            cursor.advance(log.head());
            head.changed().await.unwrap();
        }
    });
}

async fn publish(log: Log, publisher: u64) {
    // Numbers go on where the last process stopped, as far as they can be seen.
    let mut sequence = log.head().0 * 100;
    loop {
        let rows = 1 + (sequence + publisher) % 17;
        let batch = (0..rows).map(|n| row(publisher, sequence + n, n + 1 == rows)).collect();
        let first = log.append(batch).await.unwrap();
        say(&format!("acknowledged {first} {publisher} {sequence} {rows}"));
        sequence += rows;
    }
}

/// One line, written in one call, so that a kill leaves it whole or absent.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("\n{line}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

/// A process that is killed when it goes out of scope.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(dir: &Path) -> Running {
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_appends_until_killed", "--ignored", "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .spawn();
    Running(child.unwrap())
}

#[derive(Default)]
struct Said {
    /// Offset to publisher and sequence number.
    acknowledged: HashMap<u64, (u64, u64)>,
    cursor: u64,
    /// Publisher to the newest acknowledged sequence number, which it retained.
    retained: HashMap<u64, u64>,
}

impl Said {
    fn hear(&mut self, line: &str) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |index: usize| words[index].parse::<u64>().unwrap();
        match words.first() {
            Some(&"acknowledged") if words.len() == 5 => {
                let (first, publisher, sequence, rows) = (number(1), number(2), number(3), number(4));
                for n in 0..rows {
                    let before = self.acknowledged.insert(first + n, (publisher, sequence + n));
                    assert_eq!(before, None, "offset {} was given twice", first + n);
                }
                self.retained.insert(publisher, sequence + rows - 1);
            }
            Some(&"cursor") if words.len() == 2 => self.cursor = number(1),
            _ => {}
        }
    }
}

/// Lets the child run for a while after its first acknowledgement, kills it, and hears everything it said.
fn run_and_kill(dir: &Path, after: Duration, said: &mut Said) {
    let mut child = start(dir);
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let killer = loop {
        let line = lines.next().expect("the child ended by itself").unwrap();
        said.hear(&line);
        if line.starts_with("acknowledged") {
            break std::thread::spawn(move || {
                std::thread::sleep(after);
                drop(child);
            });
        }
    };
    for line in lines.map_while(Result::ok) {
        said.hear(&line);
    }
    killer.join().unwrap();
}

// Killed at any moment, twelve times in a row, the log has every acknowledged message at its offset, no cursor is ahead
// of what its consumer said, the retained messages are at least as new as the acknowledged ones, and the file is sound.
#[test]
fn acknowledged_messages_survive_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut said = Said::default();
    let (mut round, mut dropped) = (0, false);
    while round < ROUNDS || !dropped {
        assert!(round < ROUNDS_MAX, "the log never filled");
        run_and_kill(dir.path(), Duration::from_millis(20 + round * 97 % 260), &mut said);
        let opened = Log::open(config(dir.path())).unwrap();
        assert_eq!(opened.set_aside, None);
        let log = opened.log;
        let position = log.stats().cursors.first().map_or(1, |cursor| cursor.position.0);
        assert!(position <= said.cursor.max(1), "cursor {position} is ahead of {}", said.cursor);
        check_rows(&log, &said);
        for (publisher, sequence) in &said.retained {
            let topic = TopicName::parse(&format!("p/{publisher}")).unwrap();
            let retained = log.retained().get(&topic).unwrap();
            assert!(identity(&retained.message.payload).1 >= *sequence, "round {round}");
        }
        dropped = log.oldest() > Offset(1);
        log.close();
        let report = verify(dir.path()).unwrap();
        assert!(report.is_sound(), "round {round}: {report:?}");
        round += 1;
    }
    assert!(said.acknowledged.len() > 1_000, "only {} rows", said.acknowledged.len());
}

/// Every acknowledged row that retention has not dropped is where it was said to be.
fn check_rows(log: &Log, said: &Said) {
    let mut reader = log.reader().unwrap();
    let mut at = log.oldest();
    let mut found = 0;
    while at < log.head() {
        let fetched = reader.read(at, FetchLimit::default()).unwrap();
        assert_eq!(fetched.lost, None);
        for message in &fetched.messages {
            if let Some(expected) = said.acknowledged.get(&message.offset.0) {
                assert_eq!(identity(&message.message.payload), *expected, "at {}", message.offset);
                found += 1;
            }
        }
        at = fetched.next;
    }
    let kept = said.acknowledged.keys().filter(|offset| Offset(**offset) >= log.oldest()).count();
    assert_eq!(found, kept, "acknowledged messages are missing; the log is {} to {}", log.oldest(), log.head());
}
