//! The faults that a machine can have.
//!
//! Owns which fault applies to which kind of machine and what it shows in. What a fault does is physics and lives in
//! each machine; what it does to a sensor or a cable lives with the sensors.

use std::fmt;

use crate::machine::MachineKind;

/// A fault that changes a physical cause, so that several sensors respond together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A rolling-element bearing spalls: high-frequency vibration, then velocity, friction and heat.
    BearingWear,
    /// Deposits or erosion on the rotor: vibration at the rotational frequency, with the square of the speed.
    Imbalance,
    /// The suction strainer clogs until the pump cavitates: suction pressure falls, broad-band vibration, less head.
    Cavitation,
    /// The pumped medium or the oil escapes: the drive works harder for the same, or lubrication fails.
    Leak,
    /// Cooling is lost: temperatures rise with their thermal mass.
    Overheating,
    /// The sensor that the controller reads freezes at its value: the controller winds up to its limits.
    SensorStuck,
    /// The contact of one sensor's cable opens again and again: its value drops to the low end of its range.
    LooseCable,
}

impl Fault {
    /// All faults.
    pub const ALL: [Fault; 7] = [
        Fault::BearingWear,
        Fault::Imbalance,
        Fault::Cavitation,
        Fault::Leak,
        Fault::Overheating,
        Fault::SensorStuck,
        Fault::LooseCable,
    ];

    /// Whether a machine of this kind can have it.
    #[must_use]
    pub fn applies_to(self, kind: MachineKind) -> bool {
        match self {
            Fault::BearingWear | Fault::Overheating | Fault::SensorStuck | Fault::LooseCable => true,
            Fault::Imbalance => matches!(kind, MachineKind::Pump | MachineKind::Fan),
            Fault::Cavitation => kind == MachineKind::Pump,
            Fault::Leak => kind != MachineKind::Fan,
        }
    }

    /// The faults that a machine of this kind can have.
    pub fn applicable(kind: MachineKind) -> impl Iterator<Item = Fault> {
        Fault::ALL.into_iter().filter(move |fault| fault.applies_to(kind))
    }

    /// The channels in which an engineer would look for it, the most telling first; none when it does not apply.
    #[must_use]
    pub fn expected_channels(self, kind: MachineKind) -> &'static [&'static str] {
        use MachineKind::{Compressor, Fan, Gearbox, Pump};
        match (self, kind) {
            (Fault::BearingWear, Pump | Fan | Gearbox) => {
                &["vibration_hf_g", "vibration_rms_mm_s", "bearing_temperature_c"]
            }
            (Fault::BearingWear, Compressor) => &["vibration_hf_g", "vibration_rms_mm_s"],
            (Fault::Imbalance, Pump | Fan) => &["vibration_1x_mm_s", "vibration_rms_mm_s"],
            (Fault::Cavitation, Pump) => &["suction_pressure_bar", "vibration_hf_g", "vibration_rms_mm_s"],
            (Fault::Leak, Pump) => &["discharge_pressure_bar", "suction_pressure_bar", "flow_m3_h"],
            (Fault::Leak, Gearbox) => &["oil_pressure_bar", "oil_temperature_c", "bearing_temperature_c"],
            (Fault::Leak, Compressor) => &["discharge_pressure_bar", "speed_rpm", "air_flow_m3_min"],
            (Fault::Overheating, Pump | Fan) => &["motor_temperature_c", "bearing_temperature_c"],
            (Fault::Overheating, Gearbox) => &["oil_temperature_c", "bearing_temperature_c", "oil_pressure_bar"],
            (Fault::Overheating, Compressor) => {
                &["oil_temperature_c", "discharge_temperature_c", "motor_temperature_c"]
            }
            (Fault::SensorStuck, Pump) => &["discharge_pressure_bar", "speed_rpm", "flow_m3_h"],
            (Fault::SensorStuck, Fan) => &["duct_pressure_pa", "speed_rpm", "air_flow_m3_h"],
            (Fault::SensorStuck, Gearbox) => &["output_speed_rpm", "input_speed_rpm", "output_torque_nm"],
            (Fault::SensorStuck, Compressor) => &["discharge_pressure_bar", "motor_current_a", "speed_rpm"],
            (Fault::LooseCable, Pump | Fan | Gearbox) => &["bearing_temperature_c"],
            (Fault::LooseCable, Compressor) => &["discharge_temperature_c"],
            (Fault::Imbalance | Fault::Cavitation | Fault::Leak, _) => &[],
        }
    }

    /// The channel whose cable comes loose in a machine of this kind.
    pub(crate) fn loose_channel(kind: MachineKind) -> usize {
        let name = Fault::LooseCable.expected_channels(kind).first();
        kind.channels().iter().position(|channel| Some(&channel.name) == name).unwrap_or_default()
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Fault::BearingWear => "bearing wear",
            Fault::Imbalance => "imbalance",
            Fault::Cavitation => "cavitation",
            Fault::Leak => "leak",
            Fault::Overheating => "overheating",
            Fault::SensorStuck => "sensor stuck",
            Fault::LooseCable => "loose cable",
        })
    }
}

/// How far each physical fault has developed, from 0 (none) to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Severity {
    pub(crate) bearing_wear: f64,
    pub(crate) imbalance: f64,
    pub(crate) cavitation: f64,
    pub(crate) leak: f64,
    pub(crate) overheating: f64,
}
