//! Downsampled readings, from the historian's buckets: smallest, largest and mean value of each channel and of the score.
//!
//! Owns the columns: the mean is called like its channel, with `.min` and `.max` beside it. One asset after the other, each in the order of
//! time. Bounds are those of [`crate::historian::stored`].

use std::collections::HashMap;
use std::ops::ControlFlow;

use super::table::{Cell, Column, Kind, Names, TableWriter};
use super::{ASSETS_MAX, COLUMNS_MAX, ExportError, Place, Request, Tell, Told, listed};
use crate::clock;
use crate::historian::recorder::Stat;
use crate::historian::stored::{AssetHistory, Point, StoredHistory, is_fine};
use crate::ids::AssetId;

/// The columns of one series beside its mean.
const SUFFIXES: [&str; 2] = [".min", ".max"];
const SCORE: &str = "score";
/// How often it is told how far an asset is: after so many points.
const TELL_POINTS: u64 = 1_024;

/// What is written.
pub(super) struct Buckets {
    history: StoredHistory,
    step_us: i64,
    assets: Vec<AssetId>,
    channels: Vec<String>,
    notes: Vec<String>,
}

pub(super) fn plan(place: Place<'_>, request: &Request, step_us: i64) -> Result<(Vec<Column>, Buckets), ExportError> {
    let history = StoredHistory::open(place.data_dir, &|asset| request.wants(asset))?;
    let known = history.assets()?;
    if let Some(asset) = request.assets.iter().find(|asset| !known.contains(asset)) {
        let known = listed(known.iter().map(AssetId::as_str));
        return Err(ExportError::UnknownAsset { asset: asset.to_string(), within: " in the history", known });
    }
    let wanted: Vec<AssetId> = known.into_iter().filter(|asset| request.wants(asset)).collect();
    let mut found = Vec::new();
    let mut channels: Vec<String> = Vec::new();
    let mut begins_us: Option<i64> = None;
    for asset in wanted {
        let of = history.asset(&asset)?;
        let mut first_us = None;
        history.points(&of, step_us, request.span_us(), &mut |point| {
            first_us = Some(point.time_us);
            ControlFlow::Break(())
        })?;
        if let Some(first_us) = first_us {
            begins_us = Some(begins_us.map_or(first_us, |begins_us| begins_us.min(first_us)));
            let new = of.channels().iter().filter(|channel| !channels.contains(channel)).cloned();
            channels.extend(new.collect::<Vec<_>>());
            found.push(asset);
        }
    }
    let Some(begins_us) = begins_us else {
        let fine = if is_fine(step_us) { ": steps that are no multiple of 5m go back some days only" } else { "" };
        return Err(ExportError::Nothing(format!("the history has nothing{}{fine}", request.span_in_words())));
    };
    if found.len() > ASSETS_MAX {
        return Err(ExportError::TooManyAssets);
    }
    let channels = choose(request, channels)?;
    let columns = columns(request, &channels)?;
    let notes = match is_fine(step_us) {
        true => vec![format!(
            "steps that are no multiple of 5m go back some days only, here to {}; those of 5m go back as far as the history does",
            clock::rfc3339(begins_us)
        )],
        false => Vec::new(),
    };
    Ok((columns, Buckets { history, step_us, assets: found, channels, notes }))
}

fn choose(request: &Request, known: Vec<String>) -> Result<Vec<String>, ExportError> {
    if request.channels.is_empty() {
        return Ok(known);
    }
    let wanted: Vec<String> = request.channels.iter().map(ToString::to_string).collect();
    match wanted.iter().find(|channel| !known.contains(channel)) {
        Some(channel) => {
            let known = listed(known.iter().map(String::as_str));
            Err(ExportError::UnknownChannel { channel: channel.clone(), known })
        }
        None => Ok(wanted),
    }
}

fn columns(request: &Request, channels: &[String]) -> Result<Vec<Column>, ExportError> {
    let mut columns = vec![Column::required("time", Kind::Time)];
    if request.names_assets() {
        columns.push(Column::required("asset", Kind::Text));
    }
    let score = [SCORE.to_owned(), format!("{SCORE}.min"), format!("{SCORE}.max")];
    let mut names = Names::new(&["time", "asset", &score[0], &score[1], &score[2]]);
    for channel in channels {
        let name = names.take(channel, &SUFFIXES);
        columns.push(Column::optional(name.clone(), Kind::Float));
        columns.extend(SUFFIXES.iter().map(|suffix| Column::optional(format!("{name}{suffix}"), Kind::Float)));
    }
    columns.extend(score.into_iter().map(|name| Column::optional(name, Kind::Float)));
    match columns.len() > COLUMNS_MAX {
        true => Err(ExportError::TooManyColumns { columns: columns.len() }),
        false => Ok(columns),
    }
}

fn cells(stat: &Stat) -> [Cell<'static>; 3] {
    [stat.mean, stat.min, stat.max].map(Cell::float)
}

impl Buckets {
    pub(super) fn write(
        self,
        request: &Request,
        writer: &mut dyn TableWriter,
        told: &mut Told,
        tell: Tell<'_>,
    ) -> Result<(), ExportError> {
        told.notes.clone_from(&self.notes);
        let count = self.assets.len();
        for (index, asset) in self.assets.iter().enumerate() {
            let of = self.history.asset(asset)?;
            let mut output = Output { asset, places: self.places(&of), writer, told };
            let mut failed = None;
            let mut points = 0;
            self.history.points(&of, self.step_us, request.span_us(), &mut |point| {
                points += 1;
                let goes_on = points % TELL_POINTS != 1 || tell(index as f64 / count as f64);
                let written = if goes_on { output.write(request, point) } else { Err(ExportError::Ended) };
                match written {
                    Ok(()) => ControlFlow::Continue(()),
                    Err(error) => {
                        failed = Some(error);
                        ControlFlow::Break(())
                    }
                }
            })?;
            if let Some(error) = failed {
                return Err(error);
            }
            told.assets += u64::from(points > 0);
        }
        Ok(())
    }

    /// Where the columns' channels stand in an asset's points.
    fn places(&self, of: &AssetHistory) -> Vec<Option<usize>> {
        let known: HashMap<&str, usize> =
            of.channels().iter().enumerate().map(|(at, name)| (name.as_str(), at)).collect();
        self.channels.iter().map(|channel| known.get(channel.as_str()).copied()).collect()
    }
}

/// The points of one asset on their way into the table.
struct Output<'o> {
    asset: &'o AssetId,
    places: Vec<Option<usize>>,
    writer: &'o mut dyn TableWriter,
    told: &'o mut Told,
}

impl Output<'_> {
    fn write(&mut self, request: &Request, point: &Point) -> Result<(), ExportError> {
        let mut row = vec![Cell::Time(point.time_us)];
        if request.names_assets() {
            row.push(Cell::Text(self.asset.as_str()));
        }
        for place in &self.places {
            row.extend(cells(&place.map_or(Stat::NONE, |place| point.channel(place))));
        }
        row.extend(cells(&point.score()));
        self.writer.row(&row)?;
        self.told.note_row(point.time_us);
        Ok(())
    }
}
