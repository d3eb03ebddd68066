//! The simulated machines: their channels, their determinism, and what faults do to sensors.
#![allow(clippy::unwrap_used)]

use millwright_firmware_sim::fault::Fault;
use millwright_firmware_sim::machine::{CHANNELS_MAX, FAULTS_MAX, InjectError, Machine, MachineKind};

/// The values of one channel over some seconds, one per second.
fn series(machine: &mut Machine, channel: &str, seconds: std::ops::Range<u32>) -> Vec<f32> {
    let index = machine.channels().iter().position(|spec| spec.name == channel).unwrap();
    seconds.map(|second| machine.sample(f64::from(second))[index]).collect()
}

fn mean(values: &[f32]) -> f32 {
    values.iter().sum::<f32>() / values.len() as f32
}

// Every channel has a name that fits into a frame, is unique in its machine and ends in its unit.
#[test]
fn channels_are_well_named() {
    let endings = [
        ("rpm", "_rpm"),
        ("A", "_a"),
        ("bar", "_bar"),
        ("m3/h", "_m3_h"),
        ("m3/min", "_m3_min"),
        ("mm/s", "_mm_s"),
        ("g", "_g"),
        ("degC", "_c"),
        ("Pa", "_pa"),
        ("Nm", "_nm"),
    ];
    for kind in MachineKind::ALL {
        let channels = kind.channels();
        assert!((6..=CHANNELS_MAX).contains(&channels.len()), "{kind}");
        for (index, channel) in channels.iter().enumerate() {
            assert!(channel.name.len() <= millwright_wire::CHANNEL_BYTES_MAX, "{}", channel.name);
            assert!(channels.iter().take(index).all(|other| other.name != channel.name), "{}", channel.name);
            let (_, ending) = endings.iter().find(|(unit, _)| *unit == channel.unit).unwrap();
            assert!(channel.name.ends_with(ending), "{} in {}", channel.name, channel.unit);
        }
        assert_eq!(Machine::new(kind, 1).sample(0.0).len(), channels.len());
    }
}

// The bits of ten minutes of every kind, with a fault, are the same on every platform and in every version.
#[test]
fn samples_are_the_same_everywhere() {
    let fingerprints = MachineKind::ALL.map(|kind| {
        let mut machine = Machine::new(kind, 42);
        machine.inject(Fault::LooseCable, 300.0, 60.0).unwrap();
        machine.inject(Fault::BearingWear, 400.0, 60.0).unwrap();
        let rows = (0..600).map(|second| machine.sample(f64::from(second)));
        // FNV-1a over the bits.
        rows.flat_map(|row| row.into_iter().map(f32::to_bits))
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, bits| (hash ^ u64::from(bits)).wrapping_mul(0x0100_0000_01b3))
    });
    assert_eq!(
        fingerprints,
        [14_955_921_683_195_331_129, 1_116_390_521_766_313_907, 9_083_237_232_007_182_128, 13_053_048_187_056_066_412]
    );
}

// Equal seeds give equal machines, other seeds others.
#[test]
fn seeds_make_machines() {
    let hour = |seed| {
        let mut machine = Machine::new(MachineKind::Fan, seed);
        (0..100).map(|second| machine.sample(f64::from(second))).collect::<Vec<_>>()
    };
    assert_eq!(hour(1), hour(1));
    assert_ne!(hour(1), hour(2));
}

// The physical state at a time does not depend on how often it was looked at before.
#[test]
fn state_does_not_depend_on_sampling() {
    for kind in MachineKind::ALL {
        let mut often = Machine::new(kind, 5);
        let mut once = Machine::new(kind, 5);
        for step in 0..4_000 {
            often.sample(f64::from(step) / 10.0);
        }
        let (often, once) = (often.sample(400.0), once.sample(400.0));
        for ((a, b), channel) in often.iter().zip(&once).zip(kind.channels()) {
            // Six deviations of the noisiest sensor, twice.
            assert!((a - b).abs() <= 0.6 * a.abs().max(b.abs()) + 1.0, "{kind} {}: {a} and {b}", channel.name);
        }
        assert!((often[0] - once[0]).abs() < 30.0, "{kind}: speeds {} and {}", often[0], once[0]);
    }
}

// Time does not run backwards, and a day passes in one call.
#[test]
fn time_only_goes_forward() {
    let mut machine = Machine::new(MachineKind::Pump, 3);
    let before = machine.sample(1_000.0);
    let again = machine.sample(10.0);
    assert!((before[0] - again[0]).abs() < 30.0);
    for far in [86_400.0, 1e12, f64::MAX, f64::NAN] {
        assert!(machine.sample(far).iter().all(|value| value.is_finite()), "{far}");
    }
}

// Machines start warm: temperatures of the first production cycles are those of an hour later.
#[test]
fn machines_start_warm() {
    for kind in MachineKind::ALL {
        for channel in kind.channels().iter().filter(|channel| channel.unit == "degC") {
            let mut machine = Machine::new(kind, 9);
            let early = mean(&series(&mut machine, channel.name, 0..400));
            let late = mean(&series(&mut machine, channel.name, 3_600..4_000));
            assert!((early - late).abs() < 1.0, "{kind} {}: {early} then {late}", channel.name);
        }
    }
}

// A stuck sensor shows one value from the moment it sticks, and the machine it controls leaves its normal range.
#[test]
fn stuck_sensor_freezes_and_drives_the_controller() {
    let mut machine = Machine::new(MachineKind::Pump, 4);
    machine.inject(Fault::SensorStuck, 300.0, 0.0).unwrap();
    let mut watch = machine.clone();
    let pressures = series(&mut machine, "discharge_pressure_bar", 0..700);
    assert!(pressures[..300].windows(2).all(|pair| pair[0] != pair[1]));
    assert!(pressures[300..].iter().all(|pressure| *pressure == pressures[300]));
    let speeds = series(&mut watch, "speed_rpm", 0..700);
    let range = |values: &[f32]| {
        values.iter().fold((f32::MAX, f32::MIN), |(low, high), value| (low.min(*value), high.max(*value)))
    };
    let (low, high) = range(&speeds[..300]);
    let (stuck_low, stuck_high) = range(&speeds[300..]);
    assert!(stuck_low < low - 200.0 || stuck_high > high + 200.0, "{low}–{high}, then {stuck_low}–{stuck_high}");
}

// A loose contact drops out now and then, more often as it develops, and touches no other channel.
#[test]
fn loose_cable_drops_out_intermittently() {
    let mut machine = Machine::new(MachineKind::Gearbox, 4);
    machine.inject(Fault::LooseCable, 1_000.0, 1_000.0).unwrap();
    let readings = series(&mut machine.clone(), "bearing_temperature_c", 0..4_000);
    let open = |readings: &[f32]| readings.iter().filter(|reading| **reading == -20.0).count();
    assert_eq!(open(&readings[..1_000]), 0);
    let developing = open(&readings[1_000..2_000]);
    let developed = open(&readings[2_000..3_000]);
    // 1.5 s of 3.5 s when developed; on the way half of that.
    assert!((100..350).contains(&developing), "{developing}");
    assert!((350..500).contains(&developed), "{developed}");
    assert_eq!(open(&series(&mut machine, "oil_temperature_c", 0..4_000)), 0);
}

// Faults change several sensors in the direction that physics says.
#[test]
fn faults_have_physical_signatures() {
    let change = |kind: MachineKind, fault: Fault, channel: &str| {
        let mut healthy = Machine::new(kind, 6);
        let mut faulty = healthy.clone();
        faulty.inject(fault, 0.0, 60.0).unwrap();
        let seconds = 300..700;
        mean(&series(&mut faulty, channel, seconds.clone())) / mean(&series(&mut healthy, channel, seconds))
    };
    use MachineKind::{Compressor, Fan, Gearbox, Pump};
    let rises = |kind, fault, channel, by: f32| {
        let change = change(kind, fault, channel);
        assert!(change > 1.0 + by, "{kind}, {fault}: {channel} changed by the factor {change}");
    };
    let falls = |kind, fault, channel, by: f32| {
        let change = change(kind, fault, channel);
        assert!(change < 1.0 - by, "{kind}, {fault}: {channel} changed by the factor {change}");
    };
    for kind in MachineKind::ALL {
        rises(kind, Fault::BearingWear, "vibration_hf_g", 1.0);
        rises(kind, Fault::BearingWear, "vibration_rms_mm_s", 0.5);
        rises(kind, Fault::BearingWear, "motor_current_a", 0.01);
    }
    rises(Fan, Fault::Imbalance, "vibration_1x_mm_s", 2.0);
    rises(Fan, Fault::Imbalance, "vibration_rms_mm_s", 1.0);
    falls(Pump, Fault::Cavitation, "suction_pressure_bar", 0.5);
    rises(Pump, Fault::Cavitation, "vibration_hf_g", 0.5);
    falls(Pump, Fault::Leak, "flow_m3_h", 0.02);
    rises(Pump, Fault::Leak, "motor_current_a", 0.1);
    falls(Gearbox, Fault::Leak, "oil_pressure_bar", 0.3);
    rises(Gearbox, Fault::Leak, "oil_temperature_c", 0.05);
    rises(Compressor, Fault::Leak, "speed_rpm", 0.1);
    falls(Compressor, Fault::Leak, "discharge_pressure_bar", 0.05);
    rises(Compressor, Fault::Overheating, "oil_temperature_c", 0.2);
    rises(Gearbox, Fault::Overheating, "bearing_temperature_c", 0.2);
    // Hot oil is thin.
    falls(Gearbox, Fault::Overheating, "oil_pressure_bar", 0.1);
}

// Every applicable fault names channels that its machine has; the others name none and are refused.
#[test]
fn faults_know_their_machines() {
    for kind in MachineKind::ALL {
        for fault in Fault::ALL {
            let expected = fault.expected_channels(kind);
            let injected = Machine::new(kind, 1).inject(fault, 0.0, 0.0);
            if fault.applies_to(kind) {
                assert!(!expected.is_empty() && injected.is_ok(), "{kind}, {fault}");
                assert!(expected.iter().all(|name| kind.channels().iter().any(|channel| channel.name == *name)));
            } else {
                assert!(expected.is_empty(), "{kind}, {fault}");
                assert_eq!(injected, Err(InjectError::NotApplicable { kind, fault }));
            }
        }
    }
    let mut machine = Machine::new(MachineKind::Pump, 1);
    for _ in 0..FAULTS_MAX {
        machine.inject(Fault::Leak, 0.0, 0.0).unwrap();
    }
    assert_eq!(machine.inject(Fault::Leak, 0.0, 0.0), Err(InjectError::TooMany));
}
