//! Small ONNX files for the tests, written with the crate's own protobuf structures.

// Compiled into several test programs, none of which uses all of it.
#![allow(dead_code, unreachable_pub, missing_docs)]

use millwright_models::onnx::{
    AttributeProto, Dimension, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use prost::Message as _;

/// A file of three channels `a`, `b`, `c` with normals 1, 2, 3 and windows of four samples.
pub struct File {
    pub graph: GraphProto,
    pub metadata: Vec<(String, String)>,
}

pub const SAMPLES: usize = 4;
pub const CHANNELS: usize = 3;

impl File {
    /// `window` in, and no nodes yet.
    pub fn new() -> File {
        let channels = r#"[{"name": "a", "normal": 1}, {"name": "b", "normal": 2}, {"name": "c", "normal": 3}]"#;
        let metadata =
            [("contract", "1"), ("name", "test"), ("version", "1"), ("channels", channels), ("samples", "4")];
        let mut file = File {
            graph: GraphProto::default(),
            metadata: metadata.iter().map(|(k, v)| (format!("millwright.{k}"), (*v).to_owned())).collect(),
        };
        file.input("window", &["batch", "4", "3"]);
        file
    }

    pub fn set(&mut self, key: &str, value: &str) -> &mut File {
        let key = format!("millwright.{key}");
        self.metadata.retain(|(k, _)| *k != key);
        self.metadata.push((key, value.to_owned()));
        self
    }

    pub fn input(&mut self, name: &str, shape: &[&str]) -> &mut File {
        self.graph.input.push(value(name, shape));
        self
    }

    pub fn output(&mut self, name: &str, shape: &[&str]) -> &mut File {
        self.graph.output.push(value(name, shape));
        self
    }

    pub fn node(&mut self, op: &str, inputs: &[&str], output: &str, attributes: Vec<AttributeProto>) -> &mut File {
        self.graph.node.push(NodeProto {
            op_type: op.to_owned(),
            input: inputs.iter().map(|s| (*s).to_owned()).collect(),
            output: vec![output.to_owned()],
            attribute: attributes,
            ..Default::default()
        });
        self
    }

    pub fn floats(&mut self, name: &str, dims: &[i64], values: &[f32]) -> &mut File {
        let tensor = TensorProto {
            name: name.to_owned(),
            dims: dims.to_vec(),
            data_type: 1,
            float_data: values.to_vec(),
            ..Default::default()
        };
        self.graph.initializer.push(tensor);
        self
    }

    pub fn integers(&mut self, name: &str, values: &[i64]) -> &mut File {
        let dims = vec![values.len() as i64];
        let tensor = TensorProto {
            name: name.to_owned(),
            dims,
            data_type: 7,
            int64_data: values.to_vec(),
            ..Default::default()
        };
        self.graph.initializer.push(tensor);
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let entry = |(key, value): &(String, String)| StringStringEntryProto { key: key.clone(), value: value.clone() };
        ModelProto {
            ir_version: 7,
            graph: Some(self.graph.clone()),
            opset_import: vec![OperatorSetIdProto { version: 13, ..Default::default() }],
            metadata_props: self.metadata.iter().map(entry).collect(),
            ..Default::default()
        }
        .encode_to_vec()
    }

    /// The score of a window is the largest distance of a channel's mean from its normal.
    pub fn largest_distance() -> File {
        let mut file = File::new();
        file.floats("normal", &[3], &[1.0, 2.0, 3.0])
            .node("ReduceMean", &["window"], "mean", vec![ints("axes", &[1]), int("keepdims", 0)])
            .node("Sub", &["mean", "normal"], "off", vec![])
            .node("Abs", &["off"], "distance", vec![])
            .node("ReduceMax", &["distance"], "score", vec![ints("axes", &[1]), int("keepdims", 0)])
            .output("score", &["batch"]);
        file
    }
}

pub fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.to_owned(), i: Some(i), r#type: 2, ..Default::default() }
}

pub fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: name.to_owned(), ints: ints.to_vec(), r#type: 7, ..Default::default() }
}

/// A window whose rows are all `row`.
pub fn window(row: [f32; CHANNELS]) -> Vec<f32> {
    row.repeat(SAMPLES)
}

fn value(name: &str, shape: &[&str]) -> ValueInfoProto {
    let dim = |text: &&str| DimensionProto {
        value: Some(text.parse().map_or_else(|_| Dimension::Param((*text).to_owned()), Dimension::Value)),
    };
    let shape = Some(TensorShapeProto { dim: shape.iter().map(dim).collect() });
    let tensor_type = Some(TensorTypeProto { elem_type: 1, shape });
    ValueInfoProto { name: name.to_owned(), r#type: Some(TypeProto { tensor_type }) }
}
