//! `millwright export` and `GET /api/v1/export`: what was published comes out, exactly, beside a running gateway and without one.

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use harness::client::{Client, Connect};
use harness::gateway::{Gateway, run, write_config};
use harness::http::{Answer, Http};
use harness::machine::{FIRST_US, Recording};
use harness::publisher::Publisher;
use harness::wait_for;
use millwright::export::MEMORY_BYTES_MAX;
use millwright_broker::log::{Append, Log, LogConfig};
use millwright_broker::message::{Message, QoS};
use millwright_broker::topic::TopicName;
use millwright_firmware_sim::fault::Fault;
use millwright_firmware_sim::machine::MachineKind;
use serde_json::{Value, json};

use crate::PROGRAM;

const CONFIG: &str = "[commissioning]\nsamples = 400\nextend = false\n";
const ROWS: usize = 600;
const SECOND_US: i64 = 1_000_000;

/// Sends rows until there are so many, and waits until they are folded.
fn send(gateway: &Gateway, publisher: &Publisher, machine: &Recording, until: usize) {
    publisher.progress.set_gateway(Some(gateway.mqtt));
    publisher.progress.allow(until);
    wait_for("the rows to be folded", || {
        let asset = gateway.asset(&machine.asset).ok()??;
        (asset["counters"]["samples"].as_u64()? >= until as u64).then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}\n{}", gateway.log()));
}

fn publish(machine: &Recording) -> Publisher {
    let recording = machine.clone();
    Publisher::start(&format!("plc-{}", machine.asset), &machine.topic(), 64, move |row| recording.frame(row))
}

/// Runs `export` into a file and gives its content and what it told.
fn export(dir: &Path, name: &str, more: &[&str]) -> (Vec<u8>, Value) {
    let (config, out) = (dir.join("gateway.toml"), dir.join(name));
    let mut arguments = vec!["export", "--config", config.to_str().unwrap(), "--out", out.to_str().unwrap(), "--json"];
    arguments.extend(more);
    let output = run(PROGRAM, &arguments).unwrap();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{more:?}: {errors}");
    assert!(!part(&out).exists(), "the unfinished file is gone");
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    let bytes = std::fs::read(&out).unwrap();
    assert_eq!(told["bytes"], bytes.len(), "{told}");
    (bytes, told)
}

fn part(out: &Path) -> PathBuf {
    PathBuf::from(format!("{}.part", out.display()))
}

/// `2023-11-14T22:13:20Z` and the seconds after it, within the hours of a test.
fn time(second: usize) -> String {
    let of_day = 22 * 3_600 + 13 * 60 + 20 + second;
    format!("2023-11-14T{:02}:{:02}:{:02}Z", of_day / 3_600, of_day / 60 % 60, of_day % 60)
}

fn cell(value: f32) -> String {
    if value.is_finite() { value.to_string() } else { String::new() }
}

/// The table of a machine's rows, made by hand.
fn table(machine: &Recording, rows: std::ops::Range<usize>) -> String {
    let mut text = format!("time,{}\n", machine.channels.join(","));
    for row in rows {
        let cells: Vec<String> = machine.rows[row].iter().map(|value| cell(*value)).collect();
        text.push_str(&format!("{},{}\n", time(row), cells.join(",")));
    }
    text
}

/// The table of ten rows each, made by hand, without the score.
fn downsampled(machine: &Recording, buckets: usize) -> Vec<String> {
    let mean = |values: &[f32]| (values.iter().copied().map(f64::from).sum::<f64>() / values.len() as f64) as f32;
    let series = |bucket: usize, column: usize| {
        let rows = &machine.rows[bucket * 10..bucket * 10 + 10];
        let values: Vec<f32> = rows.iter().map(|row| row[column]).filter(|value| value.is_finite()).collect();
        let extreme = |pick: fn(f32, f32) -> f32| values.iter().copied().reduce(pick).unwrap_or(f32::NAN);
        [mean(&values), extreme(f32::min), extreme(f32::max)].map(cell).join(",")
    };
    let line = |bucket: usize| {
        let all: Vec<String> = (0..machine.channels.len()).map(|column| series(bucket, column)).collect();
        format!("{},{}", time(bucket * 10), all.join(","))
    };
    (0..buckets).map(line).collect()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

// While a gateway takes telemetry an export holds all that was acknowledged before it began; when all is sent it holds exactly what
// was published, every value to the bit, as a file, on stdout and over HTTP, beside the gateway and after it has stopped. Downsampled it
// is what folding by hand gives.
#[test]
fn an_export_is_what_was_published() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    let pump = Recording::of("pump-1", MachineKind::Pump, 7, ROWS, None);
    let fan = Recording::of("fan-2", MachineKind::Fan, 8, 50, None);
    let (of_pump, of_fan) = (publish(&pump), publish(&fan));
    send(&gateway, &of_pump, &pump, 200);
    of_pump.progress.allow(ROWS);
    let acknowledged = of_pump.progress.acknowledged();
    let (while_sent, _) = export(dir.path(), "while.csv", &["--asset", "pump-1"]);
    let rows = text(&while_sent).lines().count() - 1;
    assert!(rows >= acknowledged && text(&while_sent) == table(&pump, 0..rows), "{rows} of {acknowledged} rows");
    send(&gateway, &of_pump, &pump, ROWS);
    send(&gateway, &of_fan, &fan, 50);
    drop((of_pump, of_fan));

    let (csv, told) = export(dir.path(), "pump.csv", &["--asset", "pump-1"]);
    assert_eq!(text(&csv), table(&pump, 0..ROWS));
    assert_eq!(
        (&told["rows"], &told["assets"], &told["decode_errors"]),
        (&ROWS.into(), &1.into(), &0.into()),
        "{told}"
    );
    let (both, told) = export(dir.path(), "both.csv", &[]);
    assert_eq!((&told["rows"], &told["assets"]), (&(ROWS + 50).into(), &2.into()), "{told}");
    assert!(
        text(&both).starts_with(&format!("time,asset,{}", pump.channels[0])) || text(&both).starts_with("time,asset,")
    );
    let (span, _) = export(dir.path(), "span.csv", &["--asset", "pump-1", "--from", &time(100), "--to", &time(130)]);
    assert_eq!(text(&span), table(&pump, 100..130));

    let config = dir.path().join("gateway.toml");
    let to_stdout = ["export", "--config", config.to_str().unwrap(), "--out", "-", "--asset", "pump-1"];
    assert_eq!(run(PROGRAM, &to_stdout).unwrap().stdout, csv);
    let answer = Http::new(gateway.http).get("/api/v1/export?asset=pump-1").unwrap();
    assert_eq!((answer.status, &answer.body), (200, &csv));
    assert_eq!(answer.header("content-disposition"), Some("attachment; filename=\"gw-1-readings.csv\""));
    let (parquet, told) = export(dir.path(), "pump.parquet", &["--asset", "pump-1"]);
    assert_eq!((&told["format"], &told["rows"]), (&"parquet".into(), &ROWS.into()));
    assert!(parquet.starts_with(b"PAR1") && parquet.ends_with(b"PAR1"));
    let answer = Http::new(gateway.http).get("/api/v1/export?asset=pump-1&format=parquet").unwrap();
    assert_eq!((answer.status, answer.body == parquet), (200, true));
    assert_eq!(answer.header("content-type"), Some("application/vnd.apache.parquet"));

    // The last bucket is open yet, and the others come with the next checkpoint.
    let beside = wait_for("a checkpoint", || {
        let (beside, told) = export(dir.path(), "10s.csv", &["--asset", "pump-1", "--every", "10s"]);
        (told["rows"].as_u64()? as usize >= ROWS / 10 - 1).then_some(beside)
    })
    .unwrap();
    assert_eq!(gateway.terminate().unwrap(), Some(0));
    let (stopped, _) = export(dir.path(), "stopped.csv", &["--asset", "pump-1"]);
    assert_eq!(stopped, csv);
    let (after, _) = export(dir.path(), "10s.csv", &["--asset", "pump-1", "--every", "10s"]);
    for (name, found) in [("beside", beside), ("after", after)] {
        let lines: Vec<&str> = text(&found).lines().skip(1).collect();
        let expected = downsampled(&pump, lines.len());
        assert!(lines.len() >= ROWS / 10 - 1, "{name}: {} buckets", lines.len());
        for (line, expected) in lines.iter().zip(&expected) {
            assert!(line.starts_with(&format!("{expected},")), "{name}: {line} is not {expected}");
        }
    }
}

// An alert is a row with the verdict that somebody gave it, and the verdict a row of its own.
#[test]
fn alerts_come_with_their_verdicts() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    let machine = Recording::of("pump-1", MachineKind::Pump, 31, 1_500, Some((Fault::BearingWear, 900, 60.0)));
    let publisher = publish(&machine);
    send(&gateway, &publisher, &machine, 1_500);
    let mut crew = Client::connect(gateway.mqtt, &Connect::new("crew")).unwrap();
    crew.subscribe("mw/v1/alert/pump-1", 1).unwrap();
    crew.next_on("mw/v1/alert/pump-1").unwrap();
    let alerts = Http::new(gateway.http).get("/api/v1/alerts").unwrap().json();
    let alert = &alerts["items"][0];
    let number = alert["number"].as_u64().unwrap();
    let said = json!({"verdict": "true", "comment": "outer ring, replaced"});
    let http = Http::with_token(gateway.http).unwrap();
    assert_eq!(http.json("POST", &format!("/api/v1/alerts/{number}/feedback"), &said).unwrap().status, 200);

    let (csv, told) = export(dir.path(), "alerts.csv", &["--what", "alerts"]);
    assert_eq!(told["rows"], alerts["items"].as_array().unwrap().len(), "{told}");
    let lines: Vec<&str> = text(&csv).lines().collect();
    let row = lines.iter().find(|line| line.starts_with(&format!("pump-1,{number},gw-1/{number},"))).unwrap();
    let raised = (alert["raised_us"].as_i64().unwrap() - FIRST_US) / SECOND_US;
    assert!(row.contains(&format!(",{},", time(raised as usize))) && row.contains(",true,"), "{row}");
    let (csv, _) = export(dir.path(), "feedback.csv", &["--what", "feedback", "--asset", "pump-1"]);
    let row = text(&csv).lines().nth(1).unwrap();
    assert!(row.starts_with(&format!("pump-1,{number},")) && row.ends_with("\"outer ring, replaced\""), "{row}");
    let answer = Http::new(gateway.http).get("/api/v1/export?what=feedback&asset=pump-1").unwrap();
    assert_eq!(answer.body, csv);
    let (none, told) = export(dir.path(), "none.csv", &["--what", "alerts", "--asset", "pump-9"]);
    assert_eq!((text(&none).lines().count(), told["notes"].as_array().unwrap().len()), (1, 1), "{told}");
}

// What cannot be exported leaves no file and takes none away: the error says what is wrong, with the status of wrong use, and what there is
// instead; a full disk is one too, with the status of a failure.
#[test]
fn what_cannot_be_exported_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let config = write_config(dir.path(), "").unwrap();
    log_of(&dir.path().join("data"), 3, 10, 2);
    let out = dir.path().join("kept.csv");
    std::fs::write(&out, "kept").unwrap();
    let refused = |arguments: &[&str]| {
        let mut all = vec!["export", "--config", config.to_str().unwrap()];
        all.extend(arguments);
        let output = run(PROGRAM, &all).unwrap();
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "kept", "{arguments:?}");
        assert!(!part(&out).exists(), "{arguments:?}");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let file = out.to_str().unwrap();
    for (arguments, expected) in [
        (vec!["--asset", "pomp", "--out", file], "there is `machine`"),
        (vec!["--channel", "c9", "--out", file], "there is `c0`, `c1`"),
        (vec!["--from", "2030-01-01T00:00:00Z", "--out", file], "there is nothing to export"),
        (vec!["--from", "2024-01-01T00:00:00Z", "--to", "2023-01-01T00:00:00Z", "--out", file], "the span is empty"),
        (vec!["--from", "soon", "--out", file], "`soon` is no time"),
        (vec!["--every", "7s", "--out", file], "multiple of 10s"),
        (vec!["--what", "alerts", "--every", "1h", "--out", file], "leave it out"),
        (vec!["--what", "alerts", "--out", file], "there is no state.db"),
        (vec!["--json", "--out", "-"], "choose one"),
    ] {
        let (status, errors) = refused(&arguments);
        assert!(status == Some(2) && errors.contains(expected), "{arguments:?}: {status:?} {errors}");
    }
    let (status, errors) = refused(&["--out", "/dev/full"]);
    assert!(status == Some(1) && errors.contains("there is no room"), "{status:?} {errors}");
    let nowhere = dir.path().join("no/such/folder.csv");
    let (status, errors) = refused(&["--out", nowhere.to_str().unwrap()]);
    assert!(status == Some(1) && errors.contains("make its folder first"), "{status:?} {errors}");
    let none = run(PROGRAM, &["export", "--data-dir", dir.path().to_str().unwrap(), "--out", file]).unwrap();
    assert_eq!(none.status.code(), Some(2), "{}", String::from_utf8_lossy(&none.stderr));
}

/// A log of `messages` with `rows` each, of one machine.
fn log_of(data_dir: &Path, messages: usize, rows: usize, channels: usize) {
    let log = Log::open(LogConfig::new(data_dir)).unwrap().log;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let names: Vec<&str> = ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"].into_iter().take(channels).collect();
    for message in 0..messages {
        let first = message * rows;
        let values: Vec<f32> =
            (first * channels..(first + rows) * channels).map(|n| (n as f32 * 0.37).sin() * 100.0).collect();
        let first_sample_us = FIRST_US + first as i64 * SECOND_US;
        let header = millwright_wire::Header {
            asset: "machine",
            device: "plc-1",
            boot_id: 1,
            sequence: message as u64,
            first_sample_us,
            interval_us: SECOND_US as u32,
            channels: &names,
        };
        let mut buffer = vec![0; 256 + values.len() * 8];
        let payload = millwright_wire::encode(&header, &values, &mut buffer).unwrap().to_vec();
        let message = Message {
            topic: TopicName::parse("mw/v1/telemetry/machine").unwrap(),
            payload: payload.into(),
            properties: Vec::new().into(),
            qos: QoS::AtLeastOnce,
            retain: false,
            origin: 0,
        };
        let received_us = first_sample_us + rows as i64 * SECOND_US;
        runtime.block_on(log.append(vec![Append { message, log: true, received_us }])).unwrap();
    }
    log.close();
}

// A million samples come out, in either format, while the process holds no more memory beyond that of a tenth of them than is
// promised whatever the length. What the program itself takes is in both.
#[test]
fn a_long_export_takes_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    for (folder, messages) in [("short", 100), ("long", 1_000)] {
        log_of(&dir.path().join(folder), messages, 1_000, 4);
    }
    for format in ["csv", "parquet"] {
        let out = |folder: &str| dir.path().join(format!("{folder}.{format}"));
        let short = export_watched(&dir.path().join("short"), &out("short"), 100_000);
        let long = export_watched(&dir.path().join("long"), &out("long"), 1_000_000);
        let bound = short + MEMORY_BYTES_MAX;
        assert!(short > 0 && (1..bound).contains(&long), "{format}: {long} bytes of at most {bound}");
    }
    let lines = text(&std::fs::read(dir.path().join("long.csv")).unwrap()).lines().count();
    assert_eq!(lines, 1_000_001);
}

/// The most memory, in bytes, that the program had while it exported so many rows.
fn export_watched(data_dir: &Path, out: &Path, rows: u64) -> u64 {
    let mut child = Command::new(PROGRAM)
        .args(["export", "--data-dir", data_dir.to_str().unwrap(), "--out", out.to_str().unwrap(), "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut peak = 0;
    let status = wait_for("the export to end", || {
        // The highest so far; the process may end between two looks.
        peak = resident_max(child.id()).unwrap_or(peak).max(peak);
        child.try_wait().ok().flatten()
    })
    .unwrap();
    let mut told = String::new();
    child.stdout.take().unwrap().read_to_string(&mut told).unwrap();
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((status.code(), &told["rows"]), (Some(0), &rows.into()), "{told}");
    peak
}

/// The most memory that a process has had so far.
fn resident_max(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1_024)
}

/// A download that is begun and not read.
fn begin(http: SocketAddr) -> (u16, std::net::TcpStream) {
    use std::io::{BufRead, BufReader, Write};
    let mut stream = std::net::TcpStream::connect(http).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
    write!(stream, "GET /api/v1/export HTTP/1.1\r\nHost: {http}\r\n\r\n").unwrap();
    let mut line = String::new();
    BufReader::with_capacity(64, stream.try_clone().unwrap()).read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{line}"));
    (status, stream)
}

// Two exports at a time are made, a third is told to come again; who goes away makes room, and who does not read holds neither the gateway
// nor its end up. A download that broke off ends without its last chunk, so that nobody takes it for whole.
#[test]
fn downloads_are_few_and_hold_nothing_up() {
    let dir = tempfile::tempdir().unwrap();
    log_of(&dir.path().join("data"), 250, 1_000, 8);
    let mut gateway = Gateway::start(PROGRAM, dir.path(), "").unwrap();
    let (first, one) = begin(gateway.http);
    let (second, mut two) = begin(gateway.http);
    assert_eq!((first, second), (200, 200));
    let refused = Http::new(gateway.http).get("/api/v1/export").unwrap();
    assert_eq!((refused.status, refused.json()["error"]["code"].as_str()), (503, Some("too-many-exports")));
    assert!(refused.header("retry-after").is_some());
    drop(one);
    let (_, three) =
        wait_for("the place of who went away", || Some(begin(gateway.http)).filter(|(status, _)| *status == 200))
            .unwrap();
    gateway.check_serves().unwrap();
    assert_eq!(gateway.terminate().unwrap(), Some(0));
    let mut rest = Vec::new();
    let ended = two.read_to_end(&mut rest);
    assert!(ended.is_err() || !rest.ends_with(b"\r\n0\r\n\r\n"), "{} bytes that look whole", rest.len());
    drop(three);
}

// Whatever a query says, it is answered in JSON with what is wrong: 400 for words that mean nothing, 404 for what is not there.
#[test]
fn hostile_queries_are_answered() {
    let dir = tempfile::tempdir().unwrap();
    log_of(&dir.path().join("data"), 1, 10, 1);
    let mut gateway = Gateway::start(PROGRAM, dir.path(), "").unwrap();
    let http = Http::new(gateway.http);
    let check = |query: &str, status: u16, code: &str| {
        let answer: Answer = http.get(&format!("/api/v1/export?{query}")).unwrap();
        let told = answer.json();
        assert_eq!((answer.status, told["error"]["code"].as_str()), (status, Some(code)), "{query}: {told}");
        assert!(answer.body.len() < 4_096, "{query}: the answer repeats what it was sent");
    };
    let long = "x".repeat(20_000);
    for query in [
        "asset=a/b",
        "asset=",
        "asset=%00",
        "assets=machine",
        "channel=%0a",
        "every=1",
        "every=-10s",
        "every=99999999999999999999d",
        "every=10s&every=5m",
        "format=exe",
        "what=passwords",
        "what=alerts&channel=c0",
        "from=2026-99-99",
        "from=NaN",
        "from=1e400",
        "from=5&to=5",
        "to=0&from=1",
        "%00=1",
        "from=%F0%9F%92%A5",
        &format!("asset={long}"),
        &format!("{long}=1"),
        &"asset=m&".repeat(2_000),
    ] {
        check(query, 400, "bad-query");
    }
    check("asset=%2e%2e%5c%2e%2e", 404, "nothing-there");
    check("asset=%ff%fe", 404, "nothing-there");
    check("asset=nobody", 404, "nothing-there");
    check("channel=nothing", 404, "nothing-there");
    check("to=1", 404, "nothing-there");
    check("from=9e18", 404, "nothing-there");
    let answer = Http::with_token(gateway.http).unwrap().send("POST", "/api/v1/export", None, b"").unwrap();
    assert_eq!(answer.status, 405);
    gateway.check_serves().unwrap();
    assert!(File::open(dir.path().join("data/log.db")).is_ok());
}
