//! An oil-injected screw compressor with a variable-speed drive that holds the receiver's pressure.
//!
//! Owns the receiver, the drive, the oil circuit, the motor and the vibration they cause together. Flow, speed and
//! current are computed as shares of the rated value.

use heapless::Vec;

use super::noise::Noise;
use super::physics::{Controller, Lag, STEP_S, root_sum_square};
use super::{CHANNELS_MAX, ChannelSpec, Conditions};

pub(crate) static CHANNELS: [ChannelSpec; 9] = [
    ChannelSpec::new("speed_rpm", "rpm", 0.001, 1.0, 0.0),
    ChannelSpec::new("motor_current_a", "A", 0.008, 0.1, 0.0),
    ChannelSpec::new("discharge_pressure_bar", "bar", 0.0, 0.03, 0.0),
    ChannelSpec::new("air_flow_m3_min", "m3/min", 0.012, 0.03, 0.0),
    ChannelSpec::new("discharge_temperature_c", "degC", 0.0, 0.4, -20.0),
    ChannelSpec::new("oil_temperature_c", "degC", 0.0, 0.3, -20.0),
    ChannelSpec::new("motor_temperature_c", "degC", 0.0, 0.4, -20.0),
    ChannelSpec::new("vibration_rms_mm_s", "mm/s", 0.04, 0.03, 0.0),
    ChannelSpec::new("vibration_hf_g", "g", 0.05, 0.008, 0.0),
];

/// The channel that the drive's controller reads.
pub(crate) const CONTROLLED: usize = 2;

/// The receiver's pressure at rated load, in bar above atmosphere.
const RATED_BAR: f64 = 7.4;

/// At this pressure the safety valve opens, in bar above atmosphere.
const SAFETY_BAR: f64 = 9.5;

/// The drive's limits, as shares of the rated speed.
const SPEED_MIN: f64 = 0.4;
const SPEED_MAX: f64 = 1.06;

/// Seconds in which the rated flow would raise the receiver from 0 to [`RATED_BAR`].
const RECEIVER_S: f64 = 6.0;

#[derive(Debug, Clone)]
pub(crate) struct Compressor {
    rated_rpm: f64,
    rated_a: f64,
    rated_m3_min: f64,
    rotor_mm_s: f64,
    hf_g: f64,
    controller: Controller,
    speed: Lag,
    receiver_bar: f64,
    /// To the consumers, through the flow meter; a leak is before it.
    flow: f64,
    current: f64,
    vibration_rms_mm_s: f64,
    vibration_hf_g: f64,
    discharge_c: Lag,
    oil_c: Lag,
    motor_c: Lag,
}

impl Compressor {
    pub(crate) fn new(noise: &mut Noise) -> Compressor {
        Compressor {
            rated_rpm: noise.between(3_500.0, 3_700.0),
            rated_a: noise.between(125.0, 145.0),
            rated_m3_min: noise.between(12.0, 14.0),
            rotor_mm_s: noise.between(1.8, 2.3),
            hf_g: noise.between(0.6, 0.8),
            controller: Controller::new(0.8, 0.07, SPEED_MIN, SPEED_MAX),
            speed: Lag::new(0.8, 1.0),
            receiver_bar: RATED_BAR,
            flow: 0.8,
            current: 0.8,
            vibration_rms_mm_s: 0.0,
            vibration_hf_g: 0.0,
            discharge_c: Lag::new(85.0, 25.0),
            oil_c: Lag::new(70.0, 45.0),
            motor_c: Lag::new(75.0, 60.0),
        }
    }

    /// One step; `measured_bar` is the receiver's pressure that the controller sees.
    pub(crate) fn step(&mut self, conditions: &Conditions, measured_bar: f64) {
        let fault = &conditions.severity;
        let setpoint_bar = 6.4 + conditions.load;
        // A little proportional action damps the receiver, which integrates.
        let trim = 0.25 * (setpoint_bar - measured_bar);
        let command = self.controller.step(setpoint_bar, measured_bar) + trim;
        let speed = self.speed.step(command.clamp(SPEED_MIN, SPEED_MAX));
        self.step_receiver(conditions, speed);
        let pressure = self.receiver_bar / RATED_BAR;
        let torque = 0.22 + 0.72 * pressure + 0.08 * fault.bearing_wear;
        // The torque of a screw follows the pressure, the current also the speed through windage.
        self.current = root_sum_square(&[0.22, torque * (0.75 + 0.25 * speed)]);
        self.step_temperatures(conditions, speed, torque);
        let pulsation = 0.6 + 0.4 * pressure + 0.04 * conditions.turbulence;
        self.vibration_rms_mm_s =
            root_sum_square(&[self.rotor_mm_s * speed * pulsation, 5.0 * fault.bearing_wear * speed]);
        self.vibration_hf_g = root_sum_square(&[self.hf_g * speed * pulsation, 3.6 * fault.bearing_wear * speed]);
    }

    fn step_receiver(&mut self, conditions: &Conditions, speed: f64) {
        let pressure = self.receiver_bar / RATED_BAR;
        self.flow = 0.95 * conditions.load * pressure;
        let leak = 0.60 * conditions.severity.leak * pressure;
        let relief = (self.receiver_bar - SAFETY_BAR).max(0.0);
        let surplus = speed - self.flow - leak - relief;
        self.receiver_bar = (self.receiver_bar + surplus * RATED_BAR / RECEIVER_S * STEP_S).max(0.5);
    }

    /// The oil takes the heat of compression to the cooler and comes back; a thermostat lets more of it pass the cooler
    /// when it is hot.
    fn step_temperatures(&mut self, conditions: &Conditions, speed: f64, torque: f64) {
        let fault = &conditions.severity;
        let power = torque * speed;
        let cooling = 1.0 - 0.5 * fault.overheating;
        let oil_c = self.oil_c.step(conditions.ambient_c + (32.0 + 9.0 * power) / cooling);
        self.discharge_c.step(oil_c + 16.0 + 10.0 * torque + 9.0 * fault.bearing_wear * speed);
        let motor_loss = 0.65 + 0.35 * self.current * self.current;
        self.motor_c.step(conditions.ambient_c + 46.0 * motor_loss / (1.0 - 0.3 * fault.overheating));
    }

    pub(crate) fn truth(&self) -> Vec<f64, CHANNELS_MAX> {
        Vec::from_array([
            self.speed.value() * self.rated_rpm,
            self.current * self.rated_a,
            self.receiver_bar,
            self.flow * self.rated_m3_min,
            self.discharge_c.value(),
            self.oil_c.value(),
            self.motor_c.value(),
            self.vibration_rms_mm_s,
            self.vibration_hf_g,
        ])
    }
}
