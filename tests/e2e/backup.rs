//! `millwright backup` and `restore`: what was acknowledged before a backup is there after it was put back, and whoever listens is never told
//! two different things under one number.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use harness::client::{Client, Connect};
use harness::gateway::{Gateway, read_log_after, run, write_config};
use harness::http::Http;
use harness::machine::Recording;
use harness::publisher::Publisher;
use harness::wait_for;
use millwright_firmware_sim::fault::Fault;
use millwright_firmware_sim::machine::MachineKind;
use serde_json::Value;

use crate::PROGRAM;

const CONFIG: &str = "[commissioning]\nsamples = 400\nextend = false\n";
/// Rows until the fault has raised an alert.
const ROWS: usize = 1_500;

fn machine() -> Recording {
    Recording::of("pump-1", MachineKind::Pump, 31, ROWS, Some((Fault::BearingWear, 900, 60.0)))
}

fn telemetry(machine: &Recording) -> Publisher {
    let recording = machine.clone();
    Publisher::start("plc-1", &machine.topic(), 64, move |row| recording.frame(row))
}

/// Messages that no pipeline reads; each says which it is.
fn load(name: &str) -> Publisher {
    Publisher::start(name, &format!("load/{name}"), 64, |message| format!("{message}/{}", "x".repeat(400)).into_bytes())
}

fn acknowledged(publisher: &Publisher, at_least: usize) -> usize {
    wait_for("messages to be acknowledged", || {
        (publisher.progress.acknowledged() >= at_least).then(|| publisher.progress.acknowledged())
    })
    .unwrap()
}

fn samples(gateway: &Gateway) -> u64 {
    gateway.asset("pump-1").ok().flatten().and_then(|asset| asset["counters"]["samples"].as_u64()).unwrap_or(0)
}

fn raise_an_alert(gateway: &Gateway, machine: &Recording, publisher: &Publisher) -> Value {
    publisher.progress.set_gateway(Some(gateway.mqtt));
    publisher.progress.allow(ROWS);
    wait_for("the rows to be folded", || (samples(gateway) >= machine.rows.len() as u64).then_some(())).unwrap();
    wait_for("an alert", || {
        let alerts = Http::new(gateway.http).get("/api/v1/alerts").ok()?.json();
        alerts["items"].get(0).cloned()
    })
    .unwrap()
}

fn config_of(dir: &Path) -> String {
    dir.join("gateway.toml").display().to_string()
}

/// Runs a command that must succeed; gives the object it prints.
fn told(arguments: &[&str]) -> Value {
    let output = run(PROGRAM, arguments).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{arguments:?}: {errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn backup(dir: &Path, to: &Path) -> Value {
    told(&["backup", "--config", &config_of(dir), "--to", to.to_str().unwrap(), "--json"])
}

fn restore(dir: &Path, from: &Path) -> Value {
    told(&["restore", "--config", &config_of(dir), "--from", from.to_str().unwrap(), "--json"])
}

/// Runs a command that must fail with a status and say this.
fn refused(arguments: &[&str], status: i32, says: &str) {
    let output = run(PROGRAM, arguments).unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(status) && told.contains(says), "{arguments:?}: {:?} {told}", output.status);
}

/// The messages of a topic in the log.
fn stored(dir: &Path, topic: &str) -> Vec<Vec<u8>> {
    let rows = read_log_after(&dir.join("data"), 0).unwrap();
    rows.into_iter().filter(|(_, found, _)| found == topic).map(|(_, _, payload)| payload).collect()
}

/// The ids of the events in a log.
fn event_ids(data_dir: &Path) -> Vec<String> {
    let rows = read_log_after(data_dir, 0).unwrap();
    let events = rows.iter().filter(|(_, topic, _)| topic.starts_with("mw/v1/event/"));
    let id = |(_, _, payload): &(i64, String, Vec<u8>)| {
        serde_json::from_slice::<Value>(payload).unwrap()["id"].as_str().unwrap().to_owned()
    };
    events.map(id).collect()
}

fn log_id(data_dir: &Path) -> Vec<u8> {
    let log = rusqlite::Connection::open(data_dir.join("log.db")).unwrap();
    log.query_row("SELECT value FROM meta WHERE key='log_id'", [], |row| row.get(0)).unwrap()
}

// A backup of a gateway under load, put back after it has gone on and was killed: every message acknowledged before the backup is there, in
// order and once; the machine, its model and its alert are; what comes then is numbered anew; what was there before is kept.
#[test]
fn a_backup_under_load_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("backup.tar");
    let gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    let machine = machine();
    let publisher = telemetry(&machine);
    let alert = raise_an_alert(&gateway, &machine, &publisher);
    let state = gateway.asset("pump-1").unwrap().unwrap();
    assert!(!state["alert"].is_null(), "{state}");
    let loads = [load("a"), load("b")];
    for load in &loads {
        load.progress.set_gateway(Some(gateway.mqtt));
        load.progress.allow(usize::MAX);
        acknowledged(load, 500);
    }
    let before = loads.each_ref().map(|load| load.progress.acknowledged());
    let made = backup(dir.path(), &to);
    assert_eq!(made["gateway"], "gw-1");
    assert_eq!(fs::metadata(&to).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!dir.path().join("backup.tar.part").exists() && !dir.path().join("backup.tar.work").exists());
    // The gateway goes on: more messages, and an event of its own.
    for (load, before) in loads.iter().zip(before) {
        acknowledged(load, before + 500);
    }
    let http = Http::with_token(gateway.http).unwrap();
    let comment = |http: &Http, text: &str| {
        let path = format!("/api/v1/alerts/{}/comment", alert["number"]);
        let said = http.json("POST", &path, &serde_json::json!({ "text": text })).unwrap();
        assert_eq!(said.status, 200, "{}", String::from_utf8_lossy(&said.body));
    };
    comment(&http, "after the backup");
    let data = dir.path().join("data");
    wait_for("the event", || event_ids(&data).last().cloned()).unwrap();
    loads.iter().for_each(|load| load.progress.set_gateway(None));
    publisher.progress.set_gateway(None);
    gateway.kill().unwrap();
    let (ids_before, log_before) = (event_ids(&data), log_id(&data));

    let put_back = restore(dir.path(), &to);
    assert_eq!((&put_back["state"], &put_back["other_config"]), (&"taken".into(), &false.into()), "{put_back}");
    let kept = PathBuf::from(put_back["kept"].as_str().unwrap());
    assert_eq!((event_ids(&kept), log_id(&kept)), (ids_before.clone(), log_before.clone()));
    assert_ne!(log_id(&data), log_before);
    for (load, before) in loads.iter().zip(before) {
        let found = stored(dir.path(), &load.topic);
        assert!(found.len() >= before, "{} of {before} acknowledged ones", found.len());
        for (message, payload) in found.iter().enumerate() {
            assert!(payload.starts_with(format!("{message}/").as_bytes()), "{} at {message}", load.topic);
        }
    }
    let mut gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    wait_for("the machine to be there", || (samples(&gateway) >= ROWS as u64).then_some(()))
        .unwrap_or_else(|error| panic!("{error}: {:?}\n{}", gateway.status(), gateway.log()));
    assert_eq!(gateway.asset("pump-1").unwrap().unwrap()["alert"], state["alert"]);
    let found = Http::new(gateway.http).get("/api/v1/alerts").unwrap().json();
    assert_eq!(found["items"][0]["number"], alert["number"], "{found}");
    let http = Http::with_token(gateway.http).unwrap();
    comment(&http, "after the restore");
    let restored_ids = wait_for("the event", || {
        let ids = event_ids(&data);
        (ids.last() == Some(&"gw-1/1000000".to_owned())).then_some(ids)
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}\n{}", event_ids(&data), gateway.log()));
    let told_since = restored_ids.iter().filter(|id| !ids_before.contains(id)).count();
    assert_eq!(told_since, 1, "{restored_ids:?} after {ids_before:?}");
    gateway.check_serves().unwrap();
}

// Beside a running gateway a restore waits: the gateway goes on as before, a second restore is refused, and the next start takes
// the backup; what the gateway did meanwhile is kept.
#[test]
fn beside_a_running_gateway_a_restore_waits_for_its_start() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("backup.tar");
    let gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    let load = load("a");
    load.progress.set_gateway(Some(gateway.mqtt));
    load.progress.allow(100);
    acknowledged(&load, 100);
    backup(dir.path(), &to);
    let put_back = restore(dir.path(), &to);
    assert_eq!((&put_back["state"], &put_back["kept"]), (&"waiting".into(), &Value::Null));
    let again = ["restore", "--config", &config_of(dir.path()), "--from", to.to_str().unwrap()];
    refused(&again, 2, "for the gateway to take it: start the gateway");
    load.progress.allow(200);
    acknowledged(&load, 200);
    drop(load);
    assert_eq!(gateway.terminate().unwrap(), Some(0));
    assert_eq!(stored(dir.path(), "load/a").len(), 200);
    let mut gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    assert!(gateway.log().contains("a backup takes the place of the data"), "{}", gateway.log());
    assert_eq!(stored(dir.path(), "load/a").len(), 100);
    let kept = fs::read_dir(dir.path().join("data")).unwrap().map(|entry| entry.unwrap().path());
    let kept = kept.filter(|path| path.display().to_string().contains("/before-restore-")).collect::<Vec<_>>();
    assert_eq!(kept.len(), 1, "{kept:?}");
    let rows = read_log_after(&kept[0], 0).unwrap();
    assert_eq!(rows.iter().filter(|(_, topic, _)| topic == "load/a").count(), 200);
    gateway.check_serves().unwrap();
    assert_eq!(gateway.terminate().unwrap(), Some(0));
    // Nothing is taken twice.
    let gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    assert!(!gateway.log().contains("a backup takes the place"), "{}", gateway.log());
}

// What is damaged, of another gateway or no backup is refused with what to do, and the data stay as they are; another gateway's is taken
// when that is meant.
#[test]
fn what_cannot_be_restored_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (to, bad) = (dir.path().join("backup.tar"), dir.path().join("bad.tar"));
    let config = write_config(dir.path(), "").unwrap();
    let config = config.to_str().unwrap();
    refused(&["backup", "--config", config, "--to", to.to_str().unwrap()], 1, "has the gateway run with this");
    assert!(!to.exists() && !dir.path().join("backup.tar.work").exists());
    let gateway = Gateway::start(PROGRAM, dir.path(), "").unwrap();
    let load = load("a");
    load.progress.set_gateway(Some(gateway.mqtt));
    load.progress.allow(50);
    acknowledged(&load, 50);
    drop(load);
    assert_eq!(gateway.terminate().unwrap(), Some(0));
    backup(dir.path(), &to);
    let restore_bad = ["restore", "--config", config, "--from", bad.to_str().unwrap()];
    let whole = fs::read(&to).unwrap();
    let mut flipped = whole.clone();
    // Within the log, which is most of it.
    let at = whole.windows(7).position(|bytes| bytes == b"load/a\0" || bytes == b"xxxxxxx").unwrap();
    flipped[at] ^= 1;
    fs::write(&bad, flipped).unwrap();
    refused(&restore_bad, 1, "is not what was backed up");
    fs::write(&bad, &whole[..whole.len() / 2]).unwrap();
    refused(&restore_bad, 1, "is no sound backup");
    fs::write(&bad, "not a backup").unwrap();
    refused(&restore_bad, 1, "is no sound backup");
    assert_eq!(stored(dir.path(), "load/a").len(), 50);
    let names = |dir: &Path| {
        let entries = fs::read_dir(dir.join("data")).unwrap().map(|entry| entry.unwrap().file_name());
        entries.filter(|name| name.to_string_lossy().contains("restore")).count()
    };
    assert_eq!(names(dir.path()), 0);

    let other = tempfile::tempdir().unwrap();
    let config = write_config(other.path(), "[gateway]\nid = \"gw-2\"\ndata_dir = \"data\"\n").unwrap();
    let restore_other = ["restore", "--config", config.to_str().unwrap(), "--from", to.to_str().unwrap(), "--json"];
    refused(&restore_other, 2, "the backup is of gateway `gw-1`, the configuration is of `gw-2`");
    assert!(!other.path().join("data").exists());
    let forced = [&restore_other[..], &["--force"]].concat();
    let put_back = told(&forced);
    assert_eq!((&put_back["kept"], &put_back["other_config"]), (&Value::Null, &true.into()));
    assert_eq!(stored(other.path(), "load/a").len(), 50);
}

// The backup holds the configuration and no file that it names: keys and passwords stay where they are, and are listed.
#[test]
fn secrets_stay_where_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let tls = dir.path().join("tls");
    let place = ["--dir", tls.to_str().unwrap()];
    for what in [&["cert", "ca"][..], &["cert", "server", "--host", "localhost"]] {
        let output = run(PROGRAM, &[what, &place].concat()).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let config =
        "[http]\nlisten = \"127.0.0.1:0\"\n[http.tls]\ncertificate = \"tls/server.crt\"\nkey = \"tls/server.key\"\n";
    let gateway = Gateway::start(PROGRAM, dir.path(), config).unwrap();
    let to = dir.path().join("backup.tar");
    let made = backup(dir.path(), &to);
    let listed: Vec<&str> = made["not_in_it"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    assert_eq!(listed.len(), 2, "{made}");
    assert!(listed.iter().any(|path| path.ends_with("tls/server.key")), "{made}");
    let whole = fs::read(&to).unwrap();
    let key = fs::read_to_string(tls.join("server.key")).unwrap();
    let line = key.lines().nth(1).unwrap().as_bytes();
    assert!(!whole.windows(line.len()).any(|bytes| bytes == line), "the key is in the backup");
    assert!(whole.windows(10).any(|bytes| bytes == b"[http.tls]"), "the configuration is not");
    assert_eq!(gateway.terminate().unwrap(), Some(0));
}

// A backup that is killed leaves the one before it as it was, and the next one tidies up.
#[test]
fn a_killed_backup_leaves_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("backup.tar");
    let gateway = Gateway::start(PROGRAM, dir.path(), "").unwrap();
    let load = load("a");
    load.progress.set_gateway(Some(gateway.mqtt));
    load.progress.allow(3_000);
    acknowledged(&load, 3_000);
    backup(dir.path(), &to);
    let before = fs::read(&to).unwrap();
    let mut child = Command::new(PROGRAM)
        .args(["backup", "--config", &config_of(dir.path()), "--to", to.to_str().unwrap()])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let work = dir.path().join("backup.tar.work");
    wait_for("the backup to begin", || work.exists().then_some(())).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(fs::read(&to).unwrap(), before);
    backup(dir.path(), &to);
    assert!(!work.exists() && !dir.path().join("backup.tar.part").exists());
    // It was a look only: the gateway's files are as they were.
    let mut gateway = gateway;
    gateway.check_serves().unwrap();
    Client::connect(gateway.mqtt, &Connect::new("last")).unwrap();
}
