//! What the demonstration saw, and whether it was right.
//!
//! Owns the comparison of injected faults with the alerts that were raised. It learns of alerts as any MQTT client does.

use std::time::Duration;

use serde::Serialize;

use super::DemoOptions;
use super::plant::DemoMachine;
use crate::alarm::message::{AlertEvent, EventKind, Health, HealthState};
use crate::cli::output;
use crate::clock::SECOND_US;
use crate::observe::Observed;
use crate::status::Status;

/// Sensors named in the summary.
const TOP_SENSORS: usize = 3;

/// One machine as the view sees it.
#[derive(Debug)]
pub struct Row {
    /// What it is and what will happen to it.
    pub machine: DemoMachine,
    /// Its last health.
    pub health: Option<Health>,
    /// The first alert after its fault began.
    pub flagged: Option<Flagged>,
    /// Alerts that no fault explains.
    pub false_alarms: u32,
    /// The last thing said about it.
    pub message: Option<String>,
}

/// The alert that found the fault.
#[derive(Debug, Clone)]
pub struct Flagged {
    /// Machine time of the row that raised it, seconds.
    pub at_s: f64,
    /// Channels by contribution.
    pub sensors: Vec<String>,
}

/// All machines and what was said of them.
#[derive(Debug)]
pub struct Scoreboard {
    /// One row a machine.
    pub rows: Vec<Row>,
    epoch_us: i64,
}

/// What the demonstration concludes; with `--json` printed as it is.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Every injected fault was flagged and nothing else was.
    pub ok: bool,
    /// Repeats the run.
    pub seed: u64,
    /// Pace.
    pub speed: f64,
    /// Wall time, seconds.
    pub wall_s: f64,
    /// Machine time, seconds.
    pub machine_s: f64,
    /// Where MQTT was served.
    pub mqtt: String,
    /// Samples scored.
    pub samples_scored: u64,
    /// Faults that had begun.
    pub faults_injected: usize,
    /// Those that were flagged.
    pub faults_flagged: usize,
    /// Alerts that no fault explains.
    pub false_alarms: u32,
    /// One entry a machine.
    pub machines: Vec<MachineSummary>,
}

/// One machine in the summary. Times are machine seconds since the start.
#[derive(Debug, Serialize)]
pub struct MachineSummary {
    /// Its name.
    pub asset: String,
    /// What it is.
    pub kind: String,
    /// The fault, if it had begun.
    pub fault: Option<String>,
    /// When it began.
    pub injected_s: Option<f64>,
    /// When an alert was raised for it.
    pub flagged_s: Option<f64>,
    /// The time between the two.
    pub delay_s: Option<f64>,
    /// Channels by contribution.
    pub top_sensors: Vec<String>,
    /// Alerts that no fault explains.
    pub false_alarms: u32,
}

impl Scoreboard {
    /// Nothing seen yet; machine time counts from `epoch_us`.
    pub fn new(machines: &[DemoMachine], epoch_us: i64) -> Scoreboard {
        let row = |machine: &DemoMachine| Row {
            machine: machine.clone(),
            health: None,
            flagged: None,
            false_alarms: 0,
            message: None,
        };
        Scoreboard { rows: machines.iter().map(row).collect(), epoch_us }
    }

    /// Takes what the gateway said; returns lines worth reading.
    pub fn observe(&mut self, observed: Observed) -> Vec<String> {
        let asset = match &observed {
            Observed::Health(health) => &health.asset,
            Observed::Event(event) => &event.asset,
        };
        let Some(row) = self.rows.iter_mut().find(|row| row.machine.asset == *asset) else { return Vec::new() };
        match observed {
            Observed::Health(health) => row.take_health(*health).into_iter().collect(),
            Observed::Event(event) => vec![row.take_event(&event, self.epoch_us)],
        }
    }

    /// Compares faults with alerts, `machine_s` seconds of machine time after the start.
    pub fn conclude(&self, options: &DemoOptions, machine_s: f64, wall: Duration, status: &Status) -> Summary {
        let machines: Vec<MachineSummary> = self.rows.iter().map(|row| row.conclude(machine_s)).collect();
        let injected = machines.iter().filter(|machine| machine.fault.is_some()).count();
        let flagged = machines.iter().filter(|machine| machine.flagged_s.is_some()).count();
        let false_alarms = machines.iter().map(|machine| machine.false_alarms).sum();
        Summary {
            ok: flagged == injected && false_alarms == 0,
            seed: options.seed,
            speed: options.pace.speed,
            wall_s: tenths(wall.as_secs_f64()),
            machine_s,
            mqtt: status.broker.listen.to_string(),
            samples_scored: status.pipeline.assets.iter().map(|asset| asset.counters.scored).sum(),
            faults_injected: injected,
            faults_flagged: flagged,
            false_alarms,
            machines,
        }
    }
}

impl Row {
    fn take_health(&mut self, health: Health) -> Option<String> {
        let before = self.health.as_ref().map(|health| health.state);
        let line = (before != Some(health.state)).then(|| match health.state {
            HealthState::Learning => format!("{}: learning its normal", health.asset),
            HealthState::Ok => format!("{}: ok, health {:.0}", health.asset, health.health.unwrap_or(0.0)),
            HealthState::Alarm => format!("{}: ALARM, score {:.2}", health.asset, health.score.unwrap_or(0.0)),
            HealthState::Recovering => format!("{}: recovering", health.asset),
            HealthState::Silent => format!("{}: silent", health.asset),
        });
        self.health = Some(health);
        line
    }

    fn take_event(&mut self, event: &AlertEvent, epoch_us: i64) -> String {
        let at_s = event.time_us.saturating_sub(epoch_us) as f64 / SECOND_US as f64;
        if event.event == EventKind::Raise {
            let explained = self.machine.fault.as_ref().is_some_and(|fault| at_s >= fault.at_s);
            if !explained {
                self.false_alarms += 1;
            } else if self.flagged.is_none() {
                let sensors = event.evidence.sensors.iter().take(TOP_SENSORS).map(|s| s.channel.clone()).collect();
                self.flagged = Some(Flagged { at_s, sensors });
            }
        }
        let kind = match event.event {
            EventKind::Raise => "ALERT",
            EventKind::Update => "alert update",
            EventKind::Clear => "alert cleared",
        };
        // The row names the machine already.
        let named = format!("{} ", event.asset);
        self.message = Some(event.message.strip_prefix(&named).unwrap_or(&event.message).to_owned());
        format!("{kind} ({:?}, {}): {}", event.severity, event.id, event.message)
    }

    fn conclude(&self, machine_s: f64) -> MachineSummary {
        let fault = self.machine.fault.as_ref().filter(|fault| fault.at_s < machine_s);
        let flagged = fault.and(self.flagged.as_ref());
        MachineSummary {
            asset: self.machine.asset.clone(),
            kind: self.machine.kind.clone(),
            fault: fault.map(|fault| fault.name.clone()),
            injected_s: fault.map(|fault| tenths(fault.at_s)),
            flagged_s: flagged.map(|flagged| tenths(flagged.at_s)),
            delay_s: fault.zip(flagged).map(|(fault, flagged)| tenths(flagged.at_s - fault.at_s)),
            top_sensors: flagged.map(|flagged| flagged.sensors.clone()).unwrap_or_default(),
            false_alarms: self.false_alarms,
        }
    }
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

impl Summary {
    /// The table at the end.
    pub fn table(&self) -> String {
        let heading = ["machine", "kind", "fault", "injected", "flagged", "delay", "top sensors", "false alarms"];
        let mut rows = vec![heading.map(str::to_owned).to_vec()];
        rows.extend(self.machines.iter().map(MachineSummary::cells));
        format!(
            "\n{}\n{} of {} injected faults flagged, {} false alarms; {} samples scored in {:.0} s ({:.0} s of machine time, seed {})\n",
            output::table(&rows),
            self.faults_flagged,
            self.faults_injected,
            self.false_alarms,
            self.samples_scored,
            self.wall_s,
            self.machine_s,
            self.seed,
        )
    }
}

impl MachineSummary {
    fn cells(&self) -> Vec<String> {
        let seconds = |value: Option<f64>| value.map_or("-".to_owned(), |s| format!("{s:.0} s"));
        let missed = if self.fault.is_some() { "MISSED" } else { "-" };
        vec![
            self.asset.clone(),
            self.kind.clone(),
            self.fault.clone().unwrap_or_else(|| "none".to_owned()),
            seconds(self.injected_s),
            self.flagged_s.map_or(missed.to_owned(), |s| format!("{s:.0} s")),
            seconds(self.delay_s),
            if self.top_sensors.is_empty() { "-".to_owned() } else { self.top_sensors.join(", ") },
            self.false_alarms.to_string(),
        ]
    }
}
