//! Data directories that earlier versions have written: `tests/data` says how they were made.

use std::fs::File;
use std::path::{Path, PathBuf};

use harness::client::{Client, Connect};
use harness::gateway::{Gateway, read_log_after};
use harness::wait_for;
use rusqlite::Connection;

use crate::PROGRAM;

/// The configuration under which they were written.
const CONFIG: &str = "[commissioning]\nsamples = 100\nextend = false\n";
const TOPIC: &str = "mw/v1/telemetry/pump-1/json";
const ALERT: &str = "mw/v1/alert/pump-1";
/// Readings that each holds, numbered from 2.
const READINGS: usize = 300;

fn archives() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("data");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|end| end == "gz")).collect();
    found.sort();
    found
}

fn unpack(archive: &Path, dir: &Path) {
    let packed = flate2::read::GzDecoder::new(File::open(archive).unwrap());
    tar::Archive::new(packed).unpack(dir.join("data")).unwrap();
}

/// The versions of the schemas of a data directory: log, state.
fn schemas(data_dir: &Path) -> [i64; 2] {
    ["log.db", "state.db"].map(|name| {
        let database = Connection::open(data_dir.join(name)).unwrap();
        database.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap()
    })
}

fn readings(data_dir: &Path) -> Vec<(i64, u64)> {
    let rows = read_log_after(data_dir, 0).unwrap().into_iter().filter(|(_, topic, _)| topic == TOPIC);
    let numbered = |(offset, _, payload): (i64, String, Vec<u8>)| {
        let reading: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        (offset, reading["seq"].as_u64().unwrap())
    };
    rows.map(numbered).collect()
}

// What an earlier version has acknowledged, learned and alerted is there after the upgrade, which goes on where that version stopped.
#[test]
fn data_of_earlier_versions_is_taken_over() {
    let fresh = tempfile::tempdir().unwrap();
    let current = {
        Gateway::start(PROGRAM, fresh.path(), "").unwrap().terminate().unwrap();
        schemas(&fresh.path().join("data"))
    };
    let archives = archives();
    assert!(!archives.is_empty(), "there are earlier versions");
    for archive in archives {
        let name = archive.display();
        let dir = tempfile::tempdir().unwrap();
        unpack(&archive, dir.path());
        let data = dir.path().join("data");
        let (was, before) = (schemas(&data), readings(&data));
        assert_eq!(before.len(), READINGS, "{name}");

        let gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
        assert!(!gateway.log().contains("set aside"), "{name}: {}", gateway.log());
        // The alert that was up is still up, and still retained; the machine is known, with what it had been scored with.
        let mut client = Client::connect(gateway.mqtt, &Connect::new("crew")).unwrap();
        client.subscribe(ALERT, 1).unwrap();
        let alert: serde_json::Value = serde_json::from_slice(&client.next_on(ALERT).unwrap().payload).unwrap();
        assert_eq!(alert["active"], true, "{name}: {alert}");
        let samples = |gateway: &Gateway| {
            let asset = gateway.asset("pump-1").unwrap()?;
            assert!(asset["model"].is_object() || asset["model"].is_string(), "{name}: {asset}");
            asset["counters"]["samples"].as_u64()
        };
        let seen = wait_for("the machine", || samples(&gateway)).unwrap();
        // It goes on: the next reading is scored once.
        let next =
            r#"{"seq": 302, "values": {"flow": 48.0, "pressure": 0.57, "vibration": 3.1, "temperature": 119.0}}"#;
        client.publish(TOPIC, next.as_bytes(), false).unwrap();
        wait_for("the reading to be scored", || (samples(&gateway)? == seen + 1).then_some(())).unwrap();
        gateway.terminate().unwrap();

        let after = readings(&data);
        assert_eq!(after[..before.len()], before, "{name}");
        assert_eq!(after.len(), READINGS + 1, "{name}");
        assert_eq!(schemas(&data), current, "{name}");
        assert!(was[0] <= current[0] && was[1] <= current[1], "{name}: forward only");
    }
}
