//! What an ONNX file would cost, found by arithmetic before anything is decoded or allocated.
//!
//! Owns two passes. [`weigh`] walks the protobuf framing and bounds the memory that decoding takes. [`examine`] looks at the
//! decoded graph: how many nodes, how large each constant, whether each constant's data is as long as its shape says, whether a
//! constant *asks* for a large tensor (`ConstantOfShape`, `Expand`, `Tile`, …). Never runs anything.
//!
//! Limits: a shape that the graph *computes* (`Mul` of two small numbers feeding `Expand`) is not seen here; `runtime` checks the
//! sizes of all intermediate tensors once the shapes are known.

use std::collections::HashMap;

use prost::Message as _;

use crate::onnx::{GraphProto, ModelProto, NodeProto, TensorProto, data_type};
use crate::runtime::{LoadError, LoadLimits};
use crate::wire;

/// Memory that a decoded submessage takes at most beside its payload: the largest of the structures is about 400 bytes.
const MESSAGE_BYTES: u64 = 512;
/// Memory that a string or byte field takes beside its payload.
const STRING_BYTES: u64 = 32;
/// A list grows by doubling, so it holds at most twice what is in it.
const GROWTH: u64 = 2;
/// Deepest nesting of messages, as protobuf decoders allow; a subgraph takes three.
const DEPTH_MAX: usize = 40;

/// The messages whose fields matter to the weight.
#[derive(Clone, Copy)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    SparseTensor,
    Training,
    ValueInfo,
    Type,
    TensorType,
    Shape,
    /// Entries, dimensions: messages of strings and numbers.
    Leaf,
}

/// What a length-delimited field holds.
enum Content {
    Message(Kind),
    /// Packed integers: a byte may stand for eight.
    Integers,
    /// Strings, bytes, floats.
    Bytes,
}

fn content(kind: Kind, field: u32) -> Content {
    use Content::{Bytes, Integers, Message};
    match (kind, field) {
        (Kind::Model, 7) | (Kind::Attribute, 6 | 11) | (Kind::Training, 1 | 2) => Message(Kind::Graph),
        (Kind::Model, 20) => Message(Kind::Training),
        (Kind::Model, 8 | 14) | (Kind::Graph, 14) | (Kind::Tensor, 3 | 13) | (Kind::Training, 3 | 4) => {
            Message(Kind::Leaf)
        }
        (Kind::Graph, 1) => Message(Kind::Node),
        (Kind::Graph, 5) | (Kind::Attribute, 5 | 10) | (Kind::SparseTensor, 1 | 2) => Message(Kind::Tensor),
        (Kind::Graph, 15) | (Kind::Attribute, 22 | 23) => Message(Kind::SparseTensor),
        (Kind::Graph, 11..=13) => Message(Kind::ValueInfo),
        (Kind::Node, 5) => Message(Kind::Attribute),
        (Kind::ValueInfo, 2) | (Kind::Attribute, 15) => Message(Kind::Type),
        (Kind::Type, 1) => Message(Kind::TensorType),
        (Kind::TensorType, 2) => Message(Kind::Shape),
        (Kind::Shape, 1) => Message(Kind::Leaf),
        (Kind::Tensor, 1 | 5 | 7 | 11) | (Kind::Attribute, 8) | (Kind::SparseTensor, 3) => Integers,
        _ => Bytes,
    }
}

/// Bounds the memory that decoding `onnx` takes, and refuses what the runtime could not run anyway.
pub(crate) fn weigh(onnx: &[u8], limits: &LoadLimits) -> Result<(), LoadError> {
    if onnx.len() > limits.file_bytes_max {
        return Err(LoadError::FileTooLarge { bytes: onnx.len(), bytes_max: limits.file_bytes_max });
    }
    let mut left = limits.memory_bytes_max;
    weigh_message(onnx, Kind::Model, 0, &mut left).map_err(|fault| match fault {
        Fault::Framing(reason) => LoadError::NotOnnx { reason },
        Fault::Weight => {
            LoadError::TooMuchMemory { what: "decoding the file".to_owned(), bytes_max: limits.memory_bytes_max }
        }
    })
}

enum Fault {
    Framing(String),
    Weight,
}

fn weigh_message(message: &[u8], kind: Kind, depth: usize, left: &mut u64) -> Result<(), Fault> {
    if depth > DEPTH_MAX {
        return Err(Fault::Framing(format!("messages are nested deeper than {DEPTH_MAX}")));
    }
    for field in wire::fields(message) {
        let field = field.map_err(|e| Fault::Framing(e.to_string()))?;
        if matches!((kind, field.number), (Kind::Model, 25)) {
            let reason = "it defines functions of its own; inline them (onnx.inliner) and export it again";
            return Err(Fault::Framing(reason.to_owned()));
        }
        let weight = match (field.payload, content(kind, field.number)) {
            (None, _) => 8 * GROWTH,
            (Some(payload), Content::Message(inner)) => {
                weigh_message(payload, inner, depth + 1, left)?;
                MESSAGE_BYTES * GROWTH
            }
            (Some(payload), Content::Integers) => payload.len() as u64 * 8 * GROWTH,
            (Some(payload), Content::Bytes) => payload.len() as u64 * GROWTH + STRING_BYTES * GROWTH,
        };
        *left = left.checked_sub(weight).ok_or(Fault::Weight)?;
    }
    Ok(())
}

/// Decodes the file and examines its graph.
pub(crate) fn examine(onnx: &[u8], limits: &LoadLimits) -> Result<GraphProto, LoadError> {
    let model = ModelProto::decode(onnx).map_err(|e| LoadError::NotOnnx { reason: e.to_string() })?;
    let graph = model.graph.ok_or_else(|| LoadError::NotOnnx { reason: "it holds no graph".to_owned() })?;
    let mut nodes = 0;
    examine_graph(&graph, limits, &mut nodes)?;
    Ok(graph)
}

fn examine_graph(graph: &GraphProto, limits: &LoadLimits, nodes: &mut usize) -> Result<(), LoadError> {
    *nodes = nodes.saturating_add(graph.node.len());
    if *nodes > limits.nodes_max {
        return Err(LoadError::TooManyNodes { nodes: *nodes, nodes_max: limits.nodes_max });
    }
    for tensor in &graph.initializer {
        examine_tensor(tensor, &tensor.name, limits)?;
    }
    for node in &graph.node {
        let owner = node_label(node);
        for attribute in &node.attribute {
            for tensor in attribute.t.iter().chain(&attribute.tensors) {
                examine_tensor(tensor, &owner, limits)?;
            }
            for graph in attribute.g.iter().chain(&attribute.graphs) {
                examine_graph(graph, limits, nodes)?;
            }
        }
    }
    examine_shape_operands(graph, limits)
}

/// A constant's shape must be small enough, and its data exactly as long as its shape says.
fn examine_tensor(tensor: &TensorProto, owner: &str, limits: &LoadLimits) -> Result<(), LoadError> {
    let elements = tensor
        .dims
        .iter()
        .try_fold(1_u64, |product, &dim| product.checked_mul(u64::try_from(dim).ok()?))
        .filter(|&elements| elements <= limits.tensor_elements_max);
    let Some(elements) = elements else {
        return Err(LoadError::TensorTooLarge {
            tensor: owner.to_owned(),
            shape: format!("{:?}", tensor.dims.iter().take(8).collect::<Vec<_>>()),
            elements_max: limits.tensor_elements_max,
        });
    };
    if tensor.data_location == 1 || !tensor.external_data.is_empty() {
        return Err(LoadError::ExternalData { tensor: owner.to_owned() });
    }
    let found = if tensor.raw_data.is_empty() {
        let lists = [
            tensor.float_data.len(),
            tensor.int32_data.len(),
            tensor.int64_data.len(),
            tensor.double_data.len(),
            tensor.uint64_data.len(),
        ];
        lists.iter().sum::<usize>().saturating_add(tensor.string_data.len()) as u64
    } else {
        let Some(bytes) = element_bytes(tensor.data_type) else {
            let reason = format!("constant `{owner}` has element type {}, which has no plain bytes", tensor.data_type);
            return Err(LoadError::NotOnnx { reason });
        };
        // A remainder means that the bytes are no whole number of elements: one more than fits is never the right count.
        let len = tensor.raw_data.len() as u64;
        if len.is_multiple_of(bytes) { len / bytes } else { u64::MAX }
    };
    if found == elements {
        Ok(())
    } else {
        let reason = format!("constant `{owner}` should hold {elements} elements, and its data does not");
        Err(LoadError::NotOnnx { reason })
    }
}

/// Bytes per element of `raw_data`, by `TensorProto.DataType`.
fn element_bytes(data_type: i32) -> Option<u64> {
    match data_type {
        2 | 3 | 9 => Some(1),
        4 | 5 | 10 | 16 => Some(2),
        1 | 6 | 12 => Some(4),
        7 | 11 | 13 => Some(8),
        _ => None,
    }
}

/// Operators that make a tensor as large as a number they are given.
const GROWING: [&str; 11] = [
    "ConstantOfShape",
    "Expand",
    "Tile",
    "Range",
    "Pad",
    "Resize",
    "Upsample",
    "OneHot",
    "RandomNormal",
    "RandomUniform",
    "EyeLike",
];

/// Constants longer than this are no shapes.
const OPERAND_LEN_MAX: usize = 16;

/// Refuses a growing operator whose constant operand asks for more elements than the limit.
fn examine_shape_operands(graph: &GraphProto, limits: &LoadLimits) -> Result<(), LoadError> {
    let mut constants: HashMap<&str, Vec<f64>> =
        graph.initializer.iter().filter_map(|t| Some((t.name.as_str(), numbers(t)?))).collect();
    for node in graph.node.iter().filter(|node| node.op_type == "Constant") {
        let value = node.attribute.iter().find_map(|attribute| match &attribute.t {
            Some(tensor) => numbers(tensor),
            None => Some(attribute.i.into_iter().chain(attribute.ints.iter().copied()).map(|v| v as f64).collect()),
        });
        if let (Some(output), Some(value)) = (node.output.first(), value) {
            constants.insert(output, value);
        }
    }
    for node in graph.node.iter().filter(|node| GROWING.contains(&node.op_type.as_str())) {
        let operands: Vec<&[f64]> =
            node.input.iter().filter_map(|name| constants.get(name.as_str())).map(Vec::as_slice).collect();
        let attributes = node.attribute.iter().filter(|attribute| attribute.name != "axes");
        let attributes: Vec<Vec<f64>> = attributes.map(|a| a.ints.iter().map(|&v| v as f64).collect()).collect();
        let mut asked: Vec<f64> =
            operands.iter().copied().chain(attributes.iter().map(Vec::as_slice)).map(asked_elements).collect();
        if let ("Range", [[start], [end], [step]]) = (node.op_type.as_str(), operands.as_slice()) {
            asked.push((end - start) / step);
        }
        // A NaN asks for nothing that can be bounded.
        if let Some(elements) =
            asked.into_iter().find(|&elements| elements.is_nan() || elements > limits.tensor_elements_max as f64)
        {
            return Err(LoadError::TensorTooLarge {
                tensor: node_label(node),
                shape: format!("{elements:.0} elements"),
                elements_max: limits.tensor_elements_max,
            });
        }
    }
    Ok(())
}

/// `Range` names its end, the others a size or factor per axis; the product bounds both.
fn asked_elements(operand: &[f64]) -> f64 {
    operand.iter().map(|v| v.abs().max(1.0)).product()
}

/// The values of a constant that may be a shape; `None` when it is none.
fn numbers(tensor: &TensorProto) -> Option<Vec<f64>> {
    if tensor.dims.len() > 1 || tensor.dims.iter().any(|&dim| dim > OPERAND_LEN_MAX as i64) {
        return None;
    }
    let raw = tensor.raw_data.as_slice();
    let raw: Vec<f64> = match tensor.data_type {
        data_type::FLOAT => raw.as_chunks().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        data_type::INT32 => raw.as_chunks().0.iter().map(|b| f64::from(i32::from_le_bytes(*b))).collect(),
        data_type::INT64 => raw.as_chunks().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
        data_type::DOUBLE => raw.as_chunks().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        _ => return None,
    };
    let lists = tensor.float_data.iter().map(|&v| f64::from(v)).chain(tensor.int32_data.iter().map(|&v| f64::from(v)));
    let lists = lists.chain(tensor.int64_data.iter().map(|&v| v as f64)).chain(tensor.double_data.iter().copied());
    Some(raw.into_iter().chain(lists).collect())
}

/// How a node is called in messages.
pub(crate) fn node_label(node: &NodeProto) -> String {
    let name = [&node.name].into_iter().chain(&node.output).find(|s| !s.is_empty());
    name.map_or_else(|| node.op_type.clone(), |name| name.chars().take(60).collect())
}
