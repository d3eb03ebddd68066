//! Files made to hurt: each is an error with a reason, never a panic, never an allocation that the file does not justify.

// The functions that tests share are tests as well.
#![allow(clippy::unwrap_used)]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use millwright_models::onnx::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};
use millwright_models::{LoadError, LoadLimits, Model, Params, commission};
use proptest::prelude::*;
use prost::Message as _;
use support::{File, int, ints};

/// Remembers the largest single allocation of the process.
struct Largest;

static LARGEST: AtomicUsize = AtomicUsize::new(0);

#[allow(unsafe_code)] // A global allocator is unsafe by its trait; this one only measures.
unsafe impl GlobalAlloc for Largest {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.fetch_max(layout.size(), Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Largest = Largest;

/// No test here needs more in one piece; the files are some kilobytes, the limits 64 MiB and more.
const ALLOCATION_MAX: usize = 48 << 20;

fn refused(bytes: &[u8]) -> LoadError {
    let error = Model::load(bytes, &LoadLimits::default()).unwrap_err();
    let largest = LARGEST.load(Ordering::Relaxed);
    assert!(largest <= ALLOCATION_MAX, "{largest} bytes in one piece, for: {error}");
    error
}

fn commissioned() -> Vec<u8> {
    let channels: Vec<String> = ["flow", "pressure"].map(String::from).to_vec();
    let rows: Vec<f32> = (0..200).flat_map(|i| [30.0 + (i as f32 * 0.9).sin(), 2.0 + (i as f32 * 1.7).cos()]).collect();
    commission("pump", 1, &channels, &rows, &Params::default()).unwrap().onnx
}

#[test]
fn a_truncated_file_is_an_error_at_every_length() {
    // Cut anywhere, the file is refused, unless the cut leaves out exactly the last entry: then it is the same model without
    // golden vectors.
    let file = commissioned();
    for len in 0..file.len() {
        if let Ok(model) = Model::load(&file[..len], &LoadLimits::default()) {
            assert!(model.contract().golden.is_empty(), "at {len} of {}", file.len());
        }
    }
}

#[test]
fn a_flipped_byte_never_panics_and_never_changes_the_score_unnoticed() {
    // With any one byte of the graph inverted, the file is refused or scores its golden vectors as before; they are checked at load.
    let file = commissioned();
    for at in 0..file.len() {
        let mut damaged = file.clone();
        damaged[at] ^= 0xff;
        if let Ok(model) = Model::load(&damaged, &LoadLimits::default()) {
            let windows = vec![0.5; model.contract().window_len()];
            let _ = model.score(&windows, 1);
        }
    }
}

#[test]
fn text_and_emptiness_are_no_models() {
    // A JSON file, a picture's first bytes and nothing at all get an error that says so.
    for bytes in [&b"{\"a\": 1}"[..], b"\x89PNG\r\n\x1a\n0000", b"", &[0; 1_000]] {
        let error = refused(bytes);
        assert!(matches!(error, LoadError::NotOnnx { .. } | LoadError::Contract(_)), "{error}");
    }
}

#[test]
fn a_constant_of_a_billion_elements_is_refused_by_arithmetic() {
    // A shape of 10⁹ with four bytes of data, a shape whose product overflows, a negative one, and data that is too short.
    for (dims, data) in [(vec![1_000_000_000], 1), (vec![i64::MAX, i64::MAX, 2], 1), (vec![-3], 1), (vec![3], 2)] {
        let mut file = File::largest_distance();
        file.graph.initializer[0].dims = dims;
        file.graph.initializer[0].float_data.truncate(data);
        let error = refused(&file.bytes());
        assert!(matches!(error, LoadError::TensorTooLarge { .. } | LoadError::NotOnnx { .. }), "{error}");
        assert!(error.to_string().contains("normal"), "{error}");
    }
}

#[test]
fn an_operator_that_asks_for_a_huge_tensor_is_refused() {
    // A few bytes of shape must not become terabytes, by whichever operator and wherever the shape is kept.
    let huge = [1_000_000, 1_000_000];
    let constant = AttributeProto {
        name: "value".to_owned(),
        r#type: 4,
        t: Some(TensorProto { dims: vec![2], data_type: 7, int64_data: huge.to_vec(), ..Default::default() }),
        ..Default::default()
    };
    let mut files = Vec::new();
    for op in ["ConstantOfShape", "Expand", "Tile"] {
        let mut file = File::new();
        file.integers("shape", &huge).floats("one", &[1, 1], &[1.0]);
        let inputs: &[&str] = if op == "ConstantOfShape" { &["shape"] } else { &["one", "shape"] };
        file.node(op, inputs, "grown", vec![]);
        files.push(file);
    }
    let mut file = File::new();
    file.node("Constant", &[], "shape", vec![constant]).node("ConstantOfShape", &["shape"], "grown", vec![]);
    files.push(file);
    let mut file = File::new();
    file.node("Constant", &[], "shape", vec![ints("value_ints", &huge)]).node(
        "ConstantOfShape",
        &["shape"],
        "grown",
        vec![],
    );
    files.push(file);
    let mut file = File::new();
    file.floats("start", &[], &[0.0]).floats("end", &[], &[1e6]).floats("step", &[], &[1e-6]);
    file.node("Range", &["start", "end", "step"], "grown", vec![]);
    files.push(file);
    for mut file in files {
        file.node("ReduceMax", &["grown"], "most", vec![int("keepdims", 0)])
            .node("ReduceMax", &["window"], "peak", vec![ints("axes", &[1, 2]), int("keepdims", 0)])
            .node("Add", &["peak", "most"], "score", vec![])
            .output("score", &["batch"]);
        let error = refused(&file.bytes());
        assert!(matches!(error, LoadError::TensorTooLarge { .. }), "{error}");
    }
}

#[test]
fn a_huge_intermediate_tensor_is_refused_before_it_runs() {
    // Broadcasting two long vectors against each other stays small in the file and is a terabyte when run.
    let mut file = File::new();
    file.integers("row", &[1, 1, 1_000_000])
        .integers("column", &[1, 1_000_000, 1])
        .node("ReduceMax", &["window"], "peak", vec![ints("axes", &[1, 2]), int("keepdims", 1)])
        .node("Expand", &["peak", "row"], "wide", vec![])
        .node("Expand", &["peak", "column"], "tall", vec![])
        .node("Mul", &["wide", "tall"], "all", vec![])
        .node("ReduceMax", &["all"], "score", vec![ints("axes", &[1, 2]), int("keepdims", 0)])
        .output("score", &["batch"]);
    assert!(matches!(refused(&file.bytes()), LoadError::TooMuchMemory { .. }));
}

#[test]
fn a_file_of_tiny_messages_is_weighed_before_it_is_decoded() {
    // A million empty nodes in two megabytes would decode to hundreds; a megabyte of packed zeros to eight.
    let mut graph = Vec::new();
    for _ in 0..1_000_000 {
        graph.extend_from_slice(&[0x0a, 0x00]);
    }
    let mut file = vec![0x3a];
    prost::encoding::encode_varint(graph.len() as u64, &mut file);
    file.extend_from_slice(&graph);
    assert!(matches!(refused(&file), LoadError::TooMuchMemory { .. }));
}

#[test]
fn the_file_limit_is_exact() {
    // A file of exactly the allowed size loads, one byte less allowed and it does not.
    let bytes = File::largest_distance().bytes();
    let limits = LoadLimits { file_bytes_max: bytes.len(), ..Default::default() };
    assert!(Model::load(&bytes, &limits).is_ok());
    let limits = LoadLimits { file_bytes_max: bytes.len() - 1, ..Default::default() };
    assert!(matches!(Model::load(&bytes, &limits), Err(LoadError::FileTooLarge { .. })));
}

#[test]
fn a_long_chain_loads_and_a_longer_one_is_refused() {
    // 1,000 nodes in a row don't exhaust the stack of a test thread; 4,001 are over the limit.
    let chain = |nodes: usize| {
        let mut file = File::new();
        file.node("ReduceMax", &["window"], "v0", vec![ints("axes", &[1, 2]), int("keepdims", 0)]);
        for i in 1..nodes - 1 {
            file.node("Neg", &[&format!("v{}", i - 1)], &format!("v{i}"), vec![]);
        }
        file.node("Identity", &[&format!("v{}", nodes - 2)], "score", vec![]).output("score", &["batch"]);
        file.bytes()
    };
    assert!(matches!(refused(&chain(4_001)), LoadError::TooManyNodes { nodes: 4_001, .. }));
    let outcome = Model::load(&chain(1_000), &LoadLimits::default());
    assert!(outcome.is_ok(), "{outcome:?}");
}

#[test]
fn nesting_and_cycles_are_refused() {
    // Subgraphs inside subgraphs, a node that reads its own output, and a value made twice.
    let mut inner = GraphProto::default();
    for _ in 0..30 {
        let attribute =
            AttributeProto { name: "then_branch".to_owned(), r#type: 5, g: Some(inner), ..Default::default() };
        let node = NodeProto { op_type: "If".to_owned(), attribute: vec![attribute], ..Default::default() };
        inner = GraphProto { node: vec![node], ..Default::default() };
    }
    let mut file = File::largest_distance();
    file.graph.node.extend(inner.node);
    assert!(matches!(refused(&file.bytes()), LoadError::NotOnnx { .. }));

    let mut file = File::new();
    file.node("Add", &["window", "score"], "score", vec![]).output("score", &["batch"]);
    assert!(refused(&file.bytes()).to_string().contains("nothing before it makes"));

    let mut file = File::largest_distance();
    file.node("Identity", &["distance"], "mean", vec![]);
    assert!(refused(&file.bytes()).to_string().contains("made twice"));
}

#[test]
fn a_symbol_that_is_a_deep_expression_is_not_parsed() {
    // A dimension named by a hundred thousand brackets would overflow the stack of an expression parser.
    let mut file = File::largest_distance();
    let deep = format!("{}a{}", "(".repeat(100_000), ")".repeat(100_000));
    file.graph.input.clear();
    file.input("window", &[&deep, "4", "3"]);
    assert!(Model::load(&file.bytes(), &LoadLimits::default()).is_ok());
}

#[test]
fn the_interface_is_compared_with_the_contract() {
    // Another input name, another number of channels or samples, another rank, two inputs, no score: each error says what was
    // expected and what was found.
    let input = |name: &str, shape: &[&str]| {
        let mut file = File::largest_distance();
        file.graph.input.clear();
        file.input(name, shape);
        refused(&file.bytes()).to_string()
    };
    let message = input("x", &["batch", "4", "3"]);
    assert!(message.contains("`window`: f32[batch, 4, 3]") && message.contains("`x`: f32[?, 4, 3]"), "{message}");
    for shape in [&["batch", "4", "5"][..], &["batch", "7", "3"], &["batch", "12"], &["batch", "4", "3", "1"]] {
        assert!(input("window", shape).contains("[batch, 4, 3]"), "{shape:?}");
    }
    let mut file = File::largest_distance();
    file.input("more", &["1"]);
    assert!(refused(&file.bytes()).to_string().contains("2 inputs"));
    let mut file = File::largest_distance();
    file.graph.output[0].name = "distance".to_owned();
    assert!(matches!(refused(&file.bytes()), LoadError::Output { .. }));
    let mut file = File::largest_distance();
    file.output("contribution", &["batch", "2"]);
    assert!(matches!(refused(&file.bytes()), LoadError::Output { .. }));
    let mut file = File::largest_distance();
    file.output("contribution", &["batch", "3"]);
    assert!(refused(&file.bytes()).to_string().contains("no node makes it"));
    let mut file = File::largest_distance();
    file.set("samples", "9");
    assert!(matches!(refused(&file.bytes()), LoadError::Input { .. }));
}

#[test]
fn a_wrong_shape_that_is_not_declared_is_found_by_the_trial() {
    // The file says nothing of the score's shape, and the graph gives one number per channel.
    let mut file = File::largest_distance();
    file.graph.node.truncate(2);
    file.graph.node.push(NodeProto {
        op_type: "Abs".into(),
        input: vec!["off".into()],
        output: vec!["score".into()],
        ..Default::default()
    });
    file.graph.output.clear();
    file.output("score", &[]);
    file.graph.output[0].r#type.as_mut().unwrap().tensor_type.as_mut().unwrap().shape = None;
    let error = refused(&file.bytes());
    assert!(matches!(error, LoadError::Engine { .. }), "{error}");
}

#[test]
fn a_model_that_gives_nan_at_its_normals_is_refused() {
    // The logarithm of a negative number is found by the trial run.
    let mut file = File::new();
    file.node("Neg", &["window"], "negative", vec![])
        .node("Log", &["negative"], "log", vec![])
        .node("ReduceMean", &["log"], "score", vec![ints("axes", &[1, 2]), int("keepdims", 0)])
        .output("score", &["batch"]);
    assert!(matches!(refused(&file.bytes()), LoadError::NotFinite { .. }));
}

#[test]
fn weights_in_another_file_are_refused() {
    // A model never makes the gateway read a path of its choice.
    let mut file = File::largest_distance();
    file.graph.initializer[0].data_location = 1;
    assert!(matches!(refused(&file.bytes()), LoadError::ExternalData { .. }));
}

#[test]
fn functions_of_its_own_are_refused_with_the_remedy() {
    // Field 25 of the model holds functions, which the engine would ignore.
    let mut bytes = File::largest_distance().bytes();
    bytes.extend_from_slice(&[0xca, 0x01, 0x00]);
    assert!(refused(&bytes).to_string().contains("inline"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        // Whatever the bytes, loading ends with an error.
        prop_assert!(Model::load(&bytes, &LoadLimits::default()).is_err());
    }

    #[test]
    fn a_shuffled_graph_never_panics(op in "[A-Z][a-zA-Z]{1,12}", known in 0_usize..40, inputs in 0_usize..4, axis in -9_i64..9) {
        // A node with any operator, any number of inputs and a stray attribute gives a model or an error.
        const OPERATORS: [&str; 40] = ["Add", "Gemm", "Conv", "MatMul", "Concat", "Split", "Slice", "Gather", "Reshape", "Transpose",
            "Squeeze", "Unsqueeze", "Pad", "Resize", "TopK", "Softmax", "LayerNormalization", "LSTM", "GRU", "RNN", "Scan", "If", "Loop",
            "OneHot", "Einsum", "Range", "Tile", "Expand", "Where", "Cast", "ArgMax", "CumSum", "Clip", "BatchNormalization",
            "MaxPool", "TreeEnsembleClassifier", "Scaler", "Normalizer", "NonZero", "ScatterND"];
        let operator = if known % 2 == 0 { OPERATORS[known] } else { &op };
        let mut file = File::new();
        file.graph.name = operator.to_owned();
        let names = ["window", "k", "window", "k"];
        file.integers("k", &[1, 2]).node(operator, &names[..inputs], "grown", vec![int("axis", axis)])
            .node("ReduceMax", &["grown"], "score", vec![ints("axes", &[1, 2]), int("keepdims", 0)])
            .output("score", &["batch"]);
        let _ = Model::load(&file.bytes(), &LoadLimits::default());
    }
}

#[test]
fn decoding_what_we_write_gives_what_we_wrote() {
    // The structures used here are the crate's own: a model survives its own encoding.
    let bytes = commissioned();
    assert_eq!(ModelProto::decode(bytes.as_slice()).unwrap().encode_to_vec(), bytes);
}
