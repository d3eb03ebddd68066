//! Raw readings: the log decoded once more, by the decoders that the pipeline uses.
//!
//! Owns the two walks over the log (which channels there are; then the rows) and the order of the rows. Messages come in the order of
//! arrival, rows are written in the order of device time: [`HELD_CELLS_MAX`] cells wait in memory for rows that come late, and what comes later
//! still is written where it comes and counted. A moment of an asset is one row, whatever messages its channels came in; a reading that a
//! device has sent again is dropped as in the pipeline. Where a beginning is asked for, messages are looked for from [`EARLY_US_MAX`]
//! before it to the end of the log: a device may have kept for days what it measured.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use millwright_broker::log::{FetchLimit, LogMessage, Offset, ReadError, StoredLog};

use super::table::{Cell, Column, Kind, Names, TableWriter};
use super::{ASSETS_MAX, COLUMNS_MAX, ExportError, Place, Request, Tell, Told, listed};
use crate::clock::{self, SECOND_US};
use crate::config::Format;
use crate::ids::{AssetId, ChannelName};
use crate::pipeline::stream::{Arrival, Streams};
use crate::source::{Reading, SourceMap};

/// Cells that wait to be put in order, 8 MB.
pub(super) const HELD_CELLS_MAX: usize = 2_000_000;
/// Rows that wait; a row has some 100 bytes besides its cells.
const HELD_ROWS_MAX: usize = 65_536;
/// How far a device's clock may be ahead of the gateway's where a beginning is asked for.
const EARLY_US_MAX: i64 = 86_400 * SECOND_US;
/// The share of the work that finding the channels is.
const SURVEY_SHARE: f64 = 0.4;

/// What is written.
pub(super) struct Rows {
    scan: Scan,
    assets: Vec<AssetId>,
    channels: Vec<ChannelName>,
}

/// A part of the log, and how it is decoded.
struct Scan {
    log: StoredLog,
    config: Vec<crate::config::SourceConfig>,
    begin: Offset,
    head: Offset,
}

/// What a walk over the log came across.
#[derive(Default)]
struct Seen {
    messages: u64,
    decode_errors: u64,
    last_decode_error: Option<String>,
    lost_messages: u64,
    /// When the first message came.
    first_us: Option<i64>,
    last_us: Option<i64>,
}

impl Scan {
    fn open(place: Place<'_>, request: &Request) -> Result<Scan, ReadError> {
        let mut log = StoredLog::open(place.data_dir)?;
        // The head of the start: a gateway that goes on writing does not keep the export from ending.
        let span = log.span()?;
        // What a birth said may be needed for all that follows.
        let remembers = place.sources.iter().any(|source| matches!(source.format, Format::Sparkplug));
        let begin = match request.from_us {
            Some(from_us) if !remembers => log.begin_since(from_us.saturating_sub(EARLY_US_MAX))?.max(span.oldest),
            _ => span.oldest,
        };
        Ok(Scan { log, config: place.sources.to_vec(), begin, head: span.head })
    }

    /// Shows the readings of the assets that are asked for, in the order in which they came. `known` is told every asset that has telemetry.
    fn walk(
        &mut self,
        request: &Request,
        known: &mut dyn FnMut(&AssetId),
        show: &mut dyn FnMut(&Reading) -> Result<(), ExportError>,
        tell: Tell<'_>,
    ) -> Result<Seen, ExportError> {
        let mut sources = SourceMap::new(&self.config);
        let (mut seen, mut readings) = (Seen::default(), Vec::new());
        let mut at = self.begin;
        let all = self.head.0.saturating_sub(self.begin.0).max(1) as f64;
        while at < self.head {
            if !tell(at.0.saturating_sub(self.begin.0) as f64 / all) {
                return Err(ExportError::Ended);
            }
            let fetched = self.log.read(at, self.head, FetchLimit::default())?;
            if let Some(gap) = &fetched.lost {
                seen.lost_messages += gap.to.0.saturating_sub(gap.from.0);
            }
            for message in &fetched.messages {
                seen.note(message);
                decode(&mut sources, request, message, &mut readings, &mut seen, known);
                show_all(request, &mut readings, show)?;
            }
            if fetched.next <= at {
                break;
            }
            at = fetched.next;
        }
        // Single values whose row has waited long enough by now.
        sources.handle_timeout(clock::utc_us(), &mut readings);
        show_all(request, &mut readings, show)?;
        Ok(seen)
    }
}

impl Seen {
    fn note(&mut self, message: &LogMessage) {
        self.messages += 1;
        self.first_us.get_or_insert(message.received_us);
        self.last_us = Some(message.received_us);
    }
}

fn decode(
    sources: &mut SourceMap,
    request: &Request,
    message: &LogMessage,
    readings: &mut Vec<Reading>,
    seen: &mut Seen,
    known: &mut dyn FnMut(&AssetId),
) {
    let Some(route) = sources.resolve(&message.message.topic) else { return };
    known(route.asset());
    let wanted = request.wants(route.asset());
    // A Sparkplug message of another asset may say what the aliases of this one mean.
    if !wanted && route.format() != "sparkplug" {
        return;
    }
    sources.handle_timeout(message.received_us, readings);
    let outcome = sources.decode(&route, &message.message.payload, message.received_us, readings);
    if let (Err(error), true) = (outcome, wanted) {
        seen.decode_errors += 1;
        seen.last_decode_error = Some(error.to_string());
    }
}

fn show_all(
    request: &Request,
    readings: &mut Vec<Reading>,
    show: &mut dyn FnMut(&Reading) -> Result<(), ExportError>,
) -> Result<(), ExportError> {
    for reading in readings.drain(..).filter(|reading| request.wants(&reading.asset)) {
        show(&reading)?;
    }
    Ok(())
}

/// Which assets and channels there are in the span.
#[derive(Default)]
struct Survey {
    /// With telemetry of any time, to tell a wrong name from an empty span.
    known: BTreeSet<AssetId>,
    assets: BTreeSet<AssetId>,
    channels: Vec<ChannelName>,
    named: BTreeSet<ChannelName>,
    /// The list that each asset used last: it is hardly ever another.
    lists: HashMap<AssetId, Arc<[ChannelName]>>,
}

impl Survey {
    fn note(&mut self, (from_us, to_us): (i64, i64), reading: &Reading) -> Result<(), ExportError> {
        if self.lists.get(&reading.asset).is_some_and(|list| Arc::ptr_eq(list, &reading.channels)) {
            return Ok(());
        }
        if !reading.times_us.iter().any(|time_us| (from_us..to_us).contains(time_us)) {
            return Ok(());
        }
        self.assets.insert(reading.asset.clone());
        if self.assets.len() > ASSETS_MAX {
            return Err(ExportError::TooManyAssets);
        }
        for channel in reading.channels.iter().filter(|channel| !self.named.contains(*channel)).collect::<Vec<_>>() {
            self.channels.push(channel.clone());
            self.named.insert(channel.clone());
        }
        self.lists.insert(reading.asset.clone(), Arc::clone(&reading.channels));
        // The error names how many there are, and a log may hold any number of names.
        match self.channels.len() > 16 * COLUMNS_MAX {
            true => Err(ExportError::TooManyColumns { columns: self.channels.len() }),
            false => Ok(()),
        }
    }

    fn note_known(&mut self, asset: &AssetId) {
        if self.known.len() <= ASSETS_MAX && !self.known.contains(asset) {
            self.known.insert(asset.clone());
        }
    }
}

pub(super) fn plan(place: Place<'_>, request: &Request, tell: Tell<'_>) -> Result<(Vec<Column>, Rows), ExportError> {
    let mut scan = Scan::open(place, request)?;
    let survey = std::cell::RefCell::new(Survey::default());
    let seen = scan.walk(
        request,
        &mut |asset| survey.borrow_mut().note_known(asset),
        &mut |reading| survey.borrow_mut().note(request.span_us(), reading),
        &mut |done| tell(done * SURVEY_SHARE),
    )?;
    let survey = survey.into_inner();
    if let Some(asset) = request.assets.iter().find(|asset| !survey.known.contains(*asset)) {
        let known = listed(survey.known.iter().map(AssetId::as_str));
        let within = if request.from_us.is_some() { " in the log since then" } else { " in the log" };
        return Err(ExportError::UnknownAsset { asset: asset.to_string(), within, known });
    }
    if survey.assets.is_empty() {
        return Err(ExportError::Nothing(nothing(request, &seen)));
    }
    let channels = choose(request, survey.channels)?;
    let columns = columns(request, &channels)?;
    Ok((columns, Rows { scan, assets: survey.assets.into_iter().collect(), channels }))
}

/// What there is instead of what was asked for.
fn nothing(request: &Request, seen: &Seen) -> String {
    let of = match request.assets.is_empty() {
        true => String::new(),
        false => format!(" of {}", listed(request.assets.iter().map(AssetId::as_str))),
    };
    let held = match (seen.first_us, seen.last_us) {
        (Some(first_us), Some(last_us)) => {
            let (first, last) = (clock::rfc3339(first_us), clock::rfc3339(last_us));
            format!("; the messages that were looked at came from {first} to {last}")
        }
        _ => "; the log holds no messages".to_owned(),
    };
    format!("no readings{of}{}{held}", request.span_in_words())
}

fn choose(request: &Request, known: Vec<ChannelName>) -> Result<Vec<ChannelName>, ExportError> {
    if request.channels.is_empty() {
        return Ok(known);
    }
    match request.channels.iter().find(|channel| !known.contains(channel)) {
        Some(channel) => {
            let known = listed(known.iter().map(ChannelName::as_str));
            Err(ExportError::UnknownChannel { channel: channel.to_string(), known })
        }
        None => Ok(request.channels.clone()),
    }
}

fn columns(request: &Request, channels: &[ChannelName]) -> Result<Vec<Column>, ExportError> {
    let mut columns = vec![Column::required("time", Kind::Time)];
    if request.names_assets() {
        columns.push(Column::required("asset", Kind::Text));
    }
    let mut names = Names::new(&["time", "asset"]);
    columns.extend(channels.iter().map(|channel| Column::optional(names.take(channel.as_str(), &[]), Kind::Float)));
    match columns.len() > COLUMNS_MAX {
        true => Err(ExportError::TooManyColumns { columns: columns.len() }),
        false => Ok(columns),
    }
}

impl Rows {
    pub(super) fn write(
        self,
        request: &Request,
        writer: &mut dyn TableWriter,
        told: &mut Told,
        tell: Tell<'_>,
    ) -> Result<(), ExportError> {
        let Rows { mut scan, assets, channels } = self;
        let mut order = Order::new(request, &assets, &channels, writer, told);
        let share = |done: f64| SURVEY_SHARE + done * (1.0 - SURVEY_SHARE);
        let seen =
            scan.walk(request, &mut |_| {}, &mut |reading| order.take(reading), &mut |done| tell(share(done)))?;
        order.finish()?;
        told.messages = seen.messages;
        told.decode_errors = seen.decode_errors;
        told.last_decode_error = seen.last_decode_error;
        told.lost_messages = seen.lost_messages;
        if told.decode_errors > 0 {
            let last = told.last_decode_error.as_deref().unwrap_or_default();
            told.notes.push(format!("{} messages could not be decoded, the last: {last}", told.decode_errors));
        }
        if told.lost_messages > 0 {
            told.notes.push(format!(
                "{} messages were dropped by retention while the log was read, or are damaged",
                told.lost_messages
            ));
        }
        if told.late_rows > 0 {
            told.notes.push(format!(
                "{} rows came so late that they stand behind younger ones: sort by time",
                told.late_rows
            ));
        }
        Ok(())
    }
}

/// One asset's part in the table.
struct Member {
    asset: AssetId,
    streams: Streams,
    /// Of the list of channels that it used last.
    places: Option<Places>,
    written_us: Option<i64>,
}

/// In which columns the channels of a list stand; those that are not asked for in none.
struct Places {
    list: Arc<[ChannelName]>,
    columns: Vec<Option<usize>>,
}

/// Rows that wait for others that may be before them.
struct Order<'o> {
    span_us: (i64, i64),
    named: bool,
    members: Vec<Member>,
    numbers: HashMap<AssetId, usize>,
    columns: HashMap<ChannelName, usize>,
    /// By time, then by asset.
    held: BTreeMap<(i64, usize), Box<[f32]>>,
    held_max: usize,
    writer: &'o mut dyn TableWriter,
    told: &'o mut Told,
}

impl<'o> Order<'o> {
    fn new(
        request: &Request,
        assets: &[AssetId],
        channels: &[ChannelName],
        writer: &'o mut dyn TableWriter,
        told: &'o mut Told,
    ) -> Order<'o> {
        let member = |asset: &AssetId| Member {
            asset: asset.clone(),
            streams: Streams::default(),
            places: None,
            written_us: None,
        };
        Order {
            span_us: request.span_us(),
            named: request.names_assets(),
            members: assets.iter().map(member).collect(),
            numbers: assets.iter().cloned().enumerate().map(|(number, asset)| (asset, number)).collect(),
            columns: channels.iter().cloned().enumerate().map(|(column, channel)| (channel, column)).collect(),
            held: BTreeMap::new(),
            held_max: (HELD_CELLS_MAX / channels.len().max(1)).clamp(1, HELD_ROWS_MAX),
            writer,
            told,
        }
    }

    fn take(&mut self, reading: &Reading) -> Result<(), ExportError> {
        // An asset that had nothing in the span when the log was read before has nothing in it.
        let Some(&number) = self.numbers.get(&reading.asset) else { return Ok(()) };
        let Some(member) = self.members.get_mut(number) else { return Ok(()) };
        let first_us = reading.times_us.first().copied().unwrap_or_default();
        let repeated = reading
            .stream
            .as_ref()
            .is_some_and(|position| member.streams.observe(position, first_us) == Arrival::Duplicate);
        if repeated {
            self.told.repeated_readings += 1;
            return Ok(());
        }
        if member.places.as_ref().is_none_or(|places| !Arc::ptr_eq(&places.list, &reading.channels)) {
            let columns = reading.channels.iter().map(|channel| self.columns.get(channel).copied()).collect();
            member.places = Some(Places { list: Arc::clone(&reading.channels), columns });
        }
        let places = member.places.as_ref().map_or(&[][..], |places| places.columns.as_slice());
        if places.iter().all(Option::is_none) {
            return Ok(());
        }
        let width = self.columns.len();
        for (time_us, values) in
            reading.rows().filter(|(time_us, _)| (self.span_us.0..self.span_us.1).contains(time_us))
        {
            let mut is_new = false;
            let row = self.held.entry((time_us, number)).or_insert_with(|| {
                is_new = true;
                vec![f32::NAN; width].into_boxed_slice()
            });
            self.told.merged_rows += u64::from(!is_new);
            for (place, value) in places.iter().zip(values) {
                if let Some(cell) = place.and_then(|place| row.get_mut(place))
                    && value.is_finite()
                {
                    *cell = *value;
                }
            }
        }
        while self.held.len() > self.held_max {
            self.write_first()?;
        }
        Ok(())
    }

    fn write_first(&mut self) -> Result<(), ExportError> {
        let Some(((time_us, number), row)) = self.held.pop_first() else { return Ok(()) };
        let Some(member) = self.members.get_mut(number) else { return Ok(()) };
        let mut cells = Vec::with_capacity(row.len() + 2);
        cells.push(Cell::Time(time_us));
        if self.named {
            cells.push(Cell::Text(member.asset.as_str()));
        }
        cells.extend(row.iter().map(|value| Cell::float(*value)));
        self.writer.row(&cells)?;
        self.told.note_row(time_us);
        self.told.assets += u64::from(member.written_us.is_none());
        self.told.late_rows += u64::from(member.written_us.is_some_and(|written_us| time_us <= written_us));
        member.written_us = Some(member.written_us.map_or(time_us, |written_us| written_us.max(time_us)));
        Ok(())
    }

    fn finish(&mut self) -> Result<(), ExportError> {
        while !self.held.is_empty() {
            self.write_first()?;
        }
        Ok(())
    }
}
