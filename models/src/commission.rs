//! Learns a machine's normal from its own telemetry and writes it as an ONNX model by the contract.
//!
//! Owns what commissioning accepts, the question whether it has seen enough, and the exported graph. The mathematics is in
//! `detector`. Never reads telemetry, a clock or a label.
//!
//! The graph, 8 operations: `Sub` the normals, `ReduceMean` over the samples, `Mul` by 1/s, `Clip`, `MatMul` with
//! `P/(√C·threshold)`, `Mul` with itself (the contribution), `ReduceSum`, `Sqrt` (the score). Subtracting before averaging keeps
//! a small change of a large value (a pressure in pascal) exact in `f32`.

use serde::Serialize;

use crate::contract::{
    Channel, Contract, Golden, GoldenWindow, InputKind, ModelName, NameError, OutputKind, Provenance,
    check_channel_names,
};
use crate::detector::{ChannelScale, Detector, Floor, Params, Z_MAX};
use crate::graph::{Dim, GraphBuilder, attribute_int, attribute_ints};
use crate::interface::{CONTRIBUTION, SCORE};

/// Most numbers (rows × channels) to learn from: 145 hours of 8 channels at 1 Hz. Fitting holds about 30 bytes per number.
pub const VALUES_MAX: usize = 1 << 22;
/// Most rows in the trailing mean.
pub const WINDOW_MAX: usize = 4_096;
/// Share of the rows that the stability check fits; it scores the rest.
const FITTED_SHARE: f64 = 0.7;
/// Held-back rows may score this many times the highest fitted score. Unseen rows always score somewhat higher. With this and
/// the share below, stationary noise on 8 channels is called stable in 5 % of cases after 400 rows, 78 % after 1,000 and 100 % after
/// 2,000; with a correlation of 0.98 from row to row in 12 % after 2,000 and 70 % after 4,000.
const STABLE_RATIO_MAX: f64 = 1.25;
/// Share of held-back windows that may score above the highest fitted score.
const STABLE_EXCEED_SHARE_MAX: f64 = 0.05;

/// What is commissioned.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Name of the model to be.
    pub name: &'a str,
    /// Its version, from 1.
    pub version: u64,
    /// Channel names, in the order of the rows' columns.
    pub channels: &'a [String],
    /// Their units, as far as known; empty or one per channel.
    pub units: &'a [Option<String>],
    /// Milliseconds between rows, when known.
    pub interval_ms: Option<f64>,
    /// When, for the record.
    pub created: Option<&'a str>,
    /// From what, for the record.
    pub trained_from: Option<&'a str>,
}

impl<'a> Subject<'a> {
    /// A subject of which only the necessary is known.
    pub fn new(name: &'a str, version: u64, channels: &'a [String]) -> Subject<'a> {
        Subject { name, version, channels, units: &[], interval_ms: None, created: None, trained_from: None }
    }
}

/// Why commissioning failed.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum CommissionError {
    /// The name is none.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Versions count from 1.
    #[error("a model's version is a positive integer, not 0")]
    Version,
    /// The channels are not usable.
    #[error("the channels must be {rule}")]
    Channels {
        /// The rule that is broken.
        rule: String,
    },
    /// A parameter is out of range.
    #[error("the commissioning parameter `{name}` is {found}, but it must be {expected}")]
    Parameter {
        /// Which.
        name: &'static str,
        /// Its value.
        found: f64,
        /// Its range.
        expected: &'static str,
    },
    /// The numbers are no whole rows.
    #[error("{values} numbers are no whole rows of {channels} channels")]
    Shape {
        /// Numbers given.
        values: usize,
        /// Channels.
        channels: usize,
    },
    /// More than can be learned from at once.
    #[error(
        "{rows} rows are more than the {rows_max} that can be learned from at once: use every n-th row or a shorter span"
    )]
    TooManyRows {
        /// Rows given.
        rows: usize,
        /// Rows allowed with this many channels.
        rows_max: usize,
    },
    /// Not enough usable rows.
    #[error(
        "{rows_used} usable rows ({rows_skipped} had values that are not finite), at least {rows_min} are needed: keep the machine running and try again"
    )]
    TooFewRows {
        /// Usable rows.
        rows_used: usize,
        /// Rows left out.
        rows_skipped: usize,
        /// Rows needed.
        rows_min: usize,
    },
    /// Every channel stood still.
    #[error(
        "none of the {channels} channels varied over {rows_used} rows: is the machine running and are its sensors connected?"
    )]
    NothingVaries {
        /// Channels.
        channels: usize,
        /// Usable rows.
        rows_used: usize,
    },
}

/// A commissioned model.
#[derive(Debug, Clone)]
pub struct Commissioned {
    /// The model file.
    pub onnx: Vec<u8>,
    /// Its contract, as it is in the file.
    pub contract: Contract,
    /// What was learned and how far to trust it.
    pub report: Report,
    /// The detector in `f64` that the file was written from.
    pub detector: Detector,
}

/// What commissioning saw.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Rows given.
    pub rows: usize,
    /// Rows learned from.
    pub rows_used: usize,
    /// Rows left out because a value was not finite.
    pub rows_skipped: usize,
    /// The alarm threshold in the detector's own scale, for comparison between versions; the exported threshold is 1.0.
    pub threshold: f64,
    /// Highest score among the commissioning windows, in the exported scale.
    pub score_max: f64,
    /// Whether more rows would have changed the picture.
    pub stability: Stability,
    /// What was learned about each channel.
    pub channels: Vec<ChannelReport>,
}

impl Report {
    /// Names of the channels that never moved. Their normal range is a guess: the gateway should say so.
    pub fn constant_channels(&self) -> impl Iterator<Item = &str> {
        self.channels.iter().filter(|c| c.learned.floor == Floor::Constant).map(|c| c.name.as_str())
    }
}

/// "Have I seen enough?": a detector fitted on the first 70 % of the rows scores the last 30 %. If the machine showed its range
/// early, the later rows look no different. It cannot see operating states that come after commissioning, so "stable" is
/// necessary, not sufficient.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Stability {
    /// Highest held-back score over highest fitted score; infinite when there was too little to tell.
    #[serde(serialize_with = "finite_or_null")]
    pub ratio: f64,
    /// Share of held-back windows above the highest fitted score, 0 to 1.
    pub exceed_share: f64,
    /// Whether both are small: ratio at most 1.25, share at most 0.05.
    pub stable: bool,
}

/// What was learned about one channel.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChannelReport {
    /// Its name.
    pub name: String,
    /// Normal, spread and scale.
    #[serde(flatten)]
    pub learned: ChannelScale,
}

/// Commissions from `samples`, row-major `[n][channels]`, oldest first. See [`commission_subject`].
///
/// # Errors
/// [`CommissionError`] with the numbers.
pub fn commission(
    name: &str,
    version: u64,
    channels: &[String],
    samples: &[f32],
    params: &Params,
) -> Result<Commissioned, CommissionError> {
    commission_subject(&Subject::new(name, version, channels), samples, params)
}

/// Commissions from `samples`, row-major `[n][channels]`, oldest first, evenly spaced. Rows with a value that is not finite are
/// left out and counted; the rows around them count as neighbours.
///
/// # Errors
/// [`CommissionError`] with the numbers.
pub fn commission_subject(
    subject: &Subject<'_>,
    samples: &[f32],
    params: &Params,
) -> Result<Commissioned, CommissionError> {
    let name = ModelName::parse(subject.name)?;
    if subject.version == 0 {
        return Err(CommissionError::Version);
    }
    check_channel_names(subject.channels.iter().map(String::as_str))
        .map_err(|rule| CommissionError::Channels { rule })?;
    if !subject.units.is_empty() && subject.units.len() != subject.channels.len() {
        return Err(CommissionError::Channels { rule: "as many as their units".to_owned() });
    }
    check_params(params)?;
    let channels = subject.channels.len();
    let (rows, used) = usable_rows(samples, channels, params)?;
    let rows_used = used.len() / channels;
    let detector =
        Detector::fit(&used, channels, params).ok_or(CommissionError::NothingVaries { channels, rows_used })?;
    let report = Report {
        rows,
        rows_used,
        rows_skipped: rows - rows_used,
        threshold: detector.threshold(),
        score_max: detector.score_max() / detector.threshold(),
        stability: stability(&used, channels, params),
        channels: subject
            .channels
            .iter()
            .zip(detector.channels())
            .map(|(name, &learned)| ChannelReport { name: name.clone(), learned })
            .collect(),
    };
    let contract = contract(subject, name, &detector, rows_used, params);
    Ok(Commissioned { onnx: export(&contract, &detector), contract, report, detector })
}

fn check_params(params: &Params) -> Result<(), CommissionError> {
    let check = |name, found: f64, fits: bool, expected| {
        if fits { Ok(()) } else { Err(CommissionError::Parameter { name, found, expected }) }
    };
    let window = (2..=WINDOW_MAX).contains(&params.window);
    check("window", params.window as f64, window, "2 to 4096 rows")?;
    let multiplier = params.threshold_multiplier;
    check("threshold_multiplier", multiplier, (1.0..=100.0).contains(&multiplier), "between 1 and 100")?;
    let shrinkage = params.shrinkage;
    check("shrinkage", shrinkage, (0.001..=1.0).contains(&shrinkage), "between 0.001 and 1")?;
    check("std_floor", params.std_floor, (0.0..=10.0).contains(&params.std_floor), "between 0 and 10")
}

/// Rows given, and the finite ones.
fn usable_rows(samples: &[f32], channels: usize, params: &Params) -> Result<(usize, Vec<f32>), CommissionError> {
    let values = samples.len();
    if !values.is_multiple_of(channels) {
        return Err(CommissionError::Shape { values, channels });
    }
    let rows = values / channels;
    if values > VALUES_MAX {
        return Err(CommissionError::TooManyRows { rows, rows_max: VALUES_MAX / channels });
    }
    let finite = samples.chunks_exact(channels).filter(|row| row.iter().all(|v| v.is_finite()));
    let used: Vec<f32> = finite.flatten().copied().collect();
    let rows_used = used.len() / channels;
    // Three windows, so that the held-back part has one of its own, and a row per channel.
    let rows_min = 3 * params.window + channels;
    if rows_used < rows_min {
        return Err(CommissionError::TooFewRows { rows_used, rows_skipped: rows - rows_used, rows_min });
    }
    Ok((rows, used))
}

fn stability(rows: &[f32], channels: usize, params: &Params) -> Stability {
    let unknown = Stability { ratio: f64::INFINITY, exceed_share: 1.0, stable: false };
    let count = rows.len() / channels;
    let fitted = (count as f64 * FITTED_SHARE) as usize;
    let Some((early, late)) = rows.split_at_checked(fitted * channels) else { return unknown };
    let Some(detector) = Detector::fit(early, channels, params) else { return unknown };
    let highest = detector.score_max() / detector.threshold();
    let held_back = detector.scores(late);
    if held_back.is_empty() {
        return unknown;
    }
    let ratio = held_back.iter().copied().fold(0.0, f64::max) / highest;
    let exceed_share = held_back.iter().filter(|&&score| score > highest).count() as f64 / held_back.len() as f64;
    let stable = ratio <= STABLE_RATIO_MAX && exceed_share <= STABLE_EXCEED_SHARE_MAX;
    Stability { ratio, exceed_share, stable }
}

fn contract(
    subject: &Subject<'_>,
    name: ModelName,
    detector: &Detector,
    rows_used: usize,
    params: &Params,
) -> Contract {
    let unit = |index: usize| subject.units.get(index).cloned().flatten();
    let channels = subject.channels.iter().zip(detector.channels()).enumerate().map(|(index, (name, learned))| {
        let spread = Some(learned.raw_std as f32).filter(|spread| spread.is_finite());
        Channel { name: name.clone(), unit: unit(index), normal: Some(learned.mean as f32), spread }
    });
    Contract {
        name,
        version: subject.version,
        channels: channels.collect(),
        samples: params.window,
        interval_ms: subject.interval_ms,
        input: InputKind::Window,
        output: OutputKind::Score,
        provenance: Provenance {
            created: subject.created.map(str::to_owned),
            trained_from: subject.trained_from.map(str::to_owned),
            rows: Some(rows_used as u64),
        },
        golden: golden(detector),
    }
}

/// Three known answers: at normal, a little off in alternating directions, and far off.
fn golden(detector: &Detector) -> Vec<Golden> {
    let vector = |steps: fn(usize) -> f64| {
        let row = |(index, c): (usize, &ChannelScale)| (c.mean + steps(index) * c.scale) as f32;
        let row: Vec<f32> = detector.channels().iter().enumerate().map(row).collect();
        let (score, contribution) = detector.score_row(&row);
        let contribution = Some(contribution.into_iter().map(|v| v as f32).collect());
        Golden { window: GoldenWindow::Row(row), score: score as f32, contribution }
    };
    let vectors = [vector(|_| 0.0), vector(|i| if i % 2 == 0 { 2.0 } else { -1.0 }), vector(|i| 3.0 + i as f64)];
    // A channel near the end of what `f32` holds has no row three scales away.
    let finite = |golden: &Golden| match &golden.window {
        GoldenWindow::Row(row) | GoldenWindow::Window(row) => {
            row.iter().all(|v| v.is_finite()) && golden.score.is_finite()
        }
    };
    vectors.into_iter().filter(finite).collect()
}

fn export(contract: &Contract, detector: &Detector) -> Vec<u8> {
    let channels = contract.channels.len();
    let column = |value: fn(&ChannelScale) -> f64| -> Vec<f32> {
        detector.channels().iter().map(|channel| value(channel) as f32).collect()
    };
    let to_exported_scale = 1.0 / ((channels as f64).sqrt() * detector.threshold());
    // P is symmetric, so z·P row by row is P·z.
    let whitening: Vec<f32> = detector.whitening().map(|v| (v * to_exported_scale) as f32).collect();
    let batch = Dim::Symbol("batch");
    let mut graph = GraphBuilder::new("commissioned");
    graph.input("window", &[batch, Dim::Fixed(contract.samples), Dim::Fixed(channels)]);
    graph.constant_f32("normal", &[channels], &column(|c| c.mean));
    graph.constant_f32("per_scale", &[channels], &column(|c| c.scale.recip()));
    graph.constant_f32("low", &[], &[-Z_MAX as f32]);
    graph.constant_f32("high", &[], &[Z_MAX as f32]);
    graph.constant_f32("whitening", &[channels, channels], &whitening);
    graph.constant_i64("channel_axis", &[1]);
    graph.node("Sub", &["window", "normal"], "off", vec![]);
    graph.node("ReduceMean", &["off"], "mean_off", vec![attribute_ints("axes", &[1]), attribute_int("keepdims", 0)]);
    graph.node("Mul", &["mean_off", "per_scale"], "z_all", vec![]);
    graph.node("Clip", &["z_all", "low", "high"], "z", vec![]);
    graph.node("MatMul", &["z", "whitening"], "y", vec![]);
    graph.node("Mul", &["y", "y"], CONTRIBUTION, vec![]);
    graph.node("ReduceSum", &[CONTRIBUTION, "channel_axis"], "squared", vec![attribute_int("keepdims", 0)]);
    graph.node("Sqrt", &["squared"], SCORE, vec![]);
    graph.output(SCORE, &[batch]);
    graph.output(CONTRIBUTION, &[batch, Dim::Fixed(channels)]);
    graph.finish(contract.to_metadata())
}

fn finite_or_null<S: serde::Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    if value.is_finite() { serializer.serialize_some(value) } else { serializer.serialize_none() }
}
