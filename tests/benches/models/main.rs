//! The models' benchmarks: inference in the gateway against onnxruntime, and fleets of many assets.
//!
//! `cargo bench -p millwright-tests --bench models -- [--only NAME] [--runs 15] [--seconds 0.2] [--quick] [--alone]`
//!
//! Ours and the peer take turns, and every figure is the median of its runs. The exit status is 1 only if something does not run, or
//! scores differ. `docs/BENCHMARKS.md` says what each figure means.
#![allow(clippy::print_stdout, reason = "the tables are what this program is for")]

mod files;
mod fleet;
mod graph;
mod peer;
#[allow(dead_code, reason = "what only the broker's benchmark measures")]
#[path = "../process.rs"]
mod process;
#[allow(dead_code, reason = "targets of the broker's benchmark")]
#[path = "../table.rs"]
mod table;

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Parser;
use millwright_models::{LoadLimits, Model};

use files::Case;
use graph::Noise;
use peer::Peer;
use table::{Figure, Target, median};

/// Windows in a run.
const BATCHES: [usize; 2] = [1, 64];
/// Largest difference of a score, in parts of it and at least of 1.
const DIFFERENCE_MAX: f32 = 1e-5;

#[derive(Parser)]
#[command(about = "Measures inference in the gateway against onnxruntime, and fleets of many assets.")]
struct Options {
    /// Only scenarios whose name contains this.
    #[arg(long, default_value = "")]
    only: String,
    /// Runs of each side for each figure; they take turns.
    #[arg(long, default_value_t = 15)]
    runs: usize,
    /// How long each run lasts.
    #[arg(long, default_value_t = 0.2)]
    seconds: f64,
    /// One short run of everything: shows that the benchmark works, its figures mean nothing.
    #[arg(long)]
    quick: bool,
    /// Measures only the gateway.
    #[arg(long)]
    alone: bool,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> anyhow::Result<()> {
    let mut options = Options::parse();
    if cfg!(debug_assertions) && !options.quick {
        println!("Built without optimisation: only `--quick` makes sense.\n");
        options.quick = true;
    }
    if options.quick {
        (options.runs, options.seconds) = (1, 0.01);
    }
    let time = Duration::try_from_secs_f64(options.seconds).context("--seconds")?;
    let mut peer = if options.alone { None } else { find_peer() };
    println!("{}\nat the start: load average {}", process::machine(), process::load_average());
    println!("medians of {} runs of {:.2} s, in turn\n", options.runs, options.seconds);
    let mut figures = Vec::new();
    let folder = tempfile::tempdir()?;
    for case in files::all()?.iter().filter(|case| case.name.contains(&options.only)) {
        for batch in BATCHES {
            figures.push(measure(case, batch, folder.path(), peer.as_mut(), options.runs.max(1), time)?);
        }
    }
    if "100-assets".contains(&options.only) {
        figures.push(hundred_assets(options.runs.max(1), time)?);
    }
    if "1000-assets".contains(&options.only) {
        thousand_assets(if options.quick { 50 } else { 1_000 }, &mut figures)?;
    }
    println!("{}", table::figures(&figures));
    println!("at the end: load average {}", process::load_average());
    Ok(())
}

/// onnxruntime, if there is one.
fn find_peer() -> Option<Peer> {
    let python = std::env::var("MILLWRIGHT_ONNX_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    match Peer::start(&python) {
        Ok(peer) => {
            println!("The peer is onnxruntime {}, one thread, driven from Python.", peer.version);
            Some(peer)
        }
        Err(error) => {
            println!("{error:#}: only the gateway is measured. MILLWRIGHT_ONNX_PYTHON names a Python that has it.");
            None
        }
    }
}

/// Microseconds of one run of a model.
fn measure(
    case: &Case,
    batch: usize,
    folder: &Path,
    mut peer: Option<&mut Peer>,
    runs: usize,
    time: Duration,
) -> anyhow::Result<Figure> {
    let model = Model::load(&case.onnx, &LoadLimits::default()).with_context(|| case.name.to_owned())?;
    let mut noise = Noise::new(batch as u64);
    let windows: Vec<f32> = (0..batch * model.contract().window_len()).map(|_| noise.normal()).collect();
    let (file, input) = (folder.join(format!("{}.onnx", case.name)), folder.join("input.f32"));
    std::fs::write(&file, &case.onnx)?;
    std::fs::write(&input, windows.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>())?;
    let (mut ours_us, mut peers_us) = (Vec::new(), Vec::new());
    let scores = model.score(&windows, batch)?.score;
    for _ in 0..runs {
        ours_us.push(Some(run_us(&model, &windows, batch, time)?));
        if let Some(peer) = peer.as_deref_mut() {
            let timing = peer.measure(&file, &input, batch, time)?;
            peers_us.push(Some(timing.ns / 1e3));
            let difference = |(a, b): (&f32, &f32)| (a - b).abs() / b.abs().max(1.0);
            let worst = scores.iter().zip(&timing.scores).map(difference).fold(0.0, f32::max);
            ensure!(timing.scores.len() == batch, "{}: {} scores", case.name, timing.scores.len());
            ensure!(worst <= DIFFERENCE_MAX, "{}: scores differ by {worst}", case.name);
        }
    }
    let any = if model.any_batch() { "" } else { ", row by row" };
    let name = if batch == 1 { "µs, batch 1" } else { "µs, batch 64" };
    let shown = |us: Option<f64>| us.map_or_else(|| "–".to_owned(), |us| format!("{us:.2}"));
    eprintln!(
        "{} {name}{any}: {}, peer {}",
        case.name,
        shown(median(ours_us.clone())),
        shown(median(peers_us.clone()))
    );
    Ok(Figure {
        scenario: format!("{}{any}", case.name),
        name,
        ours: median(ours_us),
        peer: median(peers_us),
        target: Some(Target::TimesPeerMax(case.times_peer_max)),
    })
}

/// Microseconds of one `Model::score` over at least `time`.
fn run_us(model: &Model, windows: &[f32], batch: usize, time: Duration) -> anyhow::Result<f64> {
    let (begin, mut count) = (Instant::now(), 0_u32);
    loop {
        // The clock is read now and then: it would be a part of what the smallest models take.
        for _ in 0..16 {
            black_box(model.score(black_box(windows), batch)?);
        }
        count += 16;
        let spent = begin.elapsed();
        if spent >= time {
            return Ok(spent.as_secs_f64() * 1e6 / f64::from(count));
        }
    }
}

/// A hundred assets with one model: all in one run, against one by one.
fn hundred_assets(runs: usize, time: Duration) -> anyhow::Result<Figure> {
    let onnx = files::mahalanobis()?;
    let (mut together, mut alone) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        let (batched, single) = fleet::batched_and_single(&onnx, 100, time)?;
        together.push(Some(batched));
        alone.push(Some(single));
    }
    Ok(Figure {
        scenario: "100-assets".to_owned(),
        name: "windows/s in one run; peer: one by one",
        ours: median(together),
        peer: median(alone),
        target: Some(Target::TimesPeerMin(5.0)),
    })
}

fn thousand_assets(assets: usize, figures: &mut Vec<Figure>) -> anyhow::Result<()> {
    let load = fleet::at_one_hertz(assets, 60)?;
    let figure = |name, ours, target| Figure {
        scenario: format!("{assets}-assets"),
        name,
        ours: Some(ours),
        peer: None,
        target,
    };
    figures.push(figure("% of one core at 1 Hz", load.core_percent, Some(Target::Max(20.0))));
    figures.push(figure("KiB an asset", load.kib_per_asset, None));
    figures.push(figure("ms to learn and load a model", load.learn_ms, None));
    figures.push(figure("ms that a swap of all holds scoring", load.swap_ms, Some(Target::Max(1.0))));
    Ok(())
}
