//! Models that give a reconstruction, a forecast, probabilities or a value: what the gateway makes of it, and what it refuses.

// The functions that tests share are tests as well.
#![allow(clippy::unwrap_used)]

mod support;

use millwright_models::{Explanation, LoadError, LoadLimits, Model, RunError};
use proptest::prelude::*;
use support::{File, int, ints, window};

fn load(file: &File) -> Result<Model, LoadError> {
    Model::load(&file.bytes(), &LoadLimits::default())
}

fn close(found: &[f32], expected: &[f32]) {
    let near =
        found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs());
    assert!(near, "{found:?} is not {expected:?}");
}

/// Reconstructs every row as the normals 1, 2, 3; scale 1, 0.5, 2; threshold 2.
fn autoencoder() -> File {
    let mut file = File::new();
    file.set("output", "reconstruction").set("scale", "[1, 0.5, 2]").set("threshold", "2");
    file.floats("zero", &[], &[0.0])
        .floats("normal", &[3], &[1.0, 2.0, 3.0])
        .node("Mul", &["window", "zero"], "none", vec![])
        .node("Add", &["none", "normal"], "reconstruction", vec![])
        .output("reconstruction", &["batch", "4", "3"]);
    file
}

/// Forecasts the last two rows as the two before them; scale and threshold 1.
fn forecaster() -> File {
    let mut file = File::new();
    file.graph.input.clear();
    file.set("output", "forecast").set("scale", "[1, 1, 1]").set("threshold", "1").set("horizon", "2");
    file.input("window", &["batch", "2", "3"])
        .node("Identity", &["window"], "forecast", vec![])
        .output("forecast", &["batch", "2", "3"]);
    file
}

/// The classes' probabilities are the channels' means, kept between `least` and `most`; `b` is the normal one.
fn classifier(least: f32, most: f32) -> File {
    let mut file = File::new();
    file.set("channels", r#"[{"name": "a", "normal": 0.5}, {"name": "b", "normal": 0.9}, {"name": "c"}]"#)
        .set("output", "probability")
        .set("classes", r#"["bearing", "ok", "leak"]"#)
        .set("normal_class", "ok");
    file.floats("least", &[], &[least])
        .floats("most", &[], &[most])
        .node("ReduceMean", &["window"], "mean", vec![ints("axes", &[1]), int("keepdims", 0)])
        .node("Clip", &["mean", "least", "most"], "probability", vec![])
        .output("probability", &["batch", "3"]);
    file
}

/// The value is the mean of channel `a`, whose normal is 100.
fn regressor() -> File {
    let mut file = File::new();
    file.set("channels", r#"[{"name": "a", "normal": 100}, {"name": "b", "normal": 2}, {"name": "c", "normal": 3}]"#)
        .set("output", "regression")
        .set("unit", "h")
        .set("healthy", "100")
        .set("alarm_below", "20");
    file.floats("a", &[3, 1], &[1.0, 0.0, 0.0])
        .node("ReduceMean", &["window"], "mean", vec![ints("axes", &[1]), int("keepdims", 0)])
        .node("MatMul", &["mean", "a"], "value", vec![])
        .output("value", &["batch", "1"]);
    file
}

#[test]
fn a_reconstruction_is_scored_by_its_residuals() {
    // a is off by 0, 2, 0, 2 and b by 0.5 (one scale) everywhere: mean squares 2 and 1, over 3 channels and a threshold of 2²: 1/6 and
    // 1/12, whose sum is 0.5².
    let model = load(&autoencoder()).unwrap();
    assert_eq!(model.explanation(), Explanation::Residual);
    let odd = [1.0, 2.5, 3.0, 3.0, 2.5, 3.0, 1.0, 2.5, 3.0, 3.0, 2.5, 3.0];
    let scores = model.score(&[window([1.0, 2.0, 3.0]).as_slice(), &odd].concat(), 2).unwrap();
    close(&scores.score, &[0.0, 0.5]);
    close(&scores.contribution, &[0.0, 0.0, 0.0, 1.0 / 6.0, 1.0 / 12.0, 0.0]);
}

#[test]
fn contributions_of_residuals_add_up_to_the_squared_score() {
    // In 600 windows, more than one run of the engine holds, the sum of contributions is the score squared, as with the detector that
    // is learned on site.
    let model = load(&autoencoder()).unwrap();
    let windows: Vec<f32> = (0..600).flat_map(|i| window([1.0 + i as f32 * 0.01, 2.0, 7.0])).collect();
    let scores = model.score(&windows, 600).unwrap();
    for (score, contribution) in scores.score.iter().zip(scores.contribution.chunks(3)) {
        let sum: f32 = contribution.iter().sum();
        assert!((sum - score * score).abs() <= 1e-5 * sum, "{sum} and {score}");
    }
}

#[test]
fn a_forecast_is_compared_with_the_last_rows() {
    // Channel a goes 1, 1, 2, 4: the forecast 1, 1 is off by 1 and 3, mean square 5, over three channels.
    let model = load(&forecaster()).unwrap();
    assert_eq!(model.explanation(), Explanation::Residual);
    let rising = [1.0, 2.0, 3.0, 1.0, 2.0, 3.0, 2.0, 2.0, 3.0, 4.0, 2.0, 3.0];
    let scores = model.score(&[rising.as_slice(), &window([9.0, 9.0, 9.0])].concat(), 2).unwrap();
    close(&scores.score, &[(5.0_f32 / 3.0).sqrt(), 0.0]);
    close(&scores.contribution, &[5.0 / 3.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
}

#[test]
fn a_forecast_of_one_row_needs_no_axis_for_it() {
    // Without a horizon one row is forecast, here as the one before it, given as [batch, channels].
    let mut file = forecaster();
    file.metadata.retain(|(key, _)| key != "millwright.horizon");
    file.graph.input.clear();
    file.graph.output.clear();
    file.graph.node.clear();
    file.input("window", &["batch", "3", "3"])
        .integers("last", &[2])
        .node("Gather", &["window", "last"], "row", vec![int("axis", 1)])
        .integers("axes", &[1])
        .node("Squeeze", &["row", "axes"], "forecast", vec![])
        .output("forecast", &["batch", "3"]);
    let model = load(&file).unwrap();
    let step = [1.0, 2.0, 3.0, 5.0, 2.0, 3.0, 1.0, 2.0, 3.0, 1.0, 2.0, 6.0];
    let scores = model.score(&step, 1).unwrap();
    close(&scores.score, &[3.0_f32.sqrt()]);
    close(&scores.contribution, &[0.0, 0.0, 3.0]);
}

#[test]
fn probabilities_are_scored_by_the_normal_class() {
    // The normal class at 0.7 leaves 0.3 for the others, which is 0.6 of the threshold 0.5; at the threshold the score is 1. With b
    // at its normal 0.9 the score would be 0.2.
    let model = load(&classifier(0.0, 1.0)).unwrap();
    assert_eq!(model.explanation(), Explanation::Occlusion);
    let windows = [window([0.2, 0.7, 0.1]), window([0.4, 0.5, 0.1]), window([0.0, 1.00005, 0.0])].concat();
    let scores = model.score(&windows, 3).unwrap();
    let told: Vec<_> =
        scores.finding.iter().map(|finding| finding.describe(&model.contract().output).unwrap()).collect();
    assert_eq!(told, ["bearing (20 %)", "bearing (40 %)", "leak (0 %)"]);
    let near = |found: f32, expected: f32| assert!((found - expected).abs() < 1e-6, "{found} is not {expected}");
    [0.6, 1.0, 0.0].into_iter().zip(&scores.score).for_each(|(expected, found)| near(*found, expected));
    [0.0, 0.4, 0.0, 0.0, 0.8, 0.0]
        .into_iter()
        .zip(&scores.contribution)
        .for_each(|(expected, found)| near(*found, expected));
}

#[test]
fn a_probability_is_between_0_and_1() {
    // Rounding above 1 passes, more does not: the class, the window and the number are named. A graph without a softmax does not load.
    let model = load(&classifier(-5.0, 5.0)).unwrap();
    assert_eq!(model.score(&window([0.0, 1.00009, 0.0]), 1).unwrap().score, [0.0]);
    for bad in [2.0, 1.001, -0.5] {
        let windows = [window([0.0, 1.0, 0.0]), window([0.0, 1.0, bad])].concat();
        let error = model.score(&windows, 2).unwrap_err();
        assert!(matches!(&error, RunError::Probability { row: 1, class, .. } if class == "leak"), "{error}");
    }
    let mut logits = classifier(-5.0, 5.0);
    logits.set("channels", r#"[{"name": "a", "normal": 4}, {"name": "b"}, {"name": "c"}]"#);
    let error = load(&logits).unwrap_err();
    assert!(matches!(&error, LoadError::Probability { class, .. } if class == "bearing"), "{error}");
    assert!(error.to_string().contains("softmax"), "{error}");
}

#[test]
fn a_remaining_useful_life_alarms_below_its_limit() {
    // Healthy at 100 h, alarm at 20 h: 60 h is half way, 20 h is the alarm, −60 h twice as far, and more than healthy is 0. Without
    // channel a the score would be 0. The value itself is told with its unit.
    let model = load(&regressor()).unwrap();
    assert_eq!(model.explanation(), Explanation::Occlusion);
    let windows: Vec<f32> = [60.0, 20.0, -60.0, 140.0, 100.0].iter().flat_map(|a| window([*a, 2.0, 3.0])).collect();
    let scores = model.score(&windows, 5).unwrap();
    close(&scores.score, &[0.5, 1.0, 2.0, 0.0, 0.0]);
    let told: Vec<_> =
        scores.finding.iter().map(|finding| finding.describe(&model.contract().output).unwrap()).collect();
    assert_eq!(told, ["60.0 h", "20.0 h", "-60.0 h", "140.0 h", "100.0 h"]);
    close(&scores.contribution[..9], &[0.5, 0.0, 0.0, 1.0, 0.0, 0.0, 2.0, 0.0, 0.0]);
}

#[test]
fn wear_alarms_above_its_limit() {
    // Healthy at 100, alarm above 300: 200 is half way, less than healthy is 0.
    let mut file = regressor();
    file.metadata.retain(|(key, _)| key != "millwright.alarm_below");
    file.set("alarm_above", "300");
    let model = load(&file).unwrap();
    let windows: Vec<f32> = [200.0, 300.0, 50.0].iter().flat_map(|a| window([*a, 2.0, 3.0])).collect();
    close(&model.score(&windows, 3).unwrap().score, &[0.5, 1.0, 0.0]);
}

#[test]
fn a_graph_may_explain_its_own_probability_or_value() {
    // Contributions in the graph win over occlusion for these kinds; beside residuals they are not read.
    let mut file = regressor();
    file.floats("parts", &[3], &[3.0, 2.0, 1.0])
        .floats("zero", &[], &[0.0])
        .node("Mul", &["mean", "zero"], "none", vec![])
        .node("Add", &["none", "parts"], "contribution", vec![])
        .output("contribution", &["batch", "3"]);
    let model = load(&file).unwrap();
    assert_eq!(model.explanation(), Explanation::Graph);
    assert_eq!(model.score(&window([60.0, 2.0, 3.0]), 1).unwrap().contribution, [3.0, 2.0, 1.0]);
    let mut file = autoencoder();
    file.node("Scaler", &["window"], "contribution", vec![]).output("contribution", &["batch", "3"]);
    assert_eq!(load(&file).unwrap().explanation(), Explanation::Residual);
}

#[test]
fn golden_vectors_hold_for_every_kind() {
    // The score of the contract's formula loads, another does not; residuals are compared by channel too.
    let golden = |mut file: File, row: &str, score: f32, contribution: &str| {
        file.set("golden", &format!(r#"[{{"row": {row}, "score": {score}{contribution}}}]"#));
        load(&file)
    };
    for score in [0.5, 0.51] {
        let contribution = r#", "contribution": [0.083333, 0.166667, 0]"#;
        // Residuals 1, √2 and 0 scales: 1/12, 2/12, and √0.25.
        let row = "[2, 2.7071068, 3]";
        let loaded = [
            golden(autoencoder(), row, score, contribution),
            golden(classifier(0.0, 1.0), "[0, 0.75, 0.25]", score, ""),
            golden(regressor(), "[60, 2, 3]", score, r#", "contribution": [9, 9, 9]"#),
        ];
        for outcome in loaded {
            match outcome {
                Ok(_) => assert_eq!(score, 0.5),
                Err(LoadError::Golden { expected, .. }) => assert_eq!((score, expected), (0.51, 0.51)),
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!(golden(forecaster(), "[7, 7, 7]", 0.0, r#", "contribution": [0, 0, 0]"#).is_ok());
    let error = golden(forecaster(), "[7, 7, 7]", 0.0, r#", "contribution": [0, 1, 0]"#).unwrap_err();
    assert!(error.to_string().contains("the contribution of `b`"), "{error}");
}

#[test]
fn what_a_kind_gives_is_named_and_shaped_by_the_contract() {
    // Another name, rank or number of samples, channels, rows or classes is refused with what was expected and what was found.
    let refused = |mut file: File, name: &str, shape: &[&str], expected: &str| {
        file.graph.output.clear();
        file.output(name, shape);
        let error = load(&file).unwrap_err();
        assert!(matches!(error, LoadError::Output { .. }), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
    };
    let expected = "`reconstruction`: f32[batch, 4, 3]";
    for shape in [&["batch", "3", "4"][..], &["batch", "12"], &["batch", "4", "2"], &["batch", "4"], &[]] {
        refused(autoencoder(), "reconstruction", shape, expected);
    }
    refused(autoencoder(), "none", &["batch", "4", "3"], expected);
    for shape in [&["batch", "3"][..], &["batch", "1", "3"], &["batch", "3", "2"]] {
        refused(forecaster(), "forecast", shape, "`forecast`: f32[batch, 2, 3]");
    }
    for shape in [&["batch", "2"][..], &["batch"], &["batch", "3", "1"]] {
        refused(classifier(0.0, 1.0), "probability", shape, "`probability`: f32[batch, 3]");
    }
    refused(regressor(), "value", &["batch", "3"], "`value`: f32[batch]");
    let mut file = forecaster();
    file.graph.input.clear();
    file.input("window", &["batch", "4", "3"]);
    let error = load(&file).unwrap_err().to_string();
    assert!(error.contains("`window`: f32[batch, 2, 3]") && error.contains("[?, 4, 3]"), "{error}");
}

#[test]
fn a_transposed_reconstruction_is_not_taken_for_one() {
    // The right number of values in the wrong order is refused by the trial run, although the file declares no shape.
    let mut file = autoencoder();
    file.graph.node.last_mut().unwrap().output[0] = "upright".to_owned();
    file.node("Transpose", &["upright"], "reconstruction", vec![ints("perm", &[0, 2, 1])]);
    file.graph.output[0].r#type.as_mut().unwrap().tensor_type.as_mut().unwrap().shape = None;
    let error = load(&file).unwrap_err();
    assert!(matches!(error, LoadError::Engine { .. }), "{error}");
    assert!(error.to_string().contains("[1, 4, 3]"), "{error}");
}

#[test]
fn a_value_that_depends_on_its_neighbours_is_found_behind_a_score_of_0() {
    // Trial windows are healthy, so their scores are 0 alone and together; the value itself shows that the batch is mixed.
    let mut file = regressor();
    file.graph.node.last_mut().unwrap().output[0] = "own".to_owned();
    file.node("ReduceMean", &["own"], "all", vec![ints("axes", &[0]), int("keepdims", 1)]).node(
        "Add",
        &["own", "all"],
        "value",
        vec![],
    );
    let model = load(&file).unwrap();
    assert!(!model.any_batch());
    let windows = [window([10.0, 2.0, 3.0]), window([500.0, 2.0, 3.0])].concat();
    close(&model.score(&windows, 2).unwrap().score, &[1.0, 0.0]);
}

#[test]
fn numbers_that_are_not_finite_are_run_errors() {
    // The square root of a negative reading is NaN in one sample of one window; that window is named. A threshold that makes a
    // contribution infinite is found by the trial run.
    let mut file = autoencoder();
    file.graph.node.clear();
    file.node("Sqrt", &["window"], "reconstruction", vec![]);
    let model = load(&file).unwrap();
    let mut windows = window([1.0, 4.0, 9.0]).repeat(3);
    windows[2 * 12 + 7] = -1.0;
    assert!(matches!(model.score(&windows, 3), Err(RunError::NotFinite { row: 2, .. })));
    let mut file = autoencoder();
    file.set("threshold", "1e-30");
    assert!(matches!(load(&file), Err(LoadError::NotFinite { .. })));
}

#[test]
fn a_reading_beyond_all_bounds_is_clipped() {
    // 1e30 is a million scales and no more, so that the score is a number: 1e6/√3 over the threshold of 2.
    let model = load(&autoencoder()).unwrap();
    let scores = model.score(&window([1e30, 2.0, 3.0]), 1).unwrap();
    close(&scores.score, &[1e6 / 3.0_f32.sqrt() / 2.0]);
}

#[test]
fn an_error_in_an_occluded_window_names_the_window() {
    // With channel c at its normal the probability is none; the window it was made from is to blame.
    let mut file = classifier(-5.0, 5.0);
    file.set("channels", r#"[{"name": "a"}, {"name": "b"}, {"name": "c", "normal": 0.3}]"#);
    file.graph.node.pop();
    // The last class is c·(1 + 10·a): 3 for the second window with c at its normal.
    file.floats("first", &[3, 3], &[0.0, 0.0, 10.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
        .node("MatMul", &["mean", "first"], "ten", vec![])
        .node("Mul", &["ten", "mean"], "product", vec![])
        .node("Add", &["mean", "product"], "probability", vec![]);
    let model = load(&file).unwrap();
    let windows = [window([0.0, 1.0, 0.0]), window([0.9, 0.2, 0.0])].concat();
    let error = model.score(&windows, 2).unwrap_err();
    assert!(matches!(&error, RunError::Probability { row: 1, class, .. } if class == "leak"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_window_gives_numbers_or_an_error(values in proptest::collection::vec(any::<f32>(), 12), kind in 0_usize..4) {
        // Whatever the readings, the largest and smallest included, a score is finite and not negative, as are its contributions.
        static MODELS: std::sync::LazyLock<[Model; 4]> = std::sync::LazyLock::new(|| {
            [autoencoder(), forecaster(), classifier(-5.0, 5.0), regressor()].map(|file| load(&file).unwrap())
        });
        if let Ok(scores) = MODELS[kind].score(&values, 1) {
            prop_assert!(scores.score.len() == 1 && scores.contribution.len() == 3);
            let numbers = scores.score.iter().chain(&scores.contribution);
            prop_assert!(numbers.clone().all(|v| v.is_finite() && *v >= 0.0), "{scores:?}");
        }
    }
}
