//! Sparkplug B: births explain the metrics of a device, data messages name them and carry what changed.
//!
//! Owns what is known of every edge node and device: names, aliases, types and last values. A data message carries
//! only what changed, so a row is the last value of every numeric metric; an absent metric keeps its value until the
//! device's death. A row ends where a metric comes a second time, so that a payload of one scan is one row and a
//! payload of buffered samples is several. Historical values make rows of their own and change no last value.
//! Never answers an edge node itself: [`rebirth_command`] gives what to publish. Sparkplug's sequence number counts
//! modulo 256 over all messages of a node, so it can not tell a repetition and becomes no stream position.

mod payload;

use std::collections::HashMap;
use std::sync::Arc;

use millwright_broker::topic::TopicName;
use prost::Message;
use serde::{Deserialize, Serialize};

use self::payload::{Metric, Payload, PayloadError, Value};
use super::error::{Fault, Faulty, Place};
use super::rows::{Rows, channel_name};
use super::{CHANNELS_MAX, SAMPLES_MAX, time};
use crate::config::template::SparkplugPart;
use crate::ids::ChannelName;

/// Edge nodes and devices remembered.
pub const DEVICES_MAX: usize = 10_000;
/// Metrics remembered over all devices: at about 150 bytes each with its name and alias, 75 MB.
const METRICS_TOTAL_MAX: usize = 500_000;

/// The first level of every Sparkplug B topic.
const NAMESPACE: &str = "spBv1.0";

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Birth,
    Data,
    Death,
}

/// A parsed topic: `spBv1.0/<group>/<type>/<node>[/<device>]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SparkplugTopic {
    pub(super) kind: Kind,
    group: String,
    node: String,
    device: Option<String>,
}

impl SparkplugTopic {
    /// `None` for commands, host states and what is not Sparkplug: these are no telemetry.
    pub(super) fn parse(topic: &str) -> Option<SparkplugTopic> {
        let levels: Vec<&str> = topic.split('/').collect();
        let (group, kind, node, device) = match levels.as_slice() {
            [NAMESPACE, group, kind, node] => (group, *kind, node, None),
            [NAMESPACE, group, kind, node, device] => (group, *kind, node, Some((*device).to_owned())),
            _ => return None,
        };
        let kind = match (kind, device.is_some()) {
            ("NBIRTH", false) | ("DBIRTH", true) => Kind::Birth,
            ("NDATA", false) | ("DDATA", true) => Kind::Data,
            ("NDEATH", false) | ("DDEATH", true) => Kind::Death,
            _ => return None,
        };
        Some(SparkplugTopic { kind, group: (*group).to_owned(), node: (*node).to_owned(), device })
    }

    pub(super) fn part(&self, part: SparkplugPart) -> &str {
        match part {
            SparkplugPart::Group => &self.group,
            SparkplugPart::Node => &self.node,
            SparkplugPart::Device => self.device.as_deref().unwrap_or(&self.node),
        }
    }

    /// What the keys of the node and of all its devices begin with; levels contain no `/`.
    fn node_prefix(&self) -> String {
        format!("{}/{}/", self.group, self.node)
    }

    fn key(&self) -> String {
        format!("{}{}", self.node_prefix(), self.device.as_deref().unwrap_or_default())
    }
}

/// The command that makes the edge node of `topic` publish its births again: topic and payload, for QoS 0.
/// `None` if the topic is not one of an edge node.
pub fn rebirth_command(topic: &TopicName, now_us: i64) -> Option<(TopicName, Vec<u8>)> {
    let parsed = SparkplugTopic::parse(topic.as_str())?;
    let command = TopicName::parse(&format!("{NAMESPACE}/{}/NCMD/{}", parsed.group, parsed.node)).ok()?;
    let timestamp = u64::try_from(now_us / 1_000).ok();
    let rebirth = Metric {
        name: Some("Node Control/Rebirth".to_owned()),
        timestamp,
        datatype: Some(11),
        value: Some(Value::Boolean(true)),
        ..Metric::default()
    };
    Some((command, Payload { timestamp, metrics: vec![rebirth], seq: None }.encode_to_vec()))
}

/// What is known of every edge node and device.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub(super) struct Sparkplug {
    devices: HashMap<String, Device>,
    metrics_total: usize,
}

/// What is known of one edge node or device.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct Device {
    by_name: HashMap<String, Known>,
    by_alias: HashMap<u64, Known>,
    /// The numeric metrics, in the order of the birth.
    channels: Vec<ChannelName>,
    last: Vec<f32>,
    #[serde(skip)]
    shared: Option<Arc<[ChannelName]>>,
}

/// One metric: where its values go, and how its integers are to be read.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Known {
    channel: Option<u16>,
    datatype: u32,
}

/// One value of a data message.
#[derive(Debug, Clone, Copy)]
struct Entry {
    time_ms: Option<u64>,
    channel: u16,
    value: f32,
    historical: bool,
}

/// A fault of ours or of the payload, on the way out of the decoding.
enum Stop {
    Payload(PayloadError),
}

impl From<PayloadError> for Stop {
    fn from(error: PayloadError) -> Stop {
        Stop::Payload(error)
    }
}

impl From<Stop> for (Place, Fault) {
    fn from(Stop::Payload(error): Stop) -> (Place, Fault) {
        (Place::Whole, Fault::NotSparkplug { detail: error.to_string() })
    }
}

impl Sparkplug {
    /// Whether there is nothing to save.
    pub(super) fn is_empty(&self) -> bool {
        self.devices.is_empty()
    }

    /// Decodes one message.
    pub(super) fn decode(
        &mut self,
        rows: &mut Rows<'_>,
        topic: &SparkplugTopic,
        payload: &[u8],
        received_us: i64,
    ) -> Faulty<()> {
        match topic.kind {
            Kind::Death => {
                self.forget(topic);
                Ok(())
            }
            Kind::Birth => self.birth(rows, topic, payload, received_us),
            Kind::Data => self.data(rows, topic, payload, received_us),
        }
    }

    /// The death of a node is the death of all its devices.
    fn forget(&mut self, topic: &SparkplugTopic) {
        let mut forgotten = 0_usize;
        if topic.device.is_some() {
            forgotten = self.devices.remove(&topic.key()).map_or(0, |device| device.metrics());
        } else {
            let prefix = topic.node_prefix();
            self.devices.retain(|key, device| {
                let of_node = key.starts_with(&prefix);
                forgotten = forgotten.saturating_add(if of_node { device.metrics() } else { 0 });
                !of_node
            });
        }
        self.metrics_total = self.metrics_total.saturating_sub(forgotten);
    }

    fn birth(&mut self, rows: &mut Rows<'_>, topic: &SparkplugTopic, payload: &[u8], received_us: i64) -> Faulty<()> {
        let mut device = Device::default();
        let mut entries = Vec::new();
        let mut ignored = 0;
        let timestamp = payload::metrics::<Stop>(payload, |metric| {
            let known = device.learn(&metric);
            match known.and_then(|known| Entry::new(known, &metric)) {
                Some(entry) => entries.push(entry),
                None => ignored += 1,
            }
            Ok(())
        })?;
        rows.report.ignored += ignored;
        let entries = arrange(entries, timestamp)?;
        let key = topic.key();
        self.check_room(&key, &device)?;
        // Births replace what was known: a node's own birth, all of its devices too.
        self.forget(topic);
        self.insert(key, device).emit(rows, &entries, received_us);
        Ok(())
    }

    fn data(&mut self, rows: &mut Rows<'_>, topic: &SparkplugTopic, payload: &[u8], received_us: i64) -> Faulty<()> {
        let key = topic.key();
        // A copy is changed, so that a payload that turns out to be damaged changes nothing; the copy is only made
        // if the payload names something new, which after a birth is never.
        let known = self.devices.get(&key);
        let mut grown: Option<Device> = None;
        let mut entries = Vec::new();
        let mut ignored = 0;
        let mut unknown_alias = None;
        let timestamp = payload::metrics::<Stop>(payload, |metric| {
            let found = grown.as_ref().or(known).and_then(|device| device.find(&metric));
            let found = match (found, metric.name.as_deref(), metric.alias) {
                (Some(found), ..) => Some(found),
                // A device that keeps inventing names is not listened to for ever.
                (None, Some(_), _) if known.is_some_and(Device::is_full) => None,
                (None, Some(_), _) => grown.get_or_insert_with(|| known.cloned().unwrap_or_default()).learn(&metric),
                (None, None, alias) => {
                    unknown_alias = unknown_alias.or(alias);
                    None
                }
            };
            match found.and_then(|found| Entry::new(found, &metric)) {
                Some(entry) => entries.push(entry),
                None => ignored += 1,
            }
            Ok(())
        })?;
        rows.report.ignored += ignored;
        rows.report.unknown_alias = unknown_alias;
        if let (true, Some(alias)) = (entries.is_empty(), unknown_alias) {
            return Err((Place::Whole, Fault::UnknownAlias { alias }));
        }
        let entries = arrange(entries, timestamp)?;
        let device = match grown {
            Some(device) => {
                self.check_room(&key, &device)?;
                self.insert(key, device)
            }
            None => match self.devices.get_mut(&key) {
                Some(device) => device,
                None => return Ok(()),
            },
        };
        device.emit(rows, &entries, received_us);
        Ok(())
    }

    /// The metrics in all, once `device` stands at `key`.
    fn total_with(&self, key: &str, device: &Device) -> usize {
        let before = self.devices.get(key).map_or(0, Device::metrics);
        self.metrics_total.saturating_sub(before).saturating_add(device.metrics())
    }

    fn check_room(&self, key: &str, device: &Device) -> Faulty<()> {
        let full = self.devices.len() >= DEVICES_MAX && !self.devices.contains_key(key);
        if full || self.total_with(key, device) > METRICS_TOTAL_MAX {
            return Err((Place::Whole, Fault::TooManyDevices { devices_max: DEVICES_MAX }));
        }
        Ok(())
    }

    fn insert(&mut self, key: String, device: Device) -> &mut Device {
        self.metrics_total = self.total_with(&key, &device);
        self.devices.entry(key).insert_entry(device).into_mut()
    }
}

impl Device {
    fn metrics(&self) -> usize {
        self.by_name.len().saturating_add(self.by_alias.len())
    }

    /// Whether no further name is remembered.
    fn is_full(&self) -> bool {
        self.metrics() >= 2 * payload::METRICS_MAX
    }

    fn find(&self, metric: &Metric) -> Option<Known> {
        let by_name = metric.name.as_deref().and_then(|name| self.by_name.get(name));
        by_name.or_else(|| self.by_alias.get(&metric.alias?)).copied()
    }

    /// Remembers a metric by its name and alias. Only numbers and booleans get a channel, and only the first
    /// [`CHANNELS_MAX`] of them; the session's own metrics get none.
    fn learn(&mut self, metric: &Metric) -> Option<Known> {
        let name = metric.name.as_deref()?;
        let datatype = metric.datatype.unwrap_or_default();
        // 1 to 11: the integers, floats and booleans. 0 is unknown: then the value decides.
        let numeric = (1..=11).contains(&datatype) || (datatype == 0 && metric.value.is_some());
        let own = name == "bdSeq" || name.starts_with("Node Control/") || name.starts_with("Device Control/");
        let channel = if numeric && !own { self.channel(name) } else { None };
        let known = Known { channel, datatype };
        // A name no longer than 256 bytes can be a metric's; what is longer is not worth remembering.
        if name.len() <= 256 && !self.is_full() {
            self.by_name.insert(name.to_owned(), known);
            if let Some(alias) = metric.alias {
                self.by_alias.insert(alias, known);
            }
        }
        Some(known)
    }

    /// The channel for a metric's name, a new one if there is room.
    fn channel(&mut self, name: &str) -> Option<u16> {
        let name = channel_name(name)?;
        let index = match self.channels.iter().position(|channel| *channel == name) {
            Some(index) => index,
            None if self.channels.len() >= CHANNELS_MAX => return None,
            None => {
                self.shared = None;
                self.channels.push(name);
                self.last.push(f32::NAN);
                self.channels.len().checked_sub(1)?
            }
        };
        u16::try_from(index).ok()
    }

    /// Turns arranged values into rows.
    fn emit(&mut self, rows: &mut Rows<'_>, entries: &[Entry], received_us: i64) {
        let channels = &self.channels;
        let shared = Arc::clone(self.shared.get_or_insert_with(|| channels.iter().cloned().collect()));
        for entries in group(entries) {
            let Some(newest) = entries.last() else { continue };
            let mut historical = vec![f32::NAN; if newest.historical { self.last.len() } else { 0 }];
            let row = if newest.historical { &mut historical } else { &mut self.last };
            for entry in entries {
                if let Some(value) = row.get_mut(usize::from(entry.channel)) {
                    *value = entry.value;
                }
            }
            let device_us = newest.time_ms.and_then(|ms| i64::try_from(ms).ok()).map(|ms| ms.saturating_mul(1_000));
            let time_us = device_us.filter(|time_us| time::is_plausible(*time_us));
            rows.report.times_replaced += u64::from(time_us.is_none());
            rows.push_listed(None, time_us.unwrap_or(received_us), &shared, row.iter().copied());
        }
    }
}

/// Puts entries in order of time; those without one have the payload's. Refuses more rows than a payload may have.
fn arrange(mut entries: Vec<Entry>, timestamp_ms: Option<u64>) -> Faulty<Vec<Entry>> {
    for entry in &mut entries {
        entry.time_ms = entry.time_ms.or(timestamp_ms);
    }
    entries.sort_by_key(|entry| (entry.time_ms, entry.historical));
    if group(&entries).len() > SAMPLES_MAX {
        return Err((Place::Whole, Fault::TooManySamples));
    }
    Ok(entries)
}

/// Splits entries in order of time into rows: a row ends before a channel that it has already, and where historical
/// values begin or end.
fn group(entries: &[Entry]) -> Vec<&[Entry]> {
    let mut groups = Vec::new();
    let mut rest = entries;
    while let Some(first) = rest.first() {
        // One bit per channel: there are at most 64.
        let mut seen = 0_u64;
        let end = rest.iter().position(|entry| {
            let bit = 1_u64.checked_shl(u32::from(entry.channel)).unwrap_or_default();
            let again = seen & bit != 0 || entry.historical != first.historical;
            seen |= bit;
            again
        });
        let (row, tail) = rest.split_at_checked(end.unwrap_or(rest.len())).unwrap_or((rest, &[]));
        groups.push(row);
        rest = tail;
    }
    groups
}

impl Entry {
    /// `None` if the metric has no channel, or neither a value nor the word that it has none.
    fn new(known: Known, metric: &Metric) -> Option<Entry> {
        let channel = known.channel?;
        let datatype = metric.datatype.filter(|datatype| *datatype != 0).unwrap_or(known.datatype);
        let value = match metric.value {
            _ if metric.is_null == Some(true) => f32::NAN,
            Some(value) => number(value, datatype),
            None => return None,
        };
        let value = if value.is_finite() { value } else { f32::NAN };
        Some(Entry { time_ms: metric.timestamp, channel, value, historical: metric.is_historical == Some(true) })
    }
}

/// A metric's number. Signed integers travel as unsigned ones: some writers extend the sign to 32 bits, some do not.
fn number(value: Value, datatype: u32) -> f32 {
    match (value, datatype) {
        (Value::Int(value), 1) => f32::from(value as u8 as i8),
        (Value::Int(value), 2) => f32::from(value as u16 as i16),
        (Value::Int(value), 3) => value as i32 as f32,
        (Value::Int(value), 4) => i64::from(value as i32) as f32,
        (Value::Int(value), _) => value as f32,
        (Value::Long(value), 1..=4) => value as i64 as f32,
        (Value::Long(value), _) => value as f32,
        (Value::Float(value), _) => value,
        (Value::Double(value), _) => value as f32,
        (Value::Boolean(value), _) => f32::from(u8::from(value)),
    }
}

#[cfg(test)]
mod tests;

/// A sound birth message, for the property tests of all formats.
#[cfg(test)]
pub(super) fn sample_birth() -> Vec<u8> {
    let metric = |name: &str, alias: u64, value: Value| Metric {
        name: Some(name.to_owned()),
        alias: Some(alias),
        datatype: Some(10),
        value: Some(value),
        ..Metric::default()
    };
    let metrics = vec![metric("a", 1, Value::Double(1.0)), metric("b", 2, Value::Int(2))];
    Payload { timestamp: Some(1_583_748_873_250), metrics, seq: Some(0) }.encode_to_vec()
}
