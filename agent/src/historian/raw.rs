//! Short spans, row by row, from the log.
//!
//! Owns the search for a span's messages by when they came, and their decoding with a decoder of its own. At most
//! [`MESSAGES_MAX`] messages; more, or one of the gateway's sources that needs what was said before (a Sparkplug birth), is the
//! buckets' task. Rows are placed by device time: those that came more than [`MARGIN_US`] before or after are not found.

use std::collections::BTreeMap;

use millwright_broker::log::{FetchLimit, Log, LogReader, Offset, ReadError};

use crate::clock::SECOND_US;
use crate::config::SourceConfig;
use crate::ids::AssetId;
use crate::source::SourceMap;

/// Messages read for one chart: a tenth of a second of work.
const MESSAGES_MAX: u64 = 20_000;
/// How far device time and the time of arrival may be apart.
const MARGIN_US: i64 = 30 * SECOND_US;

/// Rows of an asset by device time; a value for each of `channels`, NaN where there is none.
#[derive(Debug, Default)]
pub(super) struct Rows {
    pub(super) channels: Vec<String>,
    pub(super) rows: BTreeMap<i64, Vec<f32>>,
}

/// The rows of a span; `None` if the log is not the place to look.
pub(super) fn read(
    log: &Log,
    sources: &[SourceConfig],
    asset: &AssetId,
    (from_us, to_us): (i64, i64),
) -> Result<Option<Rows>, ReadError> {
    let mut reader = log.reader()?;
    let (oldest, head) = (log.oldest(), log.head());
    let begin = first_since(&mut reader, (oldest, head), from_us.saturating_sub(MARGIN_US))?;
    let end = first_since(&mut reader, (begin, head), to_us.saturating_add(MARGIN_US))?;
    if end.0.saturating_sub(begin.0) > MESSAGES_MAX {
        return Ok(None);
    }
    let mut found = Rows::default();
    let mut sources = SourceMap::new(sources);
    let (mut at, mut readings) = (begin, Vec::new());
    while at < end {
        let fetched = reader.read(at, FetchLimit::default())?;
        for message in fetched.messages.iter().filter(|message| message.offset < end) {
            let Some(route) = sources.resolve(&message.message.topic) else { continue };
            readings.clear();
            sources.handle_timeout(message.received_us, &mut readings);
            if sources.decode(&route, &message.message.payload, message.received_us, &mut readings).is_err() {
                continue;
            }
            for reading in readings.iter().filter(|reading| reading.asset == *asset) {
                let places: Vec<usize> = reading.channels.iter().map(|name| found.place(name.as_str())).collect();
                for (time_us, values) in reading.rows().filter(|(time_us, _)| (from_us..to_us).contains(time_us)) {
                    found.add(time_us, &places, values);
                }
            }
        }
        if fetched.next <= at {
            break;
        }
        at = fetched.next;
    }
    Ok((!found.rows.is_empty()).then_some(found))
}

impl Rows {
    fn place(&mut self, channel: &str) -> usize {
        if let Some(place) = self.channels.iter().position(|name| name == channel) {
            return place;
        }
        self.channels.push(channel.to_owned());
        self.channels.len() - 1
    }

    /// A row that was sent again replaces itself.
    fn add(&mut self, time_us: i64, places: &[usize], values: &[f32]) {
        let width = self.channels.len();
        let row = self.rows.entry(time_us).or_default();
        row.resize(width.max(row.len()), f32::NAN);
        for (place, value) in places.iter().zip(values) {
            if let Some(slot) = row.get_mut(*place) {
                *slot = *value;
            }
        }
    }
}

/// The first message of a range that came at `at_us` or later; messages are in the order in which they came.
fn first_since(reader: &mut LogReader, (mut low, mut high): (Offset, Offset), at_us: i64) -> Result<Offset, ReadError> {
    while low < high {
        let middle = Offset(low.0 + (high.0 - low.0) / 2);
        match received_us(reader, middle)? {
            Some(received_us) if received_us < at_us => low = Offset(middle.0 + 1),
            // What retention dropped meanwhile is before whatever is asked for.
            None => low = Offset(middle.0 + 1),
            Some(_) => high = middle,
        }
    }
    Ok(low)
}

fn received_us(reader: &mut LogReader, at: Offset) -> Result<Option<i64>, ReadError> {
    let fetched = reader.read(at, FetchLimit { rows: 1, bytes: 1 })?;
    Ok(fetched.messages.first().map(|message| message.received_us))
}
