//! `[[source]]`: which topics are telemetry, of which asset, in which format.
//!
//! Owns what a source may be and how sources stand to each other. Never decodes a payload.

use std::time::Duration;

use millwright_broker::topic::TopicFilter;

use super::reader::{Section, Spot};
use super::template::NameTemplate;
use crate::ids::{ChannelName, shorten};

/// The most columns of a CSV source: the channels of a reading, a time, and as many that are skipped.
pub const CSV_COLUMNS_MAX: usize = 129;

/// One `[[source]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceConfig {
    /// The topics it maps.
    pub filter: TopicFilter,
    /// The asset that a topic belongs to.
    pub asset: NameTemplate,
    /// How payloads are decoded.
    pub format: Format,
}

/// How the payloads of a source are decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// Millwright's own telemetry frame.
    Frame,
    /// JSON, one sample or a list of samples.
    Json(JsonFormat),
    /// One plain number a message; the channel is in the topic.
    Number(NumberFormat),
    /// Lines of separated values.
    Csv(CsvFormat),
    /// Sparkplug B.
    Sparkplug,
}

impl Format {
    /// The word in the configuration.
    pub fn word(&self) -> &'static str {
        match self {
            Format::Frame => "frame",
            Format::Json(_) => "json",
            Format::Number(_) => "number",
            Format::Csv(_) => "csv",
            Format::Sparkplug => "sparkplug",
        }
    }
}

/// The unit of numeric times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TimeUnit {
    /// Recognised by magnitude.
    #[default]
    Auto,
    /// Seconds since 1970.
    Seconds,
    /// Milliseconds since 1970.
    Millis,
    /// Microseconds since 1970.
    Micros,
    /// Nanoseconds since 1970.
    Nanos,
}

/// The fields of JSON telemetry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JsonFormat {
    /// The field with the sample's time.
    pub time_field: String,
    /// The field with the device's sequence number.
    pub seq_field: String,
    /// The object that holds the values; without it, `values` if there is one, else the sample's own fields.
    pub values_field: Option<String>,
    /// The unit of numeric times.
    pub time_unit: TimeUnit,
}

impl Default for JsonFormat {
    fn default() -> JsonFormat {
        JsonFormat {
            time_field: TIME_FIELD.to_owned(),
            seq_field: SEQ_FIELD.to_owned(),
            values_field: None,
            time_unit: TimeUnit::Auto,
        }
    }
}

/// How single numbers become rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumberFormat {
    /// The channel that a topic carries.
    pub channel: NameTemplate,
    /// How long a row waits for the rest of its values.
    pub join: Duration,
    /// How long a value stands in for one that did not come.
    pub hold: Duration,
}

/// The columns of CSV telemetry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsvFormat {
    /// What each column is, in order.
    pub columns: Vec<CsvColumn>,
    /// The character between two cells, an ASCII one.
    pub separator: u8,
    /// The unit of numeric times.
    pub time_unit: TimeUnit,
}

/// What a CSV column is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CsvColumn {
    /// The sample's time.
    Time,
    /// A channel's value.
    Channel(ChannelName),
    /// Not used.
    Skip,
}

const TIME_FIELD: &str = "ts";
const SEQ_FIELD: &str = "seq";
const LABEL: &str = "[[source]]";

/// The keys that mean something only with some formats.
const FORMAT_KEYS: [(&str, &[&str]); 9] = [
    ("time_field", &["json", "csv"]),
    ("time_unit", &["json", "csv"]),
    ("seq_field", &["json"]),
    ("values_field", &["json"]),
    ("channel", &["number"]),
    ("join_ms", &["number"]),
    ("hold_ms", &["number"]),
    ("columns", &["csv"]),
    ("separator", &["csv"]),
];

/// A source as it was read, with where it stands.
pub(super) struct ReadSource {
    pub(super) config: SourceConfig,
    filter_spot: Spot,
}

/// Reads one `[[source]]`; `None` if a mistake leaves nothing to use.
pub(super) fn read(s: &mut Section<'_, '_>) -> Option<ReadSource> {
    let filter = s.required("filter", "topic filter", "write for example filter = \"plant/+/json\"", filter);
    let asset = s.required("asset", "name template", ASSET_REMEDY, NameTemplate::parse);
    let word = s.choice("format", None, &["frame", "json", "number", "csv", "sparkplug"].map(|word| (word, word)));
    let time_field = s.text("time_field", TIME_FIELD, "name of a field or column");
    let time_unit = s.choice("time_unit", Some(TimeUnit::Auto), &TIME_UNITS).unwrap_or_default();
    let seq_field = s.text("seq_field", SEQ_FIELD, "name of a field");
    let values_field = s.optional("values_field", "name of a field", "remove it or name a field", not_empty);
    let channel = s.optional("channel", "name template", CHANNEL_REMEDY, NameTemplate::parse);
    let join_ms = s.integer("join_ms", 1_000_u64, 1..=3_600_000);
    let hold_ms = s.integer("hold_ms", 60_000_u64, 0..=604_800_000);
    let columns = s.list("columns", "list of names", COLUMNS_EXAMPLE);
    let separator = s.text("separator", ",", "one ASCII character");

    let word = word?;
    for (key, formats) in FORMAT_KEYS {
        if s.has(key) && !formats.contains(&word) {
            let what = format!("means nothing with format = \"{word}\"");
            s.mistake(key, what, format!("remove it; it belongs to format = \"{}\"", formats.join("\" or \"")));
        }
    }
    let format = match word {
        "frame" => Some(Format::Frame),
        "sparkplug" => Some(Format::Sparkplug),
        "json" => Some(Format::Json(JsonFormat { time_field, seq_field, values_field, time_unit })),
        "number" => number_format(s, channel, join_ms, hold_ms),
        _ => csv_format(s, columns.as_deref(), &time_field, &separator, time_unit),
    };
    let (filter, asset) = (filter?, asset?);
    check_template(s, "asset", &asset, &filter, word);
    if let Some(Format::Number(number)) = &format {
        check_template(s, "channel", &number.channel, &filter, word);
    }
    if asset.is_literal() && filter.as_str().contains(['+', '#']) && matches!(word, "frame" | "json" | "csv") {
        let what = format!("every topic that `{filter}` matches becomes the one asset \"{asset}\"");
        s.warning("asset", what, "write {1} for the level that the first + matched, if these are several machines");
    }
    Some(ReadSource { config: SourceConfig { filter, asset, format: format? }, filter_spot: s.spot("filter") })
}

const ASSET_REMEDY: &str = "write a name, or {1} for the level that the first + of the filter matched";
const CHANNEL_REMEDY: &str =
    "write for example channel = \"{2}\" for the level that the second + of the filter matched";
const COLUMNS_EXAMPLE: &str = "[\"ts\", \"temperature\", \"_\", \"pressure\"]";
const TIME_UNITS: [(&str, TimeUnit); 5] = [
    ("auto", TimeUnit::Auto),
    ("s", TimeUnit::Seconds),
    ("ms", TimeUnit::Millis),
    ("us", TimeUnit::Micros),
    ("ns", TimeUnit::Nanos),
];

fn not_empty(text: &str) -> Result<String, &'static str> {
    if text.is_empty() { Err("is empty") } else { Ok(text.to_owned()) }
}

fn filter(text: &str) -> Result<TopicFilter, String> {
    let filter = TopicFilter::parse(text).map_err(|error| error.to_string())?;
    if filter.share_group().is_some() {
        return Err("a source reads every message: it cannot share a subscription".to_owned());
    }
    if text == "mw" || text.starts_with("mw/") {
        return Err("topics below `mw/` are the gateway's own and need no source".to_owned());
    }
    if text.starts_with('$') {
        return Err("topics that begin with `$` are the broker's own".to_owned());
    }
    Ok(filter)
}

fn number_format(s: &mut Section<'_, '_>, channel: Option<NameTemplate>, join: u64, hold: u64) -> Option<Format> {
    if !s.has("channel") {
        s.mistake("channel", "is missing: a plain number does not say what it measures", CHANNEL_REMEDY);
    }
    if hold < join {
        let what =
            format!("{hold} is less than join_ms ({join}): values would be missing before their row is complete");
        s.mistake("hold_ms", what, "make it several times join_ms");
    }
    let (join, hold) = (Duration::from_millis(join), Duration::from_millis(hold));
    Some(Format::Number(NumberFormat { channel: channel?, join, hold }))
}

fn csv_format(
    s: &mut Section<'_, '_>,
    columns: Option<&[String]>,
    time_field: &str,
    separator: &str,
    time_unit: TimeUnit,
) -> Option<Format> {
    let separator = match separator.as_bytes() {
        [byte] if byte.is_ascii() && !byte.is_ascii_alphanumeric() && !b"\"\r\n.-+_".contains(byte) => Some(*byte),
        _ => {
            let what = format!("\"{}\" cannot separate cells", shorten(separator));
            s.mistake("separator", what, "write one character: \",\", \";\" or \"\\t\"");
            None
        }
    };
    let Some(columns) = columns else {
        if !s.has("columns") {
            let remedy = format!("name them in order, \"_\" for one to skip: columns = {COLUMNS_EXAMPLE}");
            s.mistake("columns", "is missing", remedy);
        }
        return None;
    };
    if columns.len() > CSV_COLUMNS_MAX {
        s.mistake("columns", format!("{} columns, at most {CSV_COLUMNS_MAX} are allowed", columns.len()), "");
        return None;
    }
    let mut parsed = Vec::new();
    for (index, name) in columns.iter().enumerate() {
        if name != "_" && columns.iter().take(index).any(|earlier| earlier == name) {
            let what = format!("\"{}\" appears twice", shorten(name));
            s.mistake("columns", what, "give each column its own name, or \"_\" to skip it");
        }
        parsed.push(match name.as_str() {
            "_" => CsvColumn::Skip,
            name if name == time_field => CsvColumn::Time,
            name => match ChannelName::parse(name) {
                Ok(channel) => CsvColumn::Channel(channel),
                Err(error) => {
                    s.mistake("columns", error.to_string(), "choose another name");
                    CsvColumn::Skip
                }
            },
        });
    }
    let channels = parsed.iter().filter(|column| matches!(column, CsvColumn::Channel(_))).count();
    if channels == 0 || channels > crate::source::CHANNELS_MAX {
        let what = format!("{channels} channels, 1 to {} are allowed", crate::source::CHANNELS_MAX);
        s.mistake("columns", what, format!("write for example columns = {COLUMNS_EXAMPLE}"));
    }
    Some(Format::Csv(CsvFormat { columns: parsed, separator: separator?, time_unit }))
}

/// A template may only name what the filter and the format give.
fn check_template(s: &mut Section<'_, '_>, key: &str, template: &NameTemplate, filter: &TopicFilter, word: &str) {
    let wildcards = filter.as_str().split('/').filter(|level| *level == "+").count();
    let needed = template.captures_needed();
    if needed > wildcards {
        let what = format!("\"{template}\" names capture {{{needed}}}, but `{filter}` has {wildcards} `+`");
        s.mistake(key, what, "put a + in the filter for each level to capture (# captures nothing)");
    }
    if template.needs_sparkplug() && word != "sparkplug" {
        let what = format!("\"{template}\" names a part of a Sparkplug topic, but format = \"{word}\"");
        s.mistake(key, what, "write {1}, {2} and so on for the levels that the wildcards matched");
    }
}

/// Sources are tried in order, so one behind a wider one is never reached.
pub(super) fn check_together(document: &mut super::reader::Document<'_>, sources: &[ReadSource]) {
    for (index, source) in sources.iter().enumerate() {
        let filter = &source.config.filter;
        for (earlier_index, earlier) in sources.iter().take(index).enumerate() {
            let other = &earlier.config.filter;
            let number = earlier_index + 1;
            if other == filter {
                let what = format!("`{filter}` is already the filter of the {LABEL} number {number}");
                document.mistake(&source.filter_spot, what, "remove one of the two");
            } else if covers(other.as_str(), filter.as_str()) {
                let what =
                    format!("never used: `{other}` of the {LABEL} number {number} already takes every such topic");
                document.warning(&source.filter_spot, what, "put the narrower source first");
            } else if overlap(other.as_str(), filter.as_str()) {
                let what = format!("shares topics with `{other}` of the {LABEL} number {number}, which takes them");
                document.warning(&source.filter_spot, what, "put the source that should take them first");
            } else {
                continue;
            }
            break;
        }
    }
}

/// Whether every topic that `narrow` matches is matched by `wide`.
fn covers(wide: &str, narrow: &str) -> bool {
    let (mut wide, mut narrow) = (wide.split('/'), narrow.split('/'));
    loop {
        match (wide.next(), narrow.next()) {
            (Some("#"), _) => return true,
            (None, None) => return true,
            (Some("+"), Some(level)) if level != "#" => {}
            (Some(w), Some(n)) if w == n && n != "#" => {}
            _ => return false,
        }
    }
}

/// Whether some topic is matched by both.
fn overlap(left: &str, right: &str) -> bool {
    let (mut left, mut right) = (left.split('/'), right.split('/'));
    loop {
        match (left.next(), right.next()) {
            (Some("#"), _) | (_, Some("#")) => return true,
            (None, None) => return true,
            (Some("+"), Some(_)) | (Some(_), Some("+")) => {}
            (Some(l), Some(r)) if l == r => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // What a filter covers and what it shares follows the rules of matching.
    #[test]
    fn filters_are_compared() {
        for (left, right, covered, shared) in [
            ("#", "a/b", true, true),
            ("a/#", "a", true, true),
            ("a/#", "a/+", true, true),
            ("a/+", "a/#", false, true),
            ("a/+", "a/b", true, true),
            ("a/b", "a/+", false, true),
            ("a/+/c", "+/b/c", false, true),
            ("a/+", "b/+", false, false),
            ("a/+", "a/b/c", false, false),
        ] {
            assert_eq!(covers(left, right), covered, "{left} covers {right}");
            assert_eq!(overlap(left, right), shared, "{left} overlaps {right}");
        }
    }
}
