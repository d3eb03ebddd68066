//! The hyperbolic tangent and the sigmoid, several numbers at a time.
//!
//! Owns their approximation: a quotient of polynomials, odd of degree 13 above and even of degree 6 below, the minimax fit that Eigen
//! and the engine use as well. It is within 4e-7 of the true value everywhere, and a NaN stays one.

use super::simd::add_product;

/// Numbers that are treated at a time.
pub(super) const LANES: usize = 8;

/// From here on the tangent is 1 in `f32`.
const SATURATED: f32 = 7.905_311;

/// From the highest power down: of x¹³ to x, and of x⁶ to 1.
const ABOVE: [f32; 7] =
    [-2.760_768_5e-16, 2.000_188e-13, -8.604_672e-11, 5.122_297e-8, 1.485_722_4e-5, 6.372_619_3e-4, 4.893_524_6e-3];
const BELOW: [f32; 4] = [1.198_258_4e-6, 1.185_347_1e-4, 2.268_434_6e-3, 4.893_525e-3];

/// tanh(x).
#[inline(always)]
pub(super) fn tanh<const FUSED: bool>(mut x: [f32; LANES]) -> [f32; LANES] {
    let mut square = [0.0; LANES];
    for (x, square) in x.iter_mut().zip(&mut square) {
        *x = x.clamp(-SATURATED, SATURATED);
        *square = *x * *x;
    }
    let above = polynomial::<FUSED, 7>(&ABOVE, &square);
    let below = polynomial::<FUSED, 4>(&BELOW, &square);
    for (x, (above, below)) in x.iter_mut().zip(above.iter().zip(&below)) {
        *x = *x * above / below;
    }
    x
}

/// 1 / (1 + exp(−x)), which is (1 + tanh(x / 2)) / 2.
#[inline(always)]
pub(super) fn sigmoid<const FUSED: bool>(mut x: [f32; LANES]) -> [f32; LANES] {
    for x in &mut x {
        *x *= 0.5;
    }
    let mut x = tanh::<FUSED>(x);
    for x in &mut x {
        *x = add_product::<FUSED>(0.5, 0.5, *x);
    }
    x
}

/// Horner's scheme, from the highest power down.
#[inline(always)]
fn polynomial<const FUSED: bool, const N: usize>(coefficients: &[f32; N], x: &[f32; LANES]) -> [f32; LANES] {
    let mut sums = [0.0; LANES];
    for coefficient in coefficients {
        for (sum, x) in sums.iter_mut().zip(x) {
            *sum = add_product::<FUSED>(*coefficient, *sum, *x);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;

    // Over the range where it is not constant, and beyond, both forms of both functions are within 4e-7 of the truth.
    #[test]
    fn they_are_close_to_the_truth() {
        let mut worst = 0.0_f64;
        for at in -120_000..120_000 {
            let x = at as f32 / 10_000.0;
            let both = [tanh::<false>([x; LANES])[0], tanh::<true>([x; LANES])[0]];
            let sigmoids = [sigmoid::<false>([x; LANES])[0], sigmoid::<true>([x; LANES])[0]];
            let x = f64::from(x);
            for (got, want) in [(both, x.tanh()), (sigmoids, 1.0 / (1.0 + (-x).exp()))] {
                worst = got.iter().fold(worst, |worst, got| worst.max((f64::from(*got) - want).abs()));
            }
        }
        assert!(worst < 4e-7, "{worst}");
    }

    // What no telemetry holds but a broken model may give: infinities saturate, and a NaN is not hidden.
    #[test]
    fn infinities_saturate_and_nan_stays() {
        let values = tanh::<false>([f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 0.0, -0.0, 1e30, -1e30, 1e-30]);
        assert!((values[0] - 1.0).abs() < 1e-6 && (values[1] + 1.0).abs() < 1e-6 && values[2].is_nan());
        assert_eq!(&values[3..5], &[0.0, 0.0]);
        assert!((values[5] - 1.0).abs() < 1e-6 && (values[6] + 1.0).abs() < 1e-6 && (values[7] - 1e-30).abs() < 1e-36);
        assert!(sigmoid::<false>([f32::NAN; LANES]).iter().all(|v| v.is_nan()));
    }
}
