//! A ventilation fan with a variable-speed drive that holds a static duct pressure.
//!
//! Owns the air path, the drive, the bearing, the motor and the vibration they cause together. Flow, speed and
//! current are computed as shares of the rated value.

use heapless::Vec;

use super::noise::Noise;
use super::physics::{Controller, Lag, root_sum_square};
use super::{CHANNELS_MAX, ChannelSpec, Conditions};

pub(crate) static CHANNELS: [ChannelSpec; 9] = [
    ChannelSpec::new("speed_rpm", "rpm", 0.001, 0.5, 0.0),
    ChannelSpec::new("motor_current_a", "A", 0.008, 0.05, 0.0),
    ChannelSpec::new("duct_pressure_pa", "Pa", 0.004, 4.0, 0.0),
    ChannelSpec::new("air_flow_m3_h", "m3/h", 0.015, 50.0, 0.0),
    ChannelSpec::new("vibration_rms_mm_s", "mm/s", 0.04, 0.02, 0.0),
    ChannelSpec::new("vibration_1x_mm_s", "mm/s", 0.04, 0.01, 0.0),
    ChannelSpec::new("vibration_hf_g", "g", 0.05, 0.004, 0.0),
    ChannelSpec::new("bearing_temperature_c", "degC", 0.0, 0.25, -20.0),
    ChannelSpec::new("motor_temperature_c", "degC", 0.0, 0.4, -20.0),
];

/// The channel that the drive's controller reads.
pub(crate) const CONTROLLED: usize = 2;

/// The duct pressure at rated load, in pascal.
const RATED_PA: f64 = 1_100.0;

#[derive(Debug, Clone)]
pub(crate) struct Fan {
    rated_rpm: f64,
    rated_a: f64,
    rated_m3_h: f64,
    residual_imbalance_mm_s: f64,
    flow_noise_mm_s: f64,
    hf_g: f64,
    controller: Controller,
    speed: Lag,
    /// As a share of [`RATED_PA`].
    pressure: f64,
    flow: f64,
    current: f64,
    vibration_1x_mm_s: f64,
    vibration_rms_mm_s: f64,
    vibration_hf_g: f64,
    bearing_c: Lag,
    motor_c: Lag,
}

impl Fan {
    pub(crate) fn new(noise: &mut Noise) -> Fan {
        Fan {
            rated_rpm: noise.between(1_440.0, 1_490.0),
            rated_a: noise.between(18.0, 22.0),
            rated_m3_h: noise.between(22_000.0, 28_000.0),
            residual_imbalance_mm_s: noise.between(0.6, 0.8),
            flow_noise_mm_s: noise.between(0.9, 1.1),
            hf_g: noise.between(0.18, 0.24),
            controller: Controller::new(0.85, 0.16, 0.35, 1.25),
            speed: Lag::new(0.85, 2.5),
            pressure: 0.8,
            flow: 0.7,
            current: 0.7,
            vibration_1x_mm_s: 0.0,
            vibration_rms_mm_s: 0.0,
            vibration_hf_g: 0.0,
            bearing_c: Lag::new(45.0, 60.0),
            motor_c: Lag::new(60.0, 90.0),
        }
    }

    /// One step; `measured_pa` is the duct pressure that the controller sees.
    pub(crate) fn step(&mut self, conditions: &Conditions, measured_pa: f64) {
        let fault = &conditions.severity;
        let setpoint = 0.45 + 0.55 * conditions.load;
        let speed = self.speed.step(self.controller.step(setpoint, measured_pa / RATED_PA));
        // Dampers open with the load; fan curve and duct meet at the pressure.
        let opening = conditions.load;
        self.pressure = 1.45 * speed * speed / (1.0 + 0.45 * opening * opening);
        self.flow = opening * self.pressure.sqrt();
        let power = self.pressure * self.flow * 0.78 + (0.12 + 0.05 * fault.bearing_wear) * speed + 0.06;
        self.current = root_sum_square(&[0.28, power / speed]);
        self.step_vibration(conditions, speed);
        let motor_loss = 0.4 + 0.6 * self.current * self.current;
        let motor_rise_c = 38.0 * motor_loss / (1.0 - 0.55 * fault.overheating);
        let motor_c = self.motor_c.step(conditions.ambient_c + motor_rise_c);
        let bearing_rise_c = 20.0 * speed * (1.0 + 1.1 * fault.bearing_wear) + 0.10 * (motor_c - conditions.ambient_c);
        self.bearing_c.step(conditions.ambient_c + bearing_rise_c);
    }

    fn step_vibration(&mut self, conditions: &Conditions, speed: f64) {
        let fault = &conditions.severity;
        let turbulence = 0.7 + 0.3 * self.flow + 0.05 * conditions.turbulence;
        // Dust on the blades: the imbalance force grows with the square of the speed.
        self.vibration_1x_mm_s = self.residual_imbalance_mm_s * speed * speed * (1.0 + 6.5 * fault.imbalance);
        self.vibration_rms_mm_s = root_sum_square(&[
            self.vibration_1x_mm_s,
            self.flow_noise_mm_s * turbulence,
            3.2 * fault.bearing_wear * speed,
        ]);
        self.vibration_hf_g =
            root_sum_square(&[self.hf_g * (0.5 * speed + 0.5 * turbulence), 1.2 * fault.bearing_wear * speed]);
    }

    pub(crate) fn truth(&self) -> Vec<f64, CHANNELS_MAX> {
        Vec::from_array([
            self.speed.value() * self.rated_rpm,
            self.current * self.rated_a,
            self.pressure * RATED_PA,
            self.flow * self.rated_m3_h,
            self.vibration_rms_mm_s,
            self.vibration_1x_mm_s,
            self.vibration_hf_g,
            self.bearing_c.value(),
            self.motor_c.value(),
        ])
    }
}
