//! `millwright evaluate`: how well the default detector does on labelled recordings.
//!
//! Each file is one machine: its first rows are learned from, every later row is scored by the same engine that scores
//! live telemetry. Labels are compared afterwards and never reach the engine.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueEnum};
use millwright_models::State;
use serde::Serialize;

use super::{Failure, output};
use crate::alarm::AlarmSettings;
use crate::ids::{AssetId, ChannelName, GatewayId};
use crate::pipeline::engine::{Engine, EngineSettings, RowScore};
use crate::pipeline::learning::LearningSettings;
use crate::source::{Reading, StreamPosition};
use crate::table::Table;

/// Arguments of `evaluate`.
#[derive(Debug, Args)]
pub(super) struct EvaluateArguments {
    /// How the files are laid out and scored
    #[arg(long, value_enum)]
    format: EvaluateFormat,
    /// Rows to learn from, at the start of each file
    #[arg(long, value_name = "ROWS", default_value_t = 400)]
    commission: usize,
    /// Write each row's score and flag to DIR/<file name>.csv
    #[arg(long, value_name = "DIR")]
    flags: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// The files
    #[arg(required = true, value_name = "CSV")]
    files: Vec<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum EvaluateFormat {
    /// Skoltech Anomaly Benchmark: `anomaly` says of each row whether it is one
    Skab,
}

/// Rows by what was said and what was so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Confusion {
    hits: u64,
    false_alarms: u64,
    misses: u64,
    quiet: u64,
}

/// The rates of one file or of all rows together; null where there is nothing to divide by.
#[derive(Debug, Clone, Copy, Serialize)]
struct Rates {
    /// 2·hits / (2·hits + false alarms + misses).
    f1: Option<f64>,
    /// Normal rows flagged, percent.
    far: Option<f64>,
    /// Anomalous rows not flagged, percent.
    mar: Option<f64>,
}

#[derive(Debug, Serialize)]
struct FileResult {
    path: String,
    #[serde(flatten)]
    rates: Rates,
}

#[derive(Debug, Serialize)]
struct Evaluation {
    files: Vec<FileResult>,
    overall: Rates,
}

/// One scored row of a file.
struct RowFlag {
    row: usize,
    score: f32,
    flag: bool,
}

/// Evaluates all files.
///
/// # Errors
/// A file cannot be read or is too short; the flags cannot be written.
pub(super) fn run(arguments: &EvaluateArguments) -> Result<ExitCode, Failure> {
    let EvaluateFormat::Skab = arguments.format;
    if let Some(dir) = &arguments.flags {
        check_names_differ(&arguments.files)?;
        std::fs::create_dir_all(dir).map_err(|error| anyhow::anyhow!("cannot make {}: {error}", dir.display()))?;
    }
    let mut overall = Confusion::default();
    let mut files = Vec::new();
    for path in &arguments.files {
        let table = Table::read(path)?;
        let flags = score_table(&table, arguments.commission)?;
        if let Some(dir) = &arguments.flags {
            for name in flags_names(path) {
                write_flags(&dir.join(name), &flags)?;
            }
        }
        let confusion = Confusion::of(&flags, table.labels.as_deref());
        overall.add(confusion);
        files.push(FileResult { path: path.display().to_string(), rates: confusion.rates() });
    }
    let evaluation = Evaluation { files, overall: overall.rates() };
    if arguments.json {
        output::print_json(&evaluation)?;
    } else {
        output::print(&evaluation.table());
    }
    Ok(ExitCode::SUCCESS)
}

/// The names a file's flags are written under: `<input file name>.csv`, and for an input that is called `….csv` its own
/// name too, so that recordings and flags can be joined by name.
fn flags_names(path: &Path) -> Vec<String> {
    let name = file_name(path);
    let own = name.ends_with(".csv").then(|| name.clone());
    own.into_iter().chain([format!("{name}.csv")]).collect()
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Flags go by file name, so two inputs of one name cannot share a folder.
fn check_names_differ(files: &[PathBuf]) -> Result<(), Failure> {
    let mut names: Vec<String> = files.iter().map(|path| file_name(path)).collect();
    names.sort();
    match names.windows(2).find(|pair| pair.first() == pair.last()).and_then(|pair| pair.first()) {
        None => Ok(()),
        Some(name) => {
            let error = anyhow::anyhow!(
                "two of the files are called `{name}`, and their flags would overwrite each other: evaluate them separately, each with its own --flags"
            );
            Err(Failure::wrong_use(error))
        }
    }
}

/// Feeds a table through an engine of its own, row by row.
fn score_table(table: &Table, commission: usize) -> Result<Vec<RowFlag>, Failure> {
    let rows = table.times_us.len();
    if rows <= commission {
        let path = table.path.display();
        let error = anyhow::anyhow!(
            "{path}: {rows} rows, and {commission} are to be learned from: nothing is left to score; give a smaller --commission"
        );
        return Err(Failure::wrong_use(error));
    }
    let mut engine = Engine::new(settings(commission)?, 1);
    let asset = AssetId::parse("recording")?;
    let channels: Arc<[ChannelName]> = table.channels.clone().into();
    let mut flags = Vec::with_capacity(rows - commission);
    let mut last = RowScore { time_us: 0, score: 0.0, state: State::Ok };
    for (row, (time_us, values)) in table.times_us.iter().zip(table.values.chunks(channels.len().max(1))).enumerate() {
        let reading = Reading {
            asset: asset.clone(),
            stream: Some(StreamPosition { device: "csv".into(), boot: Some(1), seq: row as u64, device_time: true }),
            channels: Arc::clone(&channels),
            times_us: vec![*time_us],
            values: values.to_vec(),
        };
        let mut observe = |_: &AssetId, score: RowScore| last = score;
        engine.ingest(&reading, *time_us, &mut observe);
        engine.flush(&mut observe);
        if row >= commission {
            // A row without a score of its own (after a silence) keeps the state that a crew would see.
            flags.push(RowFlag { row, score: last.score, flag: last.state == State::Alarm });
        }
    }
    if engine.assets().iter().all(|asset| asset.model().is_none()) {
        let path = table.path.display();
        return Err(anyhow::anyhow!("{path}: no normal could be learned from its first {commission} rows").into());
    }
    Ok(flags)
}

fn settings(commission: usize) -> Result<EngineSettings, Failure> {
    let params = millwright_models::Params::default();
    Ok(EngineSettings {
        gateway: GatewayId::parse("evaluate")?,
        learning: LearningSettings { rows: commission, extend: false, params },
        alarm: AlarmSettings::default(),
    })
}

fn write_flags(path: &Path, flags: &[RowFlag]) -> Result<(), Failure> {
    let mut text = String::from("row,score,flag\n");
    for row in flags {
        text.push_str(&format!("{},{},{}\n", row.row, row.score, u8::from(row.flag)));
    }
    std::fs::write(path, text).map_err(|error| anyhow::anyhow!("cannot write {}: {error}", path.display()))?;
    Ok(())
}

impl Confusion {
    /// A recording without labels is all normal.
    fn of(flags: &[RowFlag], labels: Option<&[bool]>) -> Confusion {
        let mut confusion = Confusion::default();
        for row in flags {
            let anomaly = labels.and_then(|labels| labels.get(row.row)).copied().unwrap_or(false);
            match (row.flag, anomaly) {
                (true, true) => confusion.hits += 1,
                (true, false) => confusion.false_alarms += 1,
                (false, true) => confusion.misses += 1,
                (false, false) => confusion.quiet += 1,
            }
        }
        confusion
    }

    fn add(&mut self, other: Confusion) {
        self.hits += other.hits;
        self.false_alarms += other.false_alarms;
        self.misses += other.misses;
        self.quiet += other.quiet;
    }

    fn rates(&self) -> Rates {
        let ratio = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        Rates {
            f1: ratio(2 * self.hits, 2 * self.hits + self.false_alarms + self.misses),
            far: ratio(self.false_alarms, self.false_alarms + self.quiet).map(|share| share * 100.0),
            mar: ratio(self.misses, self.misses + self.hits).map(|share| share * 100.0),
        }
    }
}

impl Evaluation {
    fn table(&self) -> String {
        let cell = |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |v| format!("{v:.digits$}"));
        let row = |name: &str, rates: &Rates| {
            vec![name.to_owned(), cell(rates.f1, 3), cell(rates.far, 1), cell(rates.mar, 1)]
        };
        let heading = ["file", "F1", "false alarms %", "missed %"].map(str::to_owned).to_vec();
        let mut rows = vec![heading];
        rows.extend(self.files.iter().map(|file| row(&file.path, &file.rates)));
        rows.push(row("all rows together", &self.overall));
        output::table(&rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // The rates are those of the benchmark's definition.
    #[test]
    fn rates_follow_the_definition() {
        let confusion = Confusion { hits: 30, false_alarms: 10, misses: 20, quiet: 40 };
        let rates = confusion.rates();
        assert!((rates.f1.unwrap() - 60.0 / 90.0).abs() < 1e-12);
        assert!((rates.far.unwrap() - 20.0).abs() < 1e-12);
        assert!((rates.mar.unwrap() - 40.0).abs() < 1e-12);
        assert!(Confusion::default().rates().f1.is_none());
    }
}
