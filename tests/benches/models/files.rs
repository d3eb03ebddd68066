//! The models that are measured.

use millwright_models::{Params, commission};

use crate::graph::{Graph, Noise, floats, int, ints, text, texts};

/// A kind of model, and how much of onnxruntime's time it may take.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) onnx: Vec<u8>,
    pub(crate) times_peer_max: f64,
}

const CHANNELS: usize = 8;
/// Rows that an autoencoder sees.
const SAMPLES: usize = 60;
/// Rows of the trailing mean.
const WINDOW: usize = 20;
/// Units of an LSTM or GRU.
const HIDDEN: usize = 32;
const TREES: usize = 50;
const DEPTH_MAX: u32 = 9;

/// All of them.
pub(crate) fn all() -> anyhow::Result<Vec<Case>> {
    let case = |name, times_peer_max, onnx| Case { name, onnx, times_peer_max };
    Ok(vec![
        case("pca", 0.8, pca()),
        case("mahalanobis", 0.8, mahalanobis()?),
        case("conv-ae", 1.2, conv_autoencoder()),
        case("lstm-ae", 2.0, recurrent_autoencoder("LSTM", 4)),
        case("gru-ae", 2.0, recurrent_autoencoder("GRU", 3)),
        case("forest-50", 2.0, forest(false)),
        case("forest-50-classes", 2.0, forest(true)),
    ])
}

/// The detector that the gateway learns by itself.
pub(crate) fn mahalanobis() -> anyhow::Result<Vec<u8>> {
    let mut noise = Noise::new(3);
    let names: Vec<String> = (0..CHANNELS).map(|c| format!("channel {c}")).collect();
    let rows: Vec<f32> = (0..400 * CHANNELS).map(|_| noise.normal()).collect();
    Ok(commission("mahalanobis", 1, &names, &rows, &Params::default())?.onnx)
}

/// T² and Q of the window's mean, three components.
fn pca() -> Vec<u8> {
    let components = 3;
    let mut graph = Graph::new(WINDOW, CHANNELS);
    let row = || vec![ints("axes", &[1]), int("keepdims", 0)];
    graph.floats("mean", &[CHANNELS], &[0.1; CHANNELS]);
    graph.floats("scale", &[CHANNELS], &[2.0; CHANNELS]);
    graph.floats("precision", &[components], &[0.5, 1.0, 2.0]);
    graph.weights("loadings", &[CHANNELS, components], CHANNELS);
    graph.weights("back", &[components, CHANNELS], CHANNELS);
    graph.integers("axis", &[1]);
    graph.node("ReduceMean", &["window"], &["level"], row());
    graph.node("Sub", &["level", "mean"], &["centred"], vec![]);
    graph.node("Mul", &["centred", "scale"], &["z"], vec![]);
    graph.node("MatMul", &["z", "loadings"], &["t"], vec![]);
    graph.node("Mul", &["t", "t"], &["t_square"], vec![]);
    graph.node("Mul", &["t_square", "precision"], &["t_scaled"], vec![]);
    graph.node("ReduceSum", &["t_scaled", "axis"], &["t2"], vec![int("keepdims", 0)]);
    graph.node("MatMul", &["t", "back"], &["explained"], vec![]);
    graph.node("Sub", &["z", "explained"], &["residual"], vec![]);
    graph.node("Mul", &["residual", "residual"], &["contribution"], vec![]);
    graph.node("ReduceSum", &["contribution", "axis"], &["q"], vec![int("keepdims", 0)]);
    graph.node("Max", &["t2", "q"], &["larger"], vec![]);
    graph.node("Sqrt", &["larger"], &["score"], vec![]);
    graph.contributes();
    graph.finish("pca")
}

/// Convolutions of width 7: 8 → 32 → 16 channels with stride 2, and back.
fn conv_autoencoder() -> Vec<u8> {
    let mut graph = Graph::new(SAMPLES, CHANNELS);
    graph.node("Transpose", &["window"], &["x0"], vec![ints("perm", &[0, 2, 1])]);
    let layers = [
        ("Conv", 8, 32, 2),
        ("Conv", 32, 16, 2),
        ("ConvTranspose", 16, 16, 2),
        ("ConvTranspose", 16, 32, 2),
        ("Conv", 32, 8, 1),
    ];
    for (at, (op, from, to, stride)) in layers.into_iter().enumerate() {
        let (w, b, x, y) = (format!("w{at}"), format!("b{at}"), format!("x{at}"), format!("y{at}"));
        let dims = if op == "Conv" { [to, from, 7] } else { [from, to, 7] };
        graph.weights(&w, &dims, from * 7);
        graph.weights(&b, &[to], from * 7);
        let mut attributes = vec![ints("kernel_shape", &[7]), ints("pads", &[3, 3]), ints("strides", &[stride])];
        if op == "ConvTranspose" {
            attributes.push(ints("output_padding", &[1]));
        }
        graph.node(op, &[&x, &w, &b], &[&y], attributes);
        let next = format!("x{}", at + 1);
        match at {
            4 => graph.node("Identity", &[&y], &[&next], vec![]),
            _ => graph.node("Relu", &[&y], &[&next], vec![]),
        }
    }
    graph.node("Transpose", &["x5"], &["reconstruction"], vec![ints("perm", &[0, 2, 1])]);
    graph.score_reconstruction("reconstruction");
    graph.finish("conv-ae")
}

/// An encoder whose last state is repeated for the decoder, as PyTorch exports it: samples first, states of zeros expanded to the batch.
fn recurrent_autoencoder(op: &str, gates: usize) -> Vec<u8> {
    let mut graph = Graph::new(SAMPLES, CHANNELS);
    graph.node("Transpose", &["window"], &["steps"], vec![ints("perm", &[1, 0, 2])]);
    graph.node("Shape", &["steps"], &["shape"], vec![]);
    graph.integers("second", &[1]);
    graph.integers("one", &[1]);
    graph.integers("hidden", &[HIDDEN as i64]);
    graph.node("Gather", &["shape", "second"], &["batch_size"], vec![int("axis", 0)]);
    graph.node("Concat", &["one", "batch_size", "hidden"], &["state_shape"], vec![int("axis", 0)]);
    graph.floats("zero", &[1, 1, 1], &[0.0]);
    graph.node("Expand", &["zero", "state_shape"], &["state"], vec![]);
    graph.floats("ones", &[SAMPLES, 1, 1], &[1.0; SAMPLES]);
    for (layer, input, from) in [("encoder", "steps", CHANNELS), ("decoder", "repeated", HIDDEN)] {
        if layer == "decoder" {
            graph.node("Mul", &["encoder_last", "ones"], &["repeated"], vec![]);
        }
        let name = |what: &str| format!("{layer}_{what}");
        graph.weights(&name("w"), &[1, gates * HIDDEN, from], HIDDEN);
        graph.weights(&name("r"), &[1, gates * HIDDEN, HIDDEN], HIDDEN);
        graph.weights(&name("b"), &[1, 2 * gates * HIDDEN], HIDDEN);
        let (w, r, b, all, last) = (name("w"), name("r"), name("b"), name("all"), name("last"));
        let mut inputs = vec![input, &w, &r, &b, "", "state"];
        let mut attributes = vec![int("hidden_size", HIDDEN as i64)];
        if op == "LSTM" {
            inputs.push("state");
        } else {
            attributes.push(int("linear_before_reset", 1));
        }
        graph.node(op, &inputs, &[&all, &last], attributes);
    }
    graph.integers("direction", &[1]);
    graph.weights("out_w", &[HIDDEN, CHANNELS], HIDDEN);
    graph.weights("out_b", &[CHANNELS], HIDDEN);
    graph.node("Squeeze", &["decoder_all", "direction"], &["decoded"], vec![]);
    graph.node("Transpose", &["decoded"], &["rows"], vec![ints("perm", &[1, 0, 2])]);
    graph.node("MatMul", &["rows", "out_w"], &["unbiased"], vec![]);
    graph.node("Add", &["unbiased", "out_b"], &["reconstruction"], vec![]);
    graph.score_reconstruction("reconstruction");
    graph.finish(if op == "LSTM" { "lstm-ae" } else { "gru-ae" })
}

/// The lists of a tree ensemble.
#[derive(Default)]
struct Trees {
    trees: Vec<i64>,
    ids: Vec<i64>,
    features: Vec<i64>,
    modes: Vec<&'static str>,
    values: Vec<f32>,
    if_true: Vec<i64>,
    if_false: Vec<i64>,
    leaves: Vec<(i64, i64)>,
    weights: Vec<f32>,
}

/// Trees on 32 numbers that are as deep as a random forest's.
fn forest(classes: bool) -> Vec<u8> {
    let features = 4 * CHANNELS;
    let mut noise = Noise::new(5);
    let mut lists = Trees::default();
    for tree in 0..TREES as i64 {
        let mut open = vec![(0, 0)];
        let mut next = 1;
        while let Some((id, depth)) = open.pop() {
            let branch = depth < DEPTH_MAX && (depth < 4 || noise.uniform() < 0.9);
            lists.trees.push(tree);
            lists.ids.push(id);
            lists.features.push(if branch { (noise.uniform() * features as f32) as i64 } else { 0 });
            lists.modes.push(if branch { "BRANCH_LEQ" } else { "LEAF" });
            lists.values.push(if branch { noise.normal() } else { 0.0 });
            lists.if_true.push(if branch { next } else { 0 });
            lists.if_false.push(if branch { next + 1 } else { 0 });
            if branch {
                open.extend([(next, depth + 1), (next + 1, depth + 1)]);
                next += 2;
            } else {
                lists.leaves.push((tree, id));
                lists.weights.push(noise.uniform() / TREES as f32);
            }
        }
    }
    forest_file(&lists, features, classes)
}

fn forest_file(lists: &Trees, features: usize, classes: bool) -> Vec<u8> {
    let mut graph = Graph::new(4, CHANNELS);
    graph.integers("flat", &[-1, features as i64]);
    graph.node("Reshape", &["window", "flat"], &["x"], vec![]);
    let prefix = if classes { "class" } else { "target" };
    let name = |what: &str| format!("{prefix}_{what}");
    // A classifier's leaves speak of both classes.
    let (mut trees, mut nodes, mut ids, mut weights) = (vec![], vec![], vec![], vec![]);
    for (&(tree, node), &weight) in lists.leaves.iter().zip(&lists.weights) {
        let spoken = [(0, weight), (1, 1.0 / TREES as f32 - weight)];
        for (id, weight) in spoken.into_iter().take(if classes { 2 } else { 1 }) {
            trees.push(tree);
            nodes.push(node);
            ids.push(id);
            weights.push(weight);
        }
    }
    let mut attributes = vec![
        ints("nodes_treeids", &lists.trees),
        ints("nodes_nodeids", &lists.ids),
        ints("nodes_featureids", &lists.features),
        texts("nodes_modes", &lists.modes),
        floats("nodes_values", lists.values.clone()),
        ints("nodes_truenodeids", &lists.if_true),
        ints("nodes_falsenodeids", &lists.if_false),
        ints(&name("treeids"), &trees),
        ints(&name("nodeids"), &nodes),
        ints(&name("ids"), &ids),
        floats(&name("weights"), weights),
        text("post_transform", "NONE"),
    ];
    if classes {
        attributes.push(ints("classlabels_int64s", &[0, 1]));
        graph.node("TreeEnsembleClassifier", &["x"], &["label", "probabilities"], attributes);
        graph.integers("second", &[1]);
        graph.node("Gather", &["probabilities", "second"], &["wide"], vec![int("axis", 1)]);
        graph.integers("axis", &[1]);
        graph.node("Squeeze", &["wide", "axis"], &["score"], vec![]);
    } else {
        attributes.push(int("n_targets", 1));
        graph.integers("axis", &[1]);
        graph.node("TreeEnsembleRegressor", &["x"], &["wide"], attributes);
        graph.node("Squeeze", &["wide", "axis"], &["score"], vec![]);
    }
    graph.finish(if classes { "forest-50-classes" } else { "forest-50" })
}
