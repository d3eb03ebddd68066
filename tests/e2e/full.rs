//! Full, and back: a small file system, a quota, no file descriptors, too much memory. Before, during and after.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use harness::client::{Client, Connect};
use harness::gateway::{Gateway, read_log_after};
use harness::publisher::Publisher;
use harness::wait_for;
use rusqlite::Connection;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::Value;

use crate::PROGRAM;

const BYTES: usize = 8_000;
/// Forbids that what the machine cannot do is left out.
const REQUIRE: &str = "MILLWRIGHT_REQUIRE_SMALL_DISK";

fn message(n: usize) -> Vec<u8> {
    let mut bytes = format!("{n}/").into_bytes();
    bytes.resize(BYTES, (n % 251) as u8);
    bytes
}

/// A file system of its own; unmounted when dropped.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    /// `None`, and said why, if this user may not mount.
    fn new(mib: usize) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"])
            .arg(dir.path())
            .output();
        let why = match mount {
            Ok(output) if output.status.success() => return Some(SmallDisk(dir)),
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        assert!(std::env::var_os(REQUIRE).is_none(), "{REQUIRE} is set, and no file system can be mounted: {why}");
        eprintln!("not run: no small file system: {why}; run as root, or as `unshare -rm cargo test …`");
        None
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the gateway of a test that failed may still be there.
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// The retained alert, as a new subscriber gets it: conditions by code with their severity.
fn alert(gateway: &Gateway) -> Option<BTreeMap<String, String>> {
    let mut client = Client::connect(gateway.mqtt, &Connect::new("operator")).ok()?;
    client.subscribe("mw/v1/gateway/+/alert", 0).ok()?;
    let alert: Value = serde_json::from_slice(&client.next_delivery().ok()?.payload).ok()?;
    let word = |up: &Value, key: &str| up[key].as_str().map(str::to_owned);
    alert["conditions"].as_array()?.iter().map(|up| Some((word(up, "code")?, word(up, "severity")?))).collect()
}

fn metric(gateway: &Gateway, series: &str) -> Option<f64> {
    let (_, text) = gateway.get("/metrics").ok()?;
    text.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok())
}

/// Waits until `/healthz`, `/metrics`, the MQTT alert and the program's own log say the same of a condition.
fn wait_told(gateway: &Gateway, code: &str, severity: &str) {
    let series = format!("millwright_condition{{code=\"{code}\",severity=\"{severity}\"}}");
    wait_for(&format!("{severity} {code} to be told"), || {
        let (status, body) = gateway.get("/healthz").ok()?;
        let told = if severity == "critical" { status == 503 } else { status == 200 && body.contains(code) };
        let is_up = metric(gateway, &series) == Some(1.0);
        let is_logged = gateway.log().contains(&format!("condition=\"{code}\""));
        (told && is_up && is_logged && alert(gateway)?.get(code).is_some_and(|word| word == severity)).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {:?} {:?}\n{}", gateway.get("/healthz"), alert(gateway), gateway.log()));
}

fn wait_well(gateway: &Gateway) {
    wait_for("the all-clear", || {
        let (status, body) = gateway.get("/healthz").ok()?;
        (status == 200 && body == "ok\n" && alert(gateway)?.is_empty()).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {:?} {:?}", gateway.get("/healthz"), alert(gateway)));
}

/// Publishes a little at a time until `is_enough`; gives what is acknowledged.
fn publish_until(publisher: &Publisher, what: &str, mut is_enough: impl FnMut() -> bool) -> usize {
    let mut allowed = publisher.progress.acknowledged();
    wait_for(what, || {
        if publisher.progress.acknowledged() + 10 > allowed {
            allowed += 20;
            publisher.progress.allow(allowed);
        }
        is_enough().then_some(())
    })
    .unwrap();
    publisher.progress.acknowledged()
}

/// Everything acknowledged is in the log, in order.
fn check_in_log(data: &Path, acknowledged: usize) {
    let log = read_log_after(data, 0).unwrap();
    let mut found = 0;
    for (_, topic, payload) in &log {
        found += usize::from(topic == "raw/0" && *payload == message(found));
    }
    assert!(acknowledged > 0 && found >= acknowledged, "{acknowledged} acknowledged, {found} in the log");
}

fn is_up(gateway: &Gateway, code: &str) -> bool {
    let status = gateway.status().unwrap();
    status["conditions"].as_array().unwrap().iter().any(|up| up["code"] == code)
}

/// The publisher is held: no acknowledgement for a while although it may go on.
fn held(publisher: &Publisher) -> usize {
    publisher.progress.allow(usize::MAX);
    let mut last = (publisher.progress.acknowledged(), std::time::Instant::now());
    wait_for("the publisher to be held", || {
        let now = publisher.progress.acknowledged();
        if now != last.0 {
            last = (now, std::time::Instant::now());
        }
        (last.1.elapsed() > Duration::from_secs(1)).then_some(())
    })
    .unwrap();
    last.0
}

fn goes_on(gateway: &Gateway, publisher: &Publisher, before: usize, accepted: u64) {
    wait_for("the publisher to go on", || (publisher.progress.acknowledged() > before + 100).then_some(())).unwrap();
    assert_eq!(connections_of_publisher(gateway), accepted, "the publisher had to connect again");
}

fn connections_of_publisher(gateway: &Gateway) -> u64 {
    // Takeovers and protocol errors would be new connections of the publisher; operators come and go under one name.
    let status = gateway.status().unwrap();
    status.pointer("/broker/protocol_errors").and_then(Value::as_u64).unwrap()
}

// A file system fills up: the operator is warned while all works; when it is full publishers are held and `/healthz`, metrics
// and the alert say so; what was acknowledged is in the log; when there is space again all goes on by itself.
#[test]
fn a_full_file_system_is_told_before_and_during_and_recovers() {
    let Some(disk) = SmallDisk::new(128) else { return };
    let dir = disk.0.path();
    let mut gateway = Gateway::start(PROGRAM, dir, "[log]\nquota_mb = 1024\n").unwrap();
    let publisher = Publisher::start("plc", "raw/0", 16, message);
    publisher.progress.set_gateway(Some(gateway.mqtt));
    publish_until(&publisher, "something to be in the log", || publisher.progress.acknowledged() > 100);
    wait_well(&gateway);
    // Somebody else takes most of it. What is left is more than the write-ahead logs of a gateway grow by themselves, which would
    // fill it before anybody could be warned.
    let stat = rustix::fs::statvfs(dir).unwrap();
    let free = (stat.f_bavail * stat.f_frsize) as usize;
    let ballast = dir.join("ballast");
    std::fs::write(&ballast, vec![1_u8; free - (11 << 20)]).unwrap();
    wait_told(&gateway, "disk-filling", "warning");
    let before = publisher.progress.acknowledged();
    publisher.progress.allow(before + 40);
    wait_for("publishes to go on", || (publisher.progress.acknowledged() > before).then_some(())).unwrap();

    let broken = connections_of_publisher(&gateway);
    let stalled = held(&publisher);
    wait_told(&gateway, "disk-full", "critical");
    check_in_log(&gateway.data_dir(), stalled);
    std::fs::remove_file(ballast).unwrap();
    goes_on(&gateway, &publisher, stalled, broken);
    wait_for("the full disk to be over", || (!is_up(&gateway, "disk-full")).then_some(())).unwrap();
    drop(publisher);
    let _ = gateway.is_running();
    check_in_log(&gateway.data_dir(), stalled + 100);
    assert!(!gateway.log().contains("panicked"), "{}", gateway.log());
}

// A log's quota fills because the pipeline stands still: the operator is warned while publishers go on, and told when they
// are held; nothing acknowledged is lost; when the pipeline goes on, so do they, and the all-clear is given.
#[test]
fn a_full_quota_is_told_before_and_during_and_recovers() {
    let dir = tempfile::tempdir().unwrap();
    let config = "[log]\nquota_mb = 32\nwhen_full = \"refuse\"\n";
    let gateway = Gateway::start(PROGRAM, dir.path(), config).unwrap();
    let lock = Connection::open(gateway.data_dir().join("state.db")).unwrap();
    lock.execute_batch("BEGIN IMMEDIATE").unwrap();
    let publisher = Publisher::start("plc", "raw/0", 16, message);
    publisher.progress.set_gateway(Some(gateway.mqtt));
    publish_until(&publisher, "the log to be filling", || is_up(&gateway, "log-filling"));
    wait_told(&gateway, "log-filling", "warning");
    let broken = connections_of_publisher(&gateway);
    let stalled = held(&publisher);
    wait_told(&gateway, "log-full", "critical");
    check_in_log(&gateway.data_dir(), stalled);
    lock.execute_batch("ROLLBACK").unwrap();
    goes_on(&gateway, &publisher, stalled, broken);
    drop(publisher);
    wait_well(&gateway);
}

fn set_files_max(gateway: &Gateway, files: u64) {
    let pid = Pid::from_raw(i32::try_from(gateway.pid()).unwrap());
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(files), maximum: Some(4_096) }).unwrap();
}

// A gateway that runs out of file descriptors goes on for those that are connected, durable publishes included, says so, and
// takes clients again when there are some.
#[test]
fn file_descriptors_run_out_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::start(PROGRAM, dir.path(), "").unwrap();
    let mut publisher = Client::connect(gateway.mqtt, &Connect::new("served")).unwrap();
    publisher.publish("raw/0", &message(0), false).unwrap();
    let open = std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).unwrap().count() as u64;
    set_files_max(&gateway, open + 10);
    let crowd: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(gateway.mqtt).unwrap()).collect();
    wait_for("an accept to fail", || gateway.log().contains("cannot accept a connection").then_some(())).unwrap();
    for n in 1..50 {
        publisher.publish("raw/0", &message(n), false).unwrap();
    }
    wait_for("the shortage to be told", || gateway.log().contains("file-descriptors").then_some(())).unwrap();
    drop(crowd);
    set_files_max(&gateway, 4_096);
    wait_for("new clients to be served", || Client::connect(gateway.mqtt, &Connect::new("new")).ok()).unwrap();
    publisher.publish("raw/0", &message(50), false).unwrap();
    wait_well(&gateway);
    check_in_log(&gateway.data_dir(), 51);
    gateway.check_serves().unwrap();
}

// HTTP clients that send nothing are cut off, and others are served meanwhile or after.
#[test]
fn silent_http_clients_are_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), "").unwrap();
    let mut silent: Vec<TcpStream> = (0..40).map(|_| TcpStream::connect(gateway.http).unwrap()).collect();
    silent[0].set_read_timeout(Some(harness::PATIENCE)).unwrap();
    // The end of the stream, or its reset.
    assert!(!matches!(silent[0].read(&mut [0_u8; 1]), Ok(1)));
    wait_for("HTTP to be served", || (gateway.get("/healthz").ok()?.0 == 200).then_some(())).unwrap();
}
