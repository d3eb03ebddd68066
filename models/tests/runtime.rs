//! Loading and scoring models that keep to the contract in every form it allows.

// The functions that tests share are tests as well.
#![allow(clippy::unwrap_used)]

mod support;

use millwright_models::{Explanation, LoadError, LoadLimits, Model, RunError};
use support::{File, int, ints, window};

fn load(file: &File) -> Result<Model, LoadError> {
    Model::load(&file.bytes(), &LoadLimits::default())
}

#[test]
fn a_batch_scores_like_its_windows_alone() {
    // 600 windows, more than one run of the engine holds, score as each does alone; an empty batch gives empty scores.
    let model = load(&File::largest_distance()).unwrap();
    assert!(model.any_batch());
    let windows: Vec<f32> = (0..600).flat_map(|i| window([1.0 + i as f32 * 0.01, 2.0, 3.0])).collect();
    let together = model.score(&windows, 600).unwrap();
    for (i, one) in windows.chunks(12).enumerate() {
        let alone = model.score(one, 1).unwrap();
        assert_eq!(alone.score[0], together.score[i]);
        assert_eq!(alone.contribution, together.contribution[i * 3..i * 3 + 3]);
    }
    let empty = model.score(&[], 0).unwrap();
    assert!(empty.score.is_empty() && empty.contribution.is_empty());
}

#[test]
fn a_score_without_contributions_is_explained_by_occlusion() {
    // Channel a is 2 off and b is 1 off: without a the score falls to 1, without b it stays 2.
    let model = load(&File::largest_distance()).unwrap();
    assert_eq!(model.explanation(), Explanation::Occlusion);
    let scores = model.score(&[window([3.0, 3.0, 3.0]), window([1.0, 2.25, 3.0])].concat(), 2).unwrap();
    assert_eq!(scores.score, [2.0, 0.25]);
    assert_eq!(scores.contribution, [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
}

#[test]
fn without_normals_there_is_no_explanation() {
    // A model that neither contributes nor names normals still scores.
    let mut file = File::largest_distance();
    file.set("channels", r#"[{"name": "a"}, {"name": "b"}, {"name": "c"}]"#);
    let model = load(&file).unwrap();
    assert_eq!(model.explanation(), Explanation::None);
    assert_eq!(model.score(&window([3.0, 2.0, 3.0]), 1).unwrap().contribution, [0.0; 3]);
}

#[test]
fn features_are_computed_by_the_gateway() {
    // A graph that sums mean and peak of three channels: 1+1 + 2+2 + 3+3.
    let mut file = File::new();
    file.graph.input.clear();
    file.input("features", &["batch", "6"])
        .set("input", "features")
        .set("features", r#"["mean", "peak"]"#)
        .integers("axis", &[1])
        .node("ReduceSum", &["features", "axis"], "score", vec![int("keepdims", 1)])
        .output("score", &["batch", "1"]);
    let model = load(&file).unwrap();
    assert_eq!(model.score(&window([1.0, 2.0, 3.0]), 1).unwrap().score, [12.0]);
}

#[test]
fn a_graph_with_a_fixed_batch_runs_row_by_row() {
    // A reshape to one row of twelve numbers takes no batch; the model still scores any number of windows.
    let mut file = File::new();
    file.graph.input.clear();
    file.input("window", &["1", "4", "3"])
        .integers("row", &[1, 12])
        .node("Reshape", &["window", "row"], "flat", vec![])
        .node("ReduceMax", &["flat"], "score", vec![ints("axes", &[1]), int("keepdims", 0)])
        .output("score", &["1"]);
    let model = load(&file).unwrap();
    assert!(!model.any_batch());
    let windows = [window([1.0, 5.0, 2.0]), window([7.0, 0.0, 0.0])].concat();
    assert_eq!(model.score(&windows, 2).unwrap().score, [5.0, 7.0]);
}

#[test]
fn a_graph_that_mixes_windows_is_run_one_by_one() {
    // A mean over the batch axis would let one machine's window change another's score.
    let mut file = File::new();
    file.node("ReduceMax", &["window"], "peak", vec![ints("axes", &[1, 2]), int("keepdims", 0)])
        .node("ReduceMean", &["peak"], "all", vec![ints("axes", &[0]), int("keepdims", 1)])
        .node("Sub", &["peak", "all"], "diff", vec![])
        .node("Add", &["diff", "all"], "half", vec![])
        .node("Mul", &["half", "all"], "score", vec![])
        .output("score", &["batch"]);
    let model = load(&file).unwrap();
    assert!(!model.any_batch());
    let windows = [window([1.0, 0.0, 0.0]), window([3.0, 0.0, 0.0])].concat();
    assert_eq!(model.score(&windows, 2).unwrap().score, [1.0, 9.0]);
}

#[test]
fn a_window_that_is_to_blame_is_named() {
    // A missing number, a NaN in channel b of the second window, and a window for which the graph gives NaN each have their error.
    let mut file = File::new();
    file.node("Sqrt", &["window"], "root", vec![])
        .node("ReduceMean", &["root"], "score", vec![ints("axes", &[1, 2]), int("keepdims", 0)])
        .output("score", &["batch"]);
    let model = load(&file).unwrap();
    let good = window([1.0, 4.0, 9.0]);
    assert_eq!(model.score(&good, 1).unwrap().score, [2.0]);
    assert_eq!(model.score(&good[1..], 1), Err(RunError::Length { found: 11, batch: 1, samples: 4, channels: 3 }));
    assert!(matches!(model.score(&good, usize::MAX), Err(RunError::Length { .. })));
    let mut bad = [good.clone(), good.clone()].concat();
    bad[12 + 4] = f32::NAN;
    assert_eq!(model.score(&bad, 2), Err(RunError::Input { row: 1, channel: "b".to_owned() }));
    let negative = [good, window([-1.0, -4.0, -9.0])].concat();
    assert!(matches!(model.score(&negative, 2), Err(RunError::NotFinite { row: 1, .. })));
}

#[test]
fn contributions_of_the_graph_are_used_and_never_negative() {
    // The graph's own contributions win over occlusion; a trace below zero is zero.
    let mut file = File::largest_distance();
    file.floats("tiny", &[3], &[-1e-9, 1.0, 2.0])
        .floats("zero", &[], &[0.0])
        .node("Mul", &["distance", "zero"], "none", vec![])
        .node("Add", &["none", "tiny"], "contribution", vec![])
        .output("contribution", &["batch", "3"]);
    let model = load(&file).unwrap();
    assert_eq!(model.explanation(), Explanation::Graph);
    assert_eq!(model.score(&window([3.0, 2.0, 3.0]), 1).unwrap().contribution, [0.0, 1.0, 2.0]);
}

#[test]
fn an_operator_that_is_missing_is_named_with_its_remedy() {
    // A kernel machine in the path of the score is refused by name; a ZipMap that only labels need is left out.
    let mut file = File::new();
    file.node("SVMRegressor", &["window"], "scaled", vec![])
        .node("ReduceMax", &["scaled"], "score", vec![ints("axes", &[1, 2]), int("keepdims", 0)])
        .output("score", &["batch"]);
    let error = load(&file).unwrap_err();
    assert!(matches!(&error, LoadError::UnsupportedOperator { operator, .. } if operator == "SVMRegressor"), "{error}");
    assert!(error.to_string().contains("MatMul, Exp"), "{error}");

    let mut file = File::largest_distance();
    file.node("ZipMap", &["distance"], "labels", vec![]).output("labels", &["batch"]);
    assert!(load(&file).is_ok());
    file.node("Identity", &["labels"], "contribution", vec![]).output("contribution", &["batch", "3"]);
    assert!(load(&file).unwrap_err().to_string().contains("zipmap=False"));
}

#[test]
fn golden_vectors_decide() {
    // A model that reproduces its golden vectors loads; one whose vector says otherwise is refused with both numbers.
    let mut file = File::largest_distance();
    file.set("golden", r#"[{"row": [1, 2, 3], "score": 0}, {"row": [1, 2, 5], "score": 2}]"#);
    assert!(load(&file).is_ok());
    file.set("golden", r#"[{"row": [1, 2, 3], "score": 0}, {"row": [1, 2, 5], "score": 2.01}]"#);
    let error = load(&file).unwrap_err();
    assert!(matches!(error, LoadError::Golden { index: 1, found: 2.0, expected: 2.01, .. }), "{error}");
}

#[test]
fn a_foreign_file_becomes_a_model_with_metadata() {
    // An ONNX file of others is refused with what it lacks, and loads once the metadata is set.
    let mut file = File::largest_distance();
    let metadata = std::mem::take(&mut file.metadata);
    let bytes = file.bytes();
    let error = Model::load(&bytes, &LoadLimits::default()).unwrap_err();
    assert!(error.to_string().contains("millwright.channels"), "{error}");
    let bytes = millwright_models::onnx::set_metadata(&bytes, &metadata).unwrap();
    assert_eq!(Model::load(&bytes, &LoadLimits::default()).unwrap().contract().name.as_str(), "test");
}

#[test]
fn one_model_serves_many_threads() {
    // Four threads score with the same model at once and get the same scores.
    fn shared<T: Send + Sync>(_: &T) {}
    let model = load(&File::largest_distance()).unwrap();
    shared(&model);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..50 {
                    assert_eq!(model.score(&window([3.0, 2.0, 3.0]), 1).unwrap().score, [2.0]);
                }
            });
        }
    });
}
