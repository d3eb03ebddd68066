//! Sources: from a topic and a payload to readings.
//!
//! Owns the decision which topics are telemetry, of which asset and in which format, and the decoding of all
//! formats. Never judges a sample: duplicates, gaps and late samples are the pipeline's. Nothing in a payload can
//! panic; what is kept of it is bounded by its own length and by the constants below. A payload that is refused
//! changes nothing.

mod error;
mod frame;
pub mod join;
mod json;
mod reading;
mod rows;
pub mod sparkplug;
#[cfg(test)]
mod tests;
pub mod text;
pub mod time;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use millwright_broker::topic::{TopicFilter, TopicName};
use serde::{Deserialize, Serialize};

pub use self::error::{Fault, Place, SourceError};
use self::join::{Join, JoinSettings, JoinedRow};
pub use self::reading::{Reading, StreamPosition};
pub(crate) use self::rows::channel_name;
use self::rows::{ChannelLists, Rows};
use self::sparkplug::{Sparkplug, SparkplugTopic};
use crate::config::template::SparkplugPart;
use crate::config::{CsvFormat, Format, JsonFormat, SourceConfig};
use crate::ids::{AssetId, ChannelName, IdError};

/// The most channels of a reading, as in the wire's frame.
pub const CHANNELS_MAX: usize = 64;

/// The most samples of a payload, as in the wire's frame.
pub const SAMPLES_MAX: usize = 1_024;

/// Topics whose route is remembered: at some 300 bytes each, 6 MB. When full, all are forgotten and found again.
const ROUTES_MAX: usize = 20_000;

/// Assets whose single values are joined into rows: at 64 channels of about 100 bytes, 64 MB at worst.
const JOINS_MAX: usize = 10_000;

/// The longest that a row waits, in microseconds: the largest `join_ms`.
const ROW_WAIT_US_MAX: i64 = 3_600_000_000;

/// What the topics of the gateway's own telemetry begin with.
const OWN_PREFIX: &str = "mw/v1/telemetry/";

/// What every topic of the gateway's own begins with; no source maps these.
const OWN_TOPICS: &str = "mw/";

/// Where the messages of one topic go. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Route(Arc<RouteInner>);

#[derive(Debug)]
struct RouteInner {
    topic: TopicName,
    asset: AssetId,
    decoder: Decoder,
}

#[derive(Debug)]
enum Decoder {
    Frame { own_topic: bool },
    Json { format: Arc<JsonFormat>, device: Arc<str> },
    Number { channel: ChannelName, settings: JoinSettings },
    Csv { format: Arc<CsvFormat> },
    Sparkplug { topic: SparkplugTopic },
}

impl Route {
    /// The topic.
    pub fn topic(&self) -> &TopicName {
        &self.0.topic
    }

    /// The asset that its messages are about.
    pub fn asset(&self) -> &AssetId {
        &self.0.asset
    }

    /// The format of its payloads, as the configuration calls it.
    pub fn format(&self) -> &'static str {
        match self.0.decoder {
            Decoder::Frame { .. } => "frame",
            Decoder::Json { .. } => "json",
            Decoder::Number { .. } => "number",
            Decoder::Csv { .. } => "csv",
            Decoder::Sparkplug { .. } => "sparkplug",
        }
    }
}

/// What a payload held besides its readings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DecodeReport {
    /// Samples decoded.
    pub samples: u64,
    /// Values that are missing: null, NaN, out of range, or not a number where one was expected.
    pub missing: u64,
    /// Fields that are no values: texts, lists, what lies too deep, and channels beyond the limit.
    pub ignored: u64,
    /// Samples whose time was unusable, which got the time of their arrival.
    pub times_replaced: u64,
    /// A Sparkplug alias that no birth explained; [`sparkplug::rebirth_command`] asks for it.
    pub unknown_alias: Option<u64>,
}

/// All sources: which topics are telemetry, and what is remembered to decode them.
#[derive(Debug)]
pub struct SourceMap {
    sources: Vec<Source>,
    own_json: Arc<JsonFormat>,
    routes: HashMap<TopicName, Option<Route>>,
    lists: ChannelLists,
    /// In order of the assets, so that a replay hands out rows in the same order.
    joins: BTreeMap<AssetId, Join>,
    /// No open row's time is up before this.
    next_row_us: Option<i64>,
    sparkplug: Sparkplug,
    joined: Vec<JoinedRow>,
    refused_topics: u64,
}

#[derive(Debug)]
struct Source {
    config: SourceConfig,
    json: Option<Arc<JsonFormat>>,
    csv: Option<Arc<CsvFormat>>,
}

/// What must survive a restart so that decoding goes on where the cursor stands.
#[derive(Deserialize)]
struct Saved {
    sparkplug: Sparkplug,
    joins: BTreeMap<AssetId, Join>,
}

/// [`Saved`] without a copy.
#[derive(Serialize)]
struct SavedRef<'s> {
    sparkplug: &'s Sparkplug,
    joins: &'s BTreeMap<AssetId, Join>,
}

/// Saved state that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the saved state of the sources cannot be read: {0}; it is rebuilt from the next messages")]
pub struct RestoreError(postcard::Error);

impl SourceMap {
    /// The gateway's own topics and `sources`, of which the first that matches a topic takes it.
    pub fn new(sources: &[SourceConfig]) -> SourceMap {
        let source = |config: &SourceConfig| Source {
            config: config.clone(),
            json: if let Format::Json(format) = &config.format { Some(Arc::new(format.clone())) } else { None },
            csv: if let Format::Csv(format) = &config.format { Some(Arc::new(format.clone())) } else { None },
        };
        SourceMap {
            sources: sources.iter().map(source).collect(),
            own_json: Arc::new(JsonFormat::default()),
            routes: HashMap::new(),
            lists: ChannelLists::default(),
            joins: BTreeMap::new(),
            next_row_us: None,
            sparkplug: Sparkplug::default(),
            joined: Vec::new(),
            refused_topics: 0,
        }
    }

    /// The filters of all telemetry, for the broker to log it at every QoS.
    pub fn filters(&self) -> Vec<TopicFilter> {
        let own = ["mw/v1/telemetry/+", "mw/v1/telemetry/+/json"];
        let own = own.iter().filter_map(|filter| TopicFilter::parse(filter).ok());
        own.chain(self.sources.iter().map(|source| source.config.filter.clone())).collect()
    }

    /// Where the messages of `topic` go; `None` if it is not telemetry, or gives no valid asset name (counted once
    /// per topic in [`SourceMap::refused_topics`]).
    pub fn resolve(&mut self, topic: &TopicName) -> Option<Route> {
        if let Some(route) = self.routes.get(topic) {
            return route.clone();
        }
        let route = match self.find(topic) {
            Ok(route) => route,
            Err(_) => {
                self.refused_topics = self.refused_topics.saturating_add(1);
                None
            }
        };
        if self.routes.len() >= ROUTES_MAX {
            self.routes.clear();
        }
        self.routes.insert(topic.clone(), route.clone());
        route
    }

    /// Topics that a source maps but whose levels give no valid asset or channel name.
    pub fn refused_topics(&self) -> u64 {
        self.refused_topics
    }

    fn find(&self, topic: &TopicName) -> Result<Option<Route>, IdError> {
        let text = topic.as_str();
        if let Some(rest) = text.strip_prefix(OWN_PREFIX) {
            let (asset, decoder) = match rest.split_once('/') {
                None => (rest, Decoder::Frame { own_topic: true }),
                Some((asset, "json")) => {
                    (asset, Decoder::Json { format: Arc::clone(&self.own_json), device: Arc::from(text) })
                }
                Some(_) => return Ok(None),
            };
            return Ok(Some(Route::new(topic, AssetId::parse(asset)?, decoder)));
        }
        if text.starts_with(OWN_TOPICS) {
            return Ok(None);
        }
        for source in &self.sources {
            if let Some(captures) = source.config.filter.captures(topic) {
                return source.route(topic, &captures);
            }
        }
        Ok(None)
    }

    /// Decodes a payload that arrived at `received_us` (UTC microseconds) and appends its readings to `out`. Single
    /// numbers become readings when their row is complete; a reading that an earlier message completed may be among
    /// them.
    ///
    /// # Errors
    /// What is wrong with the payload; nothing was appended and nothing remembered of it.
    pub fn decode(
        &mut self,
        route: &Route,
        payload: &[u8],
        received_us: i64,
        out: &mut Vec<Reading>,
    ) -> Result<DecodeReport, SourceError> {
        let RouteInner { topic, asset, decoder } = &*route.0;
        let start = out.len();
        let mut rows = Rows::new(asset, &mut self.lists, out);
        let outcome = match decoder {
            Decoder::Frame { own_topic } => frame::decode(&mut rows, *own_topic, payload, received_us),
            Decoder::Json { format, device } => json::decode(&mut rows, format, device, payload, received_us),
            Decoder::Csv { format } => text::decode_csv(&mut rows, format, payload, received_us),
            Decoder::Sparkplug { topic } => self.sparkplug.decode(&mut rows, topic, payload, received_us),
            Decoder::Number { channel, settings } => text::decode_number(payload).and_then(|value| {
                rows.report.missing += u64::from(value.is_nan());
                let join = joins_entry(&mut self.joins, asset, *settings);
                self.joined.clear();
                if !join.push(channel, value, received_us, &mut self.joined) {
                    return Err((Place::Whole, Fault::TooManyChannels));
                }
                let due_us = join.poll_timeout();
                self.next_row_us = self.next_row_us.into_iter().chain(due_us).min();
                push_joined(&mut rows, &mut self.joined);
                Ok(())
            }),
        };
        let report = rows.report;
        outcome.map(|()| report).map_err(|(at, fault)| {
            out.truncate(start);
            SourceError { topic: topic.clone(), format: route.format(), at, fault }
        })
    }

    /// When the next row of single numbers will have waited long enough, in UTC microseconds.
    pub fn poll_timeout(&self) -> Option<i64> {
        self.joins.values().filter_map(Join::poll_timeout).min()
    }

    /// Appends the rows of single numbers that have waited long enough by `now_us`. Cheap when there are none: it may
    /// be called with the time of every message.
    pub fn handle_timeout(&mut self, now_us: i64, out: &mut Vec<Reading>) {
        let Some(next_us) = self.next_row_us else { return };
        // A deadline further off than any row waits means that the clock was set back: then all are looked at.
        if (1..=ROW_WAIT_US_MAX).contains(&next_us.saturating_sub(now_us)) {
            return;
        }
        for (asset, join) in &mut self.joins {
            if let Some(row) = join.handle_timeout(now_us) {
                self.joined.clear();
                self.joined.push(row);
                push_joined(&mut Rows::new(asset, &mut self.lists, out), &mut self.joined);
            }
        }
        self.next_row_us = self.poll_timeout();
    }

    /// What must be kept with the cursor so that a restart continues from it: births and open rows. `None` if there
    /// is nothing, as when all devices send whole samples.
    pub fn save(&self) -> Option<Vec<u8>> {
        if self.sparkplug.is_empty() && self.joins.is_empty() {
            return None;
        }
        postcard::to_allocvec(&SavedRef { sparkplug: &self.sparkplug, joins: &self.joins }).ok()
    }

    /// Puts back what [`SourceMap::save`] gave.
    ///
    /// # Errors
    /// The bytes are damaged or from another version; nothing was put back.
    pub fn restore(&mut self, saved: &[u8]) -> Result<(), RestoreError> {
        let Saved { sparkplug, joins } = postcard::from_bytes(saved).map_err(RestoreError)?;
        self.sparkplug = sparkplug;
        self.joins = joins.into_iter().take(JOINS_MAX).collect();
        self.next_row_us = self.poll_timeout();
        Ok(())
    }
}

/// The join of an asset; when there are too many, all are forgotten, which at worst leaves one incomplete row each.
fn joins_entry<'j>(joins: &'j mut BTreeMap<AssetId, Join>, asset: &AssetId, settings: JoinSettings) -> &'j mut Join {
    if joins.len() >= JOINS_MAX && !joins.contains_key(asset) {
        joins.clear();
    }
    joins.entry(asset.clone()).or_insert_with(|| Join::new(settings))
}

fn push_joined(rows: &mut Rows<'_>, joined: &mut Vec<JoinedRow>) {
    let missing = rows.report.missing;
    for row in joined.drain(..) {
        rows.push_listed(None, row.time_us, &row.channels, row.values.iter().copied());
    }
    // What is missing in a joined row was counted when it came, or did not come at all.
    rows.report.missing = missing;
}

impl Source {
    fn route(&self, topic: &TopicName, captures: &[&str]) -> Result<Option<Route>, IdError> {
        let SourceConfig { asset, format, .. } = &self.config;
        let sparkplug = match format {
            Format::Sparkplug => match SparkplugTopic::parse(topic.as_str()) {
                Some(parsed) => Some(parsed),
                // Commands and host states share the filter, but are no telemetry.
                None => return Ok(None),
            },
            _ => None,
        };
        let part = |part: SparkplugPart| sparkplug.as_ref().map(|topic| topic.part(part));
        // The configuration has checked that every placeholder has a value.
        let asset = AssetId::parse(&asset.render(captures, part).unwrap_or_default())?;
        let decoder = match format {
            Format::Frame => Decoder::Frame { own_topic: false },
            Format::Json(_) => {
                let format = self.json.clone().unwrap_or_default();
                Decoder::Json { format, device: Arc::from(topic.as_str()) }
            }
            Format::Csv(format) => {
                Decoder::Csv { format: self.csv.clone().unwrap_or_else(|| Arc::new(format.clone())) }
            }
            Format::Number(number) => Decoder::Number {
                channel: ChannelName::parse(&number.channel.render(captures, |_| None).unwrap_or_default())?,
                settings: JoinSettings {
                    join_us: i64::try_from(number.join.as_micros()).unwrap_or(i64::MAX),
                    hold_us: i64::try_from(number.hold.as_micros()).unwrap_or(i64::MAX),
                },
            },
            Format::Sparkplug => match sparkplug.clone() {
                Some(topic) => Decoder::Sparkplug { topic },
                None => return Ok(None),
            },
        };
        Ok(Some(Route::new(topic, asset, decoder)))
    }
}

impl Route {
    fn new(topic: &TopicName, asset: AssetId, decoder: Decoder) -> Route {
        Route(Arc::new(RouteInner { topic: topic.clone(), asset, decoder }))
    }
}
