//! A small factory with some machines that will fail.
//!
//! Owns which machines there are, which of them get which fault, and when. Everything follows from the seed.

use crate::fault::Fault;
use crate::machine::noise::Noise;
use crate::machine::{InjectError, Machine, MachineKind};

/// The machines of the plant, and the names under which they report.
const MACHINES: [(&str, MachineKind); 6] = [
    ("pump-1", MachineKind::Pump),
    ("pump-2", MachineKind::Pump),
    ("fan-1", MachineKind::Fan),
    ("fan-2", MachineKind::Fan),
    ("gearbox-1", MachineKind::Gearbox),
    ("compressor-1", MachineKind::Compressor),
];

/// So many machines stay healthy.
const HEALTHY: usize = 2;

/// When faults begin, in machine seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FaultTimes {
    /// No fault begins before this: the detectors are still learning.
    pub commissioning_end_s: f64,
    /// All faults begin within so many seconds of it, spread over them.
    pub fault_window_s: f64,
    /// A fault takes so long to develop.
    pub ramp_s: f64,
}

/// A fault that a machine of the plant will have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PlannedFault {
    /// What happens.
    pub fault: Fault,
    /// When it begins, in machine seconds.
    pub at_s: f64,
    /// How long it takes to develop, in seconds.
    pub ramp_s: f64,
}

/// A machine of the plant.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedMachine {
    /// The name under which it reports, valid as one level of a topic.
    pub asset: &'static str,
    /// What kind of machine it is.
    pub kind: MachineKind,
    /// Its seed.
    pub seed: u64,
    /// What happens to it; a machine without a fault stays healthy.
    pub fault: Option<PlannedFault>,
}

impl PlannedMachine {
    /// The machine, warm, with its fault ahead of it.
    ///
    /// # Errors
    /// [`InjectError`] when the fault does not apply to the kind; never for a machine of an unchanged [`Plan`].
    pub fn build(&self) -> Result<Machine, InjectError> {
        let mut machine = Machine::new(self.kind, self.seed);
        if let Some(planned) = self.fault {
            machine.inject(planned.fault, planned.at_s, planned.ramp_s)?;
        }
        Ok(machine)
    }
}

/// What the plant consists of and what will happen in it.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The machines: two pumps, two fans, a gearbox and a compressor, of which two stay healthy and four get a fault
    /// each, no two the same.
    pub machines: Vec<PlannedMachine>,
}

impl Plan {
    /// The plan that belongs to this seed. Each fault begins in its own part of the window.
    #[must_use]
    pub fn new(seed: u64, times: FaultTimes) -> Plan {
        let mut noise = Noise::new(seed, 10);
        let mut machines: Vec<PlannedMachine> = MACHINES
            .iter()
            .map(|&(asset, kind)| PlannedMachine { asset, kind, seed: noise.seed(), fault: None })
            .collect();
        // The order of this list is the order in which the machines fail; the last ones don't.
        let mut order: Vec<usize> = (0..machines.len()).collect();
        noise.shuffle(&mut order);
        order.truncate(machines.len() - HEALTHY);
        let slot_s = times.fault_window_s / order.len() as f64;
        let mut used: Vec<Fault> = Vec::new();
        for (slot, index) in order.into_iter().enumerate() {
            let Some(machine) = machines.get_mut(index) else { continue };
            // Every kind can have at least five faults, of which at most three are used.
            let free: Vec<Fault> = Fault::applicable(machine.kind).filter(|fault| !used.contains(fault)).collect();
            let Some(&fault) = free.get(noise.below(free.len())) else { continue };
            used.push(fault);
            let at_s = times.commissioning_end_s + slot_s * (slot as f64 + noise.between(0.1, 0.9));
            machine.fault = Some(PlannedFault { fault, at_s, ramp_s: times.ramp_s });
        }
        Plan { machines }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TIMES: FaultTimes = FaultTimes { commissioning_end_s: 450.0, fault_window_s: 400.0, ramp_s: 120.0 };

    // Every plan has six machines with different names, four different faults that apply, and times in the window,
    // apart from each other.
    #[test]
    fn plans_keep_their_promises() {
        for seed in 0..500 {
            let plan = Plan::new(seed, TIMES);
            let mut faults: Vec<PlannedFault> = plan.machines.iter().filter_map(|machine| machine.fault).collect();
            assert_eq!((plan.machines.len(), faults.len()), (6, 4), "seed {seed}");
            for machine in &plan.machines {
                assert!(machine.fault.is_none_or(|planned| planned.fault.applies_to(machine.kind)), "seed {seed}");
            }
            faults.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
            assert!(faults.iter().all(|fault| (450.0..850.0).contains(&fault.at_s)), "seed {seed}");
            assert!(faults.windows(2).all(|pair| pair[1].at_s - pair[0].at_s >= 0.19 * 100.0), "seed {seed}");
            let different = |a: &PlannedFault| faults.iter().filter(|b| b.fault == a.fault).count() == 1;
            assert!(faults.iter().all(different), "seed {seed}");
        }
    }

    // A seed repeats its plan, other seeds give others, and over many seeds every pair of kind and fault occurs.
    #[test]
    fn seeds_repeat_and_cover_everything() {
        assert_eq!(Plan::new(7, TIMES), Plan::new(7, TIMES));
        assert!(Plan::new(7, TIMES).machines.iter().all(|machine| machine.build().is_ok()));
        assert_ne!(Plan::new(7, TIMES), Plan::new(8, TIMES));
        let mut missing: Vec<(MachineKind, Fault)> = MachineKind::ALL
            .into_iter()
            .flat_map(|kind| Fault::applicable(kind).map(move |fault| (kind, fault)))
            .collect();
        for seed in 0..500 {
            for machine in Plan::new(seed, TIMES).machines {
                missing.retain(|pair| Some(*pair) != machine.fault.map(|planned| (machine.kind, planned.fault)));
            }
        }
        assert_eq!(missing, []);
    }
}
