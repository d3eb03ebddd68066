//! Payloads of every format, sound, malformed and hostile.

use millwright_wire::Header;
use proptest::prelude::*;

use super::*;
use crate::config::Config;

/// 2020-03-09 10:14:33.25 UTC, when every test's message arrives.
const NOW_US: i64 = 1_583_748_873_250_000;
const NOW_MS: i64 = NOW_US / 1_000;

fn map(sources: &str) -> SourceMap {
    let text = format!("[gateway]\nid = \"gw\"\n{sources}");
    let loaded = Config::parse(&text, "f", std::path::Path::new("")).unwrap_or_else(|error| panic!("{error}"));
    SourceMap::new(&loaded.config.sources)
}

fn topic(name: &str) -> TopicName {
    TopicName::parse(name).unwrap()
}

/// A reading in one line: asset, stream, then each row as milliseconds after the arrival and its values.
fn show(reading: &Reading) -> String {
    let mut text = reading.asset.to_string();
    if let Some(StreamPosition { device, boot, seq, device_time }) = &reading.stream {
        let boot = boot.map_or(String::new(), |boot| format!("{boot}:"));
        text += &format!(" [{device} {boot}{seq}{}]", if *device_time { "" } else { " no clock" });
    }
    for (time_us, row) in reading.rows() {
        let cells: Vec<String> =
            reading.channels.iter().zip(row).map(|(name, value)| format!("{name}={value}")).collect();
        text += &format!(" {:+}: {}", (time_us - NOW_US) / 1_000, cells.join(" "));
    }
    text
}

fn decode(map: &mut SourceMap, name: &str, payload: &[u8]) -> Result<(Vec<String>, DecodeReport), String> {
    let route = map.resolve(&topic(name)).ok_or("no route")?;
    let mut out = Vec::new();
    let outcome = map.decode(&route, payload, NOW_US, &mut out);
    if outcome.is_err() {
        assert!(out.is_empty(), "a refused payload leaves nothing");
    }
    let report = outcome.map_err(|error| error.to_string())?;
    for reading in &out {
        assert_eq!(reading.values.len(), reading.times_us.len() * reading.channels.len());
    }
    Ok((out.iter().map(show).collect(), report))
}

const JSON: &str = "mw/v1/telemetry/pump/json";

fn json(payload: &str) -> Result<(Vec<String>, DecodeReport), String> {
    decode(&mut map(""), JSON, payload.as_bytes())
}

fn check_json(payload: &str, expected: &[&str]) {
    let (readings, report) = json(payload).unwrap_or_else(|error| panic!("{payload}: {error}"));
    assert_eq!(readings, expected, "{payload}");
    assert!(report.samples > 0);
}

// The documented form, with and without its optional parts.
#[test]
fn json_samples_become_readings() {
    check_json(r#"{"values":{"t":1.5,"p":2}}"#, &["pump +0: t=1.5 p=2"]);
    let ts = NOW_MS - 500;
    check_json(
        &format!(r#"{{"ts":{ts},"seq":7,"values":{{"t":1.5}}}}"#),
        &["pump [mw/v1/telemetry/pump/json 7] -500: t=1.5"],
    );
    check_json(
        r#"{"values":{"t":1},"boot":3,"seq":7.0,"ts":"2020-03-09T10:14:33Z"}"#,
        &["pump [mw/v1/telemetry/pump/json 3:7] -250: t=1"],
    );
    check_json(r#"{"seq":7,"values":{"t":1}}"#, &["pump [mw/v1/telemetry/pump/json 7 no clock] +0: t=1"]);
}

// A list of samples is one reading, unless the samples count for themselves or have other channels.
#[test]
fn json_lists_become_readings() {
    let at = |ms: i64| NOW_MS + ms;
    check_json(
        &format!(r#"[{{"ts":{},"t":1}},{{"ts":{},"t":2}},{{"ts":{},"u":3}}]"#, at(-20), at(-10), at(0)),
        &["pump -20: t=1 -10: t=2", "pump +0: u=3"],
    );
    check_json(
        r#"[{"seq":1,"t":1},{"seq":2,"t":2}]"#,
        &["pump [mw/v1/telemetry/pump/json 1 no clock] +0: t=1", "pump [mw/v1/telemetry/pump/json 2 no clock] +0: t=2"],
    );
}

// Flat objects: numbers and booleans are channels, objects are flattened once, the rest is counted.
#[test]
fn json_flat_objects_are_flattened() {
    let (readings, report) =
        json(r#"{"temperature":1.2,"on":true,"state":"on","m":{"i":3,"deep":{"x":1}},"list":[1,[2]],"a/b":4}"#)
            .unwrap();
    assert_eq!(readings, ["pump +0: temperature=1.2 on=1 m.i=3 a.b=4"]);
    assert_eq!(report.ignored, 3, "{report:?}");
    // With a values object, the fields beside it are no channels.
    let (readings, report) = json(r#"{"site":5,"values":{"t":1,"m":{"i":2}},"x":6}"#).unwrap();
    assert_eq!(readings, ["pump +0: t=1 m.i=2"]);
    assert_eq!(report.ignored, 2);
    check_json(r#"{"t":1,"t":2,"\u0061":3}"#, &["pump +0: t=2 a=3"]);
}

// What is no finite number is a missing value, whether JSON allows its spelling or not.
#[test]
fn json_missing_values_are_counted() {
    let (readings, report) = json(
        r#"{"a":null,"b":"NaN","c":1e999,"d":NaN,"e":-Infinity,"f":"-inf","g":1e300,"h":-1E400,"i":"say \"NaN\" 1e999","j":7}"#,
    )
    .unwrap();
    assert_eq!(readings, ["pump +0: a=NaN b=NaN c=NaN d=NaN e=NaN f=NaN g=NaN h=NaN j=7"]);
    assert_eq!((report.missing, report.ignored), (8, 1));
}

// A time that cannot be right is replaced by the time of arrival and counted; a configured unit is taken at its word.
#[test]
fn json_times_are_checked() {
    for ts in ["12345", "\"yesterday\"", "null", "true", "{}", "[1]", "-5", "1e999"] {
        let (readings, report) = json(&format!(r#"{{"ts":{ts},"t":1}}"#)).unwrap();
        assert_eq!((readings[0].as_str(), report.times_replaced), ("pump +0: t=1", 1), "{ts}");
    }
    let mut map =
        map("[[source]]\nfilter = \"a\"\nasset = \"a\"\nformat = \"json\"\ntime_unit = \"s\"\ntime_field = \"at\"\n");
    let route = map.resolve(&topic("a")).unwrap();
    let mut out = Vec::new();
    let report = map.decode(&route, b"{\"at\":5,\"ts\":6}", NOW_US, &mut out).unwrap();
    assert_eq!((out[0].times_us[0], report.times_replaced), (5_000_000, 0));
    assert_eq!(out[0].channels[0].as_str(), "ts", "another time field leaves `ts` an ordinary one");
}

// Every malformed payload is refused with what is wrong, where, and what to do.
#[test]
fn json_faults_are_told() {
    let start = "topic `mw/v1/telemetry/pump/json`, json payload";
    let hint = "check the `format` of the source";
    for (payload, expected) in [
        ("", ": it is empty; publish a value, or nothing".to_owned()),
        ("[]", ": it is empty; publish a value, or nothing".to_owned()),
        (
            "12.5",
            ": expected an object or a list of objects, found a number; for a plain number write format = \"number\""
                .to_owned(),
        ),
        (
            "[{\"t\":1},[2]]",
            ": expected an object or a list of objects, found a list of lists; for a plain number write format = \
             \"number\""
                .to_owned(),
        ),
        ("{\"t\":1", format!(", line 1, column 6: it is not JSON: EOF while parsing an object; {hint}")),
        ("{\"t\":\n x}", format!(", line 2, column 2: it is not JSON: expected value; {hint}")),
        ("{\"t\":1} x", format!(", line 1, column 9: it is not JSON: trailing characters; {hint}")),
        ("{}", ": no field is a number or a boolean; check the `values_field` of the source".to_owned()),
        (
            "{\"state\":\"on\"}",
            ": no field is a number or a boolean; check the `values_field` of the source".to_owned(),
        ),
    ] {
        assert_eq!(json(payload).unwrap_err(), format!("{start}{expected}"), "{payload}");
    }
    let error = decode(&mut map(""), JSON, b"{\"t\":1,\"\xff\"}").unwrap_err();
    assert_eq!(error, format!("{start}, byte 8: it is not UTF-8 text; {hint}"));
}

// The limits hold at their exact values, and nesting cannot exhaust the stack.
#[test]
fn json_limits_hold() {
    let channels = |count: usize| {
        let fields: Vec<String> = (0..count).map(|n| format!("\"c{n}\":{n}")).collect();
        fields.join(",")
    };
    assert!(json(&format!("{{{}}}", channels(CHANNELS_MAX))).is_ok());
    let too_many = json(&format!("{{{}}}", channels(CHANNELS_MAX + 1))).unwrap_err();
    assert!(too_many.contains("more than 64 channels"), "{too_many}");
    let nested = json(&format!("{{\"m\":{{{}}}}}", channels(10_000))).unwrap_err();
    assert!(nested.contains("more than 64 channels"), "{nested}");
    let values = json(&format!("{{\"values\":{{{}}}}}", channels(CHANNELS_MAX + 1))).unwrap_err();
    assert!(values.contains("more than 64 channels"), "{values}");
    let samples = |count: usize| format!("[{}]", vec!["{\"t\":1}"; count].join(","));
    assert_eq!(json(&samples(SAMPLES_MAX)).unwrap().1.samples, 1_024);
    let too_many = json(&samples(SAMPLES_MAX + 1)).unwrap_err();
    assert!(too_many.contains(", sample 1024: more than 1024 samples"), "{too_many}");
    for open in ["[", "{\"a\":", "{\"t\":1,\"a\":[", "{\"values\":"] {
        assert!(json(&open.repeat(100_000)).is_err());
    }
}

// The configured fields are the ones that count.
#[test]
fn json_fields_are_configured() {
    let source = "[[source]]\nfilter = \"plant/+/x\"\nasset = \"p-{1}\"\nformat = \"json\"\nvalues_field = \"d\"\nseq_field = \"n\"\n";
    let (readings, report) =
        decode(&mut map(source), "plant/7/x", br#"{"n":4,"d":{"t":1},"values":{"u":1},"v":2}"#).unwrap();
    assert_eq!(readings, ["p-7 [plant/7/x 4 no clock] +0: t=1"]);
    assert_eq!(report.ignored, 2);
    let error = decode(&mut map(source), "plant/7/x", br#"{"t":1}"#).unwrap_err();
    assert!(error.contains("no field is a number"), "{error}");
}

fn frame(asset: &str, first_sample_us: i64, channels: &[&str], values: &[f32]) -> Vec<u8> {
    let header =
        Header { asset, device: "d-1", boot_id: 9, sequence: 41, first_sample_us, interval_us: 10_000, channels };
    let mut buffer = [0; 1_024];
    millwright_wire::encode(&header, values, &mut buffer).unwrap().to_vec()
}

// A frame becomes one reading with its device's position; its topic has the last word on the asset.
#[test]
fn frames_become_readings() {
    let values = [1.0, 2.0, f32::INFINITY, 4.0];
    let payload = frame("pump", NOW_US - 10_000, &["t", "p"], &values);
    let (readings, report) = decode(&mut map(""), "mw/v1/telemetry/pump", &payload).unwrap();
    assert_eq!(readings, ["pump [d-1 9:41] -10: t=1 p=2 +0: t=NaN p=4"]);
    assert_eq!(report, DecodeReport { samples: 2, missing: 1, ..DecodeReport::default() });
    let error = decode(&mut map(""), "mw/v1/telemetry/fan", &payload).unwrap_err();
    assert!(error.contains("the frame is about asset \"pump\", its topic is not"), "{error}");
    let mut mapped = map("[[source]]\nfilter = \"x/+\"\nasset = \"{1}\"\nformat = \"frame\"\n");
    assert!(decode(&mut mapped, "x/fan", &payload).unwrap().0[0].starts_with("fan [d-1 9:41]"));
    let error = decode(&mut map(""), "mw/v1/telemetry/pump", &payload[..9]).unwrap_err();
    assert!(error.contains("it is not a telemetry frame: "), "{error}");
}

// A device without a clock gets the time of arrival for its newest sample, and keeps its interval.
#[test]
fn frames_without_a_clock_are_dated_by_arrival() {
    let payload = frame("pump", 5_000, &["t"], &[1.0, 2.0, 3.0]);
    let (readings, report) = decode(&mut map(""), "mw/v1/telemetry/pump", &payload).unwrap();
    assert_eq!(readings, ["pump [d-1 9:41 no clock] -20: t=1 -10: t=2 +0: t=3"]);
    assert_eq!(report.times_replaced, 3);
}

const NUMBER: &str =
    "[[source]]\nfilter = \"plant/+/+\"\nasset = \"{1}\"\nformat = \"number\"\nchannel = \"{2}\"\njoin_ms = 100\n";

// Plain numbers are joined into rows of their asset, and the last row leaves with time alone.
#[test]
fn numbers_are_joined() {
    let mut map = map(NUMBER);
    let mut out = Vec::new();
    let mut push = |map: &mut SourceMap, name: &str, payload: &str, after_ms: i64| {
        let route = map.resolve(&topic(name)).unwrap();
        map.decode(&route, payload.as_bytes(), NOW_US + after_ms * 1_000, &mut out).unwrap();
        out.drain(..).map(|reading| show(&reading)).collect::<Vec<_>>()
    };
    assert!(push(&mut map, "plant/a/t", "1", 0).is_empty());
    assert!(push(&mut map, "plant/a/p", " 2.5\n", 10).is_empty());
    assert!(push(&mut map, "plant/b/t", "9", 20).is_empty(), "another asset has its own row");
    assert_eq!(push(&mut map, "plant/a/t", "3", 100), ["a +10: p=2.5 t=1"]);
    assert_eq!(push(&mut map, "plant/a/p", "true", 110), ["a +110: p=1 t=3"]);
    assert_eq!(map.poll_timeout(), Some(NOW_US + 120_000));
    let mut rest = Vec::new();
    map.handle_timeout(NOW_US + 119_999, &mut rest);
    assert!(rest.is_empty());
    map.handle_timeout(NOW_US + 120_000, &mut rest);
    assert_eq!(rest.iter().map(show).collect::<Vec<_>>(), ["b +20: t=9"]);
    assert_eq!(map.poll_timeout(), None);
}

// Calling with the time of every message gives the same rows as calling at the deadlines, and a clock that was set back
// by more than any row waits leaves no row behind.
#[test]
fn timeouts_may_be_handled_at_any_time() {
    let mut map = map(NUMBER);
    for (name, after_ms) in [("plant/b/t", 0), ("plant/a/t", 10), ("plant/c/t", 20)] {
        let route = map.resolve(&topic(name)).unwrap();
        map.decode(&route, b"1", NOW_US + after_ms * 1_000, &mut Vec::new()).unwrap();
    }
    let mut at = |after_ms: i64| {
        let mut out = Vec::new();
        map.handle_timeout(NOW_US + after_ms * 1_000, &mut out);
        out.iter().map(show).collect::<Vec<_>>()
    };
    assert!(at(99).is_empty());
    assert_eq!(at(110), ["a +10: t=1", "b +0: t=1"]);
    assert!(at(119).is_empty());
    assert_eq!(at(-7_200_000), ["c +20: t=1"]);
    assert!(at(10_000).is_empty());
}

// What is saved with the cursor lets a restart complete the row that was open.
#[test]
fn open_rows_survive_a_restart() {
    let mut before = map(NUMBER);
    assert_eq!(before.save(), None);
    assert_eq!(decode(&mut before, "plant/a/t", b"1").unwrap().0.len(), 0);
    let saved = before.save().unwrap();
    let mut after = map(NUMBER);
    after.restore(&saved).unwrap();
    assert_eq!(decode(&mut after, "plant/a/p", b"2").unwrap().0.len(), 0);
    let mut out = Vec::new();
    after.handle_timeout(NOW_US + 100_000, &mut out);
    assert_eq!(out.iter().map(show).collect::<Vec<_>>(), ["a +0: p=2 t=1"]);
    assert!(after.restore(&[0xFF; 8]).is_err());
}

// A payload that is no number is refused; NaN is a missing value.
#[test]
fn numbers_are_checked() {
    let error = |payload: &[u8]| decode(&mut map(NUMBER), "plant/a/t", payload).unwrap_err();
    assert_eq!(
        error(b"{\"t\":1}"),
        "topic `plant/a/t`, number payload: \"{\\\"t\\\":1}\" is not a number; check the `format` and the `filter` of the \
         source"
    );
    assert!(error(b" ").contains("it is empty"));
    assert!(error(b"\xff").contains("not UTF-8"));
    assert!(error(&[b'x'; 100_000]).len() < 400, "a hostile payload is not repeated whole");
    for payload in ["NaN", "1e999", "-inf"] {
        assert_eq!(decode(&mut map(NUMBER), "plant/a/t", payload.as_bytes()).unwrap().1.missing, 1, "{payload}");
    }
    assert!(decode(&mut map(NUMBER), "plant/a/t", b"1,5").is_ok(), "a decimal comma");
}

const CSV: &str = "[[source]]\nfilter = \"csv/+\"\nasset = \"{1}\"\nformat = \"csv\"\ncolumns = [\"ts\", \"t\", \"_\", \"p\"]\nseparator = \";\"\n";

// Lines become rows of one reading; bad cells are missing, a repeated header is skipped.
#[test]
fn csv_lines_become_rows() {
    let payload = "ts;t;x;p\n2020-03-09 10:14:33;1,5;on;2\r\n\n2020-03-09 10:14:33.5; ;off;\"4\"\nlate;5;;NaN\n";
    let (readings, report) = decode(&mut map(CSV), "csv/press", payload.as_bytes()).unwrap();
    assert_eq!(readings, ["press -250: t=1.5 p=2 +250: t=NaN p=4 +0: t=5 p=NaN"]);
    assert_eq!((report.samples, report.missing, report.times_replaced), (3, 2, 1));
}

// A line with another number of cells is named; an empty payload and too many lines are refused.
#[test]
fn csv_faults_are_told() {
    let error = |payload: &str| decode(&mut map(CSV), "csv/press", payload.as_bytes()).unwrap_err();
    assert_eq!(
        error("1;2;3;4\n1;2;3\n"),
        "topic `csv/press`, csv payload, line 2: 3 cells, the source has 4 columns; check its `columns` and `separator`"
    );
    assert!(error("ts;t;_;p\n").contains("it is empty"));
    assert!(error(&"1;2;3;4\n".repeat(SAMPLES_MAX + 1)).contains("line 1025: more than 1024 samples"));
    assert!(decode(&mut map(CSV), "csv/press", "1;2;3;4\n".repeat(SAMPLES_MAX).as_bytes()).is_ok());
}

// The gateway's own topics come first, sources are tried in order, and everything else is no telemetry.
#[test]
fn topics_are_resolved() {
    let sources = "[[source]]\nfilter = \"a/+\"\nasset = \"first-{1}\"\nformat = \"json\"\n\
                   [[source]]\nfilter = \"#\"\nasset = \"rest\"\nformat = \"number\"\nchannel = \"x\"\n";
    let mut map = map(sources);
    let mut resolve =
        |name: &str| map.resolve(&topic(name)).map(|route| format!("{} {}", route.asset(), route.format()));
    assert_eq!(resolve("mw/v1/telemetry/pump").as_deref(), Some("pump frame"));
    assert_eq!(resolve("mw/v1/telemetry/pump/json").as_deref(), Some("pump json"));
    assert_eq!(resolve("mw/v1/telemetry/pump/xml"), None);
    assert_eq!(resolve("mw/v1/alert/pump"), None, "the gateway's own messages are never telemetry");
    assert_eq!(resolve("a/b").as_deref(), Some("first-b json"));
    assert_eq!(resolve("a/b/c").as_deref(), Some("rest number"));
    assert_eq!(resolve("$SYS/x"), None);
    assert_eq!(resolve("a/"), Some("first- json".to_owned()));
    assert_eq!(resolve(&format!("a/{}", "x".repeat(60))), None);
    assert_eq!(resolve(&format!("a/{}", "x".repeat(60))), None);
    assert_eq!(resolve("mw/v1/telemetry/"), None);
    assert_eq!(map.refused_topics(), 2, "each topic is counted once");
    let filters: Vec<String> = map.filters().iter().map(ToString::to_string).collect();
    assert_eq!(filters, ["mw/v1/telemetry/+", "mw/v1/telemetry/+/json", "a/+", "#"]);
}

// However many topics there are, what is remembered is bounded, and decoding goes on.
#[test]
fn routes_are_bounded() {
    let mut map = map("");
    for n in 0..=ROUTES_MAX {
        assert!(map.resolve(&topic(&format!("mw/v1/telemetry/a{n}/json"))).is_some());
    }
    assert!(map.routes.len() <= ROUTES_MAX);
    assert!(decode(&mut map, JSON, b"{\"t\":1}").is_ok());
}

// The next message with the same fields shares its channel list with the one before.
#[test]
fn channel_lists_are_shared() {
    let mut map = map("");
    let route = map.resolve(&topic(JSON)).unwrap();
    let mut out = Vec::new();
    for payload in ["{\"a\":1,\"b\":2}", "{\"a\":3,\"b\":4}", "{\"b\":3,\"a\":4}"] {
        map.decode(&route, payload.as_bytes(), NOW_US, &mut out).unwrap();
    }
    assert!(Arc::ptr_eq(&out[0].channels, &out[1].channels));
    assert_eq!(out[2].channels[0].as_str(), "b");
}

/// A map with every format, and a topic of each.
fn every_format() -> (SourceMap, Vec<&'static str>) {
    let sparkplug = "[[source]]\nfilter = \"spBv1.0/#\"\nasset = \"{device}\"\nformat = \"sparkplug\"\n";
    let map = map(&format!("{NUMBER}{CSV}{sparkplug}"));
    let topics = vec![
        "mw/v1/telemetry/pump",
        JSON,
        "plant/a/t",
        "csv/press",
        "spBv1.0/g/NBIRTH/n",
        "spBv1.0/g/DBIRTH/n/d",
        "spBv1.0/g/DDATA/n/d",
    ];
    (map, topics)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    // No bytes panic in any format, and what comes out is well-formed and within its limits.
    #[test]
    fn any_bytes_are_decoded_or_refused(payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..6)) {
        let (mut map, topics) = every_format();
        for payload in &payloads {
            for name in &topics {
                well_formed(&mut map, name, payload)?;
            }
        }
    }

    // Neither does text that is nearly JSON or nearly CSV.
    #[test]
    fn any_text_is_decoded_or_refused(
        text in "(\\{|\\}|\\[|\\]|:|,|;|\n|\"[a-z]{0,3}\"|\"ts\"|\"values\"|NaN|1e999|-|null|true|[0-9]{1,12}|\\PC){0,40}"
    ) {
        let (mut map, topics) = every_format();
        for name in topics {
            well_formed(&mut map, name, text.as_bytes())?;
        }
    }

    // A sound payload with some bytes changed or cut off is decoded or refused.
    #[test]
    fn damaged_payloads_are_decoded_or_refused(
        at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>()
    ) {
        let (mut map, _) = every_format();
        let sound = [
            ("mw/v1/telemetry/pump", frame("pump", NOW_US, &["t", "p"], &[1.0, 2.0, 3.0, 4.0])),
            (JSON, br#"[{"ts":1583748873250,"seq":1,"values":{"t":1.5,"m":{"x":null}}}]"#.to_vec()),
            ("csv/press", b"2020-03-09 10:14:33;1;2;3\n2020-03-09 10:14:34;1;2;3\n".to_vec()),
            ("spBv1.0/g/DBIRTH/n/d", super::sparkplug::sample_birth()),
        ];
        for (name, payload) in sound {
            prop_assert!(decode(&mut map, name, &payload).is_ok());
            let mut damaged = payload.clone();
            damaged[at.index(payload.len())] = byte;
            well_formed(&mut map, name, &damaged)?;
            damaged.truncate(cut.index(payload.len()));
            well_formed(&mut map, name, &damaged)?;
        }
    }

    // Values survive the way through JSON.
    #[test]
    fn json_values_are_kept(value in -1e30_f32..1e30, seq in any::<u64>()) {
        let mut map = map("");
        let route = map.resolve(&topic(JSON)).unwrap();
        let mut out = Vec::new();
        let payload = serde_json::json!({"seq": seq, "values": {"x": value}}).to_string();
        map.decode(&route, payload.as_bytes(), NOW_US, &mut out).unwrap();
        prop_assert_eq!(out[0].values[0], value);
        prop_assert_eq!(out[0].stream.as_ref().unwrap().seq, seq);
    }
}

fn well_formed(map: &mut SourceMap, name: &str, payload: &[u8]) -> Result<(), TestCaseError> {
    let route = map.resolve(&topic(name)).unwrap();
    let mut out = Vec::new();
    match map.decode(&route, payload, NOW_US, &mut out) {
        Ok(_) => {
            let rows: usize = out.iter().map(|reading| reading.times_us.len()).sum();
            // A join may hand over the row before besides the one that is complete.
            prop_assert!(rows <= SAMPLES_MAX.max(2));
            for reading in &out {
                prop_assert!((1..=CHANNELS_MAX).contains(&reading.channels.len()));
                prop_assert_eq!(reading.values.len(), reading.times_us.len() * reading.channels.len());
                prop_assert!(reading.values.iter().all(|value| !value.is_infinite()));
            }
        }
        Err(error) => {
            prop_assert!(out.is_empty());
            prop_assert!(error.to_string().len() < 1_000, "{}", error);
        }
    }
    Ok(())
}
