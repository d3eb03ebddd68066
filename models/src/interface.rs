//! Compares what the graph declares with what the contract promises.
//!
//! Owns the names and shapes of the interface, and finding out which nodes the outputs need: the rest (a `ZipMap` for labels
//! nobody reads, a training head) is left out of what is loaded. Never runs anything. A dimension that the file leaves open is
//! taken as it comes; the trial run settles it.

use std::collections::{HashMap, HashSet};

use crate::contract::{Contract, InputKind, OutputKind};
use crate::inspect::node_label;
use crate::onnx::{Dimension, GraphProto, NodeProto, TensorTypeProto, ValueInfoProto, data_type};
use crate::runtime::LoadError;

/// Name of the output that needs no conversion.
pub(crate) const SCORE: &str = "score";
/// Name of the output that explains the score.
pub(crate) const CONTRIBUTION: &str = "contribution";

/// An output that is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Output {
    /// Its name.
    pub(crate) name: &'static str,
    /// Its shape behind the batch.
    pub(crate) row_shape: Vec<usize>,
}

impl Output {
    /// The shape behind the batch as it continues `[batch`.
    pub(crate) fn row_dims(&self) -> String {
        self.row_shape.iter().map(|dim| format!(", {dim}")).collect()
    }
}

/// What a graph takes and gives, once it agrees with the contract.
#[derive(Debug)]
pub(crate) struct Interface {
    /// Name of its one input.
    pub(crate) input: &'static str,
    /// Input shape behind the batch.
    pub(crate) row_shape: Vec<usize>,
    /// The output that makes the score.
    pub(crate) primary: Output,
    /// The output that explains it, when there is one.
    pub(crate) contribution: Option<Output>,
    /// Which nodes, in the file's order, the outputs need.
    pub(crate) needed: Vec<bool>,
}

impl Interface {
    /// Names of the outputs that are read.
    pub(crate) fn outputs(&self) -> Vec<&'static str> {
        std::iter::once(self.primary.name).chain(self.contribution.as_ref().map(|output| output.name)).collect()
    }
}

/// Checks inputs and outputs against the contract.
pub(crate) fn check(graph: &GraphProto, contract: &Contract) -> Result<Interface, LoadError> {
    let channels = contract.channels.len();
    let (input, row_shape) = match &contract.input {
        InputKind::Window => ("window", vec![contract.samples - contract.output.horizon(), channels]),
        InputKind::Features(features) => ("features", vec![features.len() * channels]),
    };
    check_input(graph, input, &row_shape)?;
    let primary = primary(contract);
    let declared = find_output(graph, primary.name)
        .ok_or_else(|| output_error(&primary, names(&graph.output).unwrap_or_else(|| "no output".to_owned())))?;
    check_output(declared, &primary)?;
    // Residuals explain themselves, so a contribution beside them would be a second opinion.
    let explains = contract.output.residual().is_none();
    let contribution = match find_output(graph, CONTRIBUTION).filter(|_| explains) {
        None => None,
        Some(declared) => {
            let contribution = Output { name: CONTRIBUTION, row_shape: vec![channels] };
            check_output(declared, &contribution)?;
            Some(contribution)
        }
    };
    let mut interface = Interface { input, row_shape, primary, contribution, needed: Vec::new() };
    interface.needed = needed_nodes(graph, &interface.outputs())?;
    Ok(interface)
}

/// The output that the contract's kind names.
fn primary(contract: &Contract) -> Output {
    let channels = contract.channels.len();
    let (name, row_shape) = match &contract.output {
        OutputKind::Score => (SCORE, Vec::new()),
        OutputKind::Reconstruction(_) => ("reconstruction", vec![contract.samples, channels]),
        OutputKind::Forecast(forecast) => ("forecast", vec![forecast.horizon, channels]),
        OutputKind::Probability(classes) => ("probability", vec![classes.names.len()]),
        OutputKind::Regression(_) => ("value", Vec::new()),
    };
    Output { name, row_shape }
}

fn check_input(graph: &GraphProto, name: &'static str, row_shape: &[usize]) -> Result<(), LoadError> {
    // Old exporters list the constants among the inputs.
    let constants: HashSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
    let inputs: Vec<&ValueInfoProto> = graph.input.iter().filter(|i| !constants.contains(i.name.as_str())).collect();
    let expected = format!("`{name}`: f32[batch, {}]", list(row_shape));
    let error = |found: String| LoadError::Input { expected: expected.clone(), found };
    let [input] = inputs.as_slice() else {
        return Err(error(format!("{} inputs", inputs.len())));
    };
    let described = || error(describe(input));
    if input.name != name {
        return Err(described());
    }
    let tensor = tensor_type(input).ok_or_else(described)?;
    if tensor.elem_type != data_type::FLOAT {
        return Err(described());
    }
    if let Some(dims) = dims(tensor) {
        let rank_fits = dims.len() == row_shape.len() + 1;
        if !rank_fits
            || !dims.iter().skip(1).zip(row_shape).all(|(dim, want)| fits(*dim, *want))
            || dims.first() == Some(&Some(0))
        {
            return Err(described());
        }
    }
    Ok(())
}

fn check_output(declared: &ValueInfoProto, expected: &Output) -> Result<(), LoadError> {
    let error = || output_error(expected, describe(declared));
    let Some(tensor) = tensor_type(declared) else { return Err(error()) };
    if !matches!(tensor.elem_type, data_type::FLOAT | data_type::DOUBLE) {
        return Err(error());
    }
    let Some(dims) = dims(tensor) else { return Ok(()) };
    let row_shape = expected.row_shape.as_slice();
    let rows = dims.get(1..).unwrap_or_default();
    let matches = |rows: &[Option<i64>], shape: &[usize]| {
        rows.len() == shape.len() && rows.iter().zip(shape).all(|(dim, want)| fits(*dim, *want))
    };
    // One number per window may be [batch, 1], as scikit-learn writes it, or a scalar when the batch is fixed; one row of several
    // numbers may lack its axis of 1.
    let fitting = match row_shape {
        [] => matches(rows, &[]) || matches(rows, &[1]),
        [1, behind @ ..] if !behind.is_empty() => {
            !dims.is_empty() && (matches(rows, row_shape) || matches(rows, behind))
        }
        _ => !dims.is_empty() && matches(rows, row_shape),
    };
    if fitting { Ok(()) } else { Err(error()) }
}

/// Whether a declared dimension, `None` when open, can be `want`.
fn fits(declared: Option<i64>, want: usize) -> bool {
    declared.is_none_or(|declared| usize::try_from(declared) == Ok(want))
}

fn find_output<'a>(graph: &'a GraphProto, name: &str) -> Option<&'a ValueInfoProto> {
    graph.output.iter().find(|output| output.name == name)
}

fn tensor_type(info: &ValueInfoProto) -> Option<&TensorTypeProto> {
    info.r#type.as_ref()?.tensor_type.as_ref()
}

/// Declared dimensions, each `None` when open; `None` when the file declares no shape.
fn dims(tensor: &TensorTypeProto) -> Option<Vec<Option<i64>>> {
    let dim = |value: &Option<Dimension>| match value {
        Some(Dimension::Value(n)) if *n >= 0 => Some(*n),
        _ => None,
    };
    Some(tensor.shape.as_ref()?.dim.iter().map(|d| dim(&d.value)).collect())
}

fn output_error(expected: &Output, found: String) -> LoadError {
    let dims = expected.row_dims();
    LoadError::Output { expected: format!("`{}`: f32[batch{dims}]", expected.name), found }
}

fn describe(info: &ValueInfoProto) -> String {
    let name: String = info.name.chars().take(60).collect();
    let Some(tensor) = tensor_type(info) else { return format!("`{name}`, which is no tensor") };
    let element = match tensor.elem_type {
        data_type::FLOAT => "f32".to_owned(),
        data_type::DOUBLE => "f64".to_owned(),
        data_type::INT64 => "i64".to_owned(),
        other => format!("element type {other} "),
    };
    let shape = dims(tensor).map_or_else(
        || "of unknown shape".to_owned(),
        |dims| {
            let dims: Vec<String> = dims.iter().take(8).map(|d| d.map_or("?".to_owned(), |n| n.to_string())).collect();
            format!("[{}]", dims.join(", "))
        },
    );
    format!("`{name}`: {element}{shape}")
}

fn names(infos: &[ValueInfoProto]) -> Option<String> {
    (!infos.is_empty()).then(|| infos.iter().take(8).map(describe).collect::<Vec<_>>().join(", "))
}

fn list(dims: &[usize]) -> String {
    dims.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

/// Walks from the outputs back to the nodes they need. Also holds the file to ONNX's rules that nodes come in topological order
/// and that a value is made once; without them a graph could be a cycle.
fn needed_nodes(graph: &GraphProto, outputs: &[&str]) -> Result<Vec<bool>, LoadError> {
    let broken = |reason: String| LoadError::NotOnnx { reason };
    let inputs = graph.input.iter().map(|i| i.name.as_str());
    let mut defined: HashSet<&str> = inputs.chain(graph.initializer.iter().map(|t| t.name.as_str())).collect();
    let mut maker: HashMap<&str, usize> = HashMap::new();
    for (index, node) in graph.node.iter().enumerate() {
        for name in node.input.iter().filter(|name| !name.is_empty()) {
            if !defined.contains(name.as_str()) {
                return Err(broken(format!(
                    "node `{}` reads `{}`, which nothing before it makes",
                    node_label(node),
                    cut(name)
                )));
            }
        }
        for name in node.output.iter().filter(|name| !name.is_empty()) {
            if !defined.insert(name) {
                return Err(broken(format!("`{}` is made twice", cut(name))));
            }
            maker.insert(name, index);
        }
    }
    let mut needed = vec![false; graph.node.len()];
    let mut open: Vec<&str> = Vec::new();
    for name in outputs {
        if !defined.contains(name) {
            return Err(broken(format!("it declares the output `{name}`, and no node makes it")));
        }
        open.push(name);
    }
    while let Some(name) = open.pop() {
        let Some(&index) = maker.get(name) else { continue };
        let (Some(flag), Some(node)) = (needed.get_mut(index), graph.node.get(index)) else { continue };
        if !std::mem::replace(flag, true) {
            reads(node, &mut open);
        }
    }
    Ok(needed)
}

/// All values a node reads, those of its subgraphs included: these may reach out to the graph around them.
fn reads<'a>(node: &'a NodeProto, out: &mut Vec<&'a str>) {
    out.extend(node.input.iter().map(String::as_str).filter(|name| !name.is_empty()));
    for graph in node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)) {
        for node in &graph.node {
            reads(node, out);
        }
        out.extend(graph.output.iter().map(|output| output.name.as_str()));
    }
}

fn cut(name: &str) -> String {
    name.chars().take(60).collect()
}
