//! ai.onnx.ml `Scaler`: `(x − offset) · scale`, by column.
//!
//! Owns the translation into a subtraction and a multiplication, which the engine has.

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::logic::wire_with_rank_broadcast;

use super::Parsed;

#[derive(Debug, Clone)]
struct Scaler {
    offset: Arc<Tensor>,
    scale: Arc<Tensor>,
}

pub(super) fn parse(_ctx: &ParsingContext<'_>, node: &NodeProto) -> Parsed {
    let list = |name: &str, neutral: f32| -> TractResult<Arc<Tensor>> {
        let list = node.get_attr_opt_slice::<f32>(name)?.filter(|list| !list.is_empty());
        Ok(rctensor1(list.unwrap_or(&[neutral])))
    };
    Ok((expand(Scaler { offset: list("offset", 0.0)?, scale: list("scale", 1.0)? }), vec![]))
}

impl Expansion for Scaler {
    fn name(&self) -> StaticName {
        "Scaler".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        check_output_arity(outputs, 1)?;
        solver.equals(&outputs[0].datum_type, f32::datum_type())?;
        solver.equals(&outputs[0].shape, &inputs[0].shape)
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        use tract_onnx::tract_core::ops::{cast, math};
        let columns = model.outlet_fact(inputs[0])?.shape.last().cloned().unwrap_or_else(|| 1.to_dim());
        for (name, list) in [("offset", &self.offset), ("scale", &self.scale)] {
            let fits = list.len() == 1 || columns == list.len().to_dim();
            ensure!(fits, "`{name}` has {} numbers for {columns} columns", list.len());
        }
        let x = model.wire_node(format!("{prefix}.f32"), cast::cast(f32::datum_type()), inputs)?[0];
        let offset = model.add_const(format!("{prefix}.offset"), Arc::clone(&self.offset))?;
        let scale = model.add_const(format!("{prefix}.scale"), Arc::clone(&self.scale))?;
        let centred = wire_with_rank_broadcast(format!("{prefix}.centred"), model, math::sub(), &[x, offset])?[0];
        wire_with_rank_broadcast(format!("{prefix}.scaled"), model, math::mul(), &[centred, scale])
    }
}
