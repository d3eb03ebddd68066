//! The small physical parts that every machine is made of.
//!
//! Owns first-order lags, the controller and the shapes of transitions. Uses only `+ − · / √`, which are the same on
//! every platform. All of them advance in steps of [`STEP_S`].

/// The simulation's step, in seconds: a quarter of the shortest time constant in any machine. A power of two, so that
/// steps add up exactly.
pub(crate) const STEP_S: f64 = 0.25;

/// A quantity that follows its cause with a first-order lag: a temperature with its thermal mass, a rotor with its
/// inertia.
#[derive(Debug, Clone)]
pub(crate) struct Lag {
    value: f64,
    tau_s: f64,
}

impl Lag {
    /// Starts at `value`; follows with the time constant `tau_s`, which is longer than [`STEP_S`].
    pub(crate) fn new(value: f64, tau_s: f64) -> Lag {
        Lag { value, tau_s }
    }

    /// One explicit Euler step towards `target`.
    pub(crate) fn step(&mut self, target: f64) -> f64 {
        self.value += (target - self.value) * (STEP_S / self.tau_s);
        self.value
    }

    pub(crate) fn value(&self) -> f64 {
        self.value
    }
}

/// The integral controller of a variable-speed drive: raises its output while the measured value is below the
/// setpoint, between limits. Its input is what the sensor *says*: a sensor that sticks drives it to a limit.
#[derive(Debug, Clone)]
pub(crate) struct Controller {
    output: f64,
    /// Change of the output per second and unit of error.
    gain: f64,
    output_min: f64,
    output_max: f64,
}

impl Controller {
    pub(crate) fn new(output: f64, gain: f64, output_min: f64, output_max: f64) -> Controller {
        Controller { output, gain, output_min, output_max }
    }

    /// One step; gives the new output.
    pub(crate) fn step(&mut self, setpoint: f64, measured: f64) -> f64 {
        let output = self.output + self.gain * (setpoint - measured) * STEP_S;
        self.output = output.clamp(self.output_min, self.output_max);
        self.output
    }
}

/// From 0 to 1 as `x` goes from 0 to 1, flat at both ends; constant outside.
pub(crate) fn smooth_step(x: f64) -> f64 {
    let x = x.clamp(0.0, 1.0);
    x * x * (3.0 - 2.0 * x)
}

/// A wave like a sine with the period 1, amplitude 1 and zero mean, made of two smooth steps.
pub(crate) fn wave(turns: f64) -> f64 {
    let turn = turns - turns.floor();
    let rise = if turn < 0.5 { turn * 2.0 } else { 2.0 - turn * 2.0 };
    2.0 * smooth_step(rise) - 1.0
}

/// The amplitude of independent vibrations together.
pub(crate) fn root_sum_square(parts: &[f64]) -> f64 {
    parts.iter().map(|part| part * part).sum::<f64>().sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    // A lag covers 63 % of a step within its time constant.
    #[test]
    fn lag_has_its_time_constant() {
        let mut lag = Lag::new(20.0, 50.0);
        for _ in 0..200 {
            lag.step(120.0);
        }
        assert!((lag.value() - 83.2).abs() < 0.2, "{}", lag.value());
    }

    // The wave stays within its amplitude, repeats, and has no mean.
    #[test]
    fn wave_is_periodic_without_mean() {
        let mean = (0..1_000).map(|index| wave(f64::from(index) / 1_000.0)).sum::<f64>() / 1_000.0;
        assert!(mean.abs() < 1e-3, "{mean}");
        assert_eq!(wave(0.5), 1.0);
        assert_eq!(wave(-3.0), -1.0);
        assert!((wave(0.2) - wave(5.2)).abs() < 1e-9);
    }
}
