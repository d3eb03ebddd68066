//! The operators of our own against onnxruntime's recorded outputs, and against files that try to break them.
//!
//! `operators/generate.py` writes the models and the outputs.

// The functions that tests share are tests as well.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use millwright_models::onnx::AttributeProto;
use millwright_models::{LoadError, LoadLimits, Model};
use support::{File, int, ints};

/// Largest difference that is allowed, in parts of the score and at least of 1. The worst of the committed cases is 2.0e-7.
const DIFFERENCE_MAX: f32 = 1e-6;
/// The same for LSTMs, whose scores add up to 256 states that pass through approximated exponentials; the worst is 3.2e-6.
const LSTM_DIFFERENCE_MAX: f32 = 1e-5;

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/operators");
    let files = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|e| e == "onnx")).collect();
    files.sort();
    files
}

/// Windows behind each other, and what onnxruntime gave for each.
fn recording(model: &Path) -> (Vec<f32>, Vec<f32>) {
    let (mut windows, mut scores) = (Vec::new(), Vec::new());
    for line in fs::read_to_string(model.with_extension("csv")).unwrap().lines() {
        let mut numbers: Vec<f32> = line.split(',').map(|number| number.parse().unwrap()).collect();
        scores.push(numbers.pop().unwrap());
        windows.extend(numbers);
    }
    (windows, scores)
}

#[test]
fn every_operator_gives_what_onnxruntime_gave() {
    // Each committed model scores its recorded windows, all at once and each alone, as onnxruntime did; alone and together are
    // the same to the bit, but for LSTMs, which multiply a batch in another order.
    let cases = cases();
    assert!(cases.len() > 30, "{} cases", cases.len());
    let mut failures = Vec::new();
    for case in cases {
        let name = case.file_stem().unwrap().to_string_lossy().into_owned();
        let model = match Model::load(&fs::read(&case).unwrap(), &LoadLimits::default()) {
            Ok(model) => model,
            Err(error) => {
                failures.push(format!("{name}: {error}"));
                continue;
            }
        };
        let (windows, want) = recording(&case);
        let together = model.score(&windows, want.len()).unwrap().score;
        let difference = |(got, want): (&f32, &f32)| (got - want).abs() / want.abs().max(1.0);
        let worst = together.iter().zip(&want).map(difference).fold(0.0, f32::max);
        assert!(model.any_batch(), "{name}");
        let allowed = if name.starts_with("lstm") { LSTM_DIFFERENCE_MAX } else { DIFFERENCE_MAX };
        if worst > allowed {
            let pairs: Vec<_> = together.iter().zip(&want).take(6).collect();
            failures.push(format!("{name}: {worst:.1e} off, {pairs:?}"));
        }
        for (window, together) in windows.chunks(model.contract().window_len()).zip(&together) {
            let alone = model.score(window, 1).unwrap().score[0];
            let same =
                if name.starts_with("lstm") { difference((&alone, together)) <= allowed } else { alone == *together };
            assert!(same, "{name}: {alone} alone, {together} together");
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn floats(name: &str, floats: &[f32]) -> AttributeProto {
    AttributeProto { name: name.to_owned(), floats: floats.to_vec(), r#type: 6, ..Default::default() }
}

fn text(name: &str, text: &str) -> AttributeProto {
    AttributeProto { name: name.to_owned(), s: Some(text.into()), r#type: 3, ..Default::default() }
}

fn texts(name: &str, texts: &[&str]) -> AttributeProto {
    let strings = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    AttributeProto { name: name.to_owned(), strings, r#type: 8, ..Default::default() }
}

/// A tree of one branch on feature 0 of twelve: 1 up to 0.5, else 2.
fn stump() -> Vec<AttributeProto> {
    vec![
        ints("nodes_treeids", &[0, 0, 0]),
        ints("nodes_nodeids", &[0, 1, 2]),
        ints("nodes_featureids", &[0, 0, 0]),
        texts("nodes_modes", &["BRANCH_LEQ", "LEAF", "LEAF"]),
        floats("nodes_values", &[0.5, 0.0, 0.0]),
        ints("nodes_truenodeids", &[1, 0, 0]),
        ints("nodes_falsenodeids", &[2, 0, 0]),
        ints("target_treeids", &[0, 0]),
        ints("target_nodeids", &[1, 2]),
        ints("target_ids", &[0, 0]),
        floats("target_weights", &[1.0, 2.0]),
        int("n_targets", 1),
    ]
}

/// The stump with one attribute replaced, or added.
fn stump_with(attribute: AttributeProto) -> Vec<AttributeProto> {
    let mut attributes = stump();
    attributes.retain(|old| old.name != attribute.name);
    attributes.push(attribute);
    attributes
}

fn load(attributes: Vec<AttributeProto>) -> Result<Model, LoadError> {
    let mut file = File::new();
    file.integers("flat", &[-1, 12])
        .node("Reshape", &["window", "flat"], "x", vec![])
        .node("TreeEnsembleRegressor", &["x"], "score", attributes)
        .output("score", &["batch", "1"]);
    Model::load(&file.bytes(), &LoadLimits::default())
}

#[test]
fn a_tree_with_broken_lists_is_refused_by_name() {
    // Lists of different lengths, unknown modes, a cycle, a child, feature or target that is not there, a threshold or weight that
    // is no number, counts in the billions: each is an error that names the node, and the whole stump loads.
    assert_eq!(load(stump()).unwrap().score(&[0.0; 12], 1).unwrap().score, [1.0]);
    let broken = [
        ints("nodes_treeids", &[0, 0]),
        ints("nodes_nodeids", &[0, 1]),
        ints("nodes_nodeids", &[]),
        ints("nodes_nodeids", &[0, 1, 1]),
        ints("nodes_featureids", &[-1, 0, 0]),
        ints("nodes_featureids", &[12, 0, 0]),
        ints("nodes_featureids", &[i64::MAX, 0, 0]),
        texts("nodes_modes", &["BRANCH_MEMBER", "LEAF", "LEAF"]),
        texts("nodes_modes", &["BRANCH_LEQ", "BRANCH_LEQ", "LEAF"]),
        texts("nodes_modes", &["BRANCH_LEQ", "LEAF"]),
        floats("nodes_values", &[f32::NAN, 0.0, 0.0]),
        floats("nodes_values", &[0.5]),
        ints("nodes_truenodeids", &[0, 0, 0]),
        ints("nodes_truenodeids", &[2, 0, 0]),
        ints("nodes_truenodeids", &[i64::MIN, 0, 0]),
        ints("nodes_falsenodeids", &[3, 0, 0]),
        ints("nodes_missing_value_tracks_true", &[1]),
        ints("target_nodeids", &[1, 7]),
        ints("target_treeids", &[0, 1]),
        ints("target_ids", &[0, 1]),
        ints("target_ids", &[-1, 0]),
        floats("target_weights", &[1.0, f32::INFINITY]),
        floats("target_weights", &[1.0]),
        floats("base_values", &[f32::NAN]),
        floats("base_values", &[1.0, 2.0, 3.0]),
        int("n_targets", 0),
        int("n_targets", -1),
        int("n_targets", i64::MAX),
        int("n_targets", 1_000_000_000),
        text("aggregate_function", "MEDIAN"),
        text("post_transform", "SQUARE"),
        int("nodes_values", 3),
    ];
    for attribute in broken {
        let label = format!("{attribute:?}");
        let error = load(stump_with(attribute)).expect_err(&label).to_string();
        assert!(error.contains("score"), "{label}: {error}");
    }
}

#[test]
fn a_scaler_of_another_width_is_refused() {
    // Twelve columns take one number or twelve, not five.
    let load = |offset: &[f32]| {
        let mut file = File::new();
        file.integers("flat", &[-1, 12])
            .node("Reshape", &["window", "flat"], "x", vec![])
            .node("Scaler", &["x"], "scaled", vec![floats("offset", offset), floats("scale", &[2.0])])
            .node("ReduceMax", &["scaled"], "score", vec![ints("axes", &[1]), int("keepdims", 0)])
            .output("score", &["batch"]);
        Model::load(&file.bytes(), &LoadLimits::default())
    };
    assert_eq!(load(&[1.0]).unwrap().score(&[3.0; 12], 1).unwrap().score, [4.0]);
    assert_eq!(load(&[1.0; 12]).unwrap().score(&[3.0; 12], 1).unwrap().score, [4.0]);
    assert!(load(&[1.0; 5]).unwrap_err().to_string().contains("5 numbers"));
}

#[test]
fn an_lstm_that_is_not_the_usual_one_is_refused_or_left_to_the_engine() {
    // Other activations, clipping and an unknown direction are errors that name the node; weights of another size do not load either.
    let load = |attribute: Option<AttributeProto>, gates: i64| {
        let mut file = File::new();
        let weights = |count: i64| vec![0.1; usize::try_from(count).unwrap()];
        let mut attributes = vec![int("hidden_size", 2)];
        attributes.extend(attribute);
        file.floats("w", &[1, gates, 3], &weights(3 * gates))
            .floats("r", &[1, gates, 2], &weights(2 * gates))
            .node("Transpose", &["window"], "steps", vec![ints("perm", &[1, 0, 2])])
            .node("LSTM", &["steps", "w", "r"], "all", attributes)
            .node("ReduceMax", &["all"], "score", vec![ints("axes", &[0, 1, 3]), int("keepdims", 0)])
            .output("score", &["batch"]);
        Model::load(&file.bytes(), &LoadLimits::default())
    };
    assert!(load(None, 8).unwrap().any_batch());
    let unusual = [
        texts("activations", &["Relu", "Tanh", "Tanh"]),
        AttributeProto { name: "clip".to_owned(), f: Some(3.0), r#type: 1, ..Default::default() },
        int("input_forget", 1),
        text("direction", "sideways"),
    ];
    for attribute in unusual {
        let error = load(Some(attribute), 8).unwrap_err().to_string();
        assert!(error.contains("all"), "{error}");
    }
    assert!(load(None, 7).is_err());
    assert!(load(None, 12).is_err());
}

#[test]
fn arithmetic_broadcasts_whichever_side_is_repeated() {
    // A scalar, a row, a column and the whole on either side of each operation, by hand and by the model.
    type Operation = fn(f32, f32) -> f32;
    let operations: [(&str, Operation); 5] =
        [("Add", |a, b| a + b), ("Sub", |a, b| a - b), ("Mul", |a, b| a * b), ("Max", f32::max), ("Min", f32::min)];
    let constant: Vec<f32> = (0..12).map(|at| (at as f32 - 5.5) * 0.5).collect();
    let windows: Vec<f32> = (0..24).map(|at| (at as f32 * 1.3).sin() * 3.0).collect();
    for (name, operation) in operations {
        for (rows, columns) in [(1, 1), (1, 3), (4, 1), (4, 3)] {
            for swapped in [false, true] {
                let mut file = File::new();
                let inputs = if swapped { ["k", "window"] } else { ["window", "k"] };
                file.floats("k", &[rows, columns], &constant[..(rows * columns) as usize])
                    .floats("mix", &[4, 3], &(1..13).map(|at| at as f32).collect::<Vec<_>>())
                    .node(name, &inputs, "mixed", vec![])
                    .node("Mul", &["mixed", "mix"], "weighted", vec![])
                    .node("ReduceSum", &["weighted"], "score", vec![int("keepdims", 0)])
                    .output("score", &["batch"]);
                // The axes are a constant of the graph in this operator set.
                file.integers("axes", &[1, 2]).graph.node[2].input.push("axes".to_owned());
                let model = Model::load(&file.bytes(), &LoadLimits::default()).unwrap();
                let want = windows.chunks(12).map(|window| {
                    let value = |at: usize| {
                        let (row, column) = ((at / 3) % rows as usize, at % 3 % columns as usize);
                        let k = constant[row * columns as usize + column];
                        let pair = if swapped { operation(k, window[at]) } else { operation(window[at], k) };
                        pair * (at + 1) as f32
                    };
                    (0..12).map(value).sum::<f32>()
                });
                let got = model.score(&windows, 2).unwrap().score;
                for (got, want) in got.iter().zip(want) {
                    let label = format!("{name} [{rows}, {columns}], swapped {swapped}: {got}, {want}");
                    assert!((got - want).abs() < 1e-4, "{label}");
                }
            }
        }
    }
}
