//! Writes the ONNX files that are measured: what exporters write, with weights from a generator of fixed seed.

use millwright_models::onnx::{
    AttributeProto, Dimension, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use prost::Message as _;

/// A graph under construction.
pub(crate) struct Graph {
    proto: GraphProto,
    samples: usize,
    channels: usize,
    noise: Noise,
}

/// Numbers that repeat: a linear congruential generator.
pub(crate) struct Noise(u64);

impl Noise {
    pub(crate) fn new(seed: u64) -> Noise {
        Noise(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// In [0, 1).
    pub(crate) fn uniform(&mut self) -> f32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 40) as f32 / (1_u64 << 24) as f32
    }

    /// About normal: the sum of twelve.
    pub(crate) fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.uniform()).sum::<f32>() - 6.0
    }
}

impl Graph {
    /// `window: f32[batch, samples, channels]`.
    pub(crate) fn new(samples: usize, channels: usize) -> Graph {
        let mut proto = GraphProto { name: "graph".to_owned(), ..Default::default() };
        proto.input.push(value("window", &[None, Some(samples), Some(channels)]));
        Graph { proto, samples, channels, noise: Noise::new(7) }
    }

    pub(crate) fn node(&mut self, op: &str, inputs: &[&str], outputs: &[&str], attribute: Vec<AttributeProto>) {
        self.proto.node.push(NodeProto {
            op_type: op.to_owned(),
            input: inputs.iter().map(|s| (*s).to_owned()).collect(),
            output: outputs.iter().map(|s| (*s).to_owned()).collect(),
            attribute,
            domain: if op.starts_with("Tree") { "ai.onnx.ml".to_owned() } else { String::new() },
            ..Default::default()
        });
    }

    pub(crate) fn floats(&mut self, name: &str, dims: &[usize], values: &[f32]) {
        let float_data = values.to_vec();
        let dims = dims.iter().map(|&d| d as i64).collect();
        let tensor = TensorProto { name: name.to_owned(), dims, data_type: 1, float_data, ..Default::default() };
        self.proto.initializer.push(tensor);
    }

    pub(crate) fn integers(&mut self, name: &str, values: &[i64]) {
        let dims = vec![values.len() as i64];
        let int64_data = values.to_vec();
        let tensor = TensorProto { name: name.to_owned(), dims, data_type: 7, int64_data, ..Default::default() };
        self.proto.initializer.push(tensor);
    }

    /// Weights as a layer starts with: within ±1/√`fan_in`.
    pub(crate) fn weights(&mut self, name: &str, dims: &[usize], fan_in: usize) {
        let reach = 1.0 / (fan_in as f32).sqrt();
        let count = dims.iter().product();
        let values: Vec<f32> = (0..count).map(|_| (2.0 * self.noise.uniform() - 1.0) * reach).collect();
        self.floats(name, dims, &values);
    }

    /// How far `reconstruction` is from the window: its root mean square as the score, by channel as the contribution.
    pub(crate) fn score_reconstruction(&mut self, reconstruction: &str) {
        self.node("Sub", &["window", reconstruction], &["off"], vec![]);
        self.node("Mul", &["off", "off"], &["square"], vec![]);
        let axes = vec![ints("axes", &[1]), int("keepdims", 0)];
        self.node("ReduceMean", &["square"], &["contribution"], axes.clone());
        self.node("ReduceMean", &["contribution"], &["mean_square"], axes);
        self.node("Sqrt", &["mean_square"], &["score"], vec![]);
        self.contributes();
    }

    pub(crate) fn contributes(&mut self) {
        self.proto.output.push(value("contribution", &[None, Some(self.channels)]));
    }

    /// The file.
    pub(crate) fn finish(mut self, name: &str) -> Vec<u8> {
        self.proto.output.insert(0, value("score", &[None]));
        let channels: Vec<String> = (0..self.channels).map(|c| format!(r#"{{"name": "channel {c}"}}"#)).collect();
        let metadata = [
            ("contract", "1".to_owned()),
            ("name", name.to_owned()),
            ("version", "1".to_owned()),
            ("channels", format!("[{}]", channels.join(", "))),
            ("samples", self.samples.to_string()),
        ];
        let entry = |(key, value): (&str, String)| StringStringEntryProto { key: format!("millwright.{key}"), value };
        let opset = |domain: &str, version| OperatorSetIdProto { domain: domain.to_owned(), version };
        ModelProto {
            ir_version: 7,
            graph: Some(self.proto),
            opset_import: vec![opset("", 13), opset("ai.onnx.ml", 3)],
            metadata_props: metadata.map(entry).to_vec(),
            ..Default::default()
        }
        .encode_to_vec()
    }
}

fn value(name: &str, dims: &[Option<usize>]) -> ValueInfoProto {
    let dim = |dim: &Option<usize>| DimensionProto {
        value: Some(match dim {
            Some(n) => Dimension::Value(*n as i64),
            None => Dimension::Param("batch".to_owned()),
        }),
    };
    let shape = Some(TensorShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor_type = Some(TensorTypeProto { elem_type: 1, shape });
    ValueInfoProto { name: name.to_owned(), r#type: Some(TypeProto { tensor_type }) }
}

pub(crate) fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.to_owned(), i: Some(i), r#type: 2, ..Default::default() }
}

pub(crate) fn text(name: &str, text: &str) -> AttributeProto {
    AttributeProto { name: name.to_owned(), s: Some(text.into()), r#type: 3, ..Default::default() }
}

pub(crate) fn floats(name: &str, floats: Vec<f32>) -> AttributeProto {
    AttributeProto { name: name.to_owned(), floats, r#type: 6, ..Default::default() }
}

pub(crate) fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: name.to_owned(), ints: ints.to_vec(), r#type: 7, ..Default::default() }
}

pub(crate) fn texts(name: &str, texts: &[&str]) -> AttributeProto {
    let strings = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    AttributeProto { name: name.to_owned(), strings, r#type: 8, ..Default::default() }
}
