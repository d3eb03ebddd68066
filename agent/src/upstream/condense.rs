//! Telemetry condensed for thin lines: for each asset and span of time one message with count, smallest, largest, mean and last value of
//! each channel.
//!
//! Owns the fold. What is folded together is decided by when the gateway received a message, so that the same stretch of the log
//! always gives the same records: after a crash it is folded again from where the stretch begins. Within it, samples are
//! told apart by their device time, so that a device that resends an hour does not smear it into one span; a span that comes in
//! two parts is two messages, whose counts and means can be put together. Bounds: [`SPANS_MAX`] open spans; when there are more, the stretch ends early.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millwright_broker::log::{LogMessage, Offset};
use millwright_broker::topic::TopicName;
use serde::Serialize;

use super::record::{Content, Origin, Record};
use super::selection::Selection;
use crate::ids::AssetId;
use crate::pipeline::stream::{Arrival, Streams};
use crate::source::Reading;

/// Spans that are open at once: of 1,000 assets four each; 8 channels take 2 KiB, 8 MiB in all.
const SPANS_MAX: usize = 4_096;
/// Assets whose sequence numbers are remembered, to leave out what a device sends twice.
const STREAMS_MAX: usize = 4_096;
/// How long after a stretch its last messages may still be on their way into the log.
const GRACE_US: i64 = 2_000_000;

/// The fold.
#[derive(Debug)]
pub(super) struct Condenser {
    selection: Selection,
    step_us: i64,
    /// The stretch that is being folded: where it begins in the log, and its number.
    open: Option<(Offset, i64)>,
    /// By asset and the beginning of the span.
    spans: BTreeMap<(AssetId, i64), Span>,
    streams: HashMap<AssetId, Streams>,
    readings: Vec<Reading>,
    finished: Vec<Record>,
}

/// What is known of an asset in one span.
#[derive(Debug, Default)]
struct Span {
    received_us: i64,
    channels: BTreeMap<Arc<str>, Sum>,
}

#[derive(Debug, Clone, Copy)]
struct Sum {
    n: u64,
    min: f32,
    max: f32,
    sum: f64,
    last: f32,
    last_us: i64,
}

/// The message.
#[derive(Serialize)]
struct Condensed<'a> {
    asset: &'a str,
    from_us: i64,
    to_us: i64,
    channels: BTreeMap<&'a str, Figures>,
}

#[derive(Serialize)]
struct Figures {
    n: u64,
    min: f32,
    max: f32,
    mean: f64,
    last: f32,
}

impl Condenser {
    /// Condenses what `selection` chooses into spans of `step`.
    pub(super) fn new(selection: Selection, step: Duration) -> Condenser {
        Condenser {
            selection,
            step_us: i64::try_from(step.as_micros()).unwrap_or(i64::MAX).max(1),
            open: None,
            spans: BTreeMap::new(),
            streams: HashMap::new(),
            readings: Vec::new(),
            finished: Vec::new(),
        }
    }

    /// Where the stretch that is being folded begins: the cursor must not pass it.
    pub(super) fn begun_at(&self) -> Option<Offset> {
        self.open.map(|(begun, _)| begun)
    }

    /// Folds one message.
    pub(super) fn take(&mut self, message: &LogMessage, origin: &Origin) {
        let stretch = message.received_us.div_euclid(self.step_us);
        match self.open {
            // A clock that was set back goes on in the stretch that is open.
            Some((_, open)) if stretch <= open && self.spans.len() < SPANS_MAX => {}
            Some(_) => {
                self.close(message.offset, origin);
                self.open = Some((message.offset, stretch));
            }
            None => self.open = Some((message.offset, stretch)),
        }
        if !self.selection.wants(message.topic_id, &message.message.topic) {
            return;
        }
        let (topic, payload) = (&message.message.topic, &message.message.payload);
        let sources = self.selection.sources();
        self.readings.clear();
        sources.handle_timeout(message.received_us, &mut self.readings);
        if let Some(route) = sources.resolve(topic) {
            // What cannot be decoded is counted and told by the pipeline, which reads the same message.
            let _ = sources.decode(&route, payload, message.received_us, &mut self.readings);
        }
        for reading in std::mem::take(&mut self.readings) {
            self.fold(&reading, message.received_us);
        }
    }

    fn fold(&mut self, reading: &Reading, received_us: i64) {
        if let (Some(position), Some(first_us)) = (&reading.stream, reading.times_us.first()) {
            if self.streams.len() >= STREAMS_MAX && !self.streams.contains_key(&reading.asset) {
                self.streams.clear();
            }
            let streams = self.streams.entry(reading.asset.clone()).or_default();
            if streams.observe(position, *first_us) == Arrival::Duplicate {
                return;
            }
        }
        for (time_us, row) in reading.rows() {
            let from_us = time_us.div_euclid(self.step_us).saturating_mul(self.step_us);
            let span = self.spans.entry((reading.asset.clone(), from_us)).or_default();
            span.received_us = received_us;
            for (channel, value) in reading.channels.iter().zip(row).filter(|(_, value)| value.is_finite()) {
                match span.channels.get_mut(channel.as_str()) {
                    Some(sum) => sum.add(*value, time_us),
                    None => {
                        span.channels.insert(channel.as_str().into(), Sum::new(*value, time_us));
                    }
                }
            }
        }
    }

    /// Ends the stretch when its time is over although nothing comes any more; `next` is where the log goes on.
    pub(super) fn close_due(&mut self, now_us: i64, next: Offset, origin: &Origin) {
        let due = self.open.is_some_and(|(_, open)| {
            let end_us = open.saturating_add(1).saturating_mul(self.step_us);
            now_us >= end_us.saturating_add(GRACE_US)
        });
        if due {
            self.close(next, origin);
        }
    }

    /// Makes records of the stretch; `next` is where the one after it begins.
    fn close(&mut self, next: Offset, origin: &Origin) {
        let Some((begun, _)) = self.open.take() else { return };
        let made = self.finished.len();
        for ((asset, from_us), span) in std::mem::take(&mut self.spans) {
            let to_us = from_us.saturating_add(self.step_us);
            let Ok(topic) = TopicName::parse(&format!("mw/v1/condensed/{asset}")) else { continue };
            let channels = span.channels.iter().map(|(name, sum)| (&**name, sum.figures())).collect();
            let condensed = Condensed { asset: asset.as_str(), from_us, to_us, channels };
            let Ok(payload) = serde_json::to_vec(&condensed) else { continue };
            self.finished.push(Record {
                id: origin.part(begun, &format!("{asset}/{from_us}")),
                content: Content::Telemetry,
                key: asset.as_str().into(),
                topic,
                payload: Bytes::from(payload),
                gzipped: false,
                received_us: span.received_us,
                retain: false,
                next: None,
            });
        }
        // Only all of them together are the stretch.
        if let Some(last) = self.finished.get_mut(made..).and_then(<[Record]>::last_mut) {
            last.next = Some(next);
        }
    }

    /// Takes the records that are ready.
    pub(super) fn finished(&mut self) -> std::vec::Drain<'_, Record> {
        self.finished.drain(..)
    }
}

impl Sum {
    fn new(value: f32, time_us: i64) -> Sum {
        Sum { n: 1, min: value, max: value, sum: f64::from(value), last: value, last_us: time_us }
    }

    fn add(&mut self, value: f32, time_us: i64) {
        self.n += 1;
        (self.min, self.max) = (self.min.min(value), self.max.max(value));
        self.sum += f64::from(value);
        if time_us >= self.last_us {
            (self.last, self.last_us) = (value, time_us);
        }
    }

    fn figures(&self) -> Figures {
        Figures { n: self.n, min: self.min, max: self.max, mean: self.sum / self.n as f64, last: self.last }
    }
}
