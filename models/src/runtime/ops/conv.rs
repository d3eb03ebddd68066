//! Convolutions and transposed convolutions along time, as products of overlapping rows.
//!
//! Owns the replacement of the engine's operators in a graph that it has simplified. Samples are kept as rows of channels, so that what a
//! kernel covers is one slice of the input: a convolution multiplies slices that are a stride apart with its weights, and a
//! transposed convolution of stride s is s convolutions, one for every s-th row of the output, with every s-th tap of the kernel in
//! reverse. The engine copies every covered slice first, and scatters what a transposed convolution gives.
//!
//! Limits: one axis besides batch and channels, `f32`, constant weights, no groups and no dilation, [`STRIDE_MAX`], [`WEIGHTS_MAX`], and
//! no more padding than the kernel is long; everything else stays with the engine.

use tract_onnx::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_core::ops::cnn::{Conv, Deconv, KernelFormat, PoolSpec};
use tract_onnx::tract_core::ops::nn::DataFormat;
use tract_onnx::tract_hir::internal::*;

use super::product::{Matrix, Rows};
use super::simd::{self, Kernel};

/// Longest stride: a transposed convolution has a part for each of its steps.
const STRIDE_MAX: usize = 16;
/// Most weights, about 1 MiB: as many as the cache of a small processor holds. A product of larger ones is cut by the engine.
const WEIGHTS_MAX: usize = 1 << 18;

/// Whether there is a convolution at all.
pub(in crate::runtime) fn has_any(model: &TypedModel) -> bool {
    model.nodes().iter().any(|node| node.op_is::<Conv>() || node.op_is::<Deconv>())
}

/// Replaces what can be.
///
/// # Errors
/// The engine refuses the graph that results.
pub(in crate::runtime) fn replace(model: &mut TypedModel) -> TractResult<()> {
    for id in 0..model.nodes().len() {
        let Some((op, channels_first)) = replacement(model, id) else { continue };
        let node = model.node(id);
        let mut patch = TypedModelPatch::new("convolution by rows");
        let mut wire = patch.tap_model(model, *node.inputs.first().context("a convolution has an input")?)?;
        if channels_first {
            wire = patch.wire_node(format!("{}.rows", node.name), AxisOp::Move(1, 2), &[wire])?[0];
        }
        wire = patch.wire_node(&node.name, op, &[wire])?[0];
        if channels_first {
            wire = patch.wire_node(format!("{}.columns", node.name), AxisOp::Move(2, 1), &[wire])?[0];
        }
        patch.shunt_outside(model, id.into(), wire)?;
        patch.apply(model)?;
    }
    Ok(())
}

/// Our operator for a node, and whether the node's channels come before its samples.
fn replacement(model: &TypedModel, id: usize) -> Option<(Convolution, bool)> {
    let node = model.node(id);
    let (pool, adjustment) = if let Some(conv) = node.op_as::<Conv>() {
        let plain = conv.group == 1 && conv.q_params.is_none() && conv.kernel_fmt == KernelFormat::OIHW;
        (plain.then_some(&conv.pool_spec)?, None)
    } else {
        let deconv = node.op_as::<Deconv>()?;
        let plain = deconv.group == 1 && deconv.kernel_format == KernelFormat::OIHW;
        (plain.then_some(&deconv.pool_spec)?, Some(*deconv.adjustments.first()?))
    };
    let channels_first = match pool.data_format {
        DataFormat::NCHW => true,
        DataFormat::NHWC => false,
        _ => return None,
    };
    let facts: Vec<&TypedFact> =
        node.inputs.iter().map(|input| model.outlet_fact(*input).ok()).collect::<Option<_>>()?;
    let [input, kernel, bias] = facts.as_slice() else { return None };
    let fits = pool.rank() == 1 && pool.dilation(0) == 1 && pool.stride(0) <= STRIDE_MAX && input.rank() == 3;
    if !fits || facts.iter().any(|fact| fact.datum_type != f32::datum_type() || !fact.is_plain()) {
        return None;
    }
    let samples = input.shape.get(if channels_first { 2 } else { 1 })?.to_usize().ok()?;
    let span = Span::of(pool, samples, adjustment)?;
    let shape = [pool.output_channels, pool.input_channels, *pool.kernel_shape.first()?];
    let (kernel, bias) = (kernel.konst.as_ref()?, bias.konst.as_ref()?);
    let weights = Weights::new(kernel, bias, shape)?;
    Some((Convolution::new(span, &weights, adjustment.is_some())?, channels_first))
}

/// Where a kernel meets the samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    samples_in: usize,
    samples_out: usize,
    /// Samples of zeros in front.
    before: usize,
    stride: usize,
    taps: usize,
}

impl Span {
    /// `adjustment` is what is added to the length that a transposed convolution gives.
    fn of(pool: &PoolSpec, samples_in: usize, adjustment: Option<usize>) -> Option<Span> {
        let (taps, stride) = (*pool.kernel_shape.first()?, pool.stride(0));
        // The engine's own arithmetic of lengths needs so much of them.
        if taps == 0 || stride == 0 || samples_in == 0 {
            return None;
        }
        let (samples_out, before) = match adjustment {
            None => {
                let computed = pool.computed_padding(&[samples_in]);
                let computed = computed.first()?;
                (computed.convoluted, computed.pad_before)
            }
            Some(adjustment) => {
                let (taps, stride) = ([taps], [stride]);
                let computed = pool.padding.compute_for_deconv(&[samples_in], &taps, &[1], &stride, &[adjustment]);
                let computed = computed.ok()?;
                let computed = computed.first()?;
                (computed.deconvoluted, computed.pad_before)
            }
        };
        (samples_out > 0 && before <= taps).then_some(Span { samples_in, samples_out, before, stride, taps })
    }
}

/// Kernel `[channels_out, channels_in, taps]` and bias of a convolution, of either kind.
struct Weights {
    kernel: Vec<f32>,
    bias: Vec<f32>,
    shape: [usize; 3],
}

/// The numbers of a constant.
fn floats(tensor: &Tensor) -> Option<Vec<f32>> {
    Some(tensor.try_as_plain_ram().ok()?.as_slice::<f32>().ok()?.to_vec())
}

impl Weights {
    fn new(kernel: &Tensor, bias: &Tensor, shape: [usize; 3]) -> Option<Weights> {
        let [channels_out, channels_in, taps] = shape;
        let numbers = Matrix::len_of(channels_in.checked_mul(taps)?, channels_out)?;
        let fits = kernel.shape() == shape && numbers <= WEIGHTS_MAX && channels_in > 0 && channels_out > 0;
        let bias = match floats(bias)? {
            one if one.len() == 1 => one.repeat(channels_out),
            all => all,
        };
        (fits && bias.len() == channels_out).then_some(Weights { kernel: floats(kernel)?, bias, shape })
    }

    /// The matrix that a slice of samples is multiplied with, whose sample `n` meets tap `tap(n)`.
    fn matrix(&self, samples: usize, tap: impl Fn(usize) -> usize) -> Matrix {
        let [channels_out, channels_in, taps] = self.shape;
        let value = |row: usize, out: usize| {
            let at = (out * channels_in + row % channels_in) * taps + tap(row / channels_in);
            self.kernel.get(at).copied().unwrap_or_default()
        };
        Matrix::new(samples * channels_in, channels_out, value, |out| self.bias.get(out).copied().unwrap_or_default())
    }
}

/// `[batch, samples, channels]` to the same.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Convolution {
    channels_in: usize,
    channels_out: usize,
    samples_in: usize,
    samples_out: usize,
    /// Samples of zeros that a window is put between.
    zeros_before: usize,
    zeros_after: usize,
    parts: Arc<[Part]>,
    /// Negative numbers become 0.
    rectified: bool,
}

/// Rows of the output that one matrix gives; counted in samples, of the input between its zeros.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    rows: usize,
    from_in: usize,
    step_in: usize,
    from_out: usize,
    step_out: usize,
    matrix: Matrix,
}

impl Convolution {
    fn new(span: Span, weights: &Weights, transposed: bool) -> Option<Convolution> {
        let (zeros_before, parts) =
            if transposed { transposed_parts(span, weights) } else { (span.before, vec![forward_part(span, weights)]) };
        let [channels_out, channels_in, taps] = weights.shape;
        let end_of = |part: &Part| part.from_in + (part.rows - 1) * part.step_in + part.matrix.depth() / channels_in;
        let end = parts.iter().map(end_of).max()?;
        let zeros_after = end.saturating_sub(zeros_before + span.samples_in);
        (zeros_after <= taps).then(|| Convolution {
            channels_in,
            channels_out,
            samples_in: span.samples_in,
            samples_out: span.samples_out,
            zeros_before,
            zeros_after,
            parts: parts.into(),
            rectified: false,
        })
    }
}

fn forward_part(span: Span, weights: &Weights) -> Part {
    let matrix = weights.matrix(span.taps, |sample| sample);
    Part { rows: span.samples_out, from_in: 0, step_in: span.stride, from_out: 0, step_out: 1, matrix }
}

/// Sample `i` adds tap `j` to row `i·stride + j − before` of the output. So row `q·stride + phase − before` is the sum of taps
/// `phase + m·stride` with samples `q − m`. Also says how many zeros the first of these samples needs in front.
fn transposed_parts(span: Span, weights: &Weights) -> (usize, Vec<Part>) {
    let Span { before, stride, taps, samples_out, .. } = span;
    let mut zeros_before = 0;
    let mut parts = Vec::new();
    for phase in 0..stride {
        // Rows of this phase are those of q from..to.
        let from = before.saturating_sub(phase).div_ceil(stride);
        let to = (samples_out + before).saturating_sub(phase).div_ceil(stride);
        if from >= to {
            continue;
        }
        let samples = taps.saturating_sub(phase).div_ceil(stride);
        let matrix = weights.matrix(samples, |sample| phase + (samples - 1 - sample) * stride);
        zeros_before = zeros_before.max(samples.saturating_sub(from + 1));
        let from_out = from * stride + phase - before;
        // From the last of its samples, to be moved to the first when all are known.
        parts.push(Part { rows: to - from, from_in: from + 1, step_in: 1, from_out, step_out: stride, matrix });
    }
    let [_, channels_in, _] = weights.shape;
    for part in &mut parts {
        part.from_in = part.from_in + zeros_before - part.matrix.depth() / channels_in;
    }
    (zeros_before, parts)
}

impl Op for Convolution {
    fn name(&self) -> StaticName {
        "ConvolutionByRows".into()
    }

    fn validation(&self) -> Validation {
        Validation::Rounding
    }

    op_as_typed_op!();
}

impl TypedOp for Convolution {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let [batch, samples, channels] = &*inputs[0].shape else { bail!("an input of rank 3 is wanted") };
        let fits = *samples == self.samples_in.to_dim() && *channels == self.channels_in.to_dim();
        ensure!(fits, "[{samples}, {channels}] for [{}, {}]", self.samples_in, self.channels_in);
        Ok(tvec!(f32::fact([batch.clone(), self.samples_out.to_dim(), self.channels_out.to_dim()])))
    }

    /// Takes over a maximum with 0 that is all that reads the output.
    fn declutter(&self, model: &TypedModel, node: &TypedNode) -> TractResult<Option<TypedModelPatch>> {
        let Some(next) = model.single_succ(node.id)? else { return Ok(None) };
        let maximum = next.op_as::<TypedBinOp>().is_some_and(|binary| binary.0.name() == "Max" && binary.1.is_none());
        let Some(other) = next.inputs.iter().find(|input| input.node != node.id) else { return Ok(None) };
        let zero = model.outlet_fact(*other)?.konst.as_ref().and_then(|tensor| floats(tensor));
        let zero = zero.is_some_and(|values| values.iter().all(|v| *v == 0.0));
        if self.rectified || !maximum || !zero || next.outputs[0].fact.shape != node.outputs[0].fact.shape {
            return Ok(None);
        }
        TypedModelPatch::fuse_with_next(model, node, Convolution { rectified: true, ..self.clone() }).map(Some)
    }

    as_op!();
}

impl EvalOp for Convolution {
    fn eval(&self, _ctx: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let input = args_1!(inputs);
        let &[batch, samples, channels] = input.shape() else { bail!("an input of rank 3 is wanted") };
        ensure!([samples, channels] == [self.samples_in, self.channels_in], "an input of {:?}", input.shape());
        let mut output = Tensor::zero::<f32>(&[batch, self.samples_out, self.channels_out])?;
        let (from, mut to) = (input.try_as_plain_ram()?, output.try_as_plain_ram_mut()?);
        simd::run(Windows { of: self, input: from.as_slice::<f32>()?, output: to.as_slice_mut::<f32>()? });
        Ok(tvec!(output.into_tvalue()))
    }

    op_out_of_plan!();
}

/// All windows of a batch.
struct Windows<'a> {
    of: &'a Convolution,
    input: &'a [f32],
    output: &'a mut [f32],
}

impl Kernel for Windows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FUSED: bool>(self) {
        let Convolution { channels_in, channels_out, samples_in, samples_out, .. } = *self.of;
        let least = if self.of.rectified { 0.0 } else { f32::NEG_INFINITY };
        let samples = self.of.zeros_before + samples_in + self.of.zeros_after;
        let mut between_zeros = vec![0.0; samples * channels_in];
        let begin = self.of.zeros_before * channels_in;
        let windows = self.input.chunks_exact(samples_in * channels_in);
        for (window, out) in windows.zip(self.output.chunks_exact_mut(samples_out * channels_out)) {
            between_zeros[begin..begin + window.len()].copy_from_slice(window);
            for part in self.of.parts.iter() {
                let values = &between_zeros[part.from_in * channels_in..];
                let rows = Rows { values, step: part.step_in * channels_in, count: part.rows };
                let out = &mut out[part.from_out * channels_out..];
                // A NaN stays one: a maximum must not hide it.
                let finish = |_, sum: f32| if sum < least { least } else { sum };
                part.matrix.multiply::<FUSED>(rows, out, part.step_out * channels_out, finish);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tract_onnx::tract_core::ops::cnn::PaddingSpec;
    use tract_onnx::tract_core::ops::math;

    use super::*;

    /// Two convolutions, each with a maximum with 0 behind it, between two turns of the axes: as exporters write them.
    fn network(dilation: usize) -> TypedModel {
        let mut model = TypedModel::default();
        let batch = model.symbols.sym("batch").to_dim();
        let mut wire = model.add_source("window", f32::fact([batch, 20.to_dim(), 4.to_dim()])).unwrap();
        wire = model.wire_node("turned", AxisOp::Move(2, 1), &[wire]).unwrap()[0];
        for (at, (input, output)) in [(4, 12), (12, 4)].into_iter().enumerate() {
            let pool_spec = PoolSpec {
                data_format: DataFormat::NCHW,
                kernel_shape: tvec!(3),
                padding: PaddingSpec::Explicit(tvec!(dilation), tvec!(dilation)),
                dilations: Some(tvec!(dilation)),
                strides: Some(tvec!(1)),
                input_channels: input,
                output_channels: output,
            };
            let conv = Conv { pool_spec, kernel_fmt: KernelFormat::OIHW, group: 1, q_params: None };
            let numbers = |count: usize| (0..count).map(|n| (n as f32).sin()).collect::<Vec<f32>>();
            let kernel = Tensor::from_shape(&[output, input, 3], &numbers(output * input * 3)).unwrap();
            let kernel = model.add_const(format!("kernel {at}"), kernel).unwrap();
            let bias = model.add_const(format!("bias {at}"), tensor1(&numbers(output))).unwrap();
            let zero = model.add_const(format!("zero {at}"), tensor3(&[[[0.0_f32]]])).unwrap();
            wire = model.wire_node(format!("conv {at}"), conv, &[wire, kernel, bias]).unwrap()[0];
            wire = model.wire_node(format!("relu {at}"), math::max(), &[wire, zero]).unwrap()[0];
        }
        wire = model.wire_node("turned back", AxisOp::Move(2, 1), &[wire]).unwrap()[0];
        model.select_output_outlets(&[wire]).unwrap();
        model
    }

    fn optimised(mut model: TypedModel) -> TypedModel {
        model.declutter().unwrap();
        replace(&mut model).unwrap();
        model.into_optimized().unwrap()
    }

    // What exporters write becomes nothing but our operators: no axes are moved, and each does the maximum behind it.
    #[test]
    fn axes_and_maxima_vanish() {
        let model = optimised(network(1));
        let ops: Vec<&TypedNode> = model.nodes().iter().filter(|node| !node.inputs.is_empty()).collect();
        let ours: Vec<&Convolution> = ops.iter().filter_map(|node| node.op_as::<Convolution>()).collect();
        let names: Vec<_> = ops.iter().map(|node| node.op.name()).collect();
        assert_eq!((ops.len(), ours.len()), (2, 2), "{names:?}");
        assert!(ours.iter().all(|conv| conv.rectified));
    }

    // What we do not do stays with the engine.
    #[test]
    fn dilated_ones_are_left() {
        assert!(!optimised(network(2)).nodes().iter().any(|node| node.op_is::<Convolution>()));
    }
}
