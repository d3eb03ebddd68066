//! The detector that watches the machines, as the gateway learns it: a shrunk Mahalanobis distance on a trailing mean.
//!
//! A small copy in `f64`, so that the machines can be judged without the gateway. Score 1 is the alarm threshold.

use std::collections::VecDeque;

use nalgebra::{DMatrix, DVector, SymmetricEigen};

/// Rows of the trailing mean.
const WINDOW: usize = 20;

/// Share of the identity in the covariance.
const SHRINKAGE: f64 = 0.3;

/// The threshold, in multiples of the largest score while learning.
const THRESHOLD: f64 = 2.5;

pub(crate) struct Detector {
    mean: DVector<f64>,
    deviation: DVector<f64>,
    whitening: DMatrix<f64>,
    threshold: f64,
    window: VecDeque<DVector<f64>>,
}

impl Detector {
    /// Learns from rows of one value per channel; the trailing window then holds the last of them.
    pub(crate) fn learn(rows: &[Vec<f64>]) -> Detector {
        let rows: Vec<DVector<f64>> = rows.iter().map(|row| DVector::from_vec(row.clone())).collect();
        let means: Vec<DVector<f64>> =
            rows.windows(WINDOW).map(|window| window.iter().sum::<DVector<f64>>() / WINDOW as f64).collect();
        let (mean, smooth) = moments(&means);
        let (_, raw) = moments(&rows);
        let deviation = smooth.zip_map(&raw, |smooth, raw| smooth.max(0.5 * raw / (WINDOW as f64).sqrt()));
        let channels = mean.len();
        let z: Vec<DVector<f64>> = means.iter().map(|row| (row - &mean).component_div(&deviation)).collect();
        let covariance = z.iter().map(|z| z * z.transpose()).sum::<DMatrix<f64>>() / z.len() as f64;
        let scale = covariance.trace() / channels as f64;
        let shrunk = covariance * (1.0 - SHRINKAGE) + DMatrix::identity(channels, channels) * (SHRINKAGE * scale);
        let eigen = SymmetricEigen::new(shrunk);
        let root = DMatrix::from_diagonal(&eigen.eigenvalues.map(|value| 1.0 / value.sqrt()));
        let whitening = &eigen.eigenvectors * root * eigen.eigenvectors.transpose();
        let highest = z.iter().map(|z| ((&whitening * z).norm_squared() / channels as f64).sqrt()).fold(0.0, f64::max);
        let window = rows.iter().rev().take(WINDOW).rev().cloned().collect();
        Detector { mean, deviation, whitening, threshold: THRESHOLD * highest, window }
    }

    /// The score after one more row, and each channel's contribution.
    pub(crate) fn score(&mut self, row: Vec<f64>) -> (f64, Vec<f64>) {
        self.window.push_back(DVector::from_vec(row));
        self.window.pop_front();
        let mean = self.window.iter().sum::<DVector<f64>>() / WINDOW as f64;
        let y = &self.whitening * (mean - &self.mean).component_div(&self.deviation);
        let channels = y.len() as f64;
        let contribution: Vec<f64> = y.iter().map(|value| value * value / channels).collect();
        (contribution.iter().sum::<f64>().sqrt() / self.threshold, contribution)
    }
}

fn moments(rows: &[DVector<f64>]) -> (DVector<f64>, DVector<f64>) {
    let mean = rows.iter().sum::<DVector<f64>>() / rows.len() as f64;
    let variance = rows.iter().map(|row| (row - &mean).map(|x| x * x)).sum::<DVector<f64>>() / rows.len() as f64;
    (mean, variance.map(f64::sqrt))
}
