//! The HTTP API against the real gateway: what it tells of plant and alerts, what people do about them, and what is refused.

use std::time::Duration;

use harness::client::{Client, Connect};
use harness::gateway::Gateway;
use harness::http::Http;
use harness::machine::Recording;
use harness::publisher::Publisher;
use harness::wait_for;
use millwright_firmware_sim::fault::Fault;
use millwright_firmware_sim::machine::MachineKind;
use millwright_models::{Params, Subject, commission::commission_subject};
use serde_json::{Value, json};

use crate::PROGRAM;

const CONFIG: &str = "[commissioning]\nsamples = 400\nextend = false\n";
/// Where the fault begins.
const FAULT_ROW: usize = 600;
const ROWS: usize = 1_200;

fn feed(gateway: &Gateway, machine: &Recording) -> Publisher {
    let recording = machine.clone();
    let publisher = Publisher::start("plc", &machine.topic(), 64, move |row| recording.frame(row));
    publisher.progress.set_gateway(Some(gateway.mqtt));
    publisher
}

fn get(http: &Http, path: &str) -> Value {
    let answer = http.get(path).unwrap();
    assert_eq!(answer.status, 200, "{path}: {}", answer.json());
    answer.json()
}

/// Waits until a document at `path` is as wanted.
fn wait_until(http: &Http, path: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    wait_for(path, || {
        let document = http.get(path).ok()?.json();
        wanted(&document).then_some(document)
    })
    .unwrap_or_else(|error| panic!("{error}: {:?}", http.get(path).map(|answer| answer.json())))
}

/// An error with a code for programs, and a remedy for people.
fn check_error(answer: &harness::http::Answer, status: u16, code: &str) {
    let told = answer.json();
    assert_eq!((answer.status, told["error"]["code"].as_str()), (status, Some(code)), "{told}");
    for field in ["message", "remedy"] {
        assert!(told["error"][field].as_str().is_some_and(|text| !text.is_empty()), "{told}");
    }
}

// A fault is told live, the plant shows its machine first, and the alert carries its evidence. What a person does about it is
// answered, published, noted and in the audit trail; and nobody waits for a live view that is not read.
#[test]
fn an_alert_is_told_and_taken_care_of() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    let machine = Recording::of("pump-1", MachineKind::Pump, 11, ROWS, Some((Fault::BearingWear, FAULT_ROW, 60.0)));
    let publisher = feed(&gateway, &machine);
    let http = Http::with_token(gateway.http).unwrap();
    publisher.progress.allow(300);
    let learning = wait_until(&http, "/api/v1/commissioning", |it| it["items"][0]["rows"] == 300);
    assert_eq!((&learning["items"][0]["asset"], &learning["items"][0]["of"]), (&json!("pump-1"), &json!(400)));

    let _never_read = http.events("/api/v1/live?assets=pump-1").unwrap();
    let mut live = http.events("/api/v1/live?assets=pump-1").unwrap();
    publisher.progress.allow(FAULT_ROW);
    let rows = live.wait_for("rows", |_| true).unwrap();
    assert_eq!(rows["asset"], "pump-1");
    assert_eq!(rows["times_us"].as_array().unwrap().len(), rows["scores"].as_array().unwrap().len());
    publisher.progress.allow(ROWS);
    let told = live
        .wait_for("alert", |alert| alert["asset"] == "pump-1")
        .unwrap_or_else(|error| panic!("{error}: {}\n{}", get(&http, "/api/v1/plant"), gateway.log()));
    let number = told["number"].as_u64().unwrap();

    let plant = wait_until(&http, "/api/v1/plant", |plant| plant["assets"][0]["alert"]["number"] == number);
    let first = &plant["assets"][0];
    assert_eq!((&first["asset"], &first["alert"]["number"]), (&json!("pump-1"), &json!(number)), "{plant}");
    assert_eq!((&plant["counts"]["total"], &plant["gateway"]["id"]), (&json!(1), &json!("gw-1")), "{plant}");
    assert_eq!(get(&http, "/api/v1/alerts?state=open")["items"][0]["number"], number);
    assert_eq!(get(&http, "/api/v1/alerts?asset=pump-2")["items"], json!([]));

    let path = format!("/api/v1/alerts/{number}");
    let alert = get(&http, &path);
    let sensors = alert["evidence"]["sensors"].as_array().unwrap();
    assert!(!sensors.is_empty() && sensors[0]["contribution"].as_f64().unwrap() > 0.0, "{alert}");
    assert_eq!((&alert["model"]["name"], &alert["notes"][0]["kind"]), (&json!("pump-1"), &json!("raise")), "{alert}");

    let mut observer = Client::connect(gateway.mqtt, &Connect::new("observer")).unwrap();
    observer.subscribe("mw/v1/event/pump-1", 1).unwrap();
    let event = |observer: &mut Client, kind: &str| loop {
        let event: Value = serde_json::from_slice(&observer.next_delivery().unwrap().payload).unwrap();
        if event["event"] == kind {
            return event;
        }
    };
    let acted = http.json("POST", &format!("{path}/acknowledge"), &json!({"comment": "on my way"})).unwrap();
    assert_eq!((acted.status, &acted.json()["acknowledged"]["by"]), (200, &json!("local")));
    let published = event(&mut observer, "acknowledge");
    assert_eq!((&published["by"], &published["text"]), (&json!("local"), &json!("on my way")), "{published}");
    wait_until(&http, "/api/v1/plant", |plant| plant["assets"][0]["alert"]["acknowledged"] == true);

    let judged = http.json("POST", &format!("{path}/feedback"), &json!({"verdict": "true"})).unwrap().json();
    assert_eq!(judged["verdict"], "true", "{judged}");
    assert_eq!(event(&mut observer, "feedback")["verdict"], "true");
    let said = http.json("POST", &format!("{path}/comment"), &json!({"text": "<b>dry</b> bearing"})).unwrap().json();
    let kinds: Vec<_> = said["notes"].as_array().unwrap().iter().filter_map(|note| note["kind"].as_str()).collect();
    assert!(kinds.ends_with(&["acknowledge", "feedback", "comment"]), "{kinds:?}");

    let until_us = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as u64;
    let silence = json!({"until_us": until_us + 3_600_000_000, "reason": "overhaul"});
    assert_eq!(http.json("PUT", "/api/v1/assets/pump-1/silence", &silence).unwrap().status, 200);
    assert_eq!(event(&mut observer, "silence")["text"], "overhaul");
    wait_until(&http, "/api/v1/assets/pump-1", |asset| asset["silenced_until_us"] == silence["until_us"]);
    assert_eq!(http.send("DELETE", "/api/v1/assets/pump-1/silence", None, b"").unwrap().status, 200);
    let audit = get(&http, "/api/v1/audit");
    let actions: Vec<_> =
        audit["items"].as_array().unwrap().iter().filter_map(|entry| entry["action"].as_str()).collect();
    assert_eq!(actions, ["unsilence", "silence", "comment", "feedback", "acknowledge"]);

    // The past and the present of the machine, for its charts.
    publisher_done(&publisher);
    let asset = wait_until(&http, "/api/v1/assets/pump-1", |asset| asset["counters"]["samples"] == ROWS);
    assert_eq!(asset["channels"].as_array().unwrap().len(), machine.channels.len(), "{asset}");
    assert_eq!(asset["devices"][0]["device"], "plc-1", "{asset}");
    assert_eq!(get(&http, "/api/v1/devices")["items"][0]["asset"], "pump-1");
    let rows = get(&http, "/api/v1/assets/pump-1/rows?rows=7");
    assert_eq!(rows["times_us"].as_array().unwrap().len(), 7, "{rows}");
    let (from_us, to_us) = (machine.time_us(0), machine.time_us(ROWS));
    let path = format!("/api/v1/assets/pump-1/history?from_us={from_us}&to_us={to_us}&points=100");
    let chart = wait_until(&http, &path, |chart| chart["alerts"][0]["number"] == number);
    assert_eq!(chart["channels"].as_array().unwrap().len(), machine.channels.len(), "{chart}");
    let points = chart["times_us"].as_array().unwrap().len();
    assert!((10..=101).contains(&points), "{points} points");
    assert_eq!(chart["channels"][0]["max"].as_array().unwrap().len(), points);
}

fn publisher_done(publisher: &Publisher) {
    wait_for("the publisher", || (publisher.progress.acknowledged() >= ROWS).then_some(())).unwrap();
}

// A client that has the answer is told so in a few bytes, with the tag of the answer; when the answer changes it gets the new one.
#[test]
fn what_a_client_has_is_not_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    let http = Http::new(gateway.http);
    let first = http.get("/api/v1/devices").unwrap();
    let tag = first.header("etag").unwrap().to_owned();
    let again = http.clone().with("If-None-Match", &tag).get("/api/v1/devices").unwrap();
    assert_eq!((again.status, again.body.len(), again.header("etag")), (304, 0, Some(tag.as_str())));
    let mut plc = Client::connect(gateway.mqtt, &Connect::new("plc")).unwrap();
    plc.publish("mw/v1/telemetry/fan-1/json", br#"{"seq": 1, "values": {"speed": 1.0}}"#, false).unwrap();
    let changed = wait_for("another answer", || {
        let answer = http.clone().with("If-None-Match", &tag).get("/api/v1/devices").ok()?;
        (answer.status == 200).then_some(answer)
    })
    .unwrap();
    assert_eq!(changed.json()["items"][0]["asset"], "fan-1");
}

// Pages give every asset once, by name, and the last one has no next.
#[test]
fn lists_come_in_pages() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    let http = Http::new(gateway.http);
    let mut plc = Client::connect(gateway.mqtt, &Connect::new("plc")).unwrap();
    let names: Vec<String> = ["a b", "a+b", "a&b", "ä", "f-1", "f-2", "<i>x</i>"]
        .into_iter()
        .filter(|name| !name.contains(['+', '/']))
        .map(str::to_owned)
        .collect();
    for name in &names {
        let topic = format!("mw/v1/telemetry/{name}/json");
        plc.publish(&topic, br#"{"seq": 1, "values": {"speed": 1.0}}"#, false).unwrap();
    }
    wait_until(&http, "/api/v1/plant", |plant| plant["counts"]["total"] == names.len());
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = get(&http, &format!("/api/v1/assets?limit=2{cursor}"));
        let items = page["items"].as_array().unwrap();
        seen.extend(items.iter().filter_map(|item| item["asset"].as_str()).map(str::to_owned));
        let Some(next) = page["next"].as_str() else { break };
        assert_eq!(items.len(), 2);
        let escaped: String = next.bytes().map(|byte| format!("%{byte:02X}")).collect();
        cursor = format!("&cursor={escaped}");
    }
    let mut sorted = names.clone();
    sorted.sort();
    assert_eq!(seen, sorted);
    assert_eq!(get(&http, "/api/v1/assets?q=F-")["items"].as_array().unwrap().len(), 2);
    assert_eq!(get(&http, "/api/v1/assets/a%20b")["asset"], "a b");
}

// Whatever is asked, the answer is JSON that says what is wrong and what to do, and the gateway serves on.
#[test]
fn hostile_requests_get_answers() {
    let dir = tempfile::tempdir().unwrap();
    let mut gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    let http = Http::with_token(gateway.http).unwrap();
    let huge = "9".repeat(400);
    let long = "x".repeat(5_000);
    for (path, status, code) in [
        ("/api/v1/nothing".to_owned(), 404, "not-found"),
        ("/api/v1/alerts/0".to_owned(), 404, "no-such-alert"),
        ("/api/v1/alerts/-1".to_owned(), 400, "bad-path"),
        (format!("/api/v1/alerts/{}", u64::MAX), 404, "no-such-alert"),
        (format!("/api/v1/alerts/{huge}"), 400, "bad-path"),
        ("/api/v1/assets/%FF%FE".to_owned(), 400, "bad-path"),
        ("/api/v1/assets/%2e%2e".to_owned(), 404, "no-such-asset"),
        (format!("/api/v1/assets/{long}"), 404, "no-such-asset"),
        ("/api/v1/assets?limit=0".to_owned(), 400, "bad-query"),
        (format!("/api/v1/assets?limit={huge}"), 400, "bad-query"),
        ("/api/v1/assets?limit=1&limit=2".to_owned(), 400, "bad-query"),
        ("/api/v1/assets?state=burning".to_owned(), 400, "bad-query"),
        ("/api/v1/assets?colour=red".to_owned(), 400, "bad-query"),
        (format!("/api/v1/assets?cursor={long}"), 400, "bad-cursor"),
        ("/api/v1/alerts?cursor=none".to_owned(), 400, "bad-cursor"),
        (format!("/api/v1/audit?cursor={huge}"), 400, "bad-cursor"),
        ("/api/v1/live?assets=a,b,c,d,e".to_owned(), 400, "bad-query"),
        ("/api/v1/live?assets=a%2Fb".to_owned(), 400, "bad-query"),
        ("/api/v1/jobs/1".to_owned(), 404, "no-such-job"),
        ("/api/v1/models/none".to_owned(), 404, "no-such-model"),
    ] {
        check_error(&http.get(&path).unwrap(), status, code);
    }
    for (method, path, body, status, code) in [
        ("POST", "/api/v1/alerts/1/comment", "{", 400, "bad-request"),
        ("POST", "/api/v1/alerts/1/comment", r#"{"text": "x", "more": 1}"#, 400, "bad-request"),
        ("POST", "/api/v1/alerts/1/comment", r#"{"text": "  "}"#, 400, "bad-body"),
        ("POST", "/api/v1/alerts/1/comment", r#"{"text": "x"}"#, 404, "no-such-alert"),
        ("POST", "/api/v1/alerts/1/feedback", r#"{"verdict": "maybe"}"#, 400, "bad-request"),
        ("PUT", "/api/v1/assets/none/silence", r#"{"until_us": 1}"#, 400, "bad-body"),
        ("POST", "/api/v1/assets/none/commission", "{}", 404, "no-such-asset"),
        ("POST", "/api/v1/models/none/1/promote", "{}", 404, "no-such-model"),
        ("POST", "/api/v1/models/a%2Fb/1/promote", "{}", 404, "no-such-model"),
        ("POST", "/api/v1/models/none/1/test", r#"{"days": 0}"#, 400, "bad-body"),
        ("DELETE", "/api/v1/plant", "", 405, "wrong-method"),
    ] {
        check_error(&http.send(method, path, Some("application/json"), body.as_bytes()).unwrap(), status, code);
    }
    let binary = |path: &str, body: &[u8]| http.send("POST", path, Some("application/octet-stream"), body).unwrap();
    check_error(&binary("/api/v1/models", b""), 400, "bad-body");
    check_error(&binary("/api/v1/models", b"no model"), 422, "bad-model");
    check_error(&binary("/api/v1/models?manifest_bytes=3", b"no model"), 422, "bad-manifest");
    check_error(&binary("/api/v1/models?manifest_bytes=99999", b"no model"), 400, "bad-query");
    gateway.check_serves().unwrap();
}

// A model comes in over HTTP, is tested over what the log holds, promoted and taken back, each step in the name of who did it;
// what cannot be done where it stands is refused.
#[test]
fn a_model_is_uploaded_tested_and_promoted() {
    let dir = tempfile::tempdir().unwrap();
    let config = format!("{CONFIG}[models]\nrows_min = 100\nlatency_ms_max = 60000\nshadow_s = 3600\ntrial_s = 3600\n");
    let gateway = Gateway::start(PROGRAM, dir.path(), &config).unwrap();
    let machine = Recording::of("pump-1", MachineKind::Pump, 11, ROWS, None);
    let publisher = feed(&gateway, &machine);
    publisher.progress.allow(600);
    let http = Http::with_token(gateway.http).unwrap();
    wait_until(&http, "/api/v1/assets/pump-1", |asset| asset["model"]["version"] == 1);
    let channels = machine.channel_names();
    let subject = Subject::new("pump-1", 5, &channels);
    let model = commission_subject(&subject, &machine.matrix(600), &Params::default()).unwrap().onnx;
    let uploaded = http.send("POST", "/api/v1/models", Some("application/octet-stream"), &model).unwrap();
    assert_eq!((uploaded.status, &uploaded.json()["version"]), (202, &json!(5)), "{}", uploaded.json());
    let path = "/api/v1/models/pump-1";
    wait_until(&http, path, |model| model["versions"][0]["state"] == "shadow");

    let started = http.json("POST", &format!("{path}/5/test"), &json!({"days": 3})).unwrap();
    assert_eq!(started.status, 202, "{}", started.json());
    let job = format!("/api/v1/jobs/{}", started.json()["job"]);
    let job = wait_until(&http, &job, |job| job["state"] != "running");
    assert_eq!((&job["state"], &job["result"]["model"]), (&json!("done"), &json!("pump-1")), "{job}");

    let promoted = http.json("POST", &format!("{path}/5/promote"), &json!({"reason": "it knows better"})).unwrap();
    assert_eq!((promoted.status, &promoted.json()["state"]), (200, &json!("trial")), "{}", promoted.json());
    let reason = promoted.json()["reason"].to_string();
    assert!(reason.contains("by hand of local: it knows better"), "{reason}");
    wait_until(&http, "/api/v1/assets/pump-1", |asset| asset["model"]["version"] == 5);
    check_error(&http.json("POST", &format!("{path}/5/promote"), &json!({})).unwrap(), 409, "wrong-state");
    check_error(&http.json("POST", &format!("{path}/6/promote"), &json!({})).unwrap(), 404, "no-such-model");

    let back = http.json("POST", &format!("{path}/5/rollback"), &json!({})).unwrap();
    assert_eq!((back.status, &back.json()["state"]), (200, &json!("rolled-back")), "{}", back.json());
    wait_until(&http, "/api/v1/assets/pump-1", |asset| asset["model"]["version"] == 1);
    let audit = get(&http, "/api/v1/audit");
    let actions: Vec<_> =
        audit["items"].as_array().unwrap().iter().filter_map(|entry| entry["action"].as_str()).collect();
    assert_eq!(actions, ["rollback", "promote", "test", "upload"], "{audit}");
}

// A live view shows that it is there while nothing happens, and ends when the gateway does.
#[test]
fn a_live_view_ends_with_the_gateway() {
    let dir = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(PROGRAM, dir.path(), CONFIG).unwrap();
    let mut live = Http::new(gateway.http).events("/api/v1/live").unwrap();
    live.set_patience(Duration::from_secs(30)).unwrap();
    live.wait_for("plant", |_| true).unwrap();
    // One that comes back is told to ask for everything again, since it does not know what it missed.
    let mut again = Http::new(gateway.http).with("Last-Event-ID", "7").events("/api/v1/live").unwrap();
    assert_eq!(again.next_event().unwrap().name, "reset");
    assert_eq!(gateway.terminate().unwrap(), Some(0));
    while live.next_event().is_ok() {}
}
