//! `model test`: a model over the telemetry that a running gateway has stored.

use std::path::{Path, PathBuf};

use harness::client::{Client, Connect};
use harness::gateway::{Gateway, run, write_config};
use harness::machine::Recording;
use harness::publisher::Publisher;
use harness::wait_for;
use millwright_firmware_sim::fault::Fault;
use millwright_firmware_sim::machine::MachineKind;
use millwright_models::{Params, Subject, commission::commission_subject};
use serde_json::Value;

use crate::PROGRAM;

const CONFIG: &str = "[commissioning]\nsamples = 400\nextend = false\n";
const ROWS: usize = 1_500;
/// Rows of a window of the gateway's own models.
const WINDOW: usize = 20;

/// Sends a whole recording and waits until it is folded.
fn send(gateway: &Gateway, machine: &Recording) {
    let recording = machine.clone();
    let publisher = Publisher::start("plc", &machine.topic(), 64, move |row| recording.frame(row));
    publisher.progress.set_gateway(Some(gateway.mqtt));
    publisher.progress.allow(machine.rows.len());
    wait_for("the rows to be folded", || {
        let asset = gateway.asset(&machine.asset).ok()??;
        (asset["counters"]["samples"].as_u64()? >= machine.rows.len() as u64).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}\n{}", gateway.asset(&machine.asset), gateway.log()));
}

/// The current alert of an asset as its subscribers get it: it is in the log then, and so is its event.
fn alert(gateway: &Gateway, asset: &str) -> Value {
    let topic = format!("mw/v1/alert/{asset}");
    let mut client = Client::connect(gateway.mqtt, &Connect::new("crew")).unwrap();
    client.subscribe(&topic, 1).unwrap();
    serde_json::from_slice(&client.next_on(&topic).unwrap().payload).unwrap()
}

/// The file of the model that the gateway learned.
fn learned(gateway: &Gateway, asset: &str) -> PathBuf {
    let sha256 = gateway.asset(asset).unwrap().unwrap()["model"]["sha256"].as_str().unwrap().to_owned();
    let files = std::fs::read_dir(gateway.data_dir().join("models")).unwrap();
    let named = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().contains(&sha256);
    files.map(|entry| entry.unwrap().path()).find(named).unwrap()
}

/// Runs `model test` on the gateway's configuration; gives the exit status, stdout and stderr.
fn model_test(dir: &Path, file: &Path, more: &[&str]) -> (Option<i32>, String, String) {
    let config = dir.join("gateway.toml");
    let mut arguments = vec!["model", "test", file.to_str().unwrap(), "--config", config.to_str().unwrap()];
    arguments.extend(more);
    let output = run(PROGRAM, &arguments).unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

fn rehearse(dir: &Path, file: &Path, more: &[&str]) -> Value {
    let (status, told, errors) = model_test(dir, file, &[more, &["--json"]].concat());
    assert_eq!(status, Some(0), "{told}{errors}");
    serde_json::from_str(&told).unwrap_or_else(|error| panic!("{error}: {told}"))
}

/// A model of the machine's own normal that alarms at so many times its highest normal score.
fn model(dir: &Path, machine: &Recording, threshold_multiplier: f64) -> PathBuf {
    let channels = machine.channel_names();
    let params = Params { threshold_multiplier, ..Params::default() };
    let subject = Subject::new("candidate", 2, &channels);
    let path = dir.join(format!("candidate-{threshold_multiplier}.onnx"));
    std::fs::write(&path, commission_subject(&subject, &machine.matrix(400), &params).unwrap().onnx).unwrap();
    path
}

// Over the log of the running gateway, the model that the gateway learned would have raised the very alert that the gateway
// raised: the same row, the same sensors. Every row is counted, and scored from the first full window on.
#[test]
fn the_learned_model_would_have_raised_the_same_alert() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    let machine = Recording::of("pump-1", MachineKind::Pump, 31, ROWS, Some((Fault::BearingWear, 900, 60.0)));
    send(&gateway, &machine);
    let raised = alert(&gateway, "pump-1");
    let told = rehearse(dir.path(), &learned(&gateway, "pump-1"), &[]);
    let asset = &told["assets"][0];
    assert_eq!((&asset["asset"], &asset["rows"]), (&"pump-1".into(), &ROWS.into()), "{told}");
    assert_eq!(asset["scored"], ROWS - (WINDOW - 1), "{told}");
    assert_eq!((&told["alerts"], &told["stored_alerts"]), (&1.into(), &1.into()), "{told}");
    assert_eq!(told["stored_models"], serde_json::json!(["pump-1 v1"]), "{told}");
    let rehearsed = &asset["alerts"][0];
    assert_eq!(rehearsed["raised_us"], raised["raised_us"], "{told}\n{raised}");
    assert_eq!(rehearsed["onset_us"], raised["onset_us"]);
    assert!(asset["peak_score"].as_f64().unwrap() >= rehearsed["peak_score"].as_f64().unwrap(), "{told}");
    assert_eq!(rehearsed["channels"].as_array().unwrap().len(), 3, "{told}");
    assert!(told["inference_us"].as_f64().unwrap() > 0.0 && told["fold_us_per_row"].as_f64().unwrap() > 0.0, "{told}");
    let notes = told["notes"].to_string();
    assert!(notes.contains("goes back only to"), "{notes}");
    gateway.check_serves().unwrap();
}

// A candidate for several machines that alarms is told from one that does not: alerts by asset, the summary in words, and
// status 0 for both; a topic full of nonsense is counted and does not matter.
#[test]
fn a_model_that_alarms_is_told_from_one_that_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    let faulty = Recording::of("pump-1", MachineKind::Pump, 32, ROWS, Some((Fault::BearingWear, 900, 60.0)));
    let healthy = Recording::of("pump-2", MachineKind::Pump, 32, ROWS, None);
    send(&gateway, &faulty);
    send(&gateway, &healthy);
    alert(&gateway, "pump-1");
    let mut device = Client::connect(gateway.mqtt, &Connect::new("device")).unwrap();
    device.publish("mw/v1/telemetry/pump-2", b"nonsense", false).unwrap();

    let alarming = model(dir.path(), &faulty, 2.5);
    let (status, text, errors) = model_test(dir.path(), &alarming, &["--assets", "pump-*", "--days", "1"]);
    assert_eq!(status, Some(0), "{errors}");
    let summary = "candidate v2 would have raised 1 alert on 1 of 2 assets in the last 1 day";
    assert!(text.contains(summary) && text.contains("the gateway raised 1 there, with pump-1 v1"), "{text}");
    assert!(text.contains("still up") && text.contains("1 message could not be decoded"), "{text}");
    let told = rehearse(dir.path(), &alarming, &["--assets", "pump-1", "--assets", "pump-2"]);
    let raised: Vec<_> =
        told["assets"].as_array().unwrap().iter().map(|asset| asset["alerts_raised"].clone()).collect();
    assert_eq!(raised, [1, 0], "{told}");

    let told = rehearse(dir.path(), &model(dir.path(), &faulty, 100.0), &["--assets", "pump-*"]);
    assert_eq!(
        (&told["alerts"], &told["stored_alerts"], &told["rows"]),
        (&0.into(), &1.into(), &(2 * ROWS).into()),
        "{told}"
    );
    assert!(told["assets"][0]["peak_score"].as_f64().unwrap() < 1.0, "{told}");

    // For the asset called like the model there is nothing, which is an answer as well.
    let told = rehearse(dir.path(), &alarming, &[]);
    assert_eq!((&told["rows"], &told["alerts"]), (&0.into(), &0.into()), "{told}");
    assert!(told["notes"].to_string().contains("name others with --assets"), "{told}");
    gateway.check_serves().unwrap();
}

// A machine without one of the model's channels is not scored, and not learned either: the channel is named.
#[test]
fn a_missing_channel_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    send(&gateway, &Recording::of("pump-1", MachineKind::Pump, 33, 600, None));
    let compressor = Recording::of("compressor-1", MachineKind::Compressor, 33, 600, None);
    let told = rehearse(dir.path(), &model(dir.path(), &compressor, 2.5), &["--assets", "pump-1"]);
    let asset = &told["assets"][0];
    assert_eq!((&asset["rows"], &asset["scored"], &told["alerts"]), (&600.into(), &0.into(), &0.into()), "{told}");
    let missing = asset["missing_channel"].as_str().unwrap();
    assert!(compressor.channels.contains(&missing) && told["notes"].to_string().contains(missing), "{told}");
}

// No such model, no model, no configuration and no log are wrong use: status 2, the reason on stderr, nothing made.
#[test]
fn wrong_use_is_refused_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Recording::of("pump-1", MachineKind::Pump, 34, 600, None);
    let good = model(dir.path(), &machine, 2.5);
    let refused = |file: &Path, more: &[&str], reason: &str| {
        let (status, told, errors) = model_test(dir.path(), file, more);
        assert_eq!((status, told.as_str()), (Some(2), ""), "{errors}");
        assert!(errors.contains(reason), "{errors} does not say {reason}");
    };
    refused(&good, &[], "gateway.toml");
    write_config(dir.path(), CONFIG).unwrap();
    refused(&good, &[], "there is no log at");
    assert!(!dir.path().join("data").exists(), "a test made a data directory");
    refused(&dir.path().join("none.onnx"), &[], "none.onnx");
    refused(&dir.path().join("gateway.toml"), &[], "ONNX");
    refused(&good, &["--days", "0"], "--days");
    let mut truncated = std::fs::read(&good).unwrap();
    truncated.truncate(truncated.len() / 2);
    let broken = dir.path().join("broken.onnx");
    std::fs::write(&broken, truncated).unwrap();
    refused(&broken, &[], "broken.onnx");
}
