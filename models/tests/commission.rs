//! Commissioning on made-up machines, including the ones that sit still.

// The functions that tests share are tests as well.
#![allow(clippy::unwrap_used)]

use millwright_models::detector::Floor;
use millwright_models::{CommissionError, Commissioned, Episode, LoadLimits, Model, Params, State, commission};

/// White noise from a fixed linear congruential generator, between −1 and 1.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }
}

fn names(n: usize) -> Vec<String> {
    (0..n).map(|i| format!("c{i}")).collect()
}

fn rows(n: usize, row: impl FnMut(usize) -> Vec<f32>) -> Vec<f32> {
    (0..n).flat_map(row).collect()
}

fn learn(channels: usize, rows: &[f32]) -> Commissioned {
    commission("test", 1, &names(channels), rows, &Params::default()).unwrap()
}

fn load(learned: &Commissioned) -> Model {
    Model::load(&learned.onnx, &LoadLimits::default()).unwrap()
}

/// Score and contributions of a window whose rows are all `row`.
fn score(model: &Model, row: &[f32]) -> (f32, Vec<f32>) {
    let scores = model.score(&row.repeat(model.contract().samples), 1).unwrap();
    (scores.score[0], scores.contribution)
}

fn three_channels(n: usize) -> Vec<f32> {
    let mut noise = Noise(1);
    rows(n, |_| vec![100.0 + noise.next(), 5.0 + 0.1 * noise.next(), 1e5 + 10.0 * noise.next()])
}

#[test]
fn a_fault_is_scored_and_explained() {
    // Normal rows score below 0.5; a shift of one channel by the width of its noise alarms and is blamed on that channel, whatever its
    // unit; contributions add up to the square of the score.
    let data = three_channels(600);
    let learned = learn(3, &data);
    let model = load(&learned);
    assert_eq!(model.contract(), &learned.contract);
    let normal: Vec<f32> = model.contract().channels.iter().map(|c| c.normal.unwrap()).collect();
    assert!(score(&model, &normal).0 < 0.01);
    for (channel, shift) in [(0, 2.0), (1, -0.2), (2, 20.0)] {
        let mut row = normal.clone();
        row[channel] += shift;
        let (score, contribution) = score(&model, &row);
        assert!(score > 1.0, "channel {channel}: {score}");
        assert!(contribution[channel] > 0.9 * contribution.iter().sum::<f32>());
        assert!((contribution.iter().sum::<f32>() - score * score).abs() < 1e-3 * score * score);
    }
    let windows: Vec<f32> = data.chunks(3).collect::<Vec<_>>().windows(20).flat_map(|w| w.concat()).collect();
    let scores = model.score(&windows, windows.len() / 60).unwrap();
    let most = scores.score.iter().copied().fold(0.0, f32::max);
    assert!((f64::from(most) - learned.report.score_max).abs() < 1e-4 && (most - 0.4).abs() < 1e-3, "{most}");
}

#[test]
fn the_exported_model_agrees_with_float64() {
    // Over 500 rows with a drift, a spike and a large offset, f32 and f64 differ by less than 10⁻⁴ and alarm at the same rows.
    let data = three_channels(400);
    let learned = learn(3, &data);
    let model = load(&learned);
    let mut later = three_channels(500);
    for (i, row) in later.chunks_mut(3).enumerate() {
        row[0] += i as f32 * 0.004;
        row[2] += if (200..230).contains(&i) { 40.0 } else { 0.0 };
    }
    let windows: Vec<f32> = later.chunks(3).collect::<Vec<_>>().windows(20).flat_map(|w| w.concat()).collect();
    let got = model.score(&windows, windows.len() / 60).unwrap().score;
    let want = learned.detector.scores(&later);
    assert_eq!(got.len(), want.len());
    let (mut exported, mut reference) = (Episode::default(), Episode::default());
    let mut alarms = 0;
    for (got, want) in got.iter().zip(&want) {
        assert!((f64::from(*got) - want).abs() < 1e-4 * want.max(1.0), "{got} {want}");
        let state = exported.step(*got);
        assert_eq!(state, reference.step(*want as f32));
        alarms += usize::from(state == State::Alarm);
    }
    assert!(alarms > 20);
}

#[test]
fn a_constant_channel_alarms_when_it_moves_and_not_on_its_last_digit() {
    // A channel that stood at 32.0 throughout: another digit behind the point is nothing, 20 % off for a whole window is an alarm.
    let mut noise = Noise(2);
    let learned = learn(2, &rows(400, |_| vec![noise.next(), 32.0]));
    assert_eq!(learned.report.constant_channels().collect::<Vec<_>>(), ["c1"]);
    let model = load(&learned);
    assert!(score(&model, &[0.0, 32.001]).0 < 0.5);
    let (alarm, contribution) = score(&model, &[0.0, 38.4]);
    assert!(alarm > 1.0 && contribution[1] > contribution[0], "{alarm}");
    // Rounding that changes its last bit leaves it constant.
    let mut noise = Noise(2);
    let last_bit = |i: usize| f32::from_bits(32.0_f32.to_bits() + (i % 2) as u32);
    let learned = learn(2, &rows(400, |i| vec![noise.next(), last_bit(i)]));
    assert_eq!(learned.report.constant_channels().collect::<Vec<_>>(), ["c1"]);
    // At zero there is no value to be relative to: the floor is absolute.
    let mut noise = Noise(3);
    let model = load(&learn(2, &rows(400, |_| vec![noise.next(), 0.0])));
    assert!(score(&model, &[0.0, 1e-4]).0 < 0.5);
    assert!(score(&model, &[0.0, 1.0]).0 > 1.0);
}

#[test]
fn one_quantisation_step_is_no_alarm() {
    // A sensor with whole numbers showed 32 and once 33: staying at 33 is rounding, staying at 40 is not; also when it is the only
    // channel.
    for channels in [1, 2] {
        let mut noise = Noise(4);
        let data = rows(400, |i| {
            let whole = if i == 200 { 33.0 } else { 32.0 };
            if channels == 1 { vec![whole] } else { vec![whole, noise.next()] }
        });
        let learned = learn(channels, &data);
        assert_eq!(learned.report.channels[0].learned.floor, Floor::Quantisation);
        let model = load(&learned);
        let at = |value: f32| score(&model, &[value, 0.0][..channels]).0;
        assert!(at(33.0) < 1.0 && at(31.0) < 1.0, "{} {}", at(33.0), at(31.0));
        assert!(at(40.0) > 1.0, "{}", at(40.0));
    }
}

#[test]
fn an_absurd_reading_alarms_and_does_not_break_the_model() {
    // Readings near the end of what f32 holds give a finite score above the threshold.
    let model = load(&learn(3, &three_channels(400)));
    for value in [1e20, -1e30, f32::MAX] {
        let (score, contribution) = score(&model, &[value, 5.0, 1e5]);
        assert!(score > 1.0 && score.is_finite() && contribution[0] > contribution[1], "{value}: {score}");
    }
}

#[test]
fn rows_that_are_not_finite_are_left_out_and_counted() {
    // A NaN or an infinity costs its row, and what is learned is what the other rows say.
    let mut data = three_channels(400);
    let clean = learn(3, &data);
    data.extend_from_slice(&[f32::NAN, 5.0, 1e5, 100.0, f32::INFINITY, 1e5]);
    let learned = learn(3, &data);
    assert_eq!((learned.report.rows, learned.report.rows_used, learned.report.rows_skipped), (402, 400, 2));
    assert_eq!(learned.onnx, clean.onnx);
}

#[test]
fn too_few_rows_and_a_machine_that_stands_still_are_told() {
    // Exactly enough rows pass, one fewer does not; nothing varying, no channels, the same name twice, half a row and a bad name
    // each have their error.
    let params = Params::default();
    let enough = 3 * params.window + 3;
    assert!(commission("t", 1, &names(3), &three_channels(enough), &params).is_ok());
    let error = commission("t", 1, &names(3), &three_channels(enough - 1), &params).unwrap_err();
    assert_eq!(error, CommissionError::TooFewRows { rows_used: 62, rows_skipped: 0, rows_min: 63 });
    let error = commission("t", 1, &names(2), &rows(400, |_| vec![0.1, 7.0]), &params).unwrap_err();
    assert_eq!(error, CommissionError::NothingVaries { channels: 2, rows_used: 400 });
    let twice = ["a".to_owned(), "a".to_owned()];
    let error = commission("t", 1, &twice, &[0.0; 400], &params).unwrap_err();
    assert!(error.to_string().contains("`a` is there twice"), "{error}");
    assert!(matches!(commission("t", 1, &[], &[], &params), Err(CommissionError::Channels { .. })));
    assert!(matches!(commission("t", 1, &names(257), &[], &params), Err(CommissionError::Channels { .. })));
    assert!(matches!(commission("t", 1, &names(3), &[0.0; 400], &params), Err(CommissionError::Shape { .. })));
    assert!(matches!(commission("a b", 1, &names(3), &[], &params), Err(CommissionError::Name(_))));
    assert!(matches!(commission("t", 0, &names(3), &[], &params), Err(CommissionError::Version)));
    let bad = Params { shrinkage: f64::NAN, ..params };
    assert!(matches!(
        commission("t", 1, &names(3), &[], &bad),
        Err(CommissionError::Parameter { name: "shrinkage", .. })
    ));
    let bad = Params { window: 0, ..params };
    assert!(matches!(commission("t", 1, &names(3), &[], &bad), Err(CommissionError::Parameter { name: "window", .. })));
}

#[test]
fn the_most_channels_and_extreme_scales_are_learned() {
    // 256 channels, and channels of 10⁻³⁰ and 10³⁰, commission into a file that loads.
    let mut noise = Noise(5);
    let model = load(&learn(256, &rows(400, |_| (0..256).map(|_| noise.next()).collect())));
    assert_eq!(model.contract().channels.len(), 256);
    let mut noise = Noise(6);
    load(&learn(3, &rows(400, |_| vec![1e-30 * noise.next(), 1e30 * noise.next(), 1.0 + 1e-7 * noise.next()])));
}

#[test]
fn stability_tells_a_settled_machine_from_one_that_warms_up() {
    // Stationary noise is stable; a slow drift that goes on during the held-back rows is not.
    assert!(learn(3, &three_channels(2_000)).report.stability.stable);
    let mut noise = Noise(7);
    let warming = rows(2_000, |i| vec![20.0 + 0.01 * i as f32 + noise.next(), noise.next()]);
    let report = learn(2, &warming).report;
    assert!(!report.stability.stable && report.stability.exceed_share > 0.1, "{:?}", report.stability);
    assert!(serde_json::to_string(&report).unwrap().contains("\"exceed_share\""));
}

#[test]
fn the_file_is_small_and_says_where_it_comes_from() {
    // Eight channels fit in 2 KiB of graph and 3 KiB with metadata, and the contract names rows, window and normals.
    let mut noise = Noise(8);
    let learned = learn(8, &rows(400, |_| (0..8).map(|c| c as f32 + noise.next()).collect()));
    assert!(learned.onnx.len() < 3 * 1_024, "{} bytes", learned.onnx.len());
    assert_eq!(learned.contract.samples, 20);
    assert_eq!(learned.contract.provenance.rows, Some(400));
    assert_eq!(learned.contract.golden.len(), 3);
    assert!(learned.contract.channels.iter().all(|c| c.normal.is_some()));
}
