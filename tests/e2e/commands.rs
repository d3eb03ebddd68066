//! The commands that people run: demo, evaluate, replay, status.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use harness::client::{Client, Connect};
use harness::gateway::{Gateway, run};
use harness::machine::{FIRST_US, Recording};
use millwright_firmware_sim::fault::Fault;
use millwright_firmware_sim::machine::MachineKind;
use serde_json::Value;

use crate::PROGRAM;

/// Runs a command that must succeed, and gives its standard output.
fn succeeds(arguments: &[&str]) -> String {
    let output = run(PROGRAM, arguments).unwrap();
    let (told, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{arguments:?}\n{told}\n{errors}");
    told.into_owned()
}

/// Exactly one JSON object.
fn json(text: &str) -> Value {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(value.is_object(), "{text}");
    value
}

// The demo ends with status 0 and one JSON object on stdout: every injected fault was flagged after it began, with a sensor
// that belongs to it, and no healthy machine raised an alert.
#[test]
fn the_demo_flags_every_fault() {
    let summary = json(&succeeds(&["demo", "--for", "25s", "--json", "--seed", "5"]));
    assert_eq!((&summary["ok"], &summary["false_alarms"], &summary["seed"]), (&true.into(), &0.into(), &5.into()));
    assert_eq!(summary["faults_injected"], summary["faults_flagged"], "{summary}");
    let machines = summary["machines"].as_array().unwrap();
    let faulty = machines.iter().filter(|machine| !machine["fault"].is_null());
    assert_eq!(faulty.clone().count() as u64, summary["faults_injected"].as_u64().unwrap());
    assert!(faulty.clone().count() >= 4 && faulty.clone().count() < machines.len(), "{summary}");
    for machine in faulty {
        assert!(machine["delay_s"].as_f64().unwrap() >= 0.0, "{machine}");
        assert!(!machine["top_sensors"].as_array().unwrap().is_empty(), "{machine}");
    }
}

/// A machine as a SKAB file: `;` between the cells, labels at the end. Rows from `fault` on are labelled as anomalous.
fn skab_file(path: &Path, machine: &Recording, fault: usize) {
    let mut text = format!("datetime;{};anomaly;changepoint\n", machine.channels.join(";"));
    for (row, values) in machine.rows.iter().enumerate() {
        let second = (machine.time_us(row) - FIRST_US) / 1_000_000;
        let (minute, second) = (second / 60, second % 60);
        let values: Vec<String> = values.iter().map(f32::to_string).collect();
        let label = u8::from(row >= fault);
        let change = u8::from(row == fault);
        text.push_str(&format!(
            "2020-03-09 {:02}:{:02}:{second:02};{};{label}.0;{change}.0\n",
            10 + minute / 60,
            minute % 60,
            values.join(";")
        ));
    }
    fs::write(path, text).unwrap();
}

/// The lines of a flags file: row, score, flag.
fn flags(path: &Path) -> Vec<(usize, f64, bool)> {
    let text = fs::read_to_string(path).unwrap();
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("row,score,flag"));
    let parse = |line: &str| {
        let cells: Vec<&str> = line.split(',').collect();
        assert!(cells.len() == 3 && ["0", "1"].contains(&cells[2]), "{line}");
        (cells[0].parse().unwrap(), cells[1].parse().unwrap(), cells[2] == "1")
    };
    lines.map(parse).collect()
}

/// F1 and the rates of false and missed alarms in percent, as SKAB defines them: binary, over all rows given.
fn rates(rows: impl Iterator<Item = (bool, bool)>) -> (f64, f64, f64) {
    let mut counts: HashMap<(bool, bool), f64> = HashMap::new();
    for (anomaly, flag) in rows {
        *counts.entry((anomaly, flag)).or_default() += 1.0;
    }
    let count = |anomaly, flag| counts.get(&(anomaly, flag)).copied().unwrap_or_default();
    let (hit, missed, wrong, quiet) = (count(true, true), count(true, false), count(false, true), count(false, false));
    (2.0 * hit / (2.0 * hit + wrong + missed), 100.0 * wrong / (wrong + quiet), 100.0 * missed / (missed + hit))
}

fn check_rates(told: &Value, (f1, far, mar): (f64, f64, f64)) {
    for (name, expected) in [("f1", f1), ("far", far), ("mar", mar)] {
        let found = told[name].as_f64().unwrap();
        assert!((found - expected).abs() < 1e-6, "{name}: {found}, recomputed {expected}");
    }
}

// `evaluate` writes one flag for every row after the commissioning rows, in order, and its rates are those of the flags:
// per file, and over all rows of all files together.
#[test]
fn evaluate_writes_what_it_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (rows, fault, commission) = (900, 600, 400);
    let machines = [
        Recording::of("a", MachineKind::Pump, 21, rows, Some((Fault::BearingWear, fault, 60.0))),
        Recording::of("b", MachineKind::Fan, 22, rows, Some((Fault::Overheating, fault, 60.0))),
    ];
    let files: Vec<PathBuf> =
        machines.iter().map(|machine| dir.path().join(format!("{}.csv", machine.asset))).collect();
    for (path, machine) in files.iter().zip(&machines) {
        skab_file(path, machine, fault);
    }
    let flags_dir = dir.path().join("flags");
    let (a, b, to) = (files[0].to_str().unwrap(), files[1].to_str().unwrap(), flags_dir.to_str().unwrap());
    let told = json(&succeeds(&["evaluate", "--format", "skab", "--commission", "400", "--flags", to, "--json", a, b]));
    let mut all = Vec::new();
    for (index, path) in files.iter().enumerate() {
        let name = path.file_name().unwrap().to_str().unwrap();
        let flags = flags(&flags_dir.join(format!("{name}.csv")));
        let numbers: Vec<usize> = flags.iter().map(|(row, _, _)| *row).collect();
        assert_eq!(numbers, (commission..rows).collect::<Vec<_>>());
        let judged: Vec<(bool, bool)> = flags.iter().map(|(row, _, flag)| (*row >= fault, *flag)).collect();
        assert_eq!(told["files"][index]["path"], path.to_str().unwrap());
        check_rates(&told["files"][index], rates(judged.iter().copied()));
        all.extend(judged);
    }
    check_rates(&told["overall"], rates(all.into_iter()));
    let f1 = told["overall"]["f1"].as_f64().unwrap();
    assert!(f1 > 0.7, "faults this plain are found: {told}");
    // Wrong use is told as such.
    for arguments in [vec!["evaluate", "--format", "skab"], vec!["evaluate", "--format", "nonsense", a]] {
        assert_eq!(run(PROGRAM, &arguments).unwrap().status.code(), Some(2), "{arguments:?}");
    }
    let short = run(PROGRAM, &["evaluate", "--format", "skab", "--commission", "900", a]).unwrap();
    assert_eq!(short.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&short.stderr).contains("--commission"), "{short:?}");
}

// `replay` sends a recording through a real connection, the log and the pipeline, and reports the alert of its fault; all
// rows after commissioning were scored.
#[test]
fn replay_raises_the_alert() {
    let dir = tempfile::tempdir().unwrap();
    let (rows, fault) = (900, 600);
    let machine = Recording::of("press-4", MachineKind::Gearbox, 5, rows, Some((Fault::BearingWear, fault, 60.0)));
    let path = dir.path().join("press-4.csv");
    skab_file(&path, &machine, fault);
    let data = dir.path().join("kept");
    let told = json(&succeeds(&["replay", "--json", "--data-dir", data.to_str().unwrap(), path.to_str().unwrap()]));
    let file = &told["files"][0];
    assert_eq!((&file["asset"], &file["rows"]), (&"press-4".into(), &rows.into()), "{file}");
    assert_eq!(file["scored"], rows - 400, "{file}");
    assert_eq!((&file["labelled"], &file["labelled_alerted"]), (&1.into(), &1.into()), "{file}");
    let alerts = file["alerts"].as_array().unwrap();
    let in_fault = |alert: &&Value| {
        // 2020-03-09 10:00:00 UTC.
        let row = (alert["raised_us"].as_i64().unwrap() - 1_583_748_000_000_000) / 1_000_000;
        (fault as i64..rows as i64).contains(&row)
    };
    assert!(alerts.iter().any(|alert| in_fault(&alert)), "{file}");
    assert!(data.join("log.db").exists());
}

// `status` of a running gateway shows what it does, as text and as JSON, found by address or by configuration; without a
// gateway it says so with status 1.
#[test]
fn status_of_a_running_gateway() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), "").unwrap();
    let machine = Recording::of("pump-1", MachineKind::Pump, 3, 20, None);
    let mut client = Client::connect(gateway.mqtt, &Connect::new("plc")).unwrap();
    for frame in machine.frames() {
        client.publish(&machine.topic(), &frame, false).unwrap();
    }
    let http = gateway.http.to_string();
    harness::wait_for("the machine in the status", || {
        let status = json(&succeeds(&["status", "--http", &http, "--json"]));
        let asset = status.pointer("/pipeline/assets/0")?.clone();
        (asset["asset"] == "pump-1" && asset["samples"] == 20).then_some(())
    })
    .unwrap();
    let text = succeeds(&["status", "--http", &http]);
    for word in ["gw-1", "pump-1", "learning 20 of 3600"] {
        assert!(text.contains(word), "{word} is missing: {text}");
    }
    let config = format!("[gateway]\nid = \"gw-1\"\n[http]\nlisten = \"{http}\"\n");
    let path = dir.path().join("by-config.toml");
    fs::write(&path, config).unwrap();
    assert!(succeeds(&["status", "--config", path.to_str().unwrap()]).contains("pump-1"));
    gateway.kill().unwrap();
    let none = run(PROGRAM, &["status", "--http", &http]).unwrap();
    assert_eq!(none.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&none.stderr).contains("[http] listen"), "{none:?}");
}

/// The recordings of the benchmark: `MILLWRIGHT_DATA`, or `../shared/data` beside the checkout.
fn skab(folder: &str) -> Option<Vec<String>> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let data = std::env::var_os("MILLWRIGHT_DATA").map_or(beside, PathBuf::from);
    let folder = data.join("skab").join(folder);
    let Ok(entries) = fs::read_dir(&folder) else {
        eprintln!("skipped: {} is not there; MILLWRIGHT_DATA names the folder that holds `skab`", folder.display());
        return None;
    };
    let mut files: Vec<String> = entries.map(|entry| entry.unwrap().path().display().to_string()).collect();
    files.retain(|file| file.ends_with(".csv"));
    files.sort();
    (!files.is_empty()).then_some(files)
}

fn evaluate(files: &[String], commission: &str) -> Value {
    let mut arguments = vec!["evaluate", "--format", "skab", "--json", "--commission", commission];
    arguments.extend(files.iter().map(String::as_str));
    json(&succeeds(&arguments))
}

// On the valve recordings of the SKAB benchmark, F1 is at least 0.84 with at most 15 % false alarms.
#[test]
fn skab_valve() {
    let Some(files) = skab("valve1") else { return };
    let overall = &evaluate(&files, "400")["overall"];
    let (f1, far) = (overall["f1"].as_f64().unwrap(), overall["far"].as_f64().unwrap());
    assert!(f1 >= 0.84 && far <= 15.0, "{overall}");
}

// On the recording without anomalies, at most 0.5 % of the rows after a commissioning of 4,000 rows are flagged.
#[test]
fn skab_without_anomalies() {
    let Some(files) = skab("anomaly-free") else { return };
    let overall = &evaluate(&files, "4000")["overall"];
    assert!(overall["far"].as_f64().unwrap() <= 0.5, "{overall}");
}
