//! ONNX `LSTM`: one matrix product projects the inputs of all steps, then one operator takes the steps.
//!
//! Owns the steps and what is wired around them: both directions, initial states, outputs. The engine's own operator dispatches a graph
//! for each step instead, needs initial states when the batch is open, and ignores a direction that is `reverse`.
//!
//! Limits: peepholes, sequence lengths and `layout` 1 are left to the engine's own operator; other activations, clipping and coupled
//! gates are refused.

use tract_onnx::model::{ParsingContext, optional_inputs, optional_outputs};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::array::{Slice, TypedConcat};
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_core::ops::math;
use tract_onnx::tract_hir::internal::*;

use super::Parsed;
use super::activation::{LANES, sigmoid, tanh};
use super::product::{Matrix, Rows};
use super::simd::{self, Kernel, add_product};

/// Gates, in ONNX's order: input, output, forget, cell.
const GATES: usize = 4;
/// Columns whose sums stay in registers while one state is multiplied: eight registers of four numbers, or of eight.
const COLUMNS: usize = 32;
const COLUMNS_FUSED: usize = 64;
/// From so many rows on, sums of several side by side are worth the packing of the weights.
const PRODUCT_ROWS_MIN: usize = 4;

#[derive(Debug, Clone)]
struct Lstm {
    /// For each direction, whether it runs from the last step to the first.
    reversed: Vec<bool>,
    bias: Option<usize>,
    initial_h: Option<usize>,
    initial_c: Option<usize>,
    /// Which of all states, last state and last cell are asked for.
    outputs: [bool; 3],
}

pub(super) fn parse(ctx: &ParsingContext<'_>, node: &NodeProto) -> Parsed {
    let inputs: Vec<Option<usize>> = optional_inputs(node).take(8).collect();
    let input = |at: usize| inputs.get(at).copied().flatten();
    let layout: i64 = node.get_attr_opt("layout")?.unwrap_or(0);
    let direction = node.get_attr_opt::<&str>("direction")?.unwrap_or("forward");
    let reversed = match direction {
        "forward" => vec![false],
        "reverse" => vec![true],
        "bidirectional" => vec![false, true],
        other => bail!("`direction` is {other:?}"),
    };
    refuse_variants(node)?;
    if layout != 0 || input(4).is_some() || input(7).is_some() {
        ensure!(direction != "reverse", "`direction` is \"reverse\" with peepholes, sequence lengths or `layout` 1");
        let engine = tract_onnx::onnx().op_register;
        let builder = engine.0.get("LSTM").ok_or_else(|| format_err!("the engine has no LSTM"))?;
        return builder(ctx, node);
    }
    let outputs: Vec<bool> = optional_outputs(node).take(3).map(|output| output.is_some()).collect();
    let outputs = std::array::from_fn(|at| outputs.get(at).copied().unwrap_or(false));
    let lstm = Lstm { reversed, bias: input(3), initial_h: input(5), initial_c: input(6), outputs };
    Ok((expand(lstm), vec![]))
}

/// What the standard allows and nobody exports.
fn refuse_variants(node: &NodeProto) -> TractResult<()> {
    let usual = ["sigmoid", "tanh", "tanh"];
    let activations = node.get_attr_opt_vec::<String>("activations")?.unwrap_or_default();
    let known = activations.iter().enumerate().all(|(at, name)| name.to_lowercase() == usual[at % usual.len()]);
    ensure!(known, "its activations are {activations:?}, only Sigmoid, Tanh, Tanh are known");
    ensure!(node.get_attr_opt::<f32>("clip")?.unwrap_or(0.0) == 0.0, "its gates are clipped");
    ensure!(node.get_attr_opt::<i64>("input_forget")?.unwrap_or(0) == 0, "its input and forget gates are coupled");
    Ok(())
}

impl Expansion for Lstm {
    fn name(&self) -> StaticName {
        "Lstm".into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.outputs.iter().filter(|asked| **asked).count())
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        let optional = [self.bias, self.initial_h, self.initial_c];
        check_input_arity(inputs, 3 + optional.iter().flatten().count())?;
        check_output_arity(outputs, self.nboutputs()?)?;
        let (x, w, r) = (&inputs[0], &inputs[1], &inputs[2]);
        let directions = self.reversed.len() as i64;
        for input in [x, w, r] {
            solver.equals(&input.datum_type, f32::datum_type())?;
            solver.equals(&input.rank, 3)?;
        }
        solver.equals(&w.shape[0], directions.to_dim())?;
        solver.equals(&r.shape[0], directions.to_dim())?;
        solver.equals(&w.shape[1], GATES as i64 * r.shape[2].bex())?;
        solver.equals(&r.shape[1], GATES as i64 * r.shape[2].bex())?;
        solver.equals(&w.shape[2], &x.shape[2])?;
        if let Some(bias) = self.bias {
            solver.equals(&inputs[bias].rank, 2)?;
            solver.equals(&inputs[bias].shape[0], directions.to_dim())?;
            solver.equals(&inputs[bias].shape[1], 2 * GATES as i64 * r.shape[2].bex())?;
        }
        let asked = self.outputs.iter().enumerate().filter(|(_, asked)| **asked).map(|(which, _)| which);
        let states = [self.initial_h, self.initial_c].into_iter().flatten().map(|at| &inputs[at]);
        let states = states.chain(asked.clone().zip(outputs).filter(|(which, _)| *which > 0).map(|(_, output)| output));
        for state in states {
            solver.equals(&state.datum_type, f32::datum_type())?;
            solver.equals(&state.rank, 3)?;
            solver.equals(&state.shape[0], directions.to_dim())?;
            solver.equals(&state.shape[1], &x.shape[1])?;
            solver.equals(&state.shape[2], &r.shape[2])?;
        }
        if self.outputs[0] {
            solver.equals(&outputs[0].datum_type, f32::datum_type())?;
            solver.equals(&outputs[0].rank, 4)?;
            solver.equals(&outputs[0].shape[0], &x.shape[0])?;
            solver.equals(&outputs[0].shape[1], directions.to_dim())?;
            solver.equals(&outputs[0].shape[2], &x.shape[1])?;
            solver.equals(&outputs[0].shape[3], &r.shape[2])?;
        }
        Ok(())
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let mut sides = Vec::new();
        for (direction, reversed) in self.reversed.iter().enumerate() {
            sides.push(self.wire_direction(&format!("{prefix}.{direction}"), model, inputs, direction, *reversed)?);
        }
        let mut outputs = tvec!();
        for which in (0..3).filter(|which| self.outputs[*which]) {
            let parts: Vec<OutletId> = sides.iter().map(|side| side[which]).collect();
            let axis = usize::from(which == 0);
            outputs.push(match parts.as_slice() {
                [one] => *one,
                _ => model.wire_node(format!("{prefix}.both.{which}"), TypedConcat::new(axis), &parts)?[0],
            });
        }
        Ok(outputs)
    }
}

impl Lstm {
    /// All states, last state and last cell of one direction, each with an axis for the directions.
    fn wire_direction(
        &self,
        prefix: &str,
        model: &mut TypedModel,
        inputs: &[OutletId],
        direction: usize,
        reversed: bool,
    ) -> TractResult<TVec<OutletId>> {
        let hidden = model.outlet_fact(inputs[2])?.shape[2].to_usize().context("the hidden size is open")?;
        let gates = GATES * hidden;
        let side = |model: &mut TypedModel, name: &str, input: OutletId| -> TractResult<OutletId> {
            let slice = Slice::new(0, direction, direction + 1);
            let slice = model.wire_node(format!("{prefix}.{name}.slice"), slice, &[input])?;
            Ok(model.wire_node(format!("{prefix}.{name}"), AxisOp::Rm(0), &slice)?[0])
        };
        let w = side(model, "w", inputs[1])?;
        let r = side(model, "r", inputs[2])?;
        let r = model.wire_node(format!("{prefix}.r.transposed"), AxisOp::Move(1, 0), &[r])?[0];
        let product = EinSum::new("tbi,gi->tbg".parse()?, f32::datum_type());
        let projected = model.wire_node(format!("{prefix}.projected"), product, &[inputs[0], w])?[0];
        let bias = match self.bias {
            None => model.add_const(format!("{prefix}.bias"), Tensor::zero::<f32>(&[gates])?)?,
            Some(at) => {
                let both = side(model, "b", inputs[at])?;
                let half = |model: &mut TypedModel, name: &str, from: usize| {
                    model.wire_node(format!("{prefix}.b.{name}"), Slice::new(0, from, from + gates), &[both])
                };
                let (of_w, of_r) = (half(model, "w", 0)?[0], half(model, "r", gates)?[0]);
                model.wire_node(format!("{prefix}.bias"), math::add(), &[of_w, of_r])?[0]
            }
        };
        let mut state = |name: &str, at: Option<usize>| match at {
            Some(at) => side(model, name, inputs[at]),
            None => model.add_const(format!("{prefix}.{name}"), Tensor::zero::<f32>(&[1, hidden])?),
        };
        let (h, c) = (state("h", self.initial_h)?, state("c", self.initial_c)?);
        let steps = Steps { hidden, reversed, all: self.outputs[0] };
        let outputs = model.wire_node(format!("{prefix}.steps"), steps, &[projected, r, bias, h, c])?;
        [1, 0, 0]
            .into_iter()
            .zip(outputs)
            .enumerate()
            .map(|(at, (axis, output))| {
                Ok(model.wire_node(format!("{prefix}.out.{at}"), AxisOp::Add(axis), &[output])?[0])
            })
            .collect()
    }
}

/// Takes the steps of one direction. Inputs: projected inputs `[steps, batch, 4·hidden]`, transposed recurrent weights
/// `[hidden, 4·hidden]`, biases `[4·hidden]`, initial states `[batch or 1, hidden]`. Outputs: all states `[steps, batch, hidden]` (no steps
/// when nobody asks), last state and last cell `[batch, hidden]`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Steps {
    hidden: usize,
    reversed: bool,
    all: bool,
}

impl Op for Steps {
    fn name(&self) -> StaticName {
        "LstmSteps".into()
    }

    fn validation(&self) -> Validation {
        Validation::Rounding
    }

    op_as_typed_op!();
}

impl TypedOp for Steps {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let [steps, batch, gates] = &*inputs[0].shape else { bail!("projected inputs of rank 3 are wanted") };
        ensure!(*gates == (GATES * self.hidden).to_dim(), "{gates} columns for {} units", self.hidden);
        let steps = if self.all { steps.clone() } else { 0.to_dim() };
        let last = f32::fact([batch.clone(), self.hidden.to_dim()]);
        Ok(tvec!(f32::fact([steps, batch.clone(), self.hidden.to_dim()]), last.clone(), last))
    }

    as_op!();
}

impl EvalOp for Steps {
    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let &[steps, batch, gates] = inputs[0].shape() else { bail!("projected inputs of rank 3 are wanted") };
        let hidden = self.hidden;
        let slice = |at: usize, len: &[usize]| -> TractResult<&[f32]> {
            let view = inputs[at].try_as_plain_ram()?;
            let slice = view.as_slice::<f32>()?;
            ensure!(len.contains(&slice.len()), "input {at} has {} numbers, not one of {len:?}", slice.len());
            Ok(slice)
        };
        ensure!(hidden > 0 && gates == GATES * hidden, "{gates} columns for {hidden} units");
        let projected = slice(0, &[steps * batch * gates])?;
        let (weights, bias) = (slice(1, &[hidden * gates])?, slice(2, &[gates])?);
        let spread = |at: usize| -> TractResult<Vec<f32>> {
            let given = slice(at, &[hidden, batch * hidden])?;
            Ok(if given.len() == batch * hidden { given.to_vec() } else { given.repeat(batch) })
        };
        let (mut h, mut c) = (spread(3)?, spread(4)?);
        let mut all = vec![0.0; if self.all { steps * batch * hidden } else { 0 }];
        let cells = Cells { of: self, batch, projected, weights, bias, h: &mut h, c: &mut c, all: &mut all };
        if batch > 0 {
            simd::run(cells);
        }
        let shape = [if self.all { steps } else { 0 }, batch, hidden];
        let state = |state: &[f32]| Ok::<_, TractError>(Tensor::from_shape(&[batch, hidden], state)?.into_tvalue());
        Ok(tvec!(Tensor::from_shape(&shape, &all)?.into_tvalue(), state(&h)?, state(&c)?))
    }

    // Without a plan there is no limit on what it may cost.
    not_out_of_plan!();
}

/// All steps of all rows of a batch; states go into `h` and `c`, and all of `h` into `all` unless it is empty.
struct Cells<'a> {
    of: &'a Steps,
    batch: usize,
    projected: &'a [f32],
    weights: &'a [f32],
    bias: &'a [f32],
    h: &'a mut [f32],
    c: &'a mut [f32],
    all: &'a mut [f32],
}

impl Kernel for Cells<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Cells { of: Steps { hidden, reversed, .. }, batch, weights, bias, h, c, .. } = self;
        let (hidden, width) = (*hidden, GATES * *hidden);
        let matrix = (batch >= PRODUCT_ROWS_MIN)
            .then(|| Matrix::new(hidden, width, |row, column| weights[row * width + column], |column| bias[column]));
        let mut gates = vec![0.0; batch * width];
        let steps = self.projected.len() / gates.len();
        for step in 0..steps {
            let at = if *reversed { steps - 1 - step } else { step };
            let projected = &self.projected[at * batch * width..(at + 1) * batch * width];
            if let Some(matrix) = &matrix {
                gates.copy_from_slice(projected);
                let rows = Rows { values: h, step: hidden, count: batch };
                matrix.multiply::<FUSED>(rows, &mut gates, width, |projected, sum| projected + sum);
            } else {
                let rows = projected.chunks_exact(width).zip(gates.chunks_exact_mut(width));
                for (h, (projected, gates)) in h.chunks_exact(hidden).zip(rows) {
                    multiply::<FUSED>(h, weights, [projected, bias], gates);
                }
            }
            let states = h.chunks_exact_mut(hidden).zip(c.chunks_exact_mut(hidden));
            for (gates, (h, c)) in gates.chunks_exact(width).zip(states) {
                activate::<FUSED>(gates, h, c);
            }
            if !self.all.is_empty() {
                self.all[at * batch * hidden..(at + 1) * batch * hidden].copy_from_slice(h);
            }
        }
    }
}

/// `gates = given[0] + given[1] + h · weights` for one row. Its width is a multiple of [`GATES`], so that every block is whole.
#[inline(always)]
fn multiply<const FUSED: bool>(h: &[f32], weights: &[f32], given: [&[f32]; 2], gates: &mut [f32]) {
    let width = gates.len();
    let mut at = 0;
    while at + COLUMNS_FUSED <= width && FUSED {
        multiply_block::<COLUMNS_FUSED, FUSED>(h, weights, given, gates, at);
        at += COLUMNS_FUSED;
    }
    while at + COLUMNS <= width {
        multiply_block::<COLUMNS, FUSED>(h, weights, given, gates, at);
        at += COLUMNS;
    }
    while at < width {
        multiply_block::<GATES, FUSED>(h, weights, given, gates, at);
        at += GATES;
    }
}

/// Columns `at..at + N`.
#[inline(always)]
fn multiply_block<const N: usize, const FUSED: bool>(
    h: &[f32],
    weights: &[f32],
    given: [&[f32]; 2],
    gates: &mut [f32],
    at: usize,
) {
    let block = |row: &[f32]| row.get(at..).and_then(|rest| rest.first_chunk::<N>()).copied();
    let [Some(mut sums), Some(bias)] = given.map(block) else { return };
    sums.iter_mut().zip(&bias).for_each(|(sum, bias)| *sum += bias);
    for (h, weights) in h.iter().zip(weights.chunks_exact(gates.len())) {
        let Some(weights) = block(weights) else { return };
        for (sum, weight) in sums.iter_mut().zip(&weights) {
            *sum = add_product::<FUSED>(*sum, *h, *weight);
        }
    }
    gates[at..at + N].copy_from_slice(&sums);
}

/// `c = f·c + i·g`, `h = o·tanh(c)` for one row, from the gates' sums.
#[inline(always)]
fn activate<const FUSED: bool>(gates: &[f32], h: &mut [f32], c: &mut [f32]) {
    let hidden = h.len();
    let (input, rest) = gates.split_at(hidden);
    let (output, rest) = rest.split_at(hidden);
    let (forget, cell) = rest.split_at(hidden);
    for from in (0..hidden).step_by(LANES) {
        let input = sigmoid::<FUSED>(lanes(input, from));
        let output = sigmoid::<FUSED>(lanes(output, from));
        let forget = sigmoid::<FUSED>(lanes(forget, from));
        let cell = tanh::<FUSED>(lanes(cell, from));
        let kept = lanes(c, from);
        let mut next = [0.0; LANES];
        for (at, next) in next.iter_mut().enumerate() {
            *next = add_product::<FUSED>(forget[at] * kept[at], input[at], cell[at]);
        }
        let mut state = tanh::<FUSED>(next);
        state.iter_mut().zip(&output).for_each(|(state, output)| *state *= output);
        let many = LANES.min(hidden - from);
        c[from..from + many].copy_from_slice(&next[..many]);
        h[from..from + many].copy_from_slice(&state[..many]);
    }
}

/// Numbers from `from` on, and zeros behind the last.
#[inline(always)]
fn lanes(values: &[f32], from: usize) -> [f32; LANES] {
    let values = &values[from..];
    values.first_chunk::<LANES>().copied().unwrap_or_else(|| {
        let mut lanes = [0.0; LANES];
        lanes[..values.len()].copy_from_slice(values);
        lanes
    })
}
