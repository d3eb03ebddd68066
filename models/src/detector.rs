//! The detector that is learned on site: a shrunk Mahalanobis distance on a trailing mean, in `f64`.
//!
//! Owns fitting and the reference score that the exported graph is compared with. Never judges whether it has seen enough and
//! never writes a file: `commission` does. With `C` channels and `W = window`:
//!
//! ```text
//! xs = trailing mean of W rows;  m, s = mean and standard deviation of xs
//! s  = max(s, 0.5·std(raw)/√W, floors below);  z = (xs − m)/s, clipped to ±10⁶
//! S  = 0.7·cov(z) + 0.3·tr(cov)/C·I;  P = S^(−1/2), symmetric;  y = z·P
//! contribution = y²/C;  score = √Σ contribution;  threshold = 2.5 · max(score over the commissioning rows)
//! ```
//!
//! and the threshold is never below the score of one quantisation step of any one channel alone: rounding is no fault. The
//! exported score is `score/threshold` and the exported contribution `contribution/threshold²`, so that 1.0 is the alarm
//! threshold and `Σ contribution = score²` in both scales.
//!
//! The symmetric root (ZCA) is the whitening that stays closest to the channels themselves (Kessy, Lewin and Strimmer 2018), so
//! that `y` of a channel is still about that channel. Shrinking towards a multiple of the identity keeps `S` invertible (Ledoit
//! and Wolf 2004).
//!
//! Why each floor of `s`:
//! - `0.5·std(raw)/√W`: half of what the trailing mean of white noise would show; a short commissioning may see less by luck.
//! - `q/√12`, with `q` the smallest step between two values the channel took: rounding to steps of `q` has this standard deviation
//!   (Widrow), and does not average out while the signal stands still between two steps. A reading that settles on the
//!   neighbouring step is no evidence.
//! - Constant channels (no spread beyond rounding) have no step either: 0.1 % of the value, at least 0.001. They alarm when they move by
//!   some percent for a whole window, and not on the last digit.
//! - 10⁻⁶ of the mean's magnitude: what `f32` can tell apart.

use nalgebra::{DMatrix, DVector, SymmetricEigen};
use serde::{Deserialize, Serialize};

/// Floor of a constant channel's scale, relative to its value.
const CONSTANT_FLOOR_RELATIVE: f64 = 1e-3;
/// Floor of a constant channel's scale in the channel's unit: sensors rarely resolve more finely.
const CONSTANT_FLOOR_ABSOLUTE: f64 = 1e-3;
/// Floor of every scale, relative to the mean: about ten `f32` roundings.
const RESOLUTION_FLOOR: f64 = 1e-6;
/// Floor of every scale: its reciprocal is finite in `f32`.
const SCALE_MIN: f64 = 1e-30;
/// How far above the score of one quantisation step the threshold is at least: the mean is rarely exactly on a step.
const STEP_MARGIN: f64 = 1.05;
/// Steps of `z` beyond which more makes no difference; keeps squares finite in `f32` for readings like 1e30.
pub const Z_MAX: f64 = 1e6;
/// Differences that are rounding of the readings, relative to them: about four `f32` roundings. A channel that stays within it is
/// constant, and a smaller difference is no quantisation step.
const GRAIN: f64 = 5e-7;

/// The detector's parameters: one global default, not tuned per machine.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Params {
    /// Rows of the trailing mean.
    pub window: usize,
    /// The alarm threshold in multiples of the highest commissioning score.
    pub threshold_multiplier: f64,
    /// Weight of the identity in the shrunk covariance, in (0, 1].
    pub shrinkage: f64,
    /// Floor of a channel's scale in multiples of `std(raw)/√window`.
    pub std_floor: f64,
}

impl Default for Params {
    fn default() -> Params {
        Params { window: 20, threshold_multiplier: 2.5, shrinkage: 0.3, std_floor: 0.5 }
    }
}

/// Which floor set a channel's scale.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Floor {
    /// None: the spread of the trailing mean.
    Spread,
    /// The spread of the raw values.
    RawNoise,
    /// The smallest step between values.
    Quantisation,
    /// The channel never moved.
    Constant,
    /// What `f32` resolves.
    Resolution,
}

/// What was learned about one channel.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ChannelScale {
    /// Mean of the trailing means: the learned normal.
    pub mean: f64,
    /// Standard deviation of the raw values.
    pub raw_std: f64,
    /// Smallest step between two of its values; `None` when it never moved or its steps are lost in rounding.
    pub step: Option<f64>,
    /// The scale `s`.
    pub scale: f64,
    /// What set it.
    pub floor: Floor,
}

/// A fitted detector.
#[derive(Debug, Clone)]
pub struct Detector {
    window: usize,
    channels: Vec<ChannelScale>,
    /// `P`, symmetric, `[C][C]`.
    whitening: DMatrix<f64>,
    score_max: f64,
    threshold: f64,
}

impl Detector {
    /// Fits `rows` (`[n][channels]`, row-major, finite). `None` when there is nothing to fit: no full window, or no channel varies.
    pub fn fit(rows: &[f32], channels: usize, params: &Params) -> Option<Detector> {
        let means = trailing_means(rows, channels, params.window);
        let windows = means.len() / channels.max(1);
        if windows < 2 {
            return None;
        }
        let scales: Vec<ChannelScale> = (0..channels).map(|c| scale(rows, &means, channels, c, params)).collect();
        if scales.iter().all(|channel| channel.floor == Floor::Constant) {
            return None;
        }
        let mut detector = Detector {
            window: params.window,
            whitening: DMatrix::identity(channels, channels),
            channels: scales,
            score_max: 0.0,
            threshold: 1.0,
        };
        let z: Vec<f64> = means.chunks_exact(channels).flat_map(|mean| detector.standardise(mean)).collect();
        detector.whitening = whitening(&z, channels, params.shrinkage)?;
        let score_max = means.chunks_exact(channels).map(|mean| detector.score_of_mean(mean).0).fold(0.0, f64::max);
        if !(score_max.is_finite() && score_max > 0.0) {
            return None;
        }
        detector.score_max = score_max;
        detector.threshold = (params.threshold_multiplier * score_max).max(STEP_MARGIN * detector.score_of_one_step());
        Some(detector)
    }

    /// The highest score of a window in which one channel is one quantisation step off its mean and the others are on theirs.
    fn score_of_one_step(&self) -> f64 {
        let one_off = |channel: usize| {
            let mut mean: Vec<f64> = self.channels.iter().map(|c| c.mean).collect();
            mean[channel] += self.channels[channel].step.unwrap_or(0.0);
            self.score_of_mean(&mean).0
        };
        (0..self.channels.len()).map(one_off).fold(0.0, f64::max)
    }

    /// What was learned about each channel.
    pub fn channels(&self) -> &[ChannelScale] {
        &self.channels
    }

    /// The alarm threshold, in the detector's own scale.
    pub fn threshold(&self) -> f64 {
        self.threshold
    }

    /// The highest score among the fitted windows, in the detector's own scale.
    pub fn score_max(&self) -> f64 {
        self.score_max
    }

    /// `P`, row-major `[C][C]`; symmetric.
    pub fn whitening(&self) -> impl Iterator<Item = f64> {
        self.whitening.iter().copied()
    }

    /// Score (1.0 is the threshold) of every full window of `rows`, the window ending at row `window − 1` first.
    pub fn scores(&self, rows: &[f32]) -> Vec<f64> {
        let channels = self.channels.len();
        let means = trailing_means(rows, channels, self.window);
        means.chunks_exact(channels).map(|mean| self.score_of_mean(mean).0 / self.threshold).collect()
    }

    /// Score and contributions of one row that repeats for a whole window, in the exported scale: `Σ contribution = score²`.
    pub fn score_row(&self, row: &[f32]) -> (f64, Vec<f64>) {
        let mean: Vec<f64> = row.iter().map(|&v| f64::from(v)).collect();
        let (score, contribution) = self.score_of_mean(&mean);
        let scale = self.threshold * self.threshold;
        (score / self.threshold, contribution.into_iter().map(|v| v / scale).collect())
    }

    fn standardise(&self, mean: &[f64]) -> Vec<f64> {
        let z = |(x, channel): (&f64, &ChannelScale)| ((x - channel.mean) / channel.scale).clamp(-Z_MAX, Z_MAX);
        mean.iter().zip(&self.channels).map(z).collect()
    }

    fn score_of_mean(&self, mean: &[f64]) -> (f64, Vec<f64>) {
        let y = &self.whitening * DVector::from_vec(self.standardise(mean));
        let contribution: Vec<f64> = y.iter().map(|v| v * v / self.channels.len() as f64).collect();
        (contribution.iter().sum::<f64>().sqrt(), contribution)
    }
}

/// Trailing means of `window` rows, `[n − window + 1][channels]`; empty when there are fewer rows. Each is summed afresh: a
/// running sum would carry the rounding of a spike along.
fn trailing_means(rows: &[f32], channels: usize, window: usize) -> Vec<f64> {
    if window == 0 || channels == 0 {
        return Vec::new();
    }
    let mut means = Vec::new();
    for rows in rows.chunks_exact(channels).collect::<Vec<_>>().windows(window) {
        means.extend((0..channels).map(|c| rows.iter().map(|row| f64::from(row[c])).sum::<f64>() / window as f64));
    }
    means
}

fn scale(rows: &[f32], means: &[f64], channels: usize, channel: usize, params: &Params) -> ChannelScale {
    let column = |row: &[f32]| row.get(channel).map(|&v| f64::from(v));
    let mut raw: Vec<f64> = rows.chunks_exact(channels).filter_map(column).collect();
    let trailing: Vec<f64> = means.chunks_exact(channels).filter_map(|mean| mean.get(channel).copied()).collect();
    let (_, raw_std) = mean_and_std(&raw);
    let (mean, spread) = mean_and_std(&trailing);
    raw.sort_by(f64::total_cmp);
    let (least, most) = (raw.first().copied().unwrap_or(0.0), raw.last().copied().unwrap_or(0.0));
    let grain = GRAIN * least.abs().max(most.abs());
    let constant = most - least <= grain;
    let step = raw.array_windows().map(|[a, b]| b - a).filter(|step| *step > grain).reduce(f64::min);
    let mut scale = (spread, Floor::Spread);
    let mut raise = |to: f64, floor: Floor| {
        if to > scale.0 {
            scale = (to, floor);
        }
    };
    if constant {
        raise((CONSTANT_FLOOR_RELATIVE * mean.abs()).max(CONSTANT_FLOOR_ABSOLUTE), Floor::Constant);
    } else {
        raise(params.std_floor * raw_std / (params.window as f64).sqrt(), Floor::RawNoise);
        raise(step.unwrap_or(0.0) / 12.0_f64.sqrt(), Floor::Quantisation);
    }
    raise((RESOLUTION_FLOOR * mean.abs()).max(SCALE_MIN), Floor::Resolution);
    let (scale, floor) = scale;
    // The graph subtracts the mean in `f32`; the reference subtracts the same number.
    let mean = f64::from(mean as f32);
    ChannelScale { mean, raw_std, step, scale, floor }
}

/// Mean and population standard deviation, in two passes.
fn mean_and_std(values: &[f64]) -> (f64, f64) {
    let n = values.len().max(1) as f64;
    let mean = values.iter().sum::<f64>() / n;
    let std = (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n).sqrt();
    (mean, std)
}

/// `(0.7·cov + 0.3·tr/C·I)^(−1/2)`; `None` when nothing varies.
fn whitening(z: &[f64], channels: usize, shrinkage: f64) -> Option<DMatrix<f64>> {
    let rows = z.len() / channels;
    let mut centred = DMatrix::from_row_slice(rows, channels, z);
    for mut column in centred.column_iter_mut() {
        let mean = column.mean();
        column.add_scalar_mut(-mean);
    }
    let covariance = centred.tr_mul(&centred) / rows as f64;
    let average = covariance.trace() / channels as f64;
    if !(average.is_finite() && average > 0.0) {
        return None;
    }
    let shrunk = covariance * (1.0 - shrinkage) + DMatrix::identity(channels, channels) * (shrinkage * average);
    let eigen = SymmetricEigen::try_new(shrunk, f64::EPSILON, 10_000)?;
    // The smallest eigenvalue is at least shrinkage·average by construction; rounding must not make it less.
    let least = shrinkage * average * 0.5;
    let roots = eigen.eigenvalues.map(|value| value.max(least).sqrt().recip());
    Some(&eigen.eigenvectors * DMatrix::from_diagonal(&roots) * eigen.eigenvectors.transpose())
}
