//! How many messages may go now.
//!
//! Owns a bucket that fills at a rate and holds one second's worth.

use std::time::{Duration, Instant};

/// The bucket.
#[derive(Debug)]
pub(super) struct Allowance {
    per_s: Option<f64>,
    left: f64,
    filled: Instant,
}

impl Allowance {
    /// So many a second; without a number, any.
    pub(super) fn new(per_s: Option<u32>, now: Instant) -> Allowance {
        let per_s = per_s.map(f64::from);
        Allowance { per_s, left: per_s.unwrap_or(0.0), filled: now }
    }

    /// How many of `wanted` may go.
    pub(super) fn may_send(&mut self, wanted: usize, now: Instant) -> usize {
        let Some(per_s) = self.per_s else { return wanted };
        let passed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.left = (self.left + passed * per_s).min(per_s.max(1.0));
        self.filled = now;
        wanted.min(self.left as usize)
    }

    /// They went.
    pub(super) fn sent(&mut self, count: usize) {
        self.left -= count as f64;
    }

    /// How long until one more may go.
    pub(super) fn wait(&self) -> Duration {
        match self.per_s {
            Some(per_s) if self.left < 1.0 => Duration::from_secs_f64(((1.0 - self.left) / per_s).clamp(0.001, 1.0)),
            _ => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // A second's worth may go at once, then as many as time allows.
    #[test]
    fn the_rate_is_kept() {
        let begin = Instant::now();
        let mut allowance = Allowance::new(Some(10), begin);
        assert_eq!(allowance.may_send(100, begin), 10);
        allowance.sent(10);
        assert_eq!(allowance.may_send(100, begin), 0);
        assert_eq!(allowance.wait(), Duration::from_millis(100));
        assert_eq!(allowance.may_send(100, begin + Duration::from_millis(500)), 5);
        assert_eq!(allowance.may_send(100, begin + Duration::from_secs(60)), 10);
        assert_eq!(Allowance::new(None, begin).may_send(100, begin), 100);
    }
}
