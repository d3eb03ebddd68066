//! A centrifugal pump with a variable-speed drive that holds a proportional discharge pressure.
//!
//! Owns the hydraulics (quasi-static: they settle within a second), the drive, the bearing, the motor and the
//! vibration they cause together. Pressures are in bar above atmosphere; flow, speed and current are computed as
//! shares of the rated value.

use heapless::Vec;

use super::noise::Noise;
use super::physics::{Controller, Lag, root_sum_square, smooth_step};
use super::{CHANNELS_MAX, ChannelSpec, Conditions};

pub(crate) static CHANNELS: [ChannelSpec; 10] = [
    ChannelSpec::new("speed_rpm", "rpm", 0.001, 1.0, 0.0),
    ChannelSpec::new("motor_current_a", "A", 0.008, 0.05, 0.0),
    ChannelSpec::new("suction_pressure_bar", "bar", 0.0, 0.012, -1.0),
    ChannelSpec::new("discharge_pressure_bar", "bar", 0.0, 0.025, 0.0),
    ChannelSpec::new("flow_m3_h", "m3/h", 0.01, 0.2, 0.0),
    ChannelSpec::new("vibration_rms_mm_s", "mm/s", 0.04, 0.02, 0.0),
    ChannelSpec::new("vibration_1x_mm_s", "mm/s", 0.04, 0.01, 0.0),
    ChannelSpec::new("vibration_hf_g", "g", 0.05, 0.005, 0.0),
    ChannelSpec::new("bearing_temperature_c", "degC", 0.0, 0.25, -20.0),
    ChannelSpec::new("motor_temperature_c", "degC", 0.0, 0.4, -20.0),
];

/// The channel that the drive's controller reads.
pub(crate) const CONTROLLED: usize = 3;

/// Head at rated speed and no flow, in bar.
const HEAD_BAR: f64 = 6.0;

/// Loss of head at rated flow, as a share of the discharge pressure.
const CURVE: f64 = 0.5;

/// The discharge pressure at rated load, in bar.
const RATED_BAR: f64 = 4.2;

#[derive(Debug, Clone)]
pub(crate) struct Pump {
    rated_rpm: f64,
    rated_a: f64,
    rated_m3_h: f64,
    residual_imbalance_mm_s: f64,
    flow_noise_mm_s: f64,
    hf_g: f64,
    controller: Controller,
    speed: Lag,
    suction_bar: Lag,
    discharge_bar: f64,
    /// Through the pump, before a leak.
    flow: f64,
    /// Through the flow meter, after a leak.
    metered_flow: f64,
    current: f64,
    cavitation: f64,
    vibration_1x_mm_s: f64,
    vibration_rms_mm_s: f64,
    vibration_hf_g: f64,
    bearing_c: Lag,
    motor_c: Lag,
}

impl Pump {
    pub(crate) fn new(noise: &mut Noise) -> Pump {
        Pump {
            rated_rpm: noise.between(2_900.0, 2_980.0),
            rated_a: noise.between(26.0, 32.0),
            rated_m3_h: noise.between(70.0, 90.0),
            residual_imbalance_mm_s: noise.between(0.5, 0.7),
            flow_noise_mm_s: noise.between(0.8, 1.1),
            hf_g: noise.between(0.3, 0.4),
            controller: Controller::new(0.9, 0.08, 0.45, 1.2),
            speed: Lag::new(0.9, 1.5),
            suction_bar: Lag::new(0.7, 2.0),
            discharge_bar: RATED_BAR,
            flow: 0.8,
            metered_flow: 0.8,
            current: 0.8,
            cavitation: 0.0,
            vibration_1x_mm_s: 0.0,
            vibration_rms_mm_s: 0.0,
            vibration_hf_g: 0.0,
            bearing_c: Lag::new(50.0, 30.0),
            motor_c: Lag::new(65.0, 60.0),
        }
    }

    /// One step; `measured_bar` is the discharge pressure that the controller sees.
    pub(crate) fn step(&mut self, conditions: &Conditions, measured_bar: f64) {
        let setpoint_bar = 2.9 + 1.3 * conditions.load;
        let speed = self.speed.step(self.controller.step(setpoint_bar, measured_bar));
        self.step_hydraulics(conditions, speed);
        let fault = &conditions.severity;
        // Shaft power: hydraulic power over the efficiency, and bearing friction.
        let hydraulic = (self.discharge_bar - self.suction_bar.value()) * self.flow / RATED_BAR;
        let power = 0.82 * hydraulic + (0.10 + 0.06 * fault.bearing_wear) * speed + 0.06;
        let torque = power / speed;
        self.current = root_sum_square(&[0.25, torque]);
        self.step_vibration(conditions, speed);
        let motor_loss = 0.65 + 0.35 * self.current * self.current;
        let motor_rise_c = 42.0 * motor_loss / (1.0 - 0.55 * fault.overheating);
        let motor_c = self.motor_c.step(conditions.ambient_c + motor_rise_c);
        let bearing_rise_c = 22.0 * speed * (1.0 + 1.1 * fault.bearing_wear) + 0.08 * (motor_c - conditions.ambient_c);
        self.bearing_c.step(conditions.ambient_c + bearing_rise_c);
    }

    /// The valve opens with the load; pump curve and system curve meet at the discharge pressure.
    fn step_hydraulics(&mut self, conditions: &Conditions, speed: f64) {
        let fault = &conditions.severity;
        let valve = conditions.load;
        let leak = 0.65 * fault.leak;
        let opening = valve + leak;
        let head_bar = HEAD_BAR * speed * speed * (1.0 - 0.25 * self.cavitation);
        let suction_bar = self.suction_bar.value();
        self.discharge_bar = ((head_bar + suction_bar) / (1.0 + CURVE * opening * opening)).max(0.0);
        let velocity = (self.discharge_bar / RATED_BAR).sqrt();
        self.flow = opening * velocity;
        self.metered_flow = valve * velocity;
        // Cavitation begins with its cause, a clogged strainer: the suction pressure falls with the flow squared.
        let strainer = 0.30 + 1.3 * fault.cavitation;
        let suction_bar = self.suction_bar.step(0.8 - strainer * self.flow * self.flow);
        self.cavitation = smooth_step((0.30 - suction_bar) / 0.7);
    }

    fn step_vibration(&mut self, conditions: &Conditions, speed: f64) {
        let fault = &conditions.severity;
        let turbulence = 0.7 + 0.3 * self.flow + 0.05 * conditions.turbulence;
        self.vibration_1x_mm_s = self.residual_imbalance_mm_s * speed * speed * (1.0 + 6.0 * fault.imbalance);
        self.vibration_rms_mm_s = root_sum_square(&[
            self.vibration_1x_mm_s,
            self.flow_noise_mm_s * turbulence,
            3.2 * fault.bearing_wear * speed,
            2.6 * self.cavitation,
        ]);
        self.vibration_hf_g = root_sum_square(&[
            self.hf_g * (0.5 * speed + 0.5 * turbulence),
            1.7 * fault.bearing_wear * speed,
            2.0 * self.cavitation * (1.0 + 0.2 * conditions.turbulence),
        ]);
    }

    pub(crate) fn truth(&self) -> Vec<f64, CHANNELS_MAX> {
        Vec::from_array([
            self.speed.value() * self.rated_rpm,
            self.current * self.rated_a,
            self.suction_bar.value(),
            self.discharge_bar,
            self.metered_flow * self.rated_m3_h,
            self.vibration_rms_mm_s,
            self.vibration_1x_mm_s,
            self.vibration_hf_g,
            self.bearing_c.value(),
            self.motor_c.value(),
        ])
    }
}
