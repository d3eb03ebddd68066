//! How often something may happen: an allowance that fills up with time.

use std::time::{Duration, Instant};

/// So many per second, and the allowance of [`BURST_S`] seconds at once after a rest.
#[derive(Debug, Clone, Copy)]
pub struct Allowance {
    per_s: f64,
    /// What may happen now; below zero if more has happened than was allowed.
    left: f64,
    at: Instant,
}

/// How many seconds' allowance is kept.
const BURST_S: f64 = 2.0;

impl Allowance {
    /// A full allowance; `per_s` 0 allows everything.
    pub fn new(per_s: u32, now: Instant) -> Allowance {
        let per_s = f64::from(per_s);
        Allowance { per_s, left: per_s * BURST_S, at: now }
    }

    fn fill(&mut self, now: Instant) {
        let filled = now.saturating_duration_since(self.at).as_secs_f64() * self.per_s;
        self.left = (self.left + filled).min(self.per_s * BURST_S);
        self.at = now;
    }

    /// Takes one if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        if self.per_s == 0.0 {
            return true;
        }
        self.fill(now);
        let may = self.left >= 1.0;
        if may {
            self.left -= 1.0;
        }
        may
    }

    /// Notes that so many have happened. How long to wait until the next may.
    pub fn spend(&mut self, count: u64, now: Instant) -> Option<Duration> {
        if self.per_s == 0.0 || count == 0 {
            return None;
        }
        self.fill(now);
        self.left -= count as f64;
        (self.left < 0.0).then(|| Duration::from_secs_f64(-self.left / self.per_s))
    }

    /// Whether nothing has happened for a while.
    pub fn is_full(&self, now: Instant) -> bool {
        let mut later = *self;
        later.fill(now);
        later.left >= later.per_s * BURST_S
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // What is spent beyond the allowance has to be waited for, exactly; a rest gives back two seconds' worth and no more.
    #[test]
    fn spending_is_paid_with_time() {
        let start = Instant::now();
        let mut allowance = Allowance::new(100, start);
        assert_eq!(allowance.spend(200, start), None);
        assert_eq!(allowance.spend(50, start), Some(Duration::from_millis(500)));
        assert_eq!(allowance.spend(1, start + Duration::from_secs(100)), None);
        assert_eq!(allowance.spend(200, start + Duration::from_secs(100)), Some(Duration::from_millis(10)));
    }

    // Without a limit nothing is ever waited for.
    #[test]
    fn no_limit_is_no_limit() {
        let start = Instant::now();
        let mut allowance = Allowance::new(0, start);
        assert_eq!(allowance.spend(u64::MAX, start), None);
        assert!(allowance.take(start));
    }
}
