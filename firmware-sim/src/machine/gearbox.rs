//! A two-stage reduction gearbox between a variable-speed motor and a conveyor.
//!
//! Owns the drive train, the oil circuit with its shaft-driven pump and cooler, the bearings and the vibration they
//! cause together. The drive holds the output speed that the line asks for, read from a tachometer on the slow shaft.

use heapless::Vec;

use super::noise::Noise;
use super::physics::{Controller, Lag, root_sum_square};
use super::{CHANNELS_MAX, ChannelSpec, Conditions};

pub(crate) static CHANNELS: [ChannelSpec; 10] = [
    ChannelSpec::new("input_speed_rpm", "rpm", 0.001, 0.5, 0.0),
    ChannelSpec::new("output_speed_rpm", "rpm", 0.002, 0.05, 0.0),
    ChannelSpec::new("motor_current_a", "A", 0.008, 0.05, 0.0),
    ChannelSpec::new("output_torque_nm", "Nm", 0.01, 10.0, 0.0),
    ChannelSpec::new("oil_pressure_bar", "bar", 0.0, 0.02, 0.0),
    ChannelSpec::new("oil_temperature_c", "degC", 0.0, 0.3, -20.0),
    ChannelSpec::new("bearing_temperature_c", "degC", 0.0, 0.3, -20.0),
    ChannelSpec::new("vibration_rms_mm_s", "mm/s", 0.04, 0.02, 0.0),
    ChannelSpec::new("gear_mesh_vibration_g", "g", 0.05, 0.01, 0.0),
    ChannelSpec::new("vibration_hf_g", "g", 0.05, 0.005, 0.0),
];

/// The channel that the drive's controller reads.
pub(crate) const CONTROLLED: usize = 1;

/// Input turns per output turn.
const RATIO: f64 = 22.4;

/// The oil temperature around which the viscosity is linearised, in degrees Celsius.
const OIL_C: f64 = 60.0;

#[derive(Debug, Clone)]
pub(crate) struct Gearbox {
    rated_rpm: f64,
    rated_a: f64,
    rated_nm: f64,
    residual_imbalance_mm_s: f64,
    mesh_g: f64,
    hf_g: f64,
    controller: Controller,
    speed: Lag,
    torque: f64,
    current: f64,
    oil_bar: f64,
    oil_c: Lag,
    bearing_c: Lag,
    vibration_rms_mm_s: f64,
    vibration_mesh_g: f64,
    vibration_hf_g: f64,
}

impl Gearbox {
    pub(crate) fn new(noise: &mut Noise) -> Gearbox {
        Gearbox {
            rated_rpm: noise.between(1_460.0, 1_490.0),
            rated_a: noise.between(52.0, 60.0),
            rated_nm: noise.between(4_600.0, 5_400.0),
            residual_imbalance_mm_s: noise.between(1.0, 1.3),
            mesh_g: noise.between(0.8, 1.0),
            hf_g: noise.between(0.35, 0.45),
            controller: Controller::new(0.9, 0.18, 0.35, 1.25),
            speed: Lag::new(0.9, 1.5),
            torque: 0.8,
            current: 0.8,
            oil_bar: 2.0,
            oil_c: Lag::new(OIL_C, 90.0),
            bearing_c: Lag::new(65.0, 60.0),
            vibration_rms_mm_s: 0.0,
            vibration_mesh_g: 0.0,
            vibration_hf_g: 0.0,
        }
    }

    /// One step; `measured_rpm` is the output speed that the controller sees.
    pub(crate) fn step(&mut self, conditions: &Conditions, measured_rpm: f64) {
        let fault = &conditions.severity;
        let setpoint = 0.65 + 0.35 * conditions.load;
        let speed = self.speed.step(self.controller.step(setpoint, measured_rpm * RATIO / self.rated_rpm));
        // The conveyor: friction of the belt, what lies on it, and a part that grows with the speed.
        self.torque = 0.15 + 0.60 * conditions.load + 0.25 * speed * speed + 0.01 * conditions.turbulence;
        let friction = 0.05 + 0.07 * fault.bearing_wear + 0.03 * fault.leak;
        self.current = root_sum_square(&[0.25, 0.93 * self.torque + friction]);
        self.step_oil(conditions, speed, friction);
        self.step_vibration(conditions, speed);
    }

    /// Losses heat the oil, the cooler takes the heat away; a leak lowers the level until the pump draws air.
    fn step_oil(&mut self, conditions: &Conditions, speed: f64, friction: f64) {
        let fault = &conditions.severity;
        let loss = speed * (0.4 * self.torque + 6.0 * friction + 0.1);
        let cooling = (1.0 - 0.55 * fault.overheating) * (1.0 - 0.25 * fault.leak);
        let oil_c = self.oil_c.step(conditions.ambient_c + 44.0 * loss / cooling);
        let thinning = 1.0 - 0.006 * (oil_c - OIL_C);
        self.oil_bar = 2.4 * speed * thinning * (1.0 - 0.5 * fault.leak);
        let bearing_rise_c = speed * (10.0 * self.torque + 26.0 * fault.bearing_wear + 8.0 * fault.leak);
        self.bearing_c.step(oil_c + bearing_rise_c);
    }

    fn step_vibration(&mut self, conditions: &Conditions, speed: f64) {
        let fault = &conditions.severity;
        let roughness = 1.0 + 0.04 * conditions.turbulence;
        let dry = 1.0 + 0.35 * fault.leak;
        self.vibration_mesh_g = self.mesh_g * (0.4 + 0.6 * self.torque) * speed * roughness * dry;
        self.vibration_rms_mm_s = root_sum_square(&[
            self.residual_imbalance_mm_s * speed * speed * roughness,
            0.9 * self.torque,
            3.4 * fault.bearing_wear * speed,
        ]);
        self.vibration_hf_g = root_sum_square(&[
            self.hf_g * speed * (0.5 + 0.5 * self.torque) * roughness * dry,
            1.9 * fault.bearing_wear * speed,
        ]);
    }

    pub(crate) fn truth(&self) -> Vec<f64, CHANNELS_MAX> {
        let input_rpm = self.speed.value() * self.rated_rpm;
        Vec::from_array([
            input_rpm,
            input_rpm / RATIO,
            self.current * self.rated_a,
            self.torque * self.rated_nm,
            self.oil_bar,
            self.oil_c.value(),
            self.bearing_c.value(),
            self.vibration_rms_mm_s,
            self.vibration_mesh_g,
            self.vibration_hf_g,
        ])
    }
}
