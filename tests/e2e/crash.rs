//! The process is killed while it works at full rate: nothing acknowledged is lost, every alert is raised once.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use harness::client::{Client, Connect};
use harness::gateway::{Gateway, read_log_after};
use harness::machine::Recording;
use harness::publisher::Publisher;
use harness::{PATIENCE, wait_for};
use millwright_firmware_sim::fault::Fault;
use millwright_firmware_sim::machine::MachineKind;
use serde_json::Value;

use crate::PROGRAM;

/// Kills in the ordinary run; `MILLWRIGHT_CRASH_ROUNDS` asks for more.
const ROUNDS: usize = 20;
/// Rows of each machine sent between two kills.
const ROWS_PER_ROUND: usize = 60;
/// Unacknowledged messages of each publisher.
const IN_FLIGHT: usize = 64;
/// Clients that publish what no pipeline reads, as fast as they can.
const RAW_PUBLISHERS: usize = 3;
/// Messages that each of them must get through before the next kill.
const RAW_PER_ROUND: usize = 150;

/// Short commissioning, so that machines are watched from the eighth round on.
const CONFIG: &str = "[commissioning]\nsamples = 400\nextend = false\n";

/// Two machines that fail at different times, long enough for all rounds.
fn machines(rows: usize) -> Vec<Recording> {
    vec![
        Recording::of("pump-1", MachineKind::Pump, 7, rows, Some((Fault::BearingWear, 500, 200.0))),
        Recording::of("fan-1", MachineKind::Fan, 8, rows, Some((Fault::LooseCable, 600, 100.0))),
    ]
}

/// What must be the same in every run: asset → its events with everything that the fold decides.
type Events = HashMap<String, Vec<(String, i64, i64, String)>>;

fn events_of(log: &[(i64, String, Vec<u8>)]) -> Events {
    let mut events = Events::new();
    let mut ids = Vec::new();
    for (_, topic, payload) in log.iter().filter(|(_, topic, _)| topic.starts_with("mw/v1/event/")) {
        let event: Value = serde_json::from_slice(payload).unwrap();
        let text = |key: &str| event[key].as_str().unwrap().to_owned();
        assert_eq!(topic, &format!("mw/v1/event/{}", text("asset")));
        ids.push(text("id"));
        let (time_us, onset_us) = (event["time_us"].as_i64().unwrap(), event["onset_us"].as_i64().unwrap());
        let what = format!("{} {}", text("severity"), text("state"));
        events.entry(text("asset")).or_default().push((text("event"), time_us, onset_us, what));
    }
    let told = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), told, "an event was published twice: {ids:?}");
    events
}

/// Waits until every row of every machine was folded and what was decided has left.
fn wait_until_folded(gateway: &Gateway, machines: &[Recording]) {
    for machine in machines {
        let rows = machine.rows.len() as u64;
        wait_for(&format!("{} to be folded", machine.asset), || {
            let asset = gateway.asset(&machine.asset).ok()??;
            (asset["counters"]["samples"].as_u64()? == rows).then_some(())
        })
        .unwrap_or_else(|error| panic!("{error}: {:?}\n{}", gateway.asset(&machine.asset), gateway.log()));
    }
}

/// The events of a run that nothing interrupts.
fn uninterrupted(machines: &[Recording]) -> Events {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    let publishers: Vec<Publisher> = machines.iter().map(telemetry).collect();
    for (publisher, machine) in publishers.iter().zip(machines) {
        publisher.progress.allow(machine.rows.len());
        publisher.progress.set_gateway(Some(gateway.mqtt));
    }
    wait_until_folded(&gateway, machines);
    drop(publishers);
    assert_eq!(gateway.terminate().unwrap(), Some(0));
    events_of(&read_log_after(&dir.path().join("data"), 0).unwrap())
}

fn telemetry(machine: &Recording) -> Publisher {
    let recording = machine.clone();
    Publisher::start(&format!("plc-{}", machine.asset), &machine.topic(), IN_FLIGHT, move |row| recording.frame(row))
}

/// A message that says which it is and is as long as a frame.
fn raw_message(publisher: usize, message: usize) -> Vec<u8> {
    let mut bytes = format!("{publisher}/{message}/").into_bytes();
    bytes.resize(300, (message % 251) as u8);
    bytes
}

/// What has been read from the log so far.
#[derive(Default)]
struct Seen {
    offset: i64,
    rows: Vec<(i64, String, Vec<u8>)>,
    /// Topic → messages found, in the order of their first appearance.
    first: HashMap<String, usize>,
}

impl Seen {
    /// Reads on, and checks that each publisher's messages appear in order, with the bytes that were sent.
    fn read_on(&mut self, data_dir: &Path, sent: &dyn Fn(&str, usize) -> Option<Vec<u8>>) {
        for (offset, topic, payload) in read_log_after(data_dir, self.offset).unwrap() {
            assert_eq!(offset, self.offset + 1, "an offset is missing");
            self.offset = offset;
            let found = self.first.entry(topic.clone()).or_default();
            match sent(&topic, *found) {
                Some(next) if next == payload => *found += 1,
                // Sent again because its acknowledgement was lost: it is among the last ones of its publisher.
                Some(_) => {
                    let repeated = found.saturating_sub(2 * IN_FLIGHT)..*found;
                    let known = repeated.clone().any(|message| sent(&topic, message).as_ref() == Some(&payload));
                    assert!(known, "{topic}: a message that is neither the next nor one of {repeated:?}");
                }
                None => {}
            }
            if topic.starts_with("mw/v1/event/") {
                self.rows.push((offset, topic, payload));
            }
        }
    }
}

/// Waits until an alert leaves the gateway, and returns at once, so that the kill falls between its commit in the log and its
/// removal from the outbox; or until all rows are folded and there was none.
fn wait_for_event(gateway: &Gateway, observer: &mut Client, machines: &[Recording], rows: usize) {
    observer.set_patience(Duration::from_millis(100)).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while observer.next_delivery().is_err() {
        let folded = |machine: &Recording| {
            let asset = gateway.asset(&machine.asset).ok().flatten();
            asset.is_some_and(|asset| asset["counters"]["samples"].as_u64() >= Some(rows as u64))
        };
        if machines.iter().all(folded) {
            return;
        }
        assert!(Instant::now() < deadline, "the round does not end: {:?}\n{}", gateway.status(), gateway.log());
    }
}

// The gateway is killed 20 times in a row while five publishers keep 64 messages each in flight, twice in three just when an
// alert leaves it: after every kill each acknowledged message is in the log, in its publisher's order, and at the end the
// alerts are exactly those of an uninterrupted run, each once.
#[test]
fn nothing_acknowledged_is_lost_and_every_alert_is_raised_once() {
    let rounds = harness::crash_rounds(ROUNDS);
    let machines = machines(rounds * ROWS_PER_ROUND);
    let expected = uninterrupted(&machines);
    for machine in &machines {
        let raised = expected.get(&machine.asset).is_some_and(|events| events.iter().any(|event| event.0 == "raise"));
        assert!(raised, "the fault of {} was not even noticed without a crash", machine.asset);
    }

    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().join("data");
    let publishers: Vec<Publisher> = machines
        .iter()
        .map(telemetry)
        .chain((0..RAW_PUBLISHERS).map(|n| {
            Publisher::start(&format!("raw-{n}"), &format!("raw/{n}"), IN_FLIGHT, move |message| {
                raw_message(n, message)
            })
        }))
        .collect();
    let sent = |topic: &str, message: usize| -> Option<Vec<u8>> {
        if let Some(n) = topic.strip_prefix("raw/") {
            return Some(raw_message(n.parse().ok()?, message));
        }
        let machine = machines.iter().find(|machine| machine.topic() == topic)?;
        (message < machine.rows.len()).then(|| machine.frame(message))
    };
    let mut seen = Seen::default();
    for round in 0..rounds {
        let gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
        let mut observer = Client::connect(gateway.mqtt, &Connect::new("observer")).unwrap();
        observer.subscribe("mw/v1/event/+", 0).unwrap();
        // A varying part of the round's telemetry is acknowledged before the kill, the rest is in flight or behind.
        let part = ROWS_PER_ROUND * (1 + round % 5) / 6;
        let until = |publisher: &Publisher| match publisher.topic.starts_with("raw/") {
            true => publisher.progress.acknowledged() + RAW_PER_ROUND,
            false => round * ROWS_PER_ROUND + part,
        };
        let until: Vec<usize> = publishers.iter().map(until).collect();
        for publisher in &publishers {
            let raw = publisher.topic.starts_with("raw/");
            publisher.progress.allow(if raw { usize::MAX } else { (round + 1) * ROWS_PER_ROUND });
            publisher.progress.set_gateway(Some(gateway.mqtt));
        }
        wait_for("the publishers to get through", || {
            let through = |(publisher, until): (&Publisher, &usize)| publisher.progress.acknowledged() >= *until;
            publishers.iter().zip(&until).all(through).then_some(())
        })
        .unwrap_or_else(|error| panic!("round {round}: {error}\n{}", gateway.log()));
        if round % 3 > 0 {
            wait_for_event(&gateway, &mut observer, &machines, (round + 1) * ROWS_PER_ROUND);
        }
        gateway.kill().unwrap();
        for publisher in &publishers {
            publisher.progress.set_gateway(None);
        }
        // Read before the next gateway opens the file: what a reader finds now is what survived.
        seen.read_on(&data_dir, &sent);
        for publisher in &publishers {
            let (acknowledged, found) =
                (publisher.progress.acknowledged(), seen.first.get(&publisher.topic).copied().unwrap_or_default());
            assert!(
                found >= acknowledged,
                "round {round}: {acknowledged} of {} acknowledged, {found} found",
                publisher.topic
            );
        }
    }

    let gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    publishers.iter().for_each(|publisher| publisher.progress.set_gateway(Some(gateway.mqtt)));
    wait_until_folded(&gateway, &machines);
    let raw: usize = publishers.iter().map(|publisher| publisher.progress.acknowledged()).sum();
    drop(publishers);
    assert_eq!(gateway.terminate().unwrap(), Some(0));
    seen.read_on(&data_dir, &sent);
    // Once more from the beginning: what was there after a kill is there after all the restarts.
    let mut again = Seen::default();
    again.read_on(&data_dir, &sent);
    assert_eq!((again.offset, &again.first), (seen.offset, &seen.first));
    assert_eq!(events_of(&again.rows), expected);
    eprintln!("{rounds} kills, {raw} messages acknowledged, {} in the log", seen.offset);
}
