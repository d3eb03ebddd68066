//! The disk quota: what a full log does to publishers, and what retention does to it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use harness::client::{Client, Connect};
use harness::gateway::{Gateway, read_log_after};
use harness::machine::Recording;
use harness::publisher::Publisher;
use harness::wait_for;
use millwright_firmware_sim::machine::MachineKind;
use rusqlite::Connection;
use serde_json::Value;

use crate::PROGRAM;

const QUOTA: u64 = 32 << 20;
const CONFIG: &str = "[log]\nquota_mb = 32\nwhen_full = \"refuse\"\n[commissioning]\nsamples = 400\nextend = false\n";
const RAW_BYTES: usize = 16_000;
const IN_FLIGHT: usize = 32;

fn raw_message(publisher: usize, message: usize) -> Vec<u8> {
    let mut bytes = format!("{publisher}/{message}/").into_bytes();
    bytes.resize(RAW_BYTES, (message % 251) as u8);
    bytes
}

/// Two clients that publish large messages and a machine; the machine may go as far as its recording.
fn publishers(gateway: &Gateway, machine: &Recording) -> Vec<Publisher> {
    let recording = machine.clone();
    let telemetry = Publisher::start("plc", &machine.topic(), IN_FLIGHT, move |row| recording.frame(row));
    let raw = (0..2).map(|n| {
        let message = move |message| raw_message(n, message);
        Publisher::start(&format!("raw-{n}"), &format!("raw/{n}"), IN_FLIGHT, message)
    });
    let publishers: Vec<Publisher> = raw.chain([telemetry]).collect();
    publishers.iter().for_each(|publisher| publisher.progress.set_gateway(Some(gateway.mqtt)));
    publishers
}

fn acknowledged(publishers: &[Publisher]) -> Vec<usize> {
    publishers.iter().map(|publisher| publisher.progress.acknowledged()).collect()
}

/// Bytes of the log on disk.
fn log_bytes(data: &Path) -> u64 {
    ["log.db", "log.db-wal"].iter().filter_map(|name| fs::metadata(data.join(name)).ok()).map(|file| file.len()).sum()
}

fn number(status: &Value, pointer: &str) -> u64 {
    status.pointer(pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("{pointer}: {status}"))
}

/// Every row of the machine was folded, and nothing was dropped before it was.
fn check_nothing_lost(gateway: &Gateway, machine: &Recording) {
    wait_for("the machine to be folded", || {
        let asset = gateway.asset(&machine.asset).ok()??;
        (asset["counters"]["samples"] == machine.rows.len()).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}\n{}", gateway.asset(&machine.asset), gateway.log()));
    let status = gateway.status().unwrap();
    let counters = status.pointer("/pipeline/assets/0/counters").unwrap();
    assert_eq!((&counters["gaps"], &counters["scored"]), (&0.into(), &(machine.rows.len() - 400).into()), "{counters}");
    assert_eq!((number(&status, "/pipeline/lost_messages"), number(&status, "/log/lost_rows")), (0, 0), "{status}");
}

/// A gateway whose log is full because a program locks `state.db` and so keeps the inference cursor where it is.
struct Full {
    gateway: Gateway,
    machine: Recording,
    publishers: Vec<Publisher>,
    lock: Connection,
    /// What `/healthz` says.
    reason: String,
    /// Messages that each publisher has had acknowledged.
    stalled: Vec<usize>,
}

impl Full {
    fn new(dir: &Path) -> Full {
        let gateway = Gateway::start(PROGRAM, dir, CONFIG).unwrap();
        let machine = Recording::of("pump-1", MachineKind::Pump, 5, 3_000, None);
        let publishers = publishers(&gateway, &machine);
        let lock = Connection::open(gateway.data_dir().join("state.db")).unwrap();
        lock.execute_batch("BEGIN IMMEDIATE").unwrap();
        publishers.iter().take(2).for_each(|publisher| publisher.progress.allow(usize::MAX));
        let reason = wait_for("the log to be full", || {
            // The machine goes along with the others, so that its rows are on both sides of the stall.
            let now = acknowledged(&publishers);
            publishers[2].progress.allow(now[0].min(machine.rows.len() - 500));
            let (status, body) = gateway.get("/healthz").ok()?;
            (status == 503).then_some(body)
        })
        .unwrap_or_else(|error| panic!("{error}: {:?}\n{}", gateway.status(), gateway.log()));
        // Stalled means that no acknowledgement comes for a while.
        let mut last = (acknowledged(&publishers), Instant::now());
        wait_for("the publishers to stall", || {
            let now = acknowledged(&publishers);
            if now != last.0 {
                last = (now, Instant::now());
            }
            (last.1.elapsed() > Duration::from_millis(700)).then_some(())
        })
        .unwrap();
        Full { gateway, machine, publishers, lock, reason, stalled: last.0 }
    }
}

/// The log holds everything from its first message on, and of each raw publisher at least what was acknowledged, in order.
fn check_in_log(data: &Path, acknowledged: &[usize]) {
    let log = read_log_after(data, 0).unwrap();
    assert_eq!(log.first().map(|(offset, _, _)| *offset), Some(1), "something was dropped");
    for (n, acknowledged) in acknowledged.iter().take(2).enumerate() {
        let (topic, mut found) = (format!("raw/{n}"), 0);
        for (_, _, payload) in log.iter().filter(|(_, name, _)| *name == topic) {
            found += usize::from(*payload == raw_message(n, found));
        }
        assert!(*acknowledged > 0 && found >= *acknowledged, "{acknowledged} acknowledged, {found} in the log");
    }
}

// A program that locks `state.db` keeps the inference cursor where it is until the log is full: publishers stall, `/healthz`
// is 503 and names the cursor, and everything acknowledged is in the log. When the lock goes, publishers go on by themselves
// over the same connections, and the pipeline has missed nothing.
#[test]
fn a_full_log_holds_publishers_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let Full { mut gateway, machine, publishers, lock, reason, stalled } = Full::new(dir.path());
    let data = gateway.data_dir();
    assert!(reason.contains("`inference`") && reason.contains("full"), "{reason}");
    check_in_log(&data, &stalled);
    assert!(log_bytes(&data) <= QUOTA, "{} bytes", log_bytes(&data));
    // Who only listens is served: the connection, the grant and what is retained.
    let mut listener = Client::connect(gateway.mqtt, &Connect::new("listener")).unwrap();
    listener.subscribe("mw/v1/gateway/+/status", 0).unwrap();
    listener.next_delivery().unwrap();

    let accepted = number(&gateway.status().unwrap(), "/broker/accepted");
    lock.execute_batch("ROLLBACK").unwrap();
    publishers[2].progress.allow(machine.rows.len());
    wait_for("the publishers to go on", || {
        acknowledged(&publishers).iter().zip(&stalled).take(2).all(|(now, then)| *now > then + 500).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}\n{}", gateway.get("/healthz"), gateway.log()));
    assert_eq!(number(&gateway.status().unwrap(), "/broker/accepted"), accepted, "a publisher had to connect again");
    check_nothing_lost(&gateway, &machine);
    drop(publishers);
    wait_for("/healthz to be 200", || (gateway.get("/healthz").ok()?.0 == 200).then_some(())).unwrap();
    gateway.check_serves().unwrap();
}

// A gateway whose log is full still stops on SIGTERM with status 0, and after the next start everything acknowledged is there
// and the publishers get rid of what they could not.
#[test]
fn a_full_log_does_not_keep_the_gateway_from_stopping() {
    let dir = tempfile::tempdir().unwrap();
    let Full { gateway, machine, publishers, lock, .. } = Full::new(dir.path());
    let data = gateway.data_dir();
    assert_eq!(gateway.terminate().unwrap(), Some(0));
    publishers.iter().for_each(|publisher| publisher.progress.set_gateway(None));
    let before = acknowledged(&publishers);
    check_in_log(&data, &before);
    lock.execute_batch("ROLLBACK").unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    publishers.iter().for_each(|publisher| publisher.progress.set_gateway(Some(gateway.mqtt)));
    publishers[2].progress.allow(machine.rows.len());
    wait_for("the publishers to go on", || {
        acknowledged(&publishers).iter().zip(&before).take(2).all(|(now, then)| *now > then + 500).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}\n{}", gateway.get("/healthz"), gateway.log()));
    check_nothing_lost(&gateway, &machine);
}

// Several times the quota goes through a gateway without a stop: retention drops what the pipeline has passed, the log never
// takes more than its quota of the disk, and the pipeline misses nothing.
#[test]
fn several_times_the_quota() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    let data = gateway.data_dir();
    let machine = Recording::of("pump-1", MachineKind::Pump, 6, 3_000, None);
    let publishers = publishers(&gateway, &machine);
    let each = 4 * QUOTA as usize / RAW_BYTES / 2;
    let begun = Instant::now();
    let (mut last, mut pause) = ((acknowledged(&publishers), Instant::now()), Duration::ZERO);
    let mut bytes_max = 0;
    wait_for("four times the quota to be acknowledged", || {
        let now = acknowledged(&publishers);
        // The machine's rows are spread over the whole time.
        let share = (now[0] + now[1]) as f64 / (2 * each) as f64;
        publishers[2].progress.allow((machine.rows.len() as f64 * share.min(1.0)) as usize);
        publishers.iter().take(2).for_each(|publisher| publisher.progress.allow(each));
        if now != last.0 {
            pause = pause.max(last.1.elapsed());
            last = (now, Instant::now());
        }
        bytes_max = bytes_max.max(log_bytes(&data));
        (last.0[0] >= each && last.0[1] >= each).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {:?} of {each} {:?}\n{}", last.0, gateway.status(), gateway.log()));
    eprintln!(
        "{} MB in {:?}, longest pause {pause:?}, {bytes_max} bytes of disk",
        (2 * each * RAW_BYTES) >> 20,
        begun.elapsed()
    );
    // A checkpoint by time alone comes every 5 s, and the log is full long before.
    assert!(pause < Duration::from_millis(4_500), "publishers had to wait {pause:?}");
    publishers[2].progress.allow(machine.rows.len());
    check_nothing_lost(&gateway, &machine);
    assert!(bytes_max <= QUOTA, "{bytes_max} bytes on disk");
    let oldest = number(&gateway.status().unwrap(), "/log/oldest");
    assert!(oldest > 1, "retention dropped nothing");
    drop(publishers);
    gateway.check_serves().unwrap();
    assert_eq!(gateway.terminate().unwrap(), Some(0));
    assert!(log_bytes(&data) <= QUOTA, "{} bytes on disk", log_bytes(&data));
}
