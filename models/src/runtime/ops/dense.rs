//! Sums along one axis and arithmetic with broadcasting, as loops over rows.
//!
//! Owns the replacement in a graph that the engine has optimised. The engine walks both with iterators over any layout, which costs
//! some nanoseconds for each element; tensors here are dense, so that rows are slices that the compiler vectorises.
//!
//! Limits: [`RANK_MAX`] axes; `f32`.

use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::nn::{Reduce, Reducer};
use tract_onnx::tract_hir::internal::*;

/// Most axes; more are left to the engine.
const RANK_MAX: usize = 6;

/// Replaces what is slow and of a shape that is known here.
pub(in crate::runtime) fn replace(model: &mut TypedModel) {
    for id in 0..model.nodes().len() {
        let Some(op) = replacement(model, id) else { continue };
        model.node_mut(id).op = op;
    }
}

fn replacement(model: &TypedModel, id: usize) -> Option<Box<dyn TypedOp>> {
    let node = model.node(id);
    let facts: Vec<&TypedFact> =
        node.inputs.iter().map(|input| model.outlet_fact(*input).ok()).collect::<Option<_>>()?;
    let out = &node.outputs.first()?.fact;
    let floats = facts.iter().all(|fact| fact.datum_type == f32::datum_type() && fact.is_plain());
    if !floats || out.datum_type != f32::datum_type() || out.rank() > RANK_MAX {
        return None;
    }
    if let Some(reduce) = node.op_as::<Reduce>() {
        let &[axis] = reduce.axes.as_slice() else { return None };
        return match reduce.reducer {
            Reducer::Sum => Some(Box::new(SumAxis { axis, mean_square: false })),
            Reducer::MeanOfSquares => Some(Box::new(SumAxis { axis, mean_square: true })),
            _ => None,
        };
    }
    let binary = node.op_as::<TypedBinOp>()?;
    if binary.1.is_some_and(|wanted| wanted != f32::datum_type()) || facts.len() != 2 {
        return None;
    }
    let arithmetic = match binary.0.name() {
        "Add" => Arithmetic::Add,
        "Sub" => Arithmetic::Sub,
        "Mul" => Arithmetic::Mul,
        "Max" => Arithmetic::Max,
        "Min" => Arithmetic::Min,
        _ => return None,
    };
    facts.iter().all(|fact| fact.rank() == out.rank()).then(|| Box::new(Elementwise { arithmetic }) as Box<dyn TypedOp>)
}

/// Sums, or takes the mean of squares, along one axis, which becomes 1.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SumAxis {
    axis: usize,
    mean_square: bool,
}

impl Op for SumAxis {
    fn name(&self) -> StaticName {
        "SumAxis".into()
    }

    op_as_typed_op!();
}

impl TypedOp for SumAxis {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        ensure!(self.axis < inputs[0].rank(), "no axis {} in {:?}", self.axis, inputs[0]);
        let mut shape = inputs[0].shape.to_tvec();
        shape[self.axis] = 1.to_dim();
        Ok(tvec!(f32::fact(shape)))
    }

    as_op!();
}

impl EvalOp for SumAxis {
    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let mut shape: TVec<usize> = input.shape().into();
        ensure!(self.axis < shape.len(), "no axis {} in {shape:?}", self.axis);
        let (length, inner) = (shape[self.axis], shape[self.axis + 1..].iter().product::<usize>());
        shape[self.axis] = 1;
        let mut output = Tensor::zero::<f32>(&shape)?;
        let view = input.try_as_plain_ram()?;
        let (from, mut to) = (view.as_slice::<f32>()?, output.try_as_plain_ram_mut()?);
        let to = to.as_slice_mut::<f32>()?;
        if length > 0 && inner > 0 {
            for (sums, block) in to.chunks_exact_mut(inner).zip(from.chunks_exact(length * inner)) {
                if self.mean_square {
                    sum_rows(block, sums, |v| v * v);
                    sums.iter_mut().for_each(|sum| *sum /= length as f32);
                } else {
                    sum_rows(block, sums, |v| v);
                }
            }
        }
        Ok(tvec!(output.into_tvalue()))
    }

    op_out_of_plan!();
}

/// Adds up what `of` makes of the rows of `block`. A short row is kept in registers.
#[inline(always)]
fn sum_rows(block: &[f32], sums: &mut [f32], of: impl Fn(f32) -> f32) {
    match sums {
        [sum] => *sum = sum_of(block, of),
        _ if sums.len() == 8 => {
            let mut total = [0.0_f32; 8];
            for row in block.as_chunks::<8>().0 {
                total.iter_mut().zip(row).for_each(|(total, v)| *total += of(*v));
            }
            sums.copy_from_slice(&total);
        }
        _ => {
            for row in block.chunks_exact(sums.len()) {
                sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += of(*v));
            }
        }
    }
}

/// Four sums side by side: one alone would wait for itself.
#[inline(always)]
fn sum_of(values: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let (fours, rest) = values.as_chunks::<4>();
    let mut total = [0.0_f32; 4];
    for four in fours {
        total.iter_mut().zip(four).for_each(|(total, v)| *total += of(*v));
    }
    total.iter().sum::<f32>() + rest.iter().map(|v| of(*v)).sum::<f32>()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arithmetic {
    Add,
    Sub,
    Mul,
    Max,
    Min,
}

/// Two tensors of the same rank; where an axis of one is 1, it is repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Elementwise {
    arithmetic: Arithmetic,
}

impl Op for Elementwise {
    fn name(&self) -> StaticName {
        "Elementwise".into()
    }

    op_as_typed_op!();
}

impl TypedOp for Elementwise {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let shape = tract_onnx::tract_core::broadcast::multi_broadcast(&[&inputs[0].shape, &inputs[1].shape])?;
        Ok(tvec!(f32::fact(shape)))
    }

    as_op!();
}

impl EvalOp for Elementwise {
    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let (a, b) = args_2!(inputs);
        // A NaN on the left stays one: a maximum must not hide it.
        Ok(tvec!(
            match self.arithmetic {
                Arithmetic::Add => apply(a, b, |a, b| a + b),
                Arithmetic::Sub => apply(a, b, |a, b| a - b),
                Arithmetic::Mul => apply(a, b, |a, b| a * b),
                Arithmetic::Max => apply(a, b, |a, b| if a < b { b } else { a }),
                Arithmetic::Min => apply(a, b, |a, b| if a > b { b } else { a }),
            }?
            .into_tvalue()
        ))
    }

    op_out_of_plan!();
}

#[inline(always)]
fn apply(a: TValue, b: TValue, op: impl Fn(f32, f32) -> f32) -> TractResult<Tensor> {
    let shape: TVec<usize> = tract_onnx::tract_core::broadcast::multi_broadcast(&[a.shape(), b.shape()])?;
    if repeats_in_front(b.shape(), a.shape()) && *shape == *a.shape() {
        // Reuses the memory of an operand that nobody else reads.
        let mut output = a.into_tensor();
        each(output.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?, b.try_as_plain_ram()?.as_slice::<f32>()?, op);
        return Ok(output);
    }
    if repeats_in_front(a.shape(), b.shape()) && *shape == *b.shape() {
        let mut output = b.into_tensor();
        let from = a.try_as_plain_ram()?;
        each(output.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?, from.as_slice::<f32>()?, |b, a| op(a, b));
        return Ok(output);
    }
    let mut output = Tensor::zero::<f32>(&shape)?;
    let (a_strides, b_strides) = (strides(a.shape())?, strides(b.shape())?);
    let (a, b) = (a.try_as_plain_ram()?, b.try_as_plain_ram()?);
    let operands = [(a.as_slice::<f32>()?, a_strides), (b.as_slice::<f32>()?, b_strides)];
    walk(&shape, operands, output.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?, op)?;
    Ok(output)
}

/// Whether `small` is 1 in front and like `full` behind.
fn repeats_in_front(small: &[usize], full: &[usize]) -> bool {
    let leading = small.iter().take_while(|dim| **dim == 1).count();
    small.len() == full.len() && small[leading..] == full[leading..]
}

/// How far apart neighbours are along each axis: 0 where the axis is repeated.
fn strides(shape: &[usize]) -> TractResult<[usize; RANK_MAX]> {
    ensure!(shape.len() <= RANK_MAX, "{} axes", shape.len());
    let mut strides = [0; RANK_MAX];
    let mut next = 1;
    for (axis, dim) in shape.iter().enumerate().rev() {
        strides[axis] = if *dim == 1 { 0 } else { next };
        next *= dim;
    }
    Ok(strides)
}

/// Row by row of the output, whatever is repeated.
fn walk(
    shape: &[usize],
    [(a, a_strides), (b, b_strides)]: [(&[f32], [usize; RANK_MAX]); 2],
    output: &mut [f32],
    op: impl Fn(f32, f32) -> f32,
) -> TractResult<()> {
    let Some(last) = shape.len().checked_sub(1) else { bail!("no axes") };
    let mut at = [0; RANK_MAX];
    for row in output.chunks_exact_mut(shape[last].max(1)) {
        let offset = |strides: &[usize; RANK_MAX]| (0..last).map(|axis| at[axis] * strides[axis]).sum::<usize>();
        let (a, b) = (a.get(offset(&a_strides)..), b.get(offset(&b_strides)..));
        let (Some(a), Some(b)) = (a, b) else { bail!("an operand is shorter than its shape") };
        match (a_strides[last], b_strides[last], a, b) {
            (0, 0, [a, ..], [b, ..]) => row.fill(op(*a, *b)),
            (0, _, [a, ..], b) => row.iter_mut().zip(b).for_each(|(out, b)| *out = op(*a, *b)),
            (_, 0, a, [b, ..]) => row.iter_mut().zip(a).for_each(|(out, a)| *out = op(*a, *b)),
            _ => row.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (a, b))| *out = op(*a, *b)),
        }
        for axis in (0..last).rev() {
            at[axis] += 1;
            if at[axis] < shape[axis] {
                break;
            }
            at[axis] = 0;
        }
    }
    Ok(())
}

#[inline(always)]
fn each(to: &mut [f32], repeated: &[f32], op: impl Fn(f32, f32) -> f32) {
    if let [repeated] = repeated {
        to.iter_mut().for_each(|v| *v = op(*v, *repeated));
        return;
    }
    if repeated.is_empty() {
        return;
    }
    // The usual number of channels, without a loop for the rest of a row.
    if let Ok(repeated) = <&[f32; 8]>::try_from(repeated) {
        for row in to.as_chunks_mut::<8>().0 {
            row.iter_mut().zip(repeated).for_each(|(v, r)| *v = op(*v, *r));
        }
        return;
    }
    for row in to.chunks_exact_mut(repeated.len()) {
        row.iter_mut().zip(repeated).for_each(|(v, r)| *v = op(*v, *r));
    }
}
