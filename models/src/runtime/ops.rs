//! Operators that the engine lacks or runs slowly, as operators of our own.
//!
//! Owns which they are, and reading their attributes from a node. Never decides what a model may be: a node whose attributes make no
//! sense is an error that names it, and everything else is refused or run by the engine itself.

mod activation;
pub(super) mod conv;
pub(super) mod dense;
mod forest;
mod lstm;
mod post;
mod product;
mod scaler;
mod simd;
mod tree;

use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

/// Replaces and adds the operators.
pub(super) fn register(onnx: &mut Onnx) {
    onnx.op_register.insert("LSTM", lstm::parse);
    onnx.op_register.insert("Scaler", scaler::parse);
    onnx.op_register.insert("TreeEnsembleClassifier", tree::parse_classifier);
    onnx.op_register.insert("TreeEnsembleRegressor", tree::parse_regressor);
}

/// What reading a node gives the engine.
type Parsed = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

/// Numbers of an attribute: a list of floats, or a tensor of any floating type named `<name>_as_tensor`.
fn numbers(ctx: &ParsingContext<'_>, node: &NodeProto, name: &str) -> TractResult<Option<Vec<f64>>> {
    if let Some(list) = node.get_attr_opt_slice::<f32>(name)? {
        return Ok(Some(list.iter().map(|&v| f64::from(v)).collect()));
    }
    let name = format!("{name}_as_tensor");
    let Some(proto) = node.get_attr_opt::<&tract_onnx::pb::TensorProto>(&name)? else { return Ok(None) };
    let tensor = ctx.load_tensor(proto)?;
    let tensor = tensor.cast_to::<f64>()?;
    Ok(Some(tensor.to_plain_array_view::<f64>()?.iter().copied().collect()))
}

/// The numbers of `input` behind each other, as `f32`, and their rows and columns.
fn rows_of(input: &Tensor) -> TractResult<(Vec<f32>, usize, usize)> {
    let &[rows, columns] = input.shape() else { bail!("a matrix is wanted, and {:?} is none", input.shape()) };
    let input = input.cast_to::<f32>()?;
    let view = input.try_as_plain_ram()?;
    Ok((view.as_slice::<f32>()?.to_vec(), rows, columns))
}
