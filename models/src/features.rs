//! Features of a window, for models that take numbers per channel instead of samples.
//!
//! Owns the formulas; an exporter in another language computes the same from these definitions. Never reads telemetry. Sums are
//! `f64`, results `f32`, and every formula is finite for finite input: where a ratio has no denominator it is 0, as stated.
//!
//! With `n` samples `x`, mean `μ`, and central moments `m_k = Σ(x−μ)^k / n`:
//!
//! | name | formula | unit |
//! |---|---|---|
//! | `mean` | `μ` | the channel's |
//! | `std` | `√m₂` (population) | the channel's |
//! | `rms` | `√(Σx²/n)` | the channel's |
//! | `peak` | `max abs(x)` | the channel's |
//! | `crest` | `peak / rms`; 0 when `rms` is 0 | – |
//! | `kurtosis` | `m₄ / m₂²` (3 for a normal distribution); 0 when `m₂` is 0 | – |
//! | `skew` | `m₃ / m₂^1.5`; 0 when `m₂` is 0 | – |
//! | `slope` | least-squares slope over the sample index | the channel's, per sample |
//! | `centroid` | `Σ f·p(f) / Σ p(f)`; 0 when `Σ p` is 0 | Hz |
//! | `band:LOW-HIGH` | `Σ p(f)` over `LOW ≤ f < HIGH` | the channel's, squared |
//!
//! `p` is the one-sided power spectrum of `x − μ` without a window function: with `X_k` its discrete Fourier transform,
//! `p(k/(n·Δt)) = 2·abs(X_k)²/n²` for `0 < k < n/2` and `abs(X_k)²/n²` at `k = n/2`, so that `Σ p = m₂` (Parseval).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rustfft::num_complex::Complex;
use rustfft::{Fft, FftPlanner};

/// A number computed from the samples of one channel; see the module for the formulas.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Feature {
    /// Arithmetic mean.
    Mean,
    /// Population standard deviation.
    Std,
    /// Root mean square.
    Rms,
    /// Largest absolute value.
    Peak,
    /// Peak over root mean square.
    Crest,
    /// Fourth standardised moment.
    Kurtosis,
    /// Third standardised moment.
    Skew,
    /// Least-squares slope per sample.
    Slope,
    /// Spectral centroid in Hz.
    Centroid,
    /// Power between two frequencies.
    Band {
        /// Lower edge in Hz, included.
        low_hz: f32,
        /// Upper edge in Hz, excluded.
        high_hz: f32,
    },
}

/// A text that names no feature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{found}` is no feature; write mean, std, rms, peak, crest, kurtosis, skew, slope, centroid or band:LOW-HIGH with 0 <= LOW < HIGH in Hz"
)]
pub struct FeatureError {
    /// What was given, at most 64 characters of it.
    pub found: String,
}

impl Feature {
    /// Whether the feature needs the sampling interval.
    pub fn is_spectral(&self) -> bool {
        matches!(self, Feature::Centroid | Feature::Band { .. })
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Feature::Mean => "mean",
            Feature::Std => "std",
            Feature::Rms => "rms",
            Feature::Peak => "peak",
            Feature::Crest => "crest",
            Feature::Kurtosis => "kurtosis",
            Feature::Skew => "skew",
            Feature::Slope => "slope",
            Feature::Centroid => "centroid",
            Feature::Band { low_hz, high_hz } => return write!(f, "band:{low_hz}-{high_hz}"),
        };
        f.write_str(name)
    }
}

impl FromStr for Feature {
    type Err = FeatureError;

    fn from_str(text: &str) -> Result<Feature, FeatureError> {
        let band = |edges: &str| {
            let (low, high) = edges.split_once('-')?;
            let (low_hz, high_hz) = (low.parse::<f32>().ok()?, high.parse::<f32>().ok()?);
            (low_hz >= 0.0 && low_hz < high_hz && high_hz.is_finite()).then_some(Feature::Band { low_hz, high_hz })
        };
        let feature = match text {
            "mean" => Some(Feature::Mean),
            "std" => Some(Feature::Std),
            "rms" => Some(Feature::Rms),
            "peak" => Some(Feature::Peak),
            "crest" => Some(Feature::Crest),
            "kurtosis" => Some(Feature::Kurtosis),
            "skew" => Some(Feature::Skew),
            "slope" => Some(Feature::Slope),
            "centroid" => Some(Feature::Centroid),
            _ => text.strip_prefix("band:").and_then(band),
        };
        feature.ok_or_else(|| FeatureError { found: text.chars().take(64).collect() })
    }
}

/// Computes a fixed list of features for windows of a fixed length; the Fourier transform is planned once.
pub struct Extractor {
    features: Vec<Feature>,
    samples: usize,
    /// Distance of two spectral lines in Hz; 0 when no feature is spectral.
    line_hz: f64,
    fft: Option<Arc<dyn Fft<f64>>>,
}

impl Extractor {
    /// Plans for windows of `samples` samples, `interval_ms` apart. Without an interval, spectral features count in cycles
    /// per sample (the contract refuses such a model).
    pub fn new(features: &[Feature], samples: usize, interval_ms: Option<f64>) -> Extractor {
        let fft = (samples > 0 && features.iter().any(Feature::is_spectral))
            .then(|| FftPlanner::new().plan_fft_forward(samples));
        let rate_hz = interval_ms.map_or(1.0, |ms| 1_000.0 / ms);
        let line_hz = if samples == 0 { 0.0 } else { rate_hz / samples as f64 };
        Extractor { features: features.to_vec(), samples, line_hz, fft }
    }

    /// Numbers per window: channels × features.
    pub fn len(&self, channels: usize) -> usize {
        self.features.len() * channels
    }

    /// Appends the features of one window (`[samples][channels]`, row-major) to `out`: all features of the first channel, then
    /// of the second, and so on. A window of another length appends what its whole rows give.
    pub fn extract(&self, window: &[f32], channels: usize, out: &mut Vec<f32>) {
        let mut column = Vec::with_capacity(self.samples);
        for channel in 0..channels {
            column.clear();
            column.extend(window.chunks_exact(channels).filter_map(|row| row.get(channel)).map(|&v| f64::from(v)));
            let moments = Moments::of(&column);
            let spectrum = self.fft.as_ref().map(|fft| power_spectrum(fft.as_ref(), &column, moments.mean));
            let spectrum = spectrum.as_deref().unwrap_or_default();
            out.extend(self.features.iter().map(|feature| self.value(*feature, &column, &moments, spectrum) as f32));
        }
    }

    fn value(&self, feature: Feature, x: &[f64], moments: &Moments, spectrum: &[f64]) -> f64 {
        match feature {
            Feature::Mean => moments.mean,
            Feature::Std => moments.m2.sqrt(),
            Feature::Rms => moments.rms,
            Feature::Peak => moments.peak,
            Feature::Crest => ratio(moments.peak, moments.rms),
            Feature::Kurtosis => ratio(moments.m4, moments.m2 * moments.m2),
            Feature::Skew => ratio(moments.m3, moments.m2 * moments.m2.sqrt()),
            Feature::Slope => slope(x, moments.mean),
            Feature::Centroid => {
                let weighted: f64 = spectrum.iter().enumerate().map(|(k, p)| k as f64 * self.line_hz * p).sum();
                ratio(weighted, spectrum.iter().sum())
            }
            Feature::Band { low_hz, high_hz } => {
                let inside = |k: usize| {
                    let hz = k as f64 * self.line_hz;
                    f64::from(low_hz) <= hz && hz < f64::from(high_hz)
                };
                spectrum.iter().enumerate().filter(|(k, _)| inside(*k)).map(|(_, p)| p).sum()
            }
        }
    }
}

impl fmt::Debug for Extractor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Extractor")
            .field("features", &self.features)
            .field("samples", &self.samples)
            .finish_non_exhaustive()
    }
}

struct Moments {
    mean: f64,
    m2: f64,
    m3: f64,
    m4: f64,
    rms: f64,
    peak: f64,
}

impl Moments {
    fn of(x: &[f64]) -> Moments {
        let n = x.len().max(1) as f64;
        let mean = x.iter().sum::<f64>() / n;
        let moment = |power: i32| x.iter().map(|v| (v - mean).powi(power)).sum::<f64>() / n;
        let mut m2 = moment(2);
        // The mean of equal values can differ from them by rounding; that is no spread.
        if m2.sqrt() <= 1e-12 * mean.abs() {
            m2 = 0.0;
        }
        let rms = (x.iter().map(|v| v * v).sum::<f64>() / n).sqrt();
        let peak = x.iter().fold(0.0_f64, |peak, v| peak.max(v.abs()));
        Moments { mean, m2, m3: moment(3), m4: moment(4), rms, peak }
    }
}

fn ratio(numerator: f64, denominator: f64) -> f64 {
    if denominator > 0.0 { numerator / denominator } else { 0.0 }
}

fn slope(x: &[f64], mean: f64) -> f64 {
    let n = x.len() as f64;
    let middle = (n - 1.0) / 2.0;
    let covariance: f64 = x.iter().enumerate().map(|(i, v)| (i as f64 - middle) * (v - mean)).sum();
    // Σ(i − middle)² over 0..n.
    ratio(covariance, n * (n * n - 1.0) / 12.0)
}

fn power_spectrum(fft: &dyn Fft<f64>, x: &[f64], mean: f64) -> Vec<f64> {
    let mut buffer: Vec<Complex<f64>> = x.iter().map(|v| Complex::new(v - mean, 0.0)).collect();
    if buffer.len() != fft.len() {
        return Vec::new();
    }
    fft.process(&mut buffer);
    let n = x.len();
    let n_squared = (n * n) as f64;
    let line = |(k, value): (usize, &Complex<f64>)| {
        let sides = if k == 0 || 2 * k == n { 1.0 } else { 2.0 };
        sides * value.norm_sqr() / n_squared
    };
    buffer.iter().take(n / 2 + 1).enumerate().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compute(names: &[&str], window: &[f32], channels: usize, interval_ms: f64) -> Vec<f32> {
        let features: Vec<Feature> = names.iter().map(|n| n.parse().unwrap()).collect();
        let mut out = Vec::new();
        Extractor::new(&features, window.len() / channels, Some(interval_ms)).extract(window, channels, &mut out);
        out
    }

    fn assert_close(got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() <= 1e-5 * w.abs().max(1.0), "{got:?} is not {want:?}");
        }
    }

    #[test]
    fn statistics_match_values_worked_by_hand() {
        // For 1, 2, 3, 4, 10: mean 4, m2 10, m3 36, m4 278.8, Σx² 130.
        let got = compute(
            &["mean", "std", "rms", "peak", "crest", "kurtosis", "skew", "slope"],
            &[1.0, 2.0, 3.0, 4.0, 10.0],
            1,
            1.0,
        );
        let rms = 26.0_f32.sqrt();
        assert_close(&got, &[4.0, 10.0_f32.sqrt(), rms, 10.0, 10.0 / rms, 2.788, 36.0 / 10.0_f32.powf(1.5), 2.0]);
    }

    #[test]
    fn a_sine_is_found_at_its_frequency() {
        // A 50 Hz sine of amplitude 2, sampled at 1 kHz for 200 ms around an offset of 7, has power 2 at 50 Hz and none beside it.
        let sine = |i: usize| 7.0 + 2.0 * (std::f32::consts::TAU * 50.0 * i as f32 / 1_000.0).sin();
        let window: Vec<f32> = (0..200).map(sine).collect();
        let got = compute(&["band:0-45", "band:45-55", "band:55-500", "centroid", "std"], &window, 1, 1.0);
        assert_close(&got, &[0.0, 2.0, 0.0, 50.0, 2.0_f32.sqrt()]);
    }

    #[test]
    fn a_constant_channel_is_finite_and_channels_come_in_order() {
        // Channel 0 constant, channel 1 alternating: ratios without a denominator are 0, and the order is channel by channel.
        let window = [0.1, 1.0, 0.1, -1.0, 0.1, 1.0, 0.1, -1.0];
        let got = compute(&["std", "skew", "kurtosis", "centroid"], &window, 2, 1_000.0);
        assert_close(&got, &[0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.5]);
        assert_close(&compute(&["crest", "slope"], &[0.0, 0.0], 1, 1.0), &[0.0, 0.0]);
    }

    #[test]
    fn names_read_back_and_nonsense_is_refused() {
        // Each name parses to what prints it; reversed, negative, infinite or unfinished bands do not parse.
        for name in [
            "mean",
            "std",
            "rms",
            "peak",
            "crest",
            "kurtosis",
            "skew",
            "slope",
            "centroid",
            "band:10-100",
            "band:0.5-2.25",
        ] {
            assert_eq!(name.parse::<Feature>().unwrap().to_string(), name);
        }
        for bad in ["", "median", "band:", "band:5", "band:10-5", "band:-1-5", "band:0-inf", "band:nan-3", "Mean"] {
            assert!(bad.parse::<Feature>().is_err(), "{bad}");
        }
    }
}
