//! The queue figures of a cursor: arrival rate λ, service rate μ, backlog M(t) = M0 + ∫(λ−μ)dt.
//!
//! Owns the averaging. Never reads a clock or the log.

use serde::Serialize;

/// Time constant of the averages, seconds.
const AVERAGE_S: f64 = 10.0;
/// Shortest step that is averaged, seconds: below it, counts of a few messages say nothing about a rate.
const STEP_S_MIN: f64 = 0.2;

/// The figures at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct QueueFigures {
    /// λ: messages that arrive per second.
    pub arrivals_per_s: f64,
    /// μ: messages the consumer can serve per second, measured while it is busy. Null before the first.
    pub service_per_s: Option<f64>,
    /// Messages not yet served.
    pub backlog: u64,
    /// Seconds until the backlog is gone at these rates: backlog / (μ − λ). Null when there is none or it grows.
    pub drain_s: Option<f64>,
}

/// The running averages of one cursor.
#[derive(Debug, Default)]
pub struct QueueMeter {
    figures: QueueFigures,
    last: Option<Sample>,
    served: u64,
    busy_s: f64,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    at_s: f64,
    head: u64,
}

impl QueueMeter {
    /// Adds `served` messages that took `busy_s` seconds of work.
    pub fn note_service(&mut self, served: u64, busy_s: f64) {
        self.served += served;
        self.busy_s += busy_s;
    }

    /// The figures now: the log has grown to `head`, the consumer stands at `position`.
    pub fn measure(&mut self, at_s: f64, head: u64, position: u64) -> QueueFigures {
        self.figures.backlog = head.saturating_sub(position);
        let last = *self.last.get_or_insert(Sample { at_s, head });
        let step_s = at_s - last.at_s;
        if step_s >= STEP_S_MIN {
            let weight = 1.0 - (-step_s / AVERAGE_S).exp();
            let arrivals = head.saturating_sub(last.head) as f64 / step_s;
            self.figures.arrivals_per_s += weight * (arrivals - self.figures.arrivals_per_s);
            if self.served > 0 && self.busy_s > 0.0 {
                let rate = self.served as f64 / self.busy_s;
                let before = self.figures.service_per_s.unwrap_or(rate);
                self.figures.service_per_s = Some(before + weight * (rate - before));
            }
            (self.served, self.busy_s) = (0, 0.0);
            self.last = Some(Sample { at_s, head });
        }
        let surplus = self.figures.service_per_s.unwrap_or(0.0) - self.figures.arrivals_per_s;
        self.figures.drain_s =
            (self.figures.backlog > 0 && surplus > 0.0).then(|| self.figures.backlog as f64 / surplus);
        self.figures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Under a steady load the rates settle at it, and the time to drain is the backlog over the surplus.
    #[test]
    fn rates_settle_at_a_steady_load() {
        let mut meter = QueueMeter::default();
        let mut figures = QueueFigures::default();
        for second in 0..100_u32 {
            meter.note_service(50, 0.1);
            let head = u64::from(second) * 100;
            figures = meter.measure(f64::from(second), head, head / 2);
        }
        assert!((figures.arrivals_per_s - 100.0).abs() < 1.0, "{figures:?}");
        assert!((figures.service_per_s.unwrap() - 500.0).abs() < 1.0, "{figures:?}");
        assert_eq!(figures.backlog, 4_950);
        assert!((figures.drain_s.unwrap() - 4_950.0 / 400.0).abs() < 0.5, "{figures:?}");
    }
}
