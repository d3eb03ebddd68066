//! The worked examples of `models/train`, run by the gateway's engine and compared with what their own libraries answered.
//!
//! Each example is `<kind>.onnx` beside `<kind>.json`, which holds windows and the outputs of scikit-learn, PyTorch or Keras for
//! them. With `MILLWRIGHT_EXAMPLES` set to a folder, the examples in that folder are run as well: `.ci/run` trains some afresh.

// The functions that tests share are tests as well.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "the differences are shown when the test passes, too")]

use std::fs;
use std::path::{Path, PathBuf};

use millwright_models::{Explanation, LoadLimits, Model};
use serde::Deserialize;

/// Largest difference to the library, absolute up to 1 and relative above. Engines sum in another order than libraries, some of
/// which compute in double precision.
const DIFFERENCE_MAX: f32 = 1e-4;

/// What is committed: 13 kinds of model, autoencoders by two libraries.
const KINDS: [&str; 16] = [
    "gradient-boosting",
    "isolation-forest",
    "keras-conv",
    "keras-dense",
    "keras-lstm",
    "linear-regression",
    "mahalanobis",
    "mlp",
    "one-class-svm",
    "pca",
    "random-forest",
    "torch-conv",
    "torch-dense",
    "torch-gru",
    "torch-lstm",
    "torch-transformer",
];

/// Windows and the outputs of the training library for them.
#[derive(Deserialize)]
struct Record {
    library: String,
    samples: usize,
    channels: usize,
    windows: Vec<Vec<f32>>,
    score: Vec<f32>,
    /// `None` when the model gives no contributions.
    contribution: Option<Vec<Vec<f32>>>,
}

struct Example {
    kind: String,
    model: Model,
    record: Record,
}

fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("train/examples")
}

/// Names of the ONNX files in a folder, without their ending, sorted.
fn kinds(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let paths = entries.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "onnx"));
    let mut kinds: Vec<String> = paths.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    kinds.sort();
    kinds
}

fn load_all(folder: &Path) -> Vec<Example> {
    kinds(folder).iter().map(|kind| load(folder, kind)).collect()
}

fn load(folder: &Path, kind: &str) -> Example {
    let bytes = fs::read(folder.join(format!("{kind}.onnx"))).unwrap();
    let model = Model::load(&bytes, &LoadLimits::default()).unwrap_or_else(|e| panic!("{kind}: {e}"));
    let text = fs::read_to_string(folder.join(format!("{kind}.json"))).unwrap();
    let record: Record = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{kind}: {e}"));
    assert_eq!(model.contract().samples, record.samples, "{kind}");
    assert_eq!(model.contract().channels.len(), record.channels, "{kind}");
    Example { kind: kind.to_owned(), model, record }
}

/// Largest difference, in units of the allowed one, and absolute.
fn difference(found: &[f32], wanted: &[f32]) -> (f32, f32) {
    assert_eq!(found.len(), wanted.len());
    let pairs = || found.iter().zip(wanted).map(|(found, wanted)| ((found - wanted).abs(), wanted.abs().max(1.0)));
    // A NaN would be lost in a maximum.
    assert!(pairs().all(|(difference, _)| difference.is_finite()));
    let relative = pairs().map(|(difference, size)| difference / (size * DIFFERENCE_MAX)).fold(0.0, f32::max);
    (relative, pairs().map(|(difference, _)| difference).fold(0.0, f32::max))
}

/// Scores the recorded windows alone and in one batch, and compares both with the library.
fn compare(example: &Example) {
    let Example { kind, model, record } = example;
    let together = model.score(&record.windows.concat(), record.windows.len()).unwrap();
    let alone: Vec<_> = record.windows.iter().map(|window| model.score(window, 1).unwrap()).collect();
    let mut report = format!("{kind} ({}), {} windows:", record.library, record.windows.len());
    let mut worst = 0.0_f32;
    let mut add = |what: &str, found: &[f32], wanted: &[f32]| {
        let (relative, absolute) = difference(found, wanted);
        worst = worst.max(relative);
        report.push_str(&format!(" {what} {absolute:.1e}"));
    };
    let score_alone: Vec<f32> = alone.iter().flat_map(|scores| scores.score.clone()).collect();
    add("score", &together.score, &record.score);
    add("score alone", &score_alone, &record.score);
    if let Some(contribution) = &record.contribution {
        assert_eq!(model.explanation(), Explanation::Graph, "{kind}");
        let contribution_alone: Vec<f32> = alone.iter().flat_map(|scores| scores.contribution.clone()).collect();
        add("contribution", &together.contribution, &contribution.concat());
        add("contribution alone", &contribution_alone, &contribution.concat());
    } else {
        assert_eq!(model.explanation(), Explanation::Occlusion, "{kind}");
    }
    println!("{report}{}", if model.any_batch() { "" } else { " (window by window)" });
    assert!(worst <= 1.0, "largest differences of {report}; allowed are {DIFFERENCE_MAX:.0e}, above 1 relative");
}

#[test]
fn every_kind_has_an_example() {
    // What is listed here is what is committed, each with its record.
    assert_eq!(kinds(&committed()), KINDS);
}

#[test]
fn examples_score_as_their_libraries_do() {
    // Each example gives the scores and contributions of the library that trained it, alone and in a batch.
    load_all(&committed()).iter().for_each(compare);
}

#[test]
fn fresh_exports_score_as_their_libraries_do() {
    // The same for the examples that were trained just now, when there are any.
    let Some(folder) = std::env::var_os("MILLWRIGHT_EXAMPLES") else {
        println!("not run: MILLWRIGHT_EXAMPLES names no folder of fresh exports");
        return;
    };
    let examples = load_all(Path::new(&folder));
    assert!(!examples.is_empty(), "MILLWRIGHT_EXAMPLES holds no example");
    examples.iter().for_each(compare);
}

#[test]
fn examples_tell_faults_from_normal_and_name_channels() {
    // Of the recorded windows, half healthy and half faulty, a faulty one scores highest, and some channel has added to it.
    for Example { kind, model, record } in load_all(&committed()) {
        let scores = model.score(&record.windows.concat(), record.windows.len()).unwrap();
        let highest = (0..scores.score.len()).max_by(|a, b| scores.score[*a].total_cmp(&scores.score[*b])).unwrap();
        assert!(scores.score[highest] >= 1.0, "{kind}: the highest score is {}", scores.score[highest]);
        let added = &scores.contribution[highest * record.channels..(highest + 1) * record.channels];
        assert!(added.iter().any(|v| *v > 0.0), "{kind}: no channel added to a score of {}", scores.score[highest]);
    }
}
