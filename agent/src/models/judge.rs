//! Judges a model by what it did beside another on the same rows.
//!
//! Owns the figures of the comparison and the bounds that decide: a version in shadow is promoted when its errors, its latency, its
//! alarms and its agreement with the active models are within bounds; one on trial is taken back when they leave them. The other model
//! is shown the same rows, so that a machine that really fails costs no model its trial. Reads no clock.

use serde::{Deserialize, Serialize};

/// Buckets of the latency histogram: powers of two from 1 µs to about half an hour.
const LATENCY_BUCKETS: usize = 32;

/// What a watched model did beside the active ones; counts rows since it was begun.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// Rows it scored.
    pub scored: u64,
    /// Rows it gave no finite score for.
    pub failed: u64,
    /// Alerts it would have raised.
    pub alerts: u64,
    /// Rows that both it and the active model scored.
    pub compared: u64,
    /// Of those, rows at which it was in alarm.
    pub alarmed: u64,
    /// Of those, rows at which the active model was in alarm.
    pub active_alarmed: u64,
    /// Of those, rows at which both were or both were not.
    pub agreed: u64,
    /// Batches by the time for a window, in buckets of powers of two, microseconds.
    latency: [u64; LATENCY_BUCKETS],
}

/// A [`Comparison`] in the figures that people read.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// Rows it scored.
    pub scored: u64,
    /// Share of rows without a finite score.
    pub error_rate: f64,
    /// Alerts it would have raised.
    pub alerts: u64,
    /// Rows that were compared.
    pub compared: u64,
    /// Share of those in alarm.
    pub alarm_rate: f64,
    /// The same of the active models.
    pub active_alarm_rate: f64,
    /// Share of those on which both agree.
    pub agreement: f64,
    /// Time for one window, 99th percentile, milliseconds, rounded up to a power of two of microseconds.
    pub latency_p99_ms: f64,
}

impl Comparison {
    /// Notes a batch of `windows` that took `elapsed_us`.
    pub fn note_latency(&mut self, windows: u64, elapsed_us: u64) {
        let each = elapsed_us / windows.max(1);
        let bucket = (u64::BITS - each.leading_zeros()) as usize;
        if let Some(count) = self.latency.get_mut(bucket.min(LATENCY_BUCKETS - 1)) {
            *count += 1;
        }
    }

    /// Notes a row that both scored.
    pub fn note_pair(&mut self, alarm: bool, active_alarm: bool) {
        self.compared += 1;
        self.alarmed += u64::from(alarm);
        self.active_alarmed += u64::from(active_alarm);
        self.agreed += u64::from(alarm == active_alarm);
    }

    /// The 99th percentile of the time for a window, an upper bound within a factor of two, microseconds.
    pub fn latency_p99_us(&self) -> u64 {
        let total: u64 = self.latency.iter().sum();
        let mut above = total / 100;
        for (bucket, count) in self.latency.iter().enumerate().rev() {
            if *count > above {
                return 1 << bucket;
            }
            above -= count;
        }
        0
    }

    /// In the figures that people read.
    pub fn figures(&self) -> Figures {
        Figures {
            scored: self.scored,
            error_rate: share(self.failed, self.scored + self.failed),
            alerts: self.alerts,
            compared: self.compared,
            alarm_rate: share(self.alarmed, self.compared),
            active_alarm_rate: share(self.active_alarmed, self.compared),
            agreement: share(self.agreed, self.compared),
            latency_p99_ms: self.latency_p99_us() as f64 / 1000.0,
        }
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// What a model must keep to; `[models]` of the configuration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// How long a version stays in shadow, microseconds; 0: none does.
    pub shadow_us: i64,
    /// How long it is on trial, microseconds.
    pub trial_us: i64,
    /// Fewest rows to judge by.
    pub rows_min: u64,
    /// Share of rows that may have no finite score.
    pub error_rate_max: f64,
    /// How much its share of rows in alarm may be above the other's.
    pub alarm_margin: f64,
    /// Share of rows on which both must agree.
    pub agreement_min: f64,
    /// Time for one window, microseconds.
    pub latency_us_max: u64,
}

/// What is to become of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    NotYet,
    /// It has passed.
    Passed,
    /// It has failed, and why.
    Failed(String),
}

/// Judges a version that has been in shadow for `elapsed_us`. Where nothing scores yet there is nothing to agree with.
pub fn judge_shadow(elapsed_us: i64, seen: &Comparison, bounds: &Bounds) -> Verdict {
    let rows = seen.scored + seen.failed;
    if rows < bounds.rows_min {
        return Verdict::NotYet;
    }
    if let Some(reason) = too_many_errors(seen.scored, seen.failed, bounds) {
        return Verdict::Failed(reason);
    }
    let latency_us = seen.latency_p99_us();
    if latency_us > bounds.latency_us_max {
        return Verdict::Failed(format!(
            "it takes up to {} ms for a window, and {} are allowed (`latency_ms_max`)",
            latency_us as f64 / 1000.0,
            bounds.latency_us_max as f64 / 1000.0
        ));
    }
    if elapsed_us < bounds.shadow_us {
        return Verdict::NotYet;
    }
    let figures = seen.figures();
    match disagreement(figures.alarm_rate, figures.active_alarm_rate, &figures, seen.compared, bounds) {
        Some(reason) => Verdict::Failed(reason),
        None => Verdict::Passed,
    }
}

/// Judges a version that has scored on trial for `elapsed_us`: its own counts, and what the models before it say of the same rows, if
/// they can be asked.
pub fn judge_trial(
    elapsed_us: i64,
    (scored, failed): (u64, u64),
    before: Option<&Comparison>,
    bounds: &Bounds,
) -> Verdict {
    if scored + failed >= bounds.rows_min
        && let Some(reason) = too_many_errors(scored, failed, bounds)
    {
        return Verdict::Failed(reason);
    }
    if let Some(before) = before.filter(|before| before.compared >= bounds.rows_min) {
        let figures = before.figures();
        // The model on trial is the active one here.
        let reason = disagreement(figures.active_alarm_rate, figures.alarm_rate, &figures, before.compared, bounds);
        if let Some(reason) = reason {
            return Verdict::Failed(reason);
        }
    }
    // Without rows there is nothing that it has proved.
    if elapsed_us >= bounds.trial_us && scored >= bounds.rows_min { Verdict::Passed } else { Verdict::NotYet }
}

fn too_many_errors(scored: u64, failed: u64, bounds: &Bounds) -> Option<String> {
    let rate = share(failed, scored + failed);
    (rate > bounds.error_rate_max).then(|| {
        format!(
            "it gave no finite score for {:.2} % of {} rows, and {:.2} % are allowed (`error_rate_max`)",
            100.0 * rate,
            scored + failed,
            100.0 * bounds.error_rate_max
        )
    })
}

fn disagreement(alarm_rate: f64, other: f64, figures: &Figures, compared: u64, bounds: &Bounds) -> Option<String> {
    if compared < bounds.rows_min {
        return None;
    }
    if alarm_rate > other + bounds.alarm_margin {
        return Some(format!(
            "it was in alarm for {:.1} % of {compared} rows, where the model before it was for {:.1} % (`alarm_margin` {:.1} %)",
            100.0 * alarm_rate,
            100.0 * other,
            100.0 * bounds.alarm_margin
        ));
    }
    (figures.agreement < bounds.agreement_min).then(|| {
        format!(
            "it agrees with the model before it on {:.1} % of {compared} rows, and {:.1} % are asked (`agreement_min`)",
            100.0 * figures.agreement,
            100.0 * bounds.agreement_min
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds {
        shadow_us: 1_000,
        trial_us: 2_000,
        rows_min: 100,
        error_rate_max: 0.01,
        alarm_margin: 0.05,
        agreement_min: 0.9,
        latency_us_max: 1_000,
    };

    /// `alarmed` and `active_alarmed` of 1,000 rows, at the same rows as far as possible.
    fn seen(alarmed: u64, active_alarmed: u64) -> Comparison {
        let mut seen = Comparison { scored: 1_000, ..Comparison::default() };
        (0..1_000).for_each(|row| seen.note_pair(row < alarmed, row < active_alarmed));
        seen
    }

    // A shadow is judged after its time and with enough rows, and fails early only by errors and latency.
    #[test]
    fn a_shadow_passes_within_its_bounds() {
        assert_eq!(judge_shadow(1_000, &seen(0, 0), &BOUNDS), Verdict::Passed);
        assert_eq!(judge_shadow(999, &seen(0, 0), &BOUNDS), Verdict::NotYet);
        assert_eq!(judge_shadow(999, &seen(500, 0), &BOUNDS), Verdict::NotYet);
        assert!(
            matches!(judge_shadow(1_000, &seen(60, 0), &BOUNDS), Verdict::Failed(reason) if reason.contains("6.0 %"))
        );
        assert_eq!(judge_shadow(1_000, &seen(40, 0), &BOUNDS), Verdict::Passed);
        // It finds less than the active one: below the margin, and yet no agreement.
        assert!(
            matches!(judge_shadow(1_000, &seen(0, 200), &BOUNDS), Verdict::Failed(reason) if reason.contains("agrees"))
        );
        let few = Comparison { scored: 99, ..Comparison::default() };
        assert_eq!(judge_shadow(1_000_000, &few, &BOUNDS), Verdict::NotYet);
        let alone = Comparison { scored: 100, ..Comparison::default() };
        assert_eq!(judge_shadow(1_000, &alone, &BOUNDS), Verdict::Passed);
        let broken = Comparison { scored: 900, failed: 100, ..Comparison::default() };
        assert!(matches!(judge_shadow(1, &broken, &BOUNDS), Verdict::Failed(reason) if reason.contains("10.00 %")));
        let mut slow = seen(0, 0);
        (0..10).for_each(|_| slow.note_latency(4, 20_000));
        assert!(matches!(judge_shadow(1, &slow, &BOUNDS), Verdict::Failed(reason) if reason.contains("ms")));
    }

    // A trial ends badly as soon as its rows show it, whatever the machine does: a fault that both see is no reason.
    #[test]
    fn a_trial_fails_when_it_misbehaves() {
        assert_eq!(judge_trial(2_000, (1_000, 0), Some(&seen(0, 0)), &BOUNDS), Verdict::Passed);
        assert_eq!(judge_trial(2_000, (1_000, 0), Some(&seen(300, 300)), &BOUNDS), Verdict::Passed);
        assert_eq!(judge_trial(2_000, (99, 0), None, &BOUNDS), Verdict::NotYet);
        assert!(matches!(judge_trial(1, (1_000, 0), Some(&seen(0, 100)), &BOUNDS), Verdict::Failed(_)));
        assert!(matches!(judge_trial(1, (900, 100), None, &BOUNDS), Verdict::Failed(_)));
    }

    // The percentile is an upper bound within a factor of two, and one slow batch in a thousand does not move it.
    #[test]
    fn latency_is_bounded_from_above() {
        let mut seen = Comparison::default();
        assert_eq!(seen.latency_p99_us(), 0);
        (0..1_000).for_each(|_| seen.note_latency(1, 100));
        seen.note_latency(1, 1_000_000);
        assert_eq!(seen.latency_p99_us(), 128);
    }
}
