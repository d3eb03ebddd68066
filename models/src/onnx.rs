//! The part of ONNX's protobuf that the gateway reads and writes, and metadata on any ONNX file.
//!
//! Owns the message structures (field numbers of `onnx.proto`, IR version 8) and [`metadata`]/[`set_metadata`]. Never runs a
//! model. Decoding allocates what the file justifies only after `inspect` has bounded it; [`set_metadata`] copies every other
//! byte of the file as it is, so content that these structures don't know survives.

use crate::wire::{self, WireError};

/// Numbers of `TensorProto.DataType`.
pub mod data_type {
    /// 32-bit IEEE 754.
    pub const FLOAT: i32 = 1;
    /// Signed 32-bit integer.
    pub const INT32: i32 = 6;
    /// Signed 64-bit integer.
    pub const INT64: i32 = 7;
    /// 64-bit IEEE 754.
    pub const DOUBLE: i32 = 11;
}

/// A model file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ModelProto {
    /// Version of the intermediate representation.
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    /// Who wrote the file.
    #[prost(string, tag = "2")]
    pub producer_name: String,
    /// The graph that is run.
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    /// The operator sets the graph relies on.
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSetIdProto>,
    /// Free metadata; the contract is here.
    #[prost(message, repeated, tag = "14")]
    pub metadata_props: Vec<StringStringEntryProto>,
}

/// A version of an operator set.
#[derive(Clone, PartialEq, prost::Message)]
pub struct OperatorSetIdProto {
    /// Empty for the standard operators.
    #[prost(string, tag = "1")]
    pub domain: String,
    /// Its version.
    #[prost(int64, tag = "2")]
    pub version: i64,
}

/// A key and its value.
#[derive(Clone, PartialEq, prost::Message)]
pub struct StringStringEntryProto {
    /// The key.
    #[prost(string, tag = "1")]
    pub key: String,
    /// The value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// A computation graph.
#[derive(Clone, PartialEq, prost::Message)]
pub struct GraphProto {
    /// Operations in topological order.
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    /// Name of the graph.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Constants.
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    /// Inputs; in old files also the constants that may be overridden.
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    /// Outputs.
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
}

/// One operation.
#[derive(Clone, PartialEq, prost::Message)]
pub struct NodeProto {
    /// Names of the values it reads; empty for an optional input that is left out.
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    /// Names of the values it makes.
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    /// Its name, often empty.
    #[prost(string, tag = "3")]
    pub name: String,
    /// The operator.
    #[prost(string, tag = "4")]
    pub op_type: String,
    /// Its attributes.
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
    /// Operator domain; empty for the standard one.
    #[prost(string, tag = "7")]
    pub domain: String,
}

/// An attribute of a node.
#[derive(Clone, PartialEq, prost::Message)]
pub struct AttributeProto {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// A float.
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    /// An integer; written even when it is 0, because checkers want one value per attribute.
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    /// Text.
    #[prost(bytes = "vec", optional, tag = "4")]
    pub s: Option<Vec<u8>>,
    /// A tensor.
    #[prost(message, optional, tag = "5")]
    pub t: Option<TensorProto>,
    /// A graph, of `If` or `Scan`.
    #[prost(message, optional, tag = "6")]
    pub g: Option<GraphProto>,
    /// Floats.
    #[prost(float, repeated, tag = "7")]
    pub floats: Vec<f32>,
    /// Integers.
    #[prost(int64, repeated, tag = "8")]
    pub ints: Vec<i64>,
    /// Texts.
    #[prost(bytes = "vec", repeated, tag = "9")]
    pub strings: Vec<Vec<u8>>,
    /// Tensors.
    #[prost(message, repeated, tag = "10")]
    pub tensors: Vec<TensorProto>,
    /// Graphs.
    #[prost(message, repeated, tag = "11")]
    pub graphs: Vec<GraphProto>,
    /// Which field is meant: 1 a float, 2 an integer, 3 text, 6 floats, 7 integers, 8 texts.
    #[prost(int32, tag = "20")]
    pub r#type: i32,
}

/// A constant. Values are in `raw_data` (little-endian) or in the list of their type.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorProto {
    /// Its shape.
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    /// A number of [`data_type`].
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    /// 32-bit floats.
    #[prost(float, repeated, tag = "4")]
    pub float_data: Vec<f32>,
    /// Integers of up to 32 bits, half floats and booleans.
    #[prost(int32, repeated, tag = "5")]
    pub int32_data: Vec<i32>,
    /// Strings.
    #[prost(bytes = "vec", repeated, tag = "6")]
    pub string_data: Vec<Vec<u8>>,
    /// 64-bit integers.
    #[prost(int64, repeated, tag = "7")]
    pub int64_data: Vec<i64>,
    /// Its name.
    #[prost(string, tag = "8")]
    pub name: String,
    /// The values as bytes.
    #[prost(bytes = "vec", tag = "9")]
    pub raw_data: Vec<u8>,
    /// 64-bit floats.
    #[prost(double, repeated, tag = "10")]
    pub double_data: Vec<f64>,
    /// Unsigned integers.
    #[prost(uint64, repeated, tag = "11")]
    pub uint64_data: Vec<u64>,
    /// Where the values are when they are in another file.
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<StringStringEntryProto>,
    /// 1 when the values are in another file.
    #[prost(int32, tag = "14")]
    pub data_location: i32,
}

/// Name and type of an input or output.
#[derive(Clone, PartialEq, prost::Message)]
pub struct ValueInfoProto {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its type.
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<TypeProto>,
}

/// A type; anything but a tensor reads as `None`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TypeProto {
    /// Element type and shape of a tensor.
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorTypeProto>,
}

/// Element type and shape of a tensor.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorTypeProto {
    /// A number of [`data_type`].
    #[prost(int32, tag = "1")]
    pub elem_type: i32,
    /// The shape; absent when unknown.
    #[prost(message, optional, tag = "2")]
    pub shape: Option<TensorShapeProto>,
}

/// A shape.
#[derive(Clone, PartialEq, prost::Message)]
pub struct TensorShapeProto {
    /// Its dimensions.
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<DimensionProto>,
}

/// A dimension: a number, a symbol or unknown.
#[derive(Clone, PartialEq, prost::Message)]
pub struct DimensionProto {
    /// Number or symbol.
    #[prost(oneof = "Dimension", tags = "1, 2")]
    pub value: Option<Dimension>,
}

/// A known dimension.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Dimension {
    /// A number of elements.
    #[prost(int64, tag = "1")]
    Value(i64),
    /// A symbol, such as `batch`.
    #[prost(string, tag = "2")]
    Param(String),
}

/// Only the metadata of a model: decoding it skips the graph.
#[derive(Clone, PartialEq, prost::Message)]
struct MetadataOnly {
    #[prost(message, repeated, tag = "14")]
    metadata_props: Vec<StringStringEntryProto>,
}

/// Field number of `ModelProto.metadata_props`.
const METADATA_PROPS: u32 = 14;

/// Why the bytes are not an ONNX file whose metadata can be read or set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OnnxError {
    /// The protobuf framing breaks.
    #[error("not an ONNX file: {0}")]
    Wire(#[from] WireError),
    /// The framing holds, a field doesn't.
    #[error("not an ONNX file: {0}")]
    Decode(String),
}

/// Reads the metadata of an ONNX file, in its order, without decoding the graph.
///
/// # Errors
/// [`OnnxError`] when the bytes are no protobuf or the metadata is not text.
pub fn metadata(onnx: &[u8]) -> Result<Vec<(String, String)>, OnnxError> {
    wire::check_top_level(onnx)?;
    let model = <MetadataOnly as prost::Message>::decode(onnx).map_err(|e| OnnxError::Decode(e.to_string()))?;
    Ok(model.metadata_props.into_iter().map(|entry| (entry.key, entry.value)).collect())
}

/// Sets metadata of an ONNX file: entries of the same key are replaced, every other byte is kept as it is.
///
/// # Errors
/// [`OnnxError`] when the bytes are no protobuf.
pub fn set_metadata(onnx: &[u8], entries: &[(String, String)]) -> Result<Vec<u8>, OnnxError> {
    use prost::Message as _;
    let mut out = Vec::with_capacity(onnx.len());
    for field in wire::fields(onnx) {
        let field = field?;
        if field.number == METADATA_PROPS
            && let Some(payload) = field.payload
        {
            let entry = StringStringEntryProto::decode(payload).map_err(|e| OnnxError::Decode(e.to_string()))?;
            if entries.iter().any(|(key, _)| *key == entry.key) {
                continue;
            }
        }
        out.extend_from_slice(field.bytes);
    }
    // Fields of a protobuf message may come in any order, so appending a message that holds only the entries sets them.
    let appended = MetadataOnly {
        metadata_props: entries
            .iter()
            .map(|(key, value)| StringStringEntryProto { key: key.clone(), value: value.clone() })
            .collect(),
    };
    out.extend_from_slice(&appended.encode_to_vec());
    Ok(out)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    fn pairs(entries: &[(&str, &str)]) -> Vec<(String, String)> {
        entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn setting_metadata_keeps_every_other_byte() {
        // A file with fields that our structures don't know keeps them; a key that exists is replaced, others stay.
        let known = ModelProto {
            ir_version: 8,
            metadata_props: vec![StringStringEntryProto { key: "a".into(), value: "old".into() }],
            ..Default::default()
        };
        let mut file = known.encode_to_vec();
        let foreign = [0xa2, 0x06, 0x03, b'x', b'y', b'z']; // field 100, 3 bytes
        file.extend_from_slice(&foreign);
        let set = set_metadata(&file, &pairs(&[("a", "new"), ("b", "2")])).unwrap();
        assert_eq!(metadata(&set).unwrap(), pairs(&[("a", "new"), ("b", "2")]));
        assert!(set.windows(foreign.len()).any(|w| w == foreign));
        assert_eq!(ModelProto::decode(set.as_slice()).unwrap().ir_version, 8);
        // Setting the same again changes nothing.
        assert_eq!(set_metadata(&set, &pairs(&[("a", "new"), ("b", "2")])).unwrap(), set);
    }

    #[test]
    fn garbage_is_an_error() {
        // Text and a file cut inside a field are refused, not read as an empty model.
        assert!(metadata(b"hello, this is no model").is_err());
        let file = ModelProto { producer_name: "x".repeat(50), ..Default::default() }.encode_to_vec();
        assert!(metadata(&file[..20]).is_err());
    }
}
