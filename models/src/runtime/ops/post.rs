//! The post-transforms of ai.onnx.ml: what makes probabilities of sums.
//!
//! Owns the formulas, as onnxruntime has them. Never decides when one applies.

use tract_onnx::tract_hir::internal::{TractResult, bail};

/// `post_transform`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PostTransform {
    None,
    Logistic,
    Softmax,
    SoftmaxZero,
    Probit,
}

/// Values nearer to 0 than this stay 0 under `SOFTMAX_ZERO`.
const ZERO: f64 = 1e-7;

/// Coefficient of the approximation of the inverse error function (Winitzki 2008); its error is up to 2e-3, and it is what
/// onnxruntime computes.
const WINITZKI: f64 = 0.147;

impl PostTransform {
    pub(super) fn parse(name: &str) -> TractResult<PostTransform> {
        Ok(match name {
            "NONE" => PostTransform::None,
            "LOGISTIC" => PostTransform::Logistic,
            "SOFTMAX" => PostTransform::Softmax,
            "SOFTMAX_ZERO" => PostTransform::SoftmaxZero,
            "PROBIT" => PostTransform::Probit,
            other => bail!("`post_transform` is {other:?}, which is none of the operator's"),
        })
    }

    /// Transforms the scores of one row.
    pub(super) fn apply(self, scores: &mut [f64]) {
        match self {
            PostTransform::None => {}
            PostTransform::Logistic => scores.iter_mut().for_each(|v| *v = logistic(*v)),
            PostTransform::Probit => scores.iter_mut().for_each(|v| *v = probit(*v)),
            PostTransform::Softmax => softmax(scores, |v, max| (v - max).exp()),
            PostTransform::SoftmaxZero => {
                softmax(scores, |v, max| if v.abs() > ZERO { (v - max).exp() } else { v * (-max).exp() });
            }
        }
    }
}

pub(super) fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn probit(x: f64) -> f64 {
    let x = 2.0 * x - 1.0;
    let log = ((1.0 - x) * (1.0 + x)).ln();
    let half = 2.0 / (std::f64::consts::PI * WINITZKI) + 0.5 * log;
    let root = (half * half - log / WINITZKI).sqrt() - half;
    std::f64::consts::SQRT_2 * root.sqrt().copysign(x)
}

fn softmax(scores: &mut [f64], exp: impl Fn(f64, f64) -> f64) {
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    scores.iter_mut().for_each(|v| *v = exp(*v, max));
    let sum: f64 = scores.iter().sum();
    if sum != 0.0 {
        scores.iter_mut().for_each(|v| *v /= sum);
    }
}
