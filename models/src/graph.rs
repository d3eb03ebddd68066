//! Builds small ONNX graphs.
//!
//! Owns the spelling of the file: IR version, operator set, names and constants. Never decides what is computed: the callers do.
//! Operator set 13 is inside what tract is tested with (9 to 18) and every current onnxruntime runs it.

use prost::Message as _;

use crate::onnx::{
    AttributeProto, Dimension, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto, data_type,
};

/// The operator set of the files written here.
const OPSET: i64 = 13;

/// The intermediate representation that came with [`OPSET`].
const IR_VERSION: i64 = 7;

/// A dimension of an input or output.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Dim<'a> {
    /// A number of elements.
    Fixed(usize),
    /// A symbol that the runtime binds.
    Symbol(&'a str),
}

/// A graph under construction.
pub(crate) struct GraphBuilder {
    graph: GraphProto,
}

impl GraphBuilder {
    /// An empty graph.
    pub(crate) fn new(name: &str) -> GraphBuilder {
        GraphBuilder { graph: GraphProto { name: name.to_owned(), ..Default::default() } }
    }

    /// Declares an `f32` input.
    pub(crate) fn input(&mut self, name: &str, shape: &[Dim<'_>]) {
        self.graph.input.push(value_info(name, shape));
    }

    /// Declares an `f32` output.
    pub(crate) fn output(&mut self, name: &str, shape: &[Dim<'_>]) {
        self.graph.output.push(value_info(name, shape));
    }

    /// Adds an `f32` constant in row-major order; `values` fills `shape`.
    pub(crate) fn constant_f32(&mut self, name: &str, shape: &[usize], values: &[f32]) {
        debug_assert_eq!(shape.iter().product::<usize>(), values.len());
        let raw_data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(name, shape, data_type::FLOAT, raw_data);
    }

    /// Adds a vector of integers.
    pub(crate) fn constant_i64(&mut self, name: &str, values: &[i64]) {
        let raw_data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(name, &[values.len()], data_type::INT64, raw_data);
    }

    fn constant(&mut self, name: &str, shape: &[usize], data_type: i32, raw_data: Vec<u8>) {
        self.graph.initializer.push(TensorProto {
            name: name.to_owned(),
            dims: shape.iter().map(|&d| d as i64).collect(),
            data_type,
            raw_data,
            ..Default::default()
        });
    }

    /// Adds an operation.
    pub(crate) fn node(&mut self, op_type: &str, inputs: &[&str], output: &str, attributes: Vec<AttributeProto>) {
        self.graph.node.push(NodeProto {
            op_type: op_type.to_owned(),
            input: inputs.iter().map(|s| (*s).to_owned()).collect(),
            output: vec![output.to_owned()],
            attribute: attributes,
            ..Default::default()
        });
    }

    /// The file, with its metadata.
    pub(crate) fn finish(self, metadata: Vec<(String, String)>) -> Vec<u8> {
        let metadata_props = metadata.into_iter().map(|(key, value)| StringStringEntryProto { key, value }).collect();
        ModelProto {
            ir_version: IR_VERSION,
            producer_name: "millwright".to_owned(),
            graph: Some(self.graph),
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: OPSET }],
            metadata_props,
        }
        .encode_to_vec()
    }
}

/// An integer attribute.
pub(crate) fn attribute_int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.to_owned(), i: Some(i), r#type: 2, ..Default::default() }
}

/// An attribute that is a list of integers.
pub(crate) fn attribute_ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: name.to_owned(), ints: ints.to_vec(), r#type: 7, ..Default::default() }
}

fn value_info(name: &str, shape: &[Dim<'_>]) -> ValueInfoProto {
    let dim = |d: &Dim<'_>| DimensionProto {
        value: Some(match *d {
            Dim::Fixed(n) => Dimension::Value(n as i64),
            Dim::Symbol(s) => Dimension::Param(s.to_owned()),
        }),
    };
    let shape = TensorShapeProto { dim: shape.iter().map(dim).collect() };
    let tensor_type = TensorTypeProto { elem_type: data_type::FLOAT, shape: Some(shape) };
    ValueInfoProto { name: name.to_owned(), r#type: Some(TypeProto { tensor_type: Some(tensor_type) }) }
}
