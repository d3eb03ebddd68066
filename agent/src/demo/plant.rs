//! The demonstration's machines and its script: how fast time passes, when machines are learned, when faults begin.
//!
//! Owns the pace and the tasks of the simulated devices. What a machine is and how it fails is
//! `millwright_firmware_sim`'s.

use std::net::SocketAddr;
use std::time::Duration;

use millwright_firmware_sim::client::{DeviceConfig, SAMPLES_PER_FRAME_MAX, run_device};
use millwright_firmware_sim::plant::{FaultTimes, Plan, PlannedMachine};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::clock;

/// Samples each machine's normal is learned from; one a machine second.
pub const COMMISSIONING_SAMPLES: usize = 400;
/// Machine seconds in a second at speed 1: a demo of a minute holds 50 minutes of a plant.
const BASE_PACE: f64 = 50.0;
/// Machine seconds that the script needs: learning, four faults that begin and develop, and time to see them.
const SCRIPT_S: f64 = 1_000.0;
/// The first fault begins after this: a while of proven quiet after the learning.
const FAULTS_FROM_S: f64 = 450.0;
/// Shortest time within which all faults begin.
const FAULT_WINDOW_S_MIN: f64 = 250.0;
/// Longest: who watches a demo without an end wants to see something happen.
const FAULT_WINDOW_S_MAX: f64 = 1_000.0;
/// A fault develops over this time.
const RAMP_S: f64 = 120.0;
/// Share of the time in which the machines run; the rest is for their last messages.
const RUNNING_SHARE: f64 = 0.97;
/// Messages a second of one machine: enough for a lively view.
const FRAMES_PER_S: f64 = 10.0;
/// Longest time for a device to have its last frames acknowledged.
const DRAIN: Duration = Duration::from_secs(3);

/// How fast time passes, and the script that fits into it.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// 1 is the pace of a demo of a minute.
    pub speed: f64,
    /// Machine seconds to simulate; `None` without end.
    pub machine_s: Option<f64>,
}

/// The script does not fit.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error(
    "at --speed {speed}, {wall_s} s are {machine_s:.0} s of machine time, and the demo needs {SCRIPT_S} s to learn the machines and see \
     their faults: leave --speed away, or give at least --speed {speed_min:.2}, or --for {wall_s_min:.0}s"
)]
pub struct TooShort {
    speed: f64,
    wall_s: f64,
    machine_s: f64,
    speed_min: f64,
    wall_s_min: f64,
}

impl Pace {
    /// The pace for a run of `duration`; without a speed, one at which the script fits.
    ///
    /// # Errors
    /// The script does not fit into this time at this speed.
    pub fn for_run(duration: Option<Duration>, speed: Option<f64>) -> Result<Pace, TooShort> {
        let Some(duration) = duration else {
            return Ok(Pace { speed: speed.unwrap_or(1.0), machine_s: None });
        };
        let wall_s = duration.as_secs_f64();
        // Rounded up to what the error message shows.
        let speed_min = (SCRIPT_S / (wall_s * RUNNING_SHARE * BASE_PACE) * 100.0).ceil() / 100.0;
        let speed = speed.unwrap_or(speed_min.max(1.0));
        // Whole samples, so that a seed gives the same run whatever the machine's load.
        let machine_s = (wall_s * RUNNING_SHARE * BASE_PACE * speed).round();
        if machine_s < SCRIPT_S {
            let wall_s_min = (SCRIPT_S / (speed * RUNNING_SHARE * BASE_PACE)).ceil();
            return Err(TooShort { speed, wall_s, machine_s, speed_min, wall_s_min });
        }
        Ok(Pace { speed, machine_s: Some(machine_s) })
    }

    /// Machine seconds in a second.
    pub fn machine_s_per_s(&self) -> f64 {
        BASE_PACE * self.speed
    }

    /// The plant of this seed, and what happens in it at this pace.
    pub fn plan(&self, seed: u64) -> Plan {
        Plan::new(seed, self.fault_times())
    }

    fn fault_times(&self) -> FaultTimes {
        let room_s = self.machine_s.map_or(FAULT_WINDOW_S_MAX, |machine_s| (machine_s - SCRIPT_S) / 2.0);
        FaultTimes {
            commissioning_end_s: FAULTS_FROM_S,
            fault_window_s: room_s.clamp(FAULT_WINDOW_S_MIN, FAULT_WINDOW_S_MAX),
            ramp_s: RAMP_S,
        }
    }
}

/// What is known of a machine of the demonstration.
#[derive(Debug, Clone)]
pub struct DemoMachine {
    /// The name under which it reports.
    pub asset: String,
    /// What it is.
    pub kind: String,
    /// What happens to it.
    pub fault: Option<DemoFault>,
}

/// What happens to a machine.
#[derive(Debug, Clone)]
pub struct DemoFault {
    /// In words.
    pub name: String,
    /// When it begins, machine seconds.
    pub at_s: f64,
}

/// The machines at work.
pub struct RunningPlant {
    machines: Vec<DemoMachine>,
    epoch_us: i64,
    stop: watch::Sender<bool>,
    devices: JoinSet<f64>,
}

impl RunningPlant {
    /// Starts every machine's device as a task of its own.
    pub fn start(broker: SocketAddr, seed: u64, pace: Pace) -> RunningPlant {
        let plan = pace.plan(seed);
        let (stop, stopped) = watch::channel(false);
        let epoch_us = clock::utc_us();
        let mut devices = JoinSet::new();
        for planned in &plan.machines {
            if let Some(config) = device(planned, broker, pace, epoch_us) {
                devices.spawn(run(config, stopped.clone()));
            }
        }
        RunningPlant { machines: plan.machines.iter().map(DemoMachine::from).collect(), epoch_us, stop, devices }
    }

    /// What there is.
    pub fn machines(&self) -> &[DemoMachine] {
        &self.machines
    }

    /// Device time of the first sample, UTC microseconds.
    pub fn epoch_us(&self) -> i64 {
        self.epoch_us
    }

    /// Waits until every device has taken its last sample; for ever when there is no last one.
    pub async fn finished(&self) {
        self.stop.closed().await;
    }

    /// Stops the devices, lets them have their last frames acknowledged, and returns the machine time they reached.
    pub async fn stop(mut self) -> f64 {
        self.stop.send_replace(true);
        let mut machine_s = 0.0_f64;
        while let Some(reached) = self.devices.join_next().await {
            machine_s = machine_s.max(reached.unwrap_or(0.0));
        }
        machine_s
    }
}

impl From<&PlannedMachine> for DemoMachine {
    fn from(planned: &PlannedMachine) -> DemoMachine {
        DemoMachine {
            asset: planned.asset.to_owned(),
            kind: planned.kind.to_string(),
            fault: planned.fault.map(|fault| DemoFault { name: fault.fault.to_string(), at_s: fault.at_s }),
        }
    }
}

fn device(planned: &PlannedMachine, broker: SocketAddr, pace: Pace, epoch_us: i64) -> Option<DeviceConfig> {
    let machine = planned.build().inspect_err(|error| tracing::error!(%error, "a machine cannot be built")).ok()?;
    let samples_per_frame = (pace.machine_s_per_s() / FRAMES_PER_S).round().clamp(1.0, SAMPLES_PER_FRAME_MAX as f64);
    Some(DeviceConfig {
        speed: pace.machine_s_per_s(),
        samples_per_frame: samples_per_frame as usize,
        start_us: epoch_us,
        samples_max: pace.machine_s.map(|machine_s| machine_s as u64),
        drain: DRAIN,
        ..DeviceConfig::new(&broker.ip().to_string(), broker.port(), planned.asset, machine)
    })
}

/// Runs one device; returns the machine seconds it sampled.
async fn run(config: DeviceConfig, mut stopped: watch::Receiver<bool>) -> f64 {
    let shutdown = async move {
        // An error means that the plant is gone, which is a reason to stop too.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    match run_device(config, shutdown).await {
        Ok(report) => report.counters.sampled as f64,
        Err(error) => {
            tracing::error!(%error, "a device cannot run");
            0.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Without a speed the script fits into any time; with one that is too slow the error says what would do.
    #[test]
    fn the_script_fits_or_says_why_not() {
        for seconds in [1, 10, 60, 600] {
            let pace = Pace::for_run(Some(Duration::from_secs(seconds)), None).unwrap();
            assert!(pace.machine_s.unwrap() >= SCRIPT_S, "{seconds} s");
        }
        let error = Pace::for_run(Some(Duration::from_secs(10)), Some(1.0)).unwrap_err();
        assert_eq!((error.speed_min * 100.0).round(), 207.0);
        assert_eq!(error.wall_s_min, 21.0);
    }
}
