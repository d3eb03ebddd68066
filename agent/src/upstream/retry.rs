//! When to try again.
//!
//! Owns the pauses between attempts: they double up to a bound, and half of each is random, so that a hundred gateways that lost the
//! same server do not come back in the same second.

use std::time::Duration;

/// The first pause.
const FIRST: Duration = Duration::from_millis(200);
/// Doublings after which any bound is reached: 200 ms × 2^15 is more than an hour.
const DOUBLINGS_MAX: u32 = 15;

/// Counts attempts that failed in a row.
#[derive(Debug)]
pub(super) struct Retry {
    failed: u32,
    longest: Duration,
}

impl Retry {
    /// Pauses of at most `longest`.
    pub(super) fn new(longest: Duration) -> Retry {
        Retry { failed: 0, longest }
    }

    /// It works.
    pub(super) fn worked(&mut self) {
        self.failed = 0;
    }

    /// How long to wait after one more failure; `chance` is uniform in 0 to 1.
    pub(super) fn pause(&mut self, chance: f64) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failed.min(DOUBLINGS_MAX)).min(self.longest);
        self.failed = self.failed.saturating_add(1);
        full.div_f64(2.0) + full.div_f64(2.0).mul_f64(chance.clamp(0.0, 1.0))
    }
}

/// A uniform number from 0 to 1.
pub(super) fn chance() -> f64 {
    // Without randomness all pauses are in the middle, which is no harm to this gateway.
    getrandom::u32().map_or(0.5, |number| f64::from(number) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    // Pauses double from 200 ms up to the bound, lie between the half and the whole, and begin anew after a success.
    #[test]
    fn pauses_grow_to_the_bound() {
        let mut retry = Retry::new(Duration::from_secs(1));
        let pauses: Vec<u128> = (0..4).map(|_| retry.pause(1.0).as_millis()).collect();
        assert_eq!(pauses, [200, 400, 800, 1_000]);
        assert_eq!(retry.pause(0.0).as_millis(), 500);
        retry.worked();
        assert_eq!(retry.pause(0.0).as_millis(), 100);
        for _ in 0..100 {
            assert!(retry.pause(1.0) <= Duration::from_secs(1));
        }
    }
}
