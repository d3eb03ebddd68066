//! From the physical state to what the transmitters report.
//!
//! Owns measurement noise and the faults of sensors and cables. Never changes the machine: a stuck sensor reaches it
//! only through the controller that reads it.

use heapless::Vec;

use super::noise::Noise;
use super::physics::STEP_S;
use super::{CHANNELS_MAX, ChannelSpec, Sample};

/// How long a loose contact stays open, on average, in seconds.
const OPEN_S: f64 = 1.5;

/// How long a fully developed loose contact stays closed, on average, in seconds.
const CLOSED_S: f64 = 2.0;

/// The transmitters of one machine.
#[derive(Debug, Clone)]
pub(crate) struct Sensors {
    noise: Noise,
    channels: &'static [ChannelSpec],
    /// The channel that is stuck, and the value it shows.
    stuck: Option<(usize, f64)>,
    /// The channel whose cable is loose, and whether its contact is open just now.
    loose: Option<(usize, bool)>,
}

impl Sensors {
    pub(crate) fn new(noise: Noise, channels: &'static [ChannelSpec]) -> Sensors {
        Sensors { noise, channels, stuck: None, loose: None }
    }

    /// Freezes a channel at what it reads now; once stuck, it stays.
    pub(crate) fn stick(&mut self, channel: usize, truth: f64) {
        if self.stuck.is_none() {
            let value = self.measure(channel, truth);
            self.stuck = Some((channel, value));
        }
    }

    /// One simulation step of a loose contact: `severity` 1 leaves it open for 1.5 s of every 3.5 s.
    pub(crate) fn shake(&mut self, channel: usize, severity: f64) {
        let (_, open) = self.loose.unwrap_or((channel, false));
        let changes_per_s = if open { 1.0 / OPEN_S } else { severity / CLOSED_S };
        let change = self.noise.uniform() < changes_per_s * STEP_S;
        self.loose = Some((channel, open != change));
    }

    /// What the controller that reads this channel sees.
    pub(crate) fn feedback(&self, channel: usize, truth: f64) -> f64 {
        match self.stuck {
            Some((stuck, value)) if stuck == channel => value,
            _ => truth,
        }
    }

    /// One value per channel, as the transmitters report them.
    pub(crate) fn read(&mut self, truth: &Vec<f64, CHANNELS_MAX>) -> Sample {
        let mut sample = Sample::new();
        for (channel, truth) in truth.iter().enumerate() {
            let measured = self.measure(channel, *truth);
            let shown = match (self.stuck, self.loose) {
                (Some((stuck, value)), _) if stuck == channel => value,
                (_, Some((loose, true))) if loose == channel => self.open_circuit(channel),
                _ => measured,
            };
            // `truth` has no more elements than the sample.
            let _ = sample.push(shown as f32);
        }
        sample
    }

    fn measure(&mut self, channel: usize, truth: f64) -> f64 {
        let Some(spec) = self.channels.get(channel) else { return truth };
        truth * (1.0 + spec.noise_share * self.noise.normal()) + spec.noise * self.noise.normal()
    }

    fn open_circuit(&self, channel: usize) -> f64 {
        self.channels.get(channel).map_or(0.0, |spec| spec.open_circuit)
    }
}
