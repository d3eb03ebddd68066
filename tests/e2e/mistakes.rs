//! What people and disks do wrong: one clear message that names the remedy, and nothing lost.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use harness::client::{Client, Connect};
use harness::gateway::{Gateway, read_log_after, run, write_config};
use harness::machine::Recording;
use harness::publisher::Publisher;
use harness::wait_for;
use millwright_firmware_sim::machine::MachineKind;
use serde_json::Value;

use crate::PROGRAM;

/// Runs the program, which must fail with this status and say all of this.
fn fails(arguments: &[&str], status: i32, says: &[&str]) -> String {
    let output = run(PROGRAM, arguments).unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {told}");
    for part in says {
        assert!(told.contains(part), "{arguments:?} does not say `{part}`: {told}");
    }
    assert!(!told.contains("panicked"), "{told}");
    told
}

/// `run` with a configuration fails with this status and says all of this.
fn run_fails(dir: &Path, config: &str, status: i32, says: &[&str]) -> String {
    let path = write_config(dir, config).unwrap();
    fails(&["run", "--config", path.to_str().unwrap()], status, says)
}

// `check-config` and `run` report every mistake of a configuration at once, each with its line and what to do, and end with
// status 2; nothing is created.
#[test]
fn a_mistyped_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gateway.toml");
    let text = "[gateway]\nid = \"gw/1\"\ndata_dirr = \"data\"\n[broker]\nmax_conections = 10\n[log]\nquota_mb = 1\n\
                when_full = \"drop\"\n[[source]]\nfilter = \"plant/#/x\"\nasset = \"a\"\nformat = \"jsn\"\n";
    fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap();
    let mistakes = [
        ("2:", "gw/1"),
        ("3:", "did you mean `data_dir`"),
        ("5:", "did you mean `max_connections`"),
        ("7:", "out of range"),
        ("8:", "refuse, drop-oldest"),
        ("10:", "`#` must be the whole last level"),
        ("12:", "did you mean \"json\""),
    ];
    for arguments in [vec!["check-config", path], vec!["run", "--config", path]] {
        let told = fails(&arguments, 2, &[]);
        for (line, says) in mistakes {
            let at = format!("{path}:{line}");
            assert!(told.lines().any(|told| told.contains(&at) && told.contains(says)), "{at} {says}: {told}");
        }
        assert_eq!(told.lines().count(), mistakes.len(), "{told}");
    }
    let output = run(PROGRAM, &["check-config", "--json", path]).unwrap();
    let outcome: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&outcome["ok"], outcome["mistakes"].as_array().unwrap().len()), (&false.into(), mistakes.len()));
    assert!(!dir.path().join("data").exists());
    fails(&["run", "--config", "/no/such/file.toml"], 2, &["/no/such/file.toml", "check the path"]);
    fails(&["run"], 2, &["--config"]);
}

// A gateway that the network could reach without a password does not start, unless the configuration says so in plain words.
#[test]
fn an_open_door() {
    let dir = tempfile::tempdir().unwrap();
    let open = "[broker]\nlisten = \"0.0.0.0:0\"\n";
    run_fails(dir.path(), open, 2, &["[broker] listen", "millwright passwd", "allow_anonymous_on_network = true"]);
    run_fails(dir.path(), "[http]\nlisten = \"0.0.0.0:0\"\n", 2, &["[http] listen", "[[http.user]]"]);
    let said = format!("{open}allow_anonymous_on_network = true\n");
    let mut gateway = Gateway::start(PROGRAM, dir.path(), &said).unwrap();
    gateway.mqtt.set_ip([127, 0, 0, 1].into());
    gateway.check_serves().unwrap();
}

// A port that is in use is named with what to do, for MQTT and for HTTP, and the status is 1.
#[test]
fn a_port_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap().to_string();
    for section in ["broker", "http"] {
        let config = format!("[{section}]\nlisten = \"{taken}\"\n");
        let told = run_fails(dir.path(), &config, 1, &[&taken]);
        assert!(told.contains("another"), "no remedy: {told}");
    }
    // Nothing was damaged by the attempts.
    Gateway::start(PROGRAM, dir.path(), "").unwrap().check_serves().unwrap();
}

// A data directory that cannot be made or written is named with the key that chooses another.
#[test]
fn an_unwritable_data_directory() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("data"), "a file where the directory should be").unwrap();
    let path = dir.path().join("data");
    run_fails(dir.path(), "", 1, &[path.to_str().unwrap(), "data_dir"]);
    assert_eq!(fs::read_to_string(&path).unwrap(), "a file where the directory should be");
    let config = "[gateway]\nid = \"gw-1\"\ndata_dir = \"/proc/nothing/here\"\n";
    run_fails(dir.path(), config, 1, &["/proc/nothing/here", "data_dir"]);
}

// A second gateway on the same data directory is refused, and the first one works on.
#[test]
fn a_second_gateway_on_the_same_data() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Gateway::start(PROGRAM, dir.path(), "").unwrap();
    let data = first.data_dir();
    run_fails(dir.path(), "", 1, &["another gateway", data.to_str().unwrap(), "data_dir"]);
    first.check_serves().unwrap();
    assert_eq!(first.terminate().unwrap(), Some(0));
}

/// A gateway that has seen a machine, stopped; returns its data directory.
fn used(dir: &Path, machine: &Recording) -> PathBuf {
    let gateway = Gateway::start(PROGRAM, dir, "").unwrap();
    let mut client = Client::connect(gateway.mqtt, &Connect::new("plc")).unwrap();
    for frame in machine.frames() {
        client.publish(&machine.topic(), &frame, false).unwrap();
    }
    wait_until_folded(&gateway, machine);
    let data = gateway.data_dir();
    assert_eq!(gateway.terminate().unwrap(), Some(0));
    data
}

fn wait_until_folded(gateway: &Gateway, machine: &Recording) {
    wait_for("the machine to be folded", || {
        let asset = gateway.asset(&machine.asset).ok()??;
        (asset["counters"]["samples"] == machine.rows.len()).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", gateway.log()));
}

/// The ways in which a database is damaged.
fn damages(bytes: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let noise = |from: usize, to: usize| {
        let mut damaged = bytes.to_vec();
        for (n, byte) in damaged[from..to].iter_mut().enumerate() {
            *byte = ((n as u32).wrapping_mul(2_654_435_761) >> 13) as u8;
        }
        damaged
    };
    // Pages of 4 KiB: the header, everything from the second page to the middle, and half of the file gone.
    let middle = bytes.len() / 2 / 4_096 * 4_096;
    vec![
        ("a garbage header", noise(0, 100)),
        ("noise in the middle", noise(4_096, middle.max(8_192))),
        ("truncated", bytes[..middle + 100].to_vec()),
        ("no database at all", b"<html>404 Not Found</html>".repeat(100)),
    ]
}

/// The one file whose name begins so.
fn set_aside(data: &Path, name: &str) -> PathBuf {
    let begins = format!("{name}.corrupt-");
    let found: Vec<PathBuf> = fs::read_dir(data)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with(&begins) && !name.ends_with("-wal") && !name.ends_with("-shm")
        })
        .collect();
    assert_eq!(found.len(), 1, "{found:?}");
    found[0].clone()
}

// A damaged `log.db` is set aside under a new name with its bytes intact, the log says where, and the gateway serves with a
// new one and what its state remembers.
#[test]
fn a_corrupt_log() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Recording::of("pump-1", MachineKind::Pump, 3, 300, None);
    let data = used(dir.path(), &machine);
    let (log, state) = (fs::read(data.join("log.db")).unwrap(), fs::read(data.join("state.db")).unwrap());
    for (what, damaged) in damages(&log) {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("log.db"), &damaged).unwrap();
        fs::write(data.join("state.db"), &state).unwrap();
        let mut gateway = Gateway::start(PROGRAM, dir.path(), "").unwrap();
        gateway.check_serves().unwrap();
        let aside = set_aside(&data, "log.db");
        assert!(fs::read(&aside).unwrap() == damaged, "{what}: the bytes are not what they were");
        let told = gateway.log();
        assert!(told.contains(aside.to_str().unwrap()) && told.contains(".recover"), "{what}: {told}");
        // What the state remembers goes on: rows seen before are counted, the next ones are added.
        let next = Recording { boot_id: 2, ..machine.clone() };
        Client::connect(gateway.mqtt, &Connect::new("plc"))
            .unwrap()
            .publish(&next.topic(), &next.frame(299), false)
            .unwrap();
        wait_for("the next row", || {
            (gateway.asset("pump-1").ok()??["counters"]["samples"] == machine.rows.len() + 1).then_some(())
        })
        .unwrap_or_else(|error| panic!("{what}: {error} {:?}", gateway.asset("pump-1")));
        assert_eq!(gateway.terminate().unwrap(), Some(0));
    }
}

// A damaged `state.db` is set aside under a new name with its bytes intact, the log says where, and everything is folded
// again from the log.
#[test]
fn a_corrupt_state() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Recording::of("pump-1", MachineKind::Pump, 3, 300, None);
    let data = used(dir.path(), &machine);
    let (log, state) = (fs::read(data.join("log.db")).unwrap(), fs::read(data.join("state.db")).unwrap());
    for (what, damaged) in damages(&state) {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("log.db"), &log).unwrap();
        fs::write(data.join("state.db"), &damaged).unwrap();
        let mut gateway = Gateway::start(PROGRAM, dir.path(), "").unwrap();
        gateway.check_serves().unwrap();
        let aside = set_aside(&data, "state.db");
        assert!(fs::read(&aside).unwrap() == damaged, "{what}: the bytes are not what they were");
        let told = gateway.log();
        assert!(told.contains(aside.to_str().unwrap()), "{what}: {told}");
        wait_until_folded(&gateway, &machine);
        assert_eq!(gateway.terminate().unwrap(), Some(0));
    }
}

// When a kill left a write-ahead log beside a database that is damaged then, both are kept with their bytes intact.
#[test]
fn a_corrupt_database_with_a_write_ahead_log() {
    for name in ["log.db", "state.db"] {
        let dir = tempfile::tempdir().unwrap();
        let machine = Recording::of("pump-1", MachineKind::Pump, 3, 300, None);
        let data = used(dir.path(), &machine);
        let gateway = Gateway::start(PROGRAM, dir.path(), "").unwrap();
        let mut client = Client::connect(gateway.mqtt, &Connect::new("plc")).unwrap();
        let next = Recording { boot_id: 2, ..machine.clone() };
        for frame in next.frames().take(50) {
            client.publish(&next.topic(), &frame, false).unwrap();
        }
        wait_for("a checkpoint", || {
            let bytes = |name: &str| fs::metadata(data.join(name)).map_or(0, |metadata| metadata.len());
            (bytes("log.db-wal") > 0 && bytes("state.db-wal") > 0).then_some(())
        })
        .unwrap();
        gateway.kill().unwrap();
        let (path, wal_path) = (data.join(name), data.join(format!("{name}-wal")));
        let (bytes, wal) = (fs::read(&path).unwrap(), fs::read(&wal_path).unwrap());
        for (what, damaged) in damages(&bytes) {
            fs::write(&path, &damaged).unwrap();
            fs::write(&wal_path, &wal).unwrap();
            let mut gateway = Gateway::start(PROGRAM, dir.path(), "").unwrap();
            gateway.check_serves().unwrap();
            // The write-ahead log may hold the damaged pages in whole: then nothing is damaged.
            if gateway.log().contains("corrupt-") {
                let aside = set_aside(&data, name);
                let aside_wal = PathBuf::from(format!("{}-wal", aside.display()));
                assert!(fs::read(&aside).unwrap() == damaged, "{name}, {what}: the database is not what it was");
                assert!(fs::read(&aside_wal).unwrap() == wal, "{name}, {what}: the write-ahead log is not what it was");
                fs::remove_file(aside).unwrap();
                fs::remove_file(aside_wal).unwrap();
            } else {
                assert!(!what.contains("no database"), "{name}, {what}: nothing was noticed");
            }
            gateway.kill().unwrap();
            for companion in ["-wal", "-shm"] {
                let _ = fs::remove_file(data.join(format!("{name}{companion}")));
            }
        }
    }
}

// A file that is no model, or one without its contract, is refused before anything is published, with status 2 and what to
// do.
#[test]
fn files_that_are_no_models() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.onnx");
    let push = |bytes: &[u8], says: &[&str]| {
        fs::write(&path, bytes).unwrap();
        // Nothing listens there: the file is refused first.
        let told = fails(&["model", "push", path.to_str().unwrap(), "--broker", "127.0.0.1:1"], 2, says);
        assert!(told.contains(path.to_str().unwrap()), "{told}");
    };
    push(&b"<html>404 Not Found</html>".repeat(10), &["ONNX"]);
    push(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", &["ONNX"]);
    push(b"", &["ONNX"]);
    // A valid ONNX file (ir_version 8, an empty graph) that knows nothing of the contract.
    push(&[0x08, 0x08, 0x3A, 0x00], &["millwright.channels", "metadata_props"]);
    fails(&["model", "push", "/no/such/model.onnx"], 2, &["/no/such/model.onnx"]);
}

// SIGTERM under full load ends with status 0, everything acknowledged is in the log, and the next start finds nothing to
// repair.
#[test]
fn sigterm_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), "").unwrap();
    let publishers: Vec<Publisher> = (0..3)
        .map(|n| {
            let message = move |message: usize| format!("{n}/{message}").into_bytes();
            let publisher = Publisher::start(&format!("raw-{n}"), &format!("raw/{n}"), 64, message);
            publisher.progress.allow(usize::MAX);
            publisher.progress.set_gateway(Some(gateway.mqtt));
            publisher
        })
        .collect();
    wait_for("some load", || publishers.iter().all(|p| p.progress.acknowledged() > 500).then_some(())).unwrap();
    let data = gateway.data_dir();
    assert_eq!(gateway.terminate().unwrap(), Some(0));
    publishers.iter().for_each(|publisher| publisher.progress.set_gateway(None));
    let log = read_log_after(&data, 0).unwrap();
    for publisher in &publishers {
        let n = publisher.topic.strip_prefix("raw/").unwrap();
        let mut next = 0;
        for (_, _, payload) in log.iter().filter(|(_, topic, _)| *topic == publisher.topic) {
            next += usize::from(*payload == format!("{n}/{next}").into_bytes());
        }
        let acknowledged = publisher.progress.acknowledged();
        assert!(next >= acknowledged, "{acknowledged} acknowledged, {next} in the log");
    }
    let wal = fs::metadata(data.join("log.db-wal")).map_or(0, |wal| wal.len());
    assert_eq!(wal, 0, "the write-ahead log was not folded in");
    let gateway = Gateway::start(PROGRAM, dir.path(), "").unwrap();
    assert!(!gateway.log().contains("corrupt"), "{}", gateway.log());
}
