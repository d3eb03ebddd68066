//! What the dashboard asks of the gateway: how long a chart of the past takes, what history takes of the disk, and what open
//! dashboards cost ingest.
//!
//! `cargo bench -p millwright-tests --bench dashboard -- [--assets 20] [--hours 24] [--runs 5] [--only NAME] [--quick]`
//!
//! History is filled through the historian's own writer, as checkpoints do it, with all assets at 1 Hz × 8 channels; then charts of
//! one asset are asked for. A figure that is missed is printed, never an error. `docs/BENCHMARKS.md` says what each figure means.
#![allow(clippy::print_stdout, reason = "the tables are what this program is for")]

mod live;
#[path = "../process.rs"]
#[allow(dead_code, reason = "each benchmark uses a part")]
mod process;
#[path = "../limits/publisher.rs"]
mod publisher;
#[path = "../table.rs"]
#[allow(dead_code, reason = "each benchmark uses a part")]
mod table;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use clap::Parser;
use millwright::historian::recorder::{BUCKET_US, Recorded, Recorder};
use millwright::historian::series::SeriesQuery;
use millwright::historian::{Historian, HistorianParts};
use millwright::ids::{AssetId, ChannelName};
use millwright::state::{Checkpoint, State};
use millwright_broker::log::{Log, LogConfig};

use table::{Figure, Target};

/// A folder on the disk of the build.
const SCRATCH: &str = env!("CARGO_TARGET_TMPDIR");
const SECOND_US: i64 = 1_000_000;
/// 2026-01-01 00:00 UTC.
const BEGIN_US: i64 = 1_767_225_600 * SECOND_US;
const CHANNELS: usize = 8;
/// Rows of each asset between two checkpoints that close a bucket.
const ROWS_PER_CHECKPOINT: i64 = BUCKET_US / SECOND_US;
/// Checkpoints between two writes of the journal: five minutes.
const CHECKPOINTS_PER_WRITE: i64 = 30;

#[derive(Parser)]
#[command(about = "Measures charts of the past.")]
struct Options {
    /// Assets that history is kept of.
    #[arg(long, default_value_t = 20)]
    assets: usize,
    /// Hours of history.
    #[arg(long, default_value_t = 24)]
    hours: i64,
    /// Charts of each width.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Only `charts` or `live`.
    #[arg(long, default_value = "")]
    only: String,
    /// Little of everything: shows that the benchmark works, its figures mean nothing.
    #[arg(long)]
    quick: bool,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    fn is_quick(&self) -> bool {
        self.quick || cfg!(debug_assertions)
    }
}

fn main() -> anyhow::Result<()> {
    let mut options = Options::parse();
    if options.is_quick() {
        println!("Few of everything: the figures mean nothing.\n");
        options = Options { assets: 3, hours: 2, runs: 1, ..options };
    }
    println!("{}\nload average at the start: {}\n", process::machine(), process::load_average());
    let mut figures = Vec::new();
    if "charts".contains(&options.only) {
        figures.extend(charts(&options)?);
    }
    if "live".contains(&options.only) {
        figures.extend(live::run(&options)?);
    }
    println!("\n{}", table::figures(&figures));
    println!("load average at the end: {}", process::load_average());
    Ok(())
}

fn charts(options: &Options) -> anyhow::Result<Vec<Figure>> {
    let dir = tempfile::Builder::new().prefix("dashboard-").tempdir_in(SCRATCH)?;
    let plant = Plant::open(dir.path())?;
    let filled = plant.fill(options)?;
    let mut figures = vec![
        figure("history".to_owned(), "fill, µs a row", Some(filled), None),
        figure("history".to_owned(), "MiB on disk", Some(size_mib(dir.path())?), None),
    ];
    for (points, target) in [(600, Some(Target::Max(300.0))), (2_000, Some(Target::Max(300.0))), (288, None)] {
        let runs = (0..options.runs).map(|_| plant.chart_ms(options, points)).collect::<anyhow::Result<Vec<f64>>>()?;
        let median = table::median(runs.into_iter().map(Some));
        figures.push(figure(format!("{} h, {points} points", options.hours), "chart, ms", median, target));
    }
    plant.close();
    Ok(figures)
}

fn figure(scenario: String, name: &'static str, ours: Option<f64>, target: Option<Target>) -> Figure {
    Figure { scenario, name, ours, peer: None, target }
}

fn size_mib(dir: &Path) -> anyhow::Result<f64> {
    Ok(std::fs::metadata(dir.join("history.db"))?.len() as f64 / f64::from(1 << 20))
}

/// A historian in a folder of its own.
struct Plant {
    state: Arc<State>,
    log: Log,
    historian: Arc<Historian>,
}

impl Plant {
    fn open(dir: &Path) -> anyhow::Result<Plant> {
        let state = Arc::new(State::open(dir)?.state);
        let log = Log::open(LogConfig::new(dir))?.log;
        let parts = HistorianParts {
            dir: dir.to_owned(),
            state: Arc::clone(&state),
            log: log.clone(),
            sources: Vec::new(),
            quota_bytes: 4 << 30,
            days: 90,
        };
        Ok(Plant { state, log, historian: Historian::start(parts)? })
    }

    /// Rows of all assets, each second one, through recorders, checkpoints and the writer. Returns microseconds a row.
    fn fill(&self, options: &Options) -> anyhow::Result<f64> {
        let channels: Vec<ChannelName> =
            (0..CHANNELS).map(|n| ChannelName::parse(&format!("channel-{n}"))).collect::<Result<_, _>>()?;
        let positions: Vec<Option<usize>> = (0..CHANNELS).map(Some).collect();
        let mut recorders = vec![Recorder::default(); options.assets];
        let rows = options.hours * 3_600;
        let begun = Instant::now();
        for row in 0..rows {
            let time_us = BEGIN_US + row * SECOND_US;
            let values: Vec<f32> = (0..CHANNELS).map(|n| ((row as f32) * 0.01 * (n + 1) as f32).sin()).collect();
            for recorder in &mut recorders {
                let bucket_us = recorder.note_row(time_us, CHANNELS, &positions, &values);
                recorder.note_score(bucket_us, 0.3);
            }
            if row % ROWS_PER_CHECKPOINT == 0 {
                self.checkpoint(&mut recorders, &channels)?;
            }
            if row % (ROWS_PER_CHECKPOINT * CHECKPOINTS_PER_WRITE) == 0 {
                self.historian.write()?;
            }
        }
        self.historian.write()?;
        Ok(begun.elapsed().as_secs_f64() * 1e6 / (rows as f64 * options.assets as f64))
    }

    fn checkpoint(&self, recorders: &mut [Recorder], channels: &[ChannelName]) -> anyhow::Result<()> {
        let mut recorded = Vec::new();
        for (n, recorder) in recorders.iter_mut().enumerate() {
            let buckets = recorder.take_closed();
            if !buckets.is_empty() {
                recorded.push(Recorded { asset: asset(n)?, channels: channels.to_vec(), buckets });
            }
        }
        let checkpoint = Checkpoint { recorded, ..Checkpoint::default() };
        if let Some(number) = self.state.commit(&checkpoint)?.journal {
            self.historian.take(number, checkpoint.recorded);
        }
        Ok(())
    }

    /// One chart as JSON, as HTTP sends it.
    fn chart_ms(&self, options: &Options, points: usize) -> anyhow::Result<f64> {
        let (from_us, to_us) = (BEGIN_US, BEGIN_US + options.hours * 3_600 * SECOND_US);
        let query = SeriesQuery { asset: asset(options.assets / 2)?, from_us, to_us, points, channels: None };
        let begun = Instant::now();
        let series = self.historian.series(&query)?;
        let json = serde_json::to_vec(&series)?;
        anyhow::ensure!(json.len() > 1_000 && series.channels.len() == CHANNELS, "the chart is empty");
        Ok(begun.elapsed().as_secs_f64() * 1e3)
    }

    fn close(self) {
        self.historian.stop();
        self.log.close();
    }
}

fn asset(n: usize) -> anyhow::Result<AssetId> {
    Ok(AssetId::parse(&format!("asset-{n}"))?)
}
