//! From what a graph gives to score and contributions.
//!
//! Owns the formulas in the documentation of [`crate::contract`], the part of a window that a graph is given, and the checks of every
//! number a graph gives. Never runs a model and never explains by occlusion: `runtime` does. Computes in `f64`: readings like 1e30 have
//! squares that `f32` does not hold.

use super::{RunError, Scores};
use crate::contract::{Classes, Contract, OutputKind, Regression, Residual};
use crate::detector::Z_MAX;

/// How far outside 0…1 a probability may be: engines differ by about 1e-6, sums over many trees by some more.
const PROBABILITY_ROUNDING: f32 = 1e-4;

/// What a model says of a window besides its score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Finding {
    /// The most probable class among those that are not the normal one.
    Class {
        /// Which, in the order of the contract's classes.
        class: usize,
        /// Its probability.
        probability: f32,
    },
    /// The regressed value.
    Value(f32),
}

impl Finding {
    /// The finding in a few words, `bearing (72 %)` or `37.5 h`; `None` if it is not one of `output`.
    pub fn describe(self, output: &OutputKind) -> Option<String> {
        match (self, output) {
            (Finding::Class { class, probability }, OutputKind::Probability(classes)) => {
                Some(format!("{} ({:.0} %)", classes.names.get(class)?, probability * 100.0))
            }
            (Finding::Value(value), OutputKind::Regression(regression)) => {
                // Tenths are enough for a crew, and more digits than a value of 0.01 has would hide it.
                let value = if value.abs() >= 1.0 { format!("{value:.1}") } else { format!("{value:.3}") };
                Some(regression.unit.as_ref().map_or(value.clone(), |unit| format!("{value} {unit}")))
            }
            _ => None,
        }
    }
}

/// What the engine gives for some windows.
#[derive(Debug, Default)]
pub(super) struct Outputs {
    /// The output that the contract's kind names, row after row.
    pub(super) primary: Vec<f32>,
    /// The graph's own contributions, empty when it gives none.
    pub(super) contribution: Vec<f32>,
}

impl Outputs {
    pub(super) fn clear(&mut self) {
        self.primary.clear();
        self.contribution.clear();
    }
}

/// The rows of each window that the graph is given: all, or for a forecast all but the last `horizon`, copied to `buffer`.
pub(super) fn given_rows<'a>(contract: &Contract, windows: &'a [f32], buffer: &'a mut Vec<f32>) -> &'a [f32] {
    let horizon = contract.output.horizon();
    if horizon == 0 {
        return windows;
    }
    let given = (contract.samples - horizon) * contract.channels.len();
    buffer.clear();
    for window in windows.chunks_exact(contract.window_len()) {
        buffer.extend(window.iter().take(given));
    }
    buffer
}

/// Appends score and contributions of `windows` to `scores`. `outputs` is what the engine gave for them.
pub(super) fn convert(
    contract: &Contract,
    windows: &[f32],
    outputs: &Outputs,
    scores: &mut Scores,
) -> Result<(), RunError> {
    let (first, contributed) = (scores.score.len(), scores.contribution.len());
    let windows = windows.chunks_exact(contract.window_len());
    let rows = outputs.primary.chunks_exact((outputs.primary.len() / windows.len().max(1)).max(1)).enumerate();
    for (row, (values, window)) in rows.zip(windows).map(|((row, values), window)| (first + row, (values, window))) {
        if let Some(bad) = values.iter().find(|v| !v.is_finite()) {
            return Err(RunError::NotFinite { row, found: *bad });
        }
        let score = match &contract.output {
            OutputKind::Score => values.first().copied().unwrap_or(f32::NAN),
            OutputKind::Reconstruction(residual) => residual_score(residual, window, values, &mut scores.contribution),
            OutputKind::Forecast(forecast) => {
                let observed = window.get(window.len() - values.len()..).unwrap_or_default();
                residual_score(&forecast.residual, observed, values, &mut scores.contribution)
            }
            OutputKind::Probability(classes) => {
                let score = probability_score(classes, values, row)?;
                scores.finding.extend(likeliest_fault(classes, values));
                score
            }
            OutputKind::Regression(regression) => {
                scores.finding.extend(values.first().map(|value| Finding::Value(*value)));
                regression_score(regression, values)
            }
        };
        if !score.is_finite() {
            return Err(RunError::NotFinite { row, found: score });
        }
        scores.score.push(score);
    }
    // By contract contributions are not negative; rounding may leave a trace below 0. The comparison keeps a NaN.
    scores.contribution.extend(outputs.contribution.iter().map(|v| if *v < 0.0 { 0.0 } else { *v }));
    let added = scores.contribution.get(contributed..).unwrap_or_default();
    if let Some((at, found)) = added.iter().enumerate().find(|(_, v)| !v.is_finite()) {
        return Err(RunError::NotFinite { row: first + at / contract.channels.len(), found: *found });
    }
    Ok(())
}

/// `contribution = mean(r²)/(C·T²)`, appended to `contributions`; `score = √Σ contribution`.
fn residual_score(residual: &Residual, observed: &[f32], expected: &[f32], contributions: &mut Vec<f32>) -> f32 {
    let channels = residual.scale.len();
    let mut sums = vec![0.0_f64; channels];
    for (observed, expected) in observed.chunks_exact(channels).zip(expected.chunks_exact(channels)) {
        for (((sum, scale), x), model) in sums.iter_mut().zip(&residual.scale).zip(observed).zip(expected) {
            let r = ((f64::from(*x) - f64::from(*model)) / f64::from(*scale)).clamp(-Z_MAX, Z_MAX);
            *sum += r * r;
        }
    }
    let samples = (observed.len() / channels).max(1);
    let unit = (samples * channels) as f64 * f64::from(residual.threshold).powi(2);
    contributions.extend(sums.iter().map(|sum| (sum / unit) as f32));
    (sums.iter().sum::<f64>() / unit).sqrt() as f32
}

/// `(1 − p(normal))/T`, once every probability is one.
fn probability_score(classes: &Classes, probabilities: &[f32], row: usize) -> Result<f32, RunError> {
    let allowed = -PROBABILITY_ROUNDING..=1.0 + PROBABILITY_ROUNDING;
    if let Some((class, found)) = classes.names.iter().zip(probabilities).find(|(_, p)| !allowed.contains(p)) {
        return Err(RunError::Probability { row, class: class.clone(), found: *found });
    }
    let normal = probabilities.get(classes.normal).copied().unwrap_or(f32::NAN);
    Ok((1.0 - normal.clamp(0.0, 1.0)) / classes.threshold)
}

fn likeliest_fault(classes: &Classes, probabilities: &[f32]) -> Option<Finding> {
    let faults = probabilities.iter().enumerate().filter(|(class, _)| *class != classes.normal);
    let (class, probability) = faults.max_by(|a, b| a.1.total_cmp(b.1))?;
    Some(Finding::Class { class, probability: probability.clamp(0.0, 1.0) })
}

/// `max(0, (healthy − value)/(healthy − alarm))`: on either side of `healthy` the quotient grows towards the alarm.
fn regression_score(regression: &Regression, values: &[f32]) -> f32 {
    let value = values.first().copied().map_or(f64::NAN, f64::from);
    let (healthy, alarm) = (f64::from(regression.healthy), f64::from(regression.alarm.value()));
    let score = (healthy - value) / (healthy - alarm);
    // A comparison with NaN is false, so a missing value stays NaN and is refused by the caller.
    (if score < 0.0 { 0.0 } else { score }) as f32
}
