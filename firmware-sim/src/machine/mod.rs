//! Simulated machines: physical state that advances in fixed steps, read through imperfect sensors.
//!
//! Owns the machine kinds, their channels and their time. Never reads a clock: time is what the caller asks for, in
//! machine seconds since the machine was put into service, warm. Equal seeds and equal sampling give equal values on
//! every platform.
//!
//! Thermal time constants are about a tenth of a real machine's, so that minutes show what takes an hour in a plant.

mod compressor;
mod fan;
mod gearbox;
pub(crate) mod noise;
mod physics;
mod profile;
mod pump;
mod sensors;

use std::fmt;

use heapless::Vec;

use crate::fault::{Fault, Severity};
use noise::Noise;
use physics::{Lag, STEP_S, smooth_step, wave};
use profile::LoadProfile;
use sensors::Sensors;

/// The most channels of any machine.
pub const CHANNELS_MAX: usize = 10;

/// The most faults that one machine can have in one run.
pub const FAULTS_MAX: usize = 4;

/// The machine runs for so long before its time zero, so that it starts warm: more than ten times the longest thermal
/// time constant.
const WARM_UP_S: f64 = 1_100.0;

/// The most seconds that one call simulates; time beyond is skipped. A day at 4 steps/s is 345,600 steps.
const CATCH_UP_S_MAX: f64 = 86_400.0;

/// Time ends here: 34,000 years, and quarter seconds are still exact.
const TIME_S_MAX: f64 = 1_099_511_627_776.0;

/// One value per channel, in the order of [`Machine::channels`].
pub type Sample = Vec<f32, CHANNELS_MAX>;

/// A kind of machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MachineKind {
    /// A centrifugal pump that holds a discharge pressure.
    Pump,
    /// A ventilation fan that holds a duct pressure.
    Fan,
    /// A reduction gearbox that drives a conveyor.
    Gearbox,
    /// A screw compressor that holds a receiver's pressure.
    Compressor,
}

impl MachineKind {
    /// All kinds.
    pub const ALL: [MachineKind; 4] =
        [MachineKind::Pump, MachineKind::Fan, MachineKind::Gearbox, MachineKind::Compressor];

    /// The channels that a machine of this kind reports, in the order of a sample.
    #[must_use]
    pub fn channels(self) -> &'static [ChannelSpec] {
        match self {
            MachineKind::Pump => &pump::CHANNELS,
            MachineKind::Fan => &fan::CHANNELS,
            MachineKind::Gearbox => &gearbox::CHANNELS,
            MachineKind::Compressor => &compressor::CHANNELS,
        }
    }

    /// The index of the channel that the machine's controller reads.
    pub(crate) fn controlled(self) -> usize {
        match self {
            MachineKind::Pump => pump::CONTROLLED,
            MachineKind::Fan => fan::CONTROLLED,
            MachineKind::Gearbox => gearbox::CONTROLLED,
            MachineKind::Compressor => compressor::CONTROLLED,
        }
    }
}

impl fmt::Display for MachineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            MachineKind::Pump => "pump",
            MachineKind::Fan => "fan",
            MachineKind::Gearbox => "gearbox",
            MachineKind::Compressor => "compressor",
        })
    }
}

/// A channel of a machine and the quality of its sensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ChannelSpec {
    /// The channel's name; its unit is the last part.
    pub name: &'static str,
    /// The engineering unit, for display.
    pub unit: &'static str,
    /// Standard deviation of the noise, as a share of the value.
    pub(crate) noise_share: f64,
    /// Standard deviation of the noise that does not depend on the value, in the channel's unit.
    pub(crate) noise: f64,
    /// What the transmitter shows when its cable is open: the low end of its range.
    pub(crate) open_circuit: f64,
}

impl ChannelSpec {
    const fn new(
        name: &'static str,
        unit: &'static str,
        noise_share: f64,
        noise: f64,
        open_circuit: f64,
    ) -> ChannelSpec {
        ChannelSpec { name, unit, noise_share, noise, open_circuit }
    }
}

/// What acts on a machine during one step.
#[derive(Debug)]
pub(crate) struct Conditions {
    /// The load that the plant asks for, as a share of the rated load.
    pub(crate) load: f64,
    pub(crate) ambient_c: f64,
    /// Fast fluctuation of flow and load, deviation about 1.
    pub(crate) turbulence: f64,
    pub(crate) severity: Severity,
}

/// Why a fault was not injected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InjectError {
    /// This kind of machine cannot have this fault.
    #[error("a {kind} cannot have the fault `{fault}`")]
    NotApplicable {
        /// The machine.
        kind: MachineKind,
        /// The fault.
        fault: Fault,
    },
    /// The machine has [`FAULTS_MAX`] faults already.
    #[error("the machine has {FAULTS_MAX} faults already")]
    TooMany,
}

/// A fault that develops: severity 0 before `at_s`, 1 from `at_s + ramp_s` on.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Injection {
    fault: Fault,
    at_s: f64,
    ramp_s: f64,
}

impl Injection {
    /// The severity at this time, or `None` before the fault begins.
    fn severity(&self, time_s: f64) -> Option<f64> {
        if time_s < self.at_s {
            return None;
        }
        let share = if self.ramp_s > 0.0 { (time_s - self.at_s) / self.ramp_s } else { 1.0 };
        Some(smooth_step(share))
    }
}

#[derive(Debug, Clone)]
enum Process {
    Pump(pump::Pump),
    Fan(fan::Fan),
    Gearbox(gearbox::Gearbox),
    Compressor(compressor::Compressor),
}

impl Process {
    fn new(kind: MachineKind, noise: &mut Noise) -> Process {
        match kind {
            MachineKind::Pump => Process::Pump(pump::Pump::new(noise)),
            MachineKind::Fan => Process::Fan(fan::Fan::new(noise)),
            MachineKind::Gearbox => Process::Gearbox(gearbox::Gearbox::new(noise)),
            MachineKind::Compressor => Process::Compressor(compressor::Compressor::new(noise)),
        }
    }

    fn step(&mut self, conditions: &Conditions, measured: f64) {
        match self {
            Process::Pump(pump) => pump.step(conditions, measured),
            Process::Fan(fan) => fan.step(conditions, measured),
            Process::Gearbox(gearbox) => gearbox.step(conditions, measured),
            Process::Compressor(compressor) => compressor.step(conditions, measured),
        }
    }

    fn truth(&self) -> Vec<f64, CHANNELS_MAX> {
        match self {
            Process::Pump(pump) => pump.truth(),
            Process::Fan(fan) => fan.truth(),
            Process::Gearbox(gearbox) => gearbox.truth(),
            Process::Compressor(compressor) => compressor.truth(),
        }
    }
}

/// A simulated machine with its sensors.
#[derive(Debug, Clone)]
pub struct Machine {
    kind: MachineKind,
    process: Process,
    profile: LoadProfile,
    noise: Noise,
    turbulence: Lag,
    ambient_c: f64,
    ambient_phase: f64,
    sensors: Sensors,
    faults: Vec<Injection, FAULTS_MAX>,
    /// Machine time in seconds, negative during the warm-up.
    time_s: f64,
}

impl Machine {
    /// A machine that is warm and runs its production cycle. Machines of one kind and different seeds differ in their
    /// rated values, their load and their noise.
    #[must_use]
    pub fn new(kind: MachineKind, seed: u64) -> Machine {
        let mut noise = Noise::new(seed, 1);
        let mut machine = Machine {
            kind,
            process: Process::new(kind, &mut noise),
            profile: LoadProfile::new(Noise::new(seed, 2)),
            turbulence: Lag::new(0.0, 1.0),
            ambient_c: noise.between(19.0, 25.0),
            ambient_phase: noise.uniform(),
            noise,
            sensors: Sensors::new(Noise::new(seed, 3), kind.channels()),
            faults: Vec::new(),
            time_s: -WARM_UP_S,
        };
        machine.advance(0.0);
        machine
    }

    /// What kind of machine it is.
    #[must_use]
    pub fn kind(&self) -> MachineKind {
        self.kind
    }

    /// The channels that it reports, in the order of a sample.
    #[must_use]
    pub fn channels(&self) -> &'static [ChannelSpec] {
        self.kind.channels()
    }

    /// Lets a fault begin at `at_s` (machine seconds) and grow until `at_s + ramp_s`. A stuck sensor sticks at once,
    /// at `at_s`. A time that has passed means now, with the severity it would have by now.
    ///
    /// # Errors
    /// [`InjectError`] when the fault does not apply to this kind or there are too many.
    pub fn inject(&mut self, fault: Fault, at_s: f64, ramp_s: f64) -> Result<(), InjectError> {
        if !fault.applies_to(self.kind) {
            return Err(InjectError::NotApplicable { kind: self.kind, fault });
        }
        self.faults.push(Injection { fault, at_s, ramp_s }).map_err(|_| InjectError::TooMany)
    }

    /// What the sensors report at `t_s` machine seconds. Time only goes forward: an earlier time reads the present
    /// state again, with new measurement noise.
    pub fn sample(&mut self, t_s: f64) -> Sample {
        self.advance(t_s);
        self.sensors.read(&self.process.truth())
    }

    fn advance(&mut self, until_s: f64) {
        // Neither an earlier time nor NaN passes; the minimum keeps a step larger than the time's last digit.
        let until_s = if until_s > self.time_s { until_s.min(TIME_S_MAX) } else { return };
        if until_s - self.time_s > CATCH_UP_S_MAX {
            self.time_s = until_s - CATCH_UP_S_MAX;
        }
        while self.time_s + STEP_S <= until_s {
            self.time_s += STEP_S;
            self.step();
        }
    }

    fn step(&mut self) {
        let controlled = self.kind.controlled();
        let truth = self.process.truth().get(controlled).copied().unwrap_or_default();
        let severity = self.develop_faults(truth);
        // Air in the hall: a gate opens and closes, the temperature swings by 1.6 degrees within five minutes.
        let ambient_c = self.ambient_c + 0.8 * wave(self.time_s / 300.0 + self.ambient_phase);
        // Noise through a lag keeps sqrt(step / (2 · tau)) = 0.35 of its deviation.
        let turbulence = self.turbulence.step(2.8 * self.noise.normal());
        let conditions = Conditions { load: self.profile.step(), ambient_c, turbulence, severity };
        self.process.step(&conditions, self.sensors.feedback(controlled, truth));
    }

    /// The severity of the physical faults now; sensor and cable faults act on the sensors.
    fn develop_faults(&mut self, controlled_truth: f64) -> Severity {
        let mut total = Severity::default();
        for injection in &self.faults {
            let Some(severity) = injection.severity(self.time_s) else { continue };
            match injection.fault {
                Fault::BearingWear => total.bearing_wear = total.bearing_wear.max(severity),
                Fault::Imbalance => total.imbalance = total.imbalance.max(severity),
                Fault::Cavitation => total.cavitation = total.cavitation.max(severity),
                Fault::Leak => total.leak = total.leak.max(severity),
                Fault::Overheating => total.overheating = total.overheating.max(severity),
                Fault::SensorStuck => self.sensors.stick(self.kind.controlled(), controlled_truth),
                Fault::LooseCable => self.sensors.shake(Fault::loose_channel(self.kind), severity),
            }
        }
        total
    }
}
