//! Wrong passwords, counted: so many in a row, then one at a time as they are forgiven.
//!
//! Owns the counts, by whatever they are held against. Never remembers a password, and never more keys than it is told.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Wrong passwords, by what they are held against.
pub struct Attempts<K> {
    failures_max: f64,
    forgiven_per_s: f64,
    keys_max: usize,
    failures: Mutex<HashMap<K, Failures>>,
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: f64,
    at: Instant,
}

impl Failures {
    fn now(self, now: Instant, forgiven_per_s: f64) -> f64 {
        let forgiven = now.saturating_duration_since(self.at).as_secs_f64() * forgiven_per_s;
        (self.count - forgiven).max(0.0)
    }
}

impl<K: Eq + Hash> Attempts<K> {
    /// `failures_max` in a row, forgiven at `forgiven_per_s`. When `keys_max` are remembered, those that are forgiven are
    /// dropped, then all.
    pub fn new(failures_max: f64, forgiven_per_s: f64, keys_max: usize) -> Attempts<K> {
        Attempts { failures_max, forgiven_per_s, keys_max, failures: Mutex::new(HashMap::new()) }
    }

    /// How long `key` has to wait before the next attempt is looked at; `None` if it need not.
    pub fn wait(&self, key: &K, now: Instant) -> Option<Duration> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.get(key).map_or(0.0, |failures| failures.now(now, self.forgiven_per_s));
        let excess = count - self.failures_max;
        (excess >= 0.0).then(|| Duration::from_secs_f64(excess.max(0.01) / self.forgiven_per_s))
    }

    /// An attempt of `key` failed.
    pub fn failed(&self, key: K, now: Instant) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() >= self.keys_max {
            failures.retain(|_, failures| failures.now(now, self.forgiven_per_s) > 0.0);
        }
        if failures.len() >= self.keys_max {
            failures.clear();
        }
        let count = failures.get(&key).map_or(0.0, |failures| failures.now(now, self.forgiven_per_s)) + 1.0;
        failures.insert(key, Failures { count, at: now });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // As many as allowed are looked at, the next one not until one is forgiven; others are not touched.
    #[test]
    fn attempts_are_forgiven_with_time() {
        let attempts = Attempts::new(3.0, 0.5, 100);
        let now = Instant::now();
        for _ in 0..3 {
            assert_eq!(attempts.wait(&1, now), None);
            attempts.failed(1, now);
        }
        assert!(attempts.wait(&1, now).is_some());
        assert_eq!(attempts.wait(&2, now), None);
        let soon = now + Duration::from_millis(100);
        assert_eq!(attempts.wait(&1, soon), None);
        attempts.failed(1, soon);
        let wait = attempts.wait(&1, soon).unwrap_or_default();
        assert!((Duration::from_millis(1_800)..=Duration::from_millis(2_000)).contains(&wait), "{wait:?}");
        assert_eq!(attempts.wait(&1, soon + wait + Duration::from_millis(1)), None);
    }

    // Keys are bounded, whatever comes.
    #[test]
    fn keys_are_forgotten() {
        let attempts = Attempts::new(3.0, 0.5, 100);
        let now = Instant::now();
        for key in 0..10_000 {
            attempts.failed(key, now);
        }
        assert!(attempts.failures.lock().unwrap().len() <= 100);
    }
}
