//! A model is replaced while telemetry flows, and a bad one is refused.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use harness::client::{Client, Connect};
use harness::gateway::{Gateway, run};
use harness::machine::Recording;
use harness::publisher::Publisher;
use harness::wait_for;
use millwright_firmware_sim::machine::MachineKind;
use millwright_models::manifest::CHUNK_BYTES_MAX;
use millwright_models::{Manifest, ModelName, Params, Subject, commission::commission_subject};
use serde_json::Value;

use crate::PROGRAM;

/// Rows that the gateway learns from before it scores.
const COMMISSIONING: usize = 400;
/// Without shadow and trial: what is pushed scores at once.
const CONFIG: &str = "[commissioning]\nsamples = 400\nextend = false\n[models]\nshadow_s = 0\ntrial_s = 0\n";
const STATE: &str = "mw/v1/model/pump-1/state/gw-1";

/// A model of the machine's own normal, as a file.
fn model(machine: &Recording, version: u64, window: usize) -> Vec<u8> {
    let channels = machine.channel_names();
    let subject = Subject::new("pump-1", version, &channels);
    commission_subject(&subject, &machine.matrix(600), &Params { window, ..Params::default() }).unwrap().onnx
}

fn model_file(dir: &Path, bytes: &[u8]) -> PathBuf {
    let path = dir.join("model.onnx");
    std::fs::write(&path, bytes).unwrap();
    path
}

fn push(gateway: &Gateway, file: &Path) -> Output {
    run(PROGRAM, &["model", "push", file.to_str().unwrap(), "--broker", &gateway.mqtt.to_string()]).unwrap()
}

fn telemetry(gateway: &Gateway, machine: &Recording) -> Publisher {
    let recording = machine.clone();
    let publisher = Publisher::start("plc", &machine.topic(), 64, move |row| recording.frame(row));
    publisher.progress.set_gateway(Some(gateway.mqtt));
    publisher
}

/// Waits until so many rows are folded, and checks that each was scored once, except those learned from.
fn check_scored(gateway: &Gateway, rows: usize) {
    let counters = wait_for("the rows to be folded", || {
        let counters = gateway.asset("pump-1").ok()??["counters"].clone();
        (counters["samples"].as_u64()? >= rows as u64).then_some(counters)
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}\n{}", gateway.asset("pump-1"), gateway.log()));
    assert_eq!(
        (&counters["samples"], &counters["scored"]),
        (&rows.into(), &(rows - COMMISSIONING).into()),
        "{counters}"
    );
    assert_eq!((&counters["score_errors"], &counters["gaps"]), (&0.into(), &0.into()), "{counters}");
}

fn version(gateway: &Gateway) -> Option<u64> {
    gateway.asset("pump-1").ok()??.pointer("/model/version")?.as_u64()
}

fn wait_for_version(gateway: &Gateway, wanted: u64) {
    wait_for("the model to score", || (version(gateway)? == wanted).then_some(()))
        .unwrap_or_else(|error| panic!("{error}: version {:?}, not {wanted}", version(gateway)));
}

/// The retained outcome of the last update.
fn state(gateway: &Gateway) -> Value {
    let mut late = Client::connect(gateway.mqtt, &Connect::new("late")).unwrap();
    late.subscribe("mw/v1/model/+/state/+", 1).unwrap();
    let delivery = late.next_on(STATE).unwrap();
    serde_json::from_slice(&delivery.payload).unwrap()
}

// Models pushed while telemetry flows, one of them with a longer window, take over without a pause: every sample is scored,
// none twice; health names the new model, its state topic says active; and it is still the one that scores after a restart
// and after a kill.
#[test]
fn models_are_swapped_while_telemetry_flows() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    let machine = Recording::of("pump-1", MachineKind::Pump, 11, 12_000, None);
    let publisher = telemetry(&gateway, &machine);
    publisher.progress.allow(500);
    wait_for_version(&gateway, 1);

    let flowing = AtomicBool::new(true);
    std::thread::scope(|scope| {
        // About 1,000 rows a second for as long as the models are pushed.
        scope.spawn(|| {
            let mut until = 500;
            while flowing.load(Ordering::SeqCst) && until + 10 < machine.rows.len() - 1_000 {
                until += 10;
                publisher.progress.allow(until);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        for (new, window) in [(2, 20), (3, 60), (4, 10)] {
            let before = publisher.progress.acknowledged();
            let pushed = push(&gateway, &model_file(dir.path(), &model(&machine, new, window)));
            assert!(pushed.status.success(), "{pushed:?}");
            let told = String::from_utf8_lossy(&pushed.stdout).into_owned();
            assert!(told.contains(&format!("pump-1 v{new}")) && told.contains("active"), "{told}");
            let during = publisher.progress.acknowledged();
            assert!(during > before, "no telemetry flowed while version {new} was pushed");
            wait_for_version(&gateway, new);
            let behind = during + 100;
            wait_for("telemetry to go on", || (publisher.progress.acknowledged() > behind).then_some(())).unwrap();
        }
        flowing.store(false, Ordering::SeqCst);
    });
    // On a busy machine it may not have come to what it was allowed before.
    let mut rows = publisher.progress.allowed() + 200;
    publisher.progress.allow(rows);
    wait_for("the publisher", || (publisher.progress.acknowledged() >= rows).then_some(())).unwrap();
    check_scored(&gateway, rows);
    let health = gateway.asset("pump-1").unwrap().unwrap();
    assert_eq!((&health["model"]["commissioned"], &health["state"]), (&false.into(), &"ok".into()), "{health}");
    let told = state(&gateway);
    assert_eq!((&told["state"], &told["version"], &told["assets"]), (&"active".into(), &4.into(), &1.into()), "{told}");
    assert_eq!(told["sha256"], health["model"]["sha256"]);

    for killed in [false, true] {
        publisher.progress.set_gateway(None);
        if killed {
            gateway.kill().unwrap();
        } else {
            assert_eq!(gateway.terminate().unwrap(), Some(0));
        }
        gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
        publisher.progress.set_gateway(Some(gateway.mqtt));
        rows += 100;
        publisher.progress.allow(rows);
        check_scored(&gateway, rows);
        assert_eq!(version(&gateway), Some(4), "killed: {killed}");
        assert_eq!(state(&gateway)["state"], "active");
    }
}

/// Publishes a manifest and chunks as they are, and returns the outcome.
fn publish_raw(gateway: &Gateway, version: u64, file: &[u8], chunk: &[u8]) -> Value {
    let name = ModelName::parse("pump-1").unwrap();
    let manifest = Manifest::describe(name, version, file, CHUNK_BYTES_MAX, None).unwrap();
    let mut fleet = Client::connect(gateway.mqtt, &Connect::new("fleet")).unwrap();
    fleet.publish(&manifest.chunk_topic(0), chunk, true).unwrap();
    let mut observer = Client::connect(gateway.mqtt, &Connect::new("observer")).unwrap();
    observer.subscribe(STATE, 1).unwrap();
    fleet.publish(&manifest.topic(), &manifest.to_json(), true).unwrap();
    loop {
        let delivery = observer.next_delivery().unwrap();
        let told: Value = serde_json::from_slice(&delivery.payload).unwrap();
        if !delivery.retain && told["version"] == version {
            return told;
        }
    }
}

// A model that is not ONNX, whose chunk is not what the manifest says, that needs a channel the asset lacks or that is not
// newer is refused: the state topic gives the reason, `model push` prints it and ends with status 1, and the model before it
// scores every sample meanwhile. The same file sent whole is taken afterwards.
#[test]
fn bad_models_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    let machine = Recording::of("pump-1", MachineKind::Pump, 12, 1_500, None);
    let publisher = telemetry(&gateway, &machine);
    let mut rows = 500;
    publisher.progress.allow(rows);
    wait_for_version(&gateway, 1);
    let good = model(&machine, 5, 20);
    assert!(push(&gateway, &model_file(dir.path(), &good)).status.success());
    wait_for_version(&gateway, 5);
    let mut old_runs_on = |what: &str| {
        rows += 50;
        publisher.progress.allow(rows);
        check_scored(&gateway, rows);
        assert_eq!(version(&gateway), Some(5), "{what}");
    };

    let rejected = |told: &Value, reason: &str| {
        let given = told["reason"].as_str().unwrap_or_default();
        assert_eq!(told["state"], "rejected", "{told}");
        assert!(given.contains(reason), "{given} does not say {reason}");
        assert_eq!(&state(&gateway), told, "the outcome is not retained");
    };
    let noise = b"this is no model".repeat(100);
    rejected(&publish_raw(&gateway, 6, &noise, &noise), "ONNX");
    old_runs_on("not ONNX");
    let newer = model(&machine, 7, 20);
    let mut damaged = newer.clone();
    damaged[100] ^= 1;
    rejected(&publish_raw(&gateway, 7, &newer, &damaged), "chunk");
    old_runs_on("a damaged chunk");
    rejected(&publish_raw(&gateway, 8, &newer, &newer), "manifest");
    old_runs_on("another version than its manifest says");

    let other = Recording::of("pump-1", MachineKind::Compressor, 1, 600, None);
    for (file, reason) in [
        (model(&other, 9, 20), "has never sent the channel"),
        (model(&machine, 4, 20), "not newer than version 5"),
        (model(&machine, 5, 25), "not newer than version 5"),
    ] {
        let pushed = push(&gateway, &model_file(dir.path(), &file));
        let told = String::from_utf8_lossy(&pushed.stdout).into_owned();
        assert_eq!(pushed.status.code(), Some(1), "{pushed:?}");
        assert!(told.contains("rejected") && told.contains(reason), "{told} does not say {reason}");
        rejected(&state(&gateway), reason);
        old_runs_on(reason);
    }
    // What is active already may be pushed again.
    assert!(push(&gateway, &model_file(dir.path(), &good)).status.success());
    old_runs_on("pushed again");
    // What was refused for a damaged chunk is taken once it arrives whole.
    let pushed = push(&gateway, &model_file(dir.path(), &newer));
    assert!(pushed.status.success(), "{pushed:?}");
    wait_for_version(&gateway, 7);
}
