//! Births, data and deaths of Sparkplug B.

use super::*;
use crate::ids::AssetId;
use crate::source::DecodeReport;
use crate::source::rows::ChannelLists;

/// 2020-03-09 10:14:33.25 UTC, when every message arrives.
const NOW_US: i64 = 1_583_748_873_250_000;
const NOW_MS: u64 = 1_583_748_873_250;

/// A metric as a birth names it.
fn birth(name: &str, alias: u64, datatype: u32, value: Value) -> Metric {
    Metric {
        name: Some(name.into()),
        alias: Some(alias),
        datatype: Some(datatype),
        value: Some(value),
        ..Metric::default()
    }
}

/// A metric as data names it.
fn data(alias: u64, value: Value) -> Metric {
    Metric { alias: Some(alias), value: Some(value), ..Metric::default() }
}

fn named(name: &str, value: Value) -> Metric {
    Metric { name: Some(name.into()), value: Some(value), ..Metric::default() }
}

fn at(ms: i64, metric: Metric) -> Metric {
    Metric { timestamp: Some(NOW_MS.saturating_add_signed(ms)), ..metric }
}

fn payload(metrics: Vec<Metric>) -> Vec<u8> {
    Payload { timestamp: Some(NOW_MS), metrics, seq: Some(3) }.encode_to_vec()
}

struct Rig {
    sparkplug: Sparkplug,
    lists: ChannelLists,
}

impl Rig {
    fn new() -> Rig {
        Rig { sparkplug: Sparkplug::default(), lists: ChannelLists::default() }
    }

    fn try_bytes(&mut self, topic: &str, bytes: &[u8]) -> Result<(Vec<String>, DecodeReport), Fault> {
        let topic = SparkplugTopic::parse(topic).unwrap();
        let asset = AssetId::parse("a").unwrap();
        let mut out = Vec::new();
        let mut rows = Rows::new(&asset, &mut self.lists, &mut out);
        self.sparkplug.decode(&mut rows, &topic, bytes, NOW_US).map_err(|(_, fault)| fault)?;
        let report = rows.report;
        let mut shown = Vec::new();
        for reading in &out {
            for (time_us, row) in reading.rows() {
                let cells = reading.channels.iter().zip(row).map(|(name, value)| format!(" {name}={value}"));
                shown.push(format!("{:+}:{}", (time_us - NOW_US) / 1_000, cells.collect::<String>()));
            }
        }
        Ok((shown, report))
    }

    fn send(&mut self, topic: &str, metrics: Vec<Metric>) -> Vec<String> {
        self.try_bytes(topic, &payload(metrics)).unwrap().0
    }
}

fn born() -> Rig {
    let mut rig = Rig::new();
    let metrics = vec![
        birth("Temp/Outlet", 1, 9, Value::Float(20.5)),
        birth("Speed", 2, 3, Value::Int(1_500)),
        birth("Running", 3, 11, Value::Boolean(true)),
    ];
    assert_eq!(rig.send("spBv1.0/g/DBIRTH/n/d", metrics), ["+0: Temp.Outlet=20.5 Speed=1500 Running=1"]);
    rig
}

// Data names metrics by alias or by name, carries only what changed, and the rest keeps its value.
#[test]
fn data_changes_the_last_values() {
    let mut rig = born();
    assert_eq!(
        rig.send("spBv1.0/g/DDATA/n/d", vec![data(2, Value::Int(1_400))]),
        ["+0: Temp.Outlet=20.5 Speed=1400 Running=1"]
    );
    assert_eq!(
        rig.send("spBv1.0/g/DDATA/n/d", vec![named("Running", Value::Boolean(false)), data(1, Value::Float(21.0))]),
        ["+0: Temp.Outlet=21 Speed=1400 Running=0"]
    );
    let null = Metric { alias: Some(1), is_null: Some(true), ..Metric::default() };
    assert_eq!(rig.send("spBv1.0/g/DDATA/n/d", vec![null]), ["+0: Temp.Outlet=NaN Speed=1400 Running=0"]);
}

// Signed integers travel as unsigned ones, with or without their sign extended.
#[test]
fn integers_are_read_by_their_type() {
    for (value, datatype, expected) in [
        (Value::Int(0xFFFF_FFFF), 1, -1.0),
        (Value::Int(0xFF), 1, -1.0),
        (Value::Int(0xFFFE), 2, -2.0),
        (Value::Int(0xFFFF_FFFE), 3, -2.0),
        (Value::Long(u64::MAX), 4, -1.0),
        (Value::Int(0xFF), 5, 255.0),
        (Value::Int(0xFFFF_FFFF), 7, 4_294_967_295.0),
        (Value::Long(1 << 40), 8, 1_099_511_627_776.0),
        (Value::Float(1.5), 9, 1.5),
        (Value::Double(-2.5), 10, -2.5),
        (Value::Boolean(true), 11, 1.0),
    ] {
        assert_eq!(number(value, datatype), expected, "{value:?} as {datatype}");
    }
}

// Times within one scan are one row; a metric that comes again begins the next, and rows come in order of time.
#[test]
fn buffered_samples_become_rows() {
    let mut rig = born();
    let metrics = vec![
        at(-10, data(2, Value::Int(4))),
        at(-30, data(2, Value::Int(2))),
        at(-29, data(1, Value::Float(1.0))),
        at(-20, data(2, Value::Int(3))),
    ];
    assert_eq!(
        rig.send("spBv1.0/g/DDATA/n/d", metrics),
        [
            "-29: Temp.Outlet=1 Speed=2 Running=1",
            "-20: Temp.Outlet=1 Speed=3 Running=1",
            "-10: Temp.Outlet=1 Speed=4 Running=1"
        ]
    );
}

// Historical values are rows of their own and change no last value.
#[test]
fn historical_values_stay_apart() {
    let mut rig = born();
    let old = Metric { is_historical: Some(true), ..at(-60_000, data(2, Value::Int(7))) };
    assert_eq!(
        rig.send("spBv1.0/g/DDATA/n/d", vec![data(1, Value::Float(1.0)), old]),
        ["-60000: Temp.Outlet=NaN Speed=7 Running=NaN", "+0: Temp.Outlet=1 Speed=1500 Running=1"]
    );
}

// An alias that no birth explained is refused with what to do; beside known metrics it is only reported.
#[test]
fn unknown_aliases_are_told() {
    let mut rig = born();
    let bytes = payload(vec![data(9, Value::Int(1))]);
    let fault = rig.try_bytes("spBv1.0/g/DDATA/n/d", &bytes).unwrap_err();
    assert_eq!(fault, Fault::UnknownAlias { alias: 9 });
    let bytes = payload(vec![data(9, Value::Int(1)), data(2, Value::Int(5))]);
    let (rows, report) = rig.try_bytes("spBv1.0/g/DDATA/n/d", &bytes).unwrap();
    assert_eq!(rows, ["+0: Temp.Outlet=20.5 Speed=5 Running=1"]);
    assert_eq!((report.unknown_alias, report.ignored), (Some(9), 1));
    let topic = TopicName::parse("spBv1.0/g/DDATA/n/d").unwrap();
    let (command, bytes) = rebirth_command(&topic, NOW_US).unwrap();
    assert_eq!(command.as_str(), "spBv1.0/g/NCMD/n");
    let rebirth = Payload::decode(bytes.as_slice()).unwrap();
    assert_eq!(rebirth.metrics[0].name.as_deref(), Some("Node Control/Rebirth"));
    assert_eq!(rebirth.metrics[0].value, Some(Value::Boolean(true)));
}

// A node's death or birth forgets its devices and nobody else's.
#[test]
fn deaths_forget() {
    let known = |rig: &mut Rig, topic: &str| rig.try_bytes(topic, &payload(vec![data(1, Value::Float(1.0))])).is_ok();
    for end in ["spBv1.0/g/NDEATH/n", "spBv1.0/g/NBIRTH/n", "spBv1.0/g/DDEATH/n/d"] {
        let mut rig = born();
        rig.send("spBv1.0/g/DBIRTH/n2/d", vec![birth("x", 1, 9, Value::Float(0.0))]);
        assert!(known(&mut rig, "spBv1.0/g/DDATA/n/d"));
        rig.try_bytes(end, &payload(vec![birth("y", 1, 9, Value::Float(0.0))])).unwrap();
        assert!(!known(&mut rig, "spBv1.0/g/DDATA/n/d"), "{end}");
        assert!(known(&mut rig, "spBv1.0/g/DDATA/n2/d"), "{end}");
    }
}

// Publishers that never send a birth but name every metric are understood too.
#[test]
fn names_need_no_birth() {
    let mut rig = Rig::new();
    assert_eq!(rig.send("spBv1.0/g/NDATA/n", vec![named("a", Value::Float(1.0))]), ["+0: a=1"]);
    assert_eq!(rig.send("spBv1.0/g/NDATA/n", vec![named("b", Value::Long(2))]), ["+0: a=1 b=2"]);
}

// The session's own metrics and texts are no channels, and only so many metrics are.
#[test]
fn only_measurements_are_channels() {
    let mut rig = Rig::new();
    let mut metrics = vec![
        birth("bdSeq", 100, 8, Value::Long(1)),
        birth("Node Control/Rebirth", 101, 11, Value::Boolean(false)),
        Metric { name: Some("Serial".into()), alias: Some(102), datatype: Some(12), ..Metric::default() },
    ];
    metrics.extend((0..80).map(|n| birth(&format!("m{n}"), n, 9, Value::Float(1.0))));
    let (rows, report) = rig.try_bytes("spBv1.0/g/NBIRTH/n", &payload(metrics)).unwrap();
    assert_eq!(rows[0].matches('=').count(), CHANNELS_MAX);
    assert_eq!(report.ignored, 3 + 16);
    let bytes = payload(vec![data(79, Value::Float(1.0)), data(102, Value::Int(1)), data(0, Value::Float(2.0))]);
    let (rows, report) = rig.try_bytes("spBv1.0/g/NDATA/n", &bytes).unwrap();
    assert!(rows[0].starts_with("+0: m0=2 m1=1"), "{rows:?}");
    assert_eq!((report.ignored, report.unknown_alias), (2, None), "known, but no channels");
}

// What is damaged changes nothing, and a flood of empty metrics is refused before it takes memory.
#[test]
fn hostile_payloads_change_nothing() {
    let mut rig = born();
    let mut damaged = payload(vec![named("new", Value::Float(1.0)), data(2, Value::Int(1))]);
    damaged.extend_from_slice(&[0x12, 0x7F]);
    let fault = rig.try_bytes("spBv1.0/g/DDATA/n/d", &damaged).unwrap_err();
    assert_eq!(
        fault.to_string(),
        "it is not a Sparkplug B payload: a metric is cut off; check the `format` of the source"
    );
    assert_eq!(
        rig.send("spBv1.0/g/DDATA/n/d", vec![data(3, Value::Boolean(true))]),
        ["+0: Temp.Outlet=20.5 Speed=1500 Running=1"]
    );
    let flood = [0x12, 0x00].repeat(100_000);
    let fault = rig.try_bytes("spBv1.0/g/DDATA/n/d", &flood).unwrap_err();
    assert!(fault.to_string().contains("more than 4096 metrics"));
    let many = payload((0..=SAMPLES_MAX).map(|_| data(2, Value::Int(1))).collect());
    assert_eq!(rig.try_bytes("spBv1.0/g/DDATA/n/d", &many).unwrap_err(), Fault::TooManySamples);
}

// A device that keeps inventing names is remembered only so far, and still understood by the names it has.
#[test]
fn names_are_bounded() {
    let mut rig = Rig::new();
    for message in 0..10 {
        let metrics = (0..1_000).map(|n| named(&format!("{message}-{n}"), Value::Float(1.0))).collect();
        let bytes = payload(metrics);
        assert!(rig.try_bytes("spBv1.0/g/NDATA/n", &bytes).is_ok());
    }
    assert!(rig.sparkplug.metrics_total <= 2 * payload::METRICS_MAX);
    assert_eq!(rig.sparkplug.metrics_total, rig.sparkplug.devices.values().map(Device::metrics).sum::<usize>());
    assert!(rig.send("spBv1.0/g/NDATA/n", vec![named("0-0", Value::Float(5.0))])[0].starts_with("+0: 0-0=5 0-1=1"));
    rig.send("spBv1.0/g/NDEATH/n", vec![]);
    assert_eq!(rig.sparkplug.metrics_total, 0);
}

// What is remembered is bounded: one device more than allowed is refused, a known one is not.
#[test]
fn devices_are_bounded() {
    let mut rig = Rig::new();
    for n in 0..DEVICES_MAX {
        rig.send(&format!("spBv1.0/g/DBIRTH/n/d{n}"), vec![birth("x", 1, 9, Value::Float(0.0))]);
    }
    let bytes = payload(vec![birth("x", 1, 9, Value::Float(0.0))]);
    let fault = rig.try_bytes("spBv1.0/g/DBIRTH/n/more", &bytes).unwrap_err();
    assert_eq!(fault, Fault::TooManyDevices { devices_max: DEVICES_MAX });
    assert!(rig.try_bytes("spBv1.0/g/DBIRTH/n/d0", &bytes).is_ok());
}

// Commands, host states and other topics are no telemetry.
#[test]
fn only_births_data_and_deaths_are_telemetry() {
    for topic in ["spBv1.0/g/NCMD/n", "spBv1.0/STATE/host", "spBv1.0/g/DDATA/n", "spBv1.0/g/NDATA/n/d", "x/g/NDATA/n"] {
        assert_eq!(SparkplugTopic::parse(topic), None, "{topic}");
    }
    let topic = SparkplugTopic::parse("spBv1.0/g/NDATA/n").unwrap();
    assert_eq!(topic.part(SparkplugPart::Device), "n", "a node's own metrics belong to the node");
}
