//! What the plant asks of a machine over time.
//!
//! Owns the load: a production cycle of [`LEVELS`] levels that repeats every two minutes or so, with small
//! differences between visits, a slow drift and a fast fluctuation, all bounded. Whoever watches a machine for three
//! cycles has seen every state it will be in.

use super::noise::Noise;
use super::physics::{Lag, STEP_S, smooth_step, wave};

/// The load levels of a production cycle.
const LEVELS: usize = 4;

/// How long a change from one level to the next takes, in seconds.
const TRANSITION_S: f64 = 8.0;

/// The load that a machine is asked for, as a share of its rated load.
#[derive(Debug, Clone)]
pub(crate) struct LoadProfile {
    noise: Noise,
    /// Load and duration in seconds of each part of the cycle.
    cycle: [(f64, f64); LEVELS],
    drift_period_s: f64,
    drift_phase: f64,
    /// The part of the cycle it is in.
    part: usize,
    part_started_s: f64,
    level: f64,
    level_before: f64,
    fluctuation: Lag,
    time_s: f64,
}

impl LoadProfile {
    pub(crate) fn new(mut noise: Noise) -> LoadProfile {
        let mut levels = [0.56, 0.70, 0.84, 0.98];
        noise.shuffle(&mut levels);
        let cycle = levels.map(|level| (level + noise.between(-0.02, 0.02), noise.between(26.0, 34.0)));
        let (level, _) = cycle[0];
        LoadProfile {
            cycle,
            drift_period_s: noise.between(180.0, 240.0),
            drift_phase: noise.uniform(),
            part: 0,
            part_started_s: 0.0,
            level,
            level_before: level,
            fluctuation: Lag::new(0.0, 3.0),
            time_s: 0.0,
            noise,
        }
    }

    /// The load one step later, between about 0.5 and 1.05.
    pub(crate) fn step(&mut self) -> f64 {
        self.time_s += STEP_S;
        let in_part_s = self.time_s - self.part_started_s;
        let (_, duration_s) = self.cycle[self.part];
        if in_part_s >= duration_s {
            self.part = (self.part + 1) % LEVELS;
            self.part_started_s = self.time_s;
            self.level_before = self.level;
            self.level = self.cycle[self.part].0 + self.noise.between(-0.01, 0.01);
        }
        let change = smooth_step((self.time_s - self.part_started_s) / TRANSITION_S);
        let level = self.level_before + (self.level - self.level_before) * change;
        let drift = 0.02 * wave(self.time_s / self.drift_period_s + self.drift_phase);
        // Noise through a lag keeps sqrt(step / (2 · tau)) = 0.2 of its deviation: 1 % of the rated load.
        let fluctuation = self.fluctuation.step(0.05 * self.noise.normal());
        level + drift + fluctuation
    }
}
