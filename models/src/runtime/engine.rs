//! The inference engine: with `ops`, the only place that names tract.
//!
//! Owns decoding a file for the engine, the ways of loading it, running a plan, and turning the engine's errors and panics into
//! ours. Never decides whether a model is good: `runtime` does.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tract_onnx::Onnx;
use tract_onnx::pb;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::{ensure, format_err};
use tract_onnx::tract_core::model::TypedRunnableModel;
use tract_onnx::tract_hir::infer::InferenceModel;
use tract_onnx::tract_hir::internal::Framework;

use super::output::Outputs;
use super::{LoadError, LoadLimits, RUN_ROWS_MAX, RunError, ops};
use crate::inspect::node_label;
use crate::interface::{Interface, Output};
use crate::onnx::GraphProto;

/// A file decoded for the engine, reduced to what our outputs need.
pub(super) struct Source {
    proto: pb::ModelProto,
}

/// How a source is loaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    /// The batch is a symbol; otherwise it is 1.
    pub(super) any_batch: bool,
    /// The graph is optimised.
    pub(super) optimised: bool,
}

/// The ways of loading, most general and fastest first.
pub(super) const WAYS: [Way; 4] = [
    Way { any_batch: true, optimised: true },
    Way { any_batch: true, optimised: false },
    Way { any_batch: false, optimised: true },
    Way { any_batch: false, optimised: false },
];

/// A graph ready to run.
pub(super) struct Engine {
    plan: Arc<TypedRunnableModel>,
    /// Whether a run takes a whole batch; if not, it takes one row.
    pub(super) any_batch: bool,
    /// Most rows that are worth giving at once, and fit the memory limit.
    pub(super) run_rows: usize,
    /// Input shape behind the batch.
    row_shape: Vec<usize>,
    /// The output that makes the score, and the one that explains it, when it is read.
    primary: Output,
    contribution: Option<Output>,
}

impl Source {
    /// Decodes `bytes`.
    pub(super) fn decode(bytes: &[u8], interface: &Interface) -> Result<Source, LoadError> {
        let proto = guard("decoding the file", || decode(bytes, interface))??;
        Ok(Source { proto })
    }

    /// Loads it one way.
    pub(super) fn load(&self, interface: &Interface, way: Way, limits: &LoadLimits) -> Result<Engine, LoadError> {
        let (plan, run_rows) = guard("loading the model", || build(&self.proto, interface, way, limits))??;
        let Interface { row_shape, primary, contribution, .. } = interface;
        let (row_shape, primary, contribution) = (row_shape.clone(), primary.clone(), contribution.clone());
        Ok(Engine { plan, any_batch: way.any_batch, run_rows, row_shape, primary, contribution })
    }
}

impl Engine {
    /// Runs `rows` rows of input and appends their outputs to `out`.
    pub(super) fn run(&self, input: &[f32], rows: usize, out: &mut Outputs) -> Result<(), RunError> {
        if self.any_batch {
            return self.run_rows_at_once(input, rows, out);
        }
        let row_len = self.row_shape.iter().product::<usize>().max(1);
        input.chunks_exact(row_len).try_for_each(|row| self.run_rows_at_once(row, 1, out))
    }

    fn run_rows_at_once(&self, input: &[f32], rows: usize, out: &mut Outputs) -> Result<(), RunError> {
        let run = || -> TractResult<()> {
            let shape: TVec<usize> = std::iter::once(rows).chain(self.row_shape.iter().copied()).collect();
            let outputs = self.plan.run(tvec!(Tensor::from_shape(&shape, input)?.into_tvalue()))?;
            append(outputs.first(), rows, &self.primary, &mut out.primary)?;
            if let Some(contribution) = &self.contribution {
                append(outputs.get(1), rows, contribution, &mut out.contribution)?;
            }
            Ok(())
        };
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(RunError::Engine { reason: words(&e) }),
            Err(panic) => Err(RunError::Panicked { reason: panic_words(panic.as_ref()) }),
        }
    }
}

/// Appends an output of the engine; its shape may have axes of 1 more or less than the contract says, and no others.
fn append(output: Option<&TValue>, rows: usize, expected: &Output, out: &mut Vec<f32>) -> TractResult<()> {
    let name = expected.name;
    let output = output.ok_or_else(|| format_err!("the graph gives no `{name}`"))?;
    let want = std::iter::once(&rows).chain(&expected.row_shape).filter(|dim| **dim != 1);
    let fits = output.shape().iter().filter(|dim| **dim != 1).eq(want);
    ensure!(fits, "`{name}` has shape {:?}, which is not [{rows}{}]", output.shape(), expected.row_dims());
    let output = output.cast_to::<f32>()?;
    out.extend(output.to_plain_array_view::<f32>()?.iter());
    Ok(())
}

/// tract's ONNX reader with our operators.
fn onnx() -> Onnx {
    let mut onnx =
        tract_onnx::onnx().with_ignore_value_info(true).with_ignore_output_shapes(true).with_ignore_output_types(true);
    ops::register(&mut onnx);
    onnx
}

/// One way of loading; also says how many windows a run may hold.
fn build(
    proto: &pb::ModelProto,
    interface: &Interface,
    way: Way,
    limits: &LoadLimits,
) -> Result<(Arc<TypedRunnableModel>, usize), LoadError> {
    let engine = |e: TractError| LoadError::Engine { reason: words(&e) };
    let mut model: InferenceModel = onnx().model_for_proto_model(proto).map_err(engine)?;
    let symbol = model.symbols.sym("batch");
    let batch: TDim = if way.any_batch { symbol.clone().into() } else { 1.into() };
    let shape: TVec<TDim> = std::iter::once(batch).chain(interface.row_shape.iter().map(|&d| d.into())).collect();
    let fact = InferenceFact::dt_shape(f32::datum_type(), shape);
    let typed = model.set_input_fact(0, fact).and_then(|()| model.into_typed()).map_err(engine)?;
    let row_bytes = intermediate_bytes(&typed, &symbol, limits)?;
    let mut typed = if way.optimised { optimise(typed).map_err(engine)? } else { typed };
    ops::dense::replace(&mut typed);
    let plan = typed.into_runnable().map_err(engine)?;
    let rows_in_memory = limits.memory_bytes_max / row_bytes.max(1);
    let run_rows = usize::try_from(rows_in_memory).unwrap_or(RUN_ROWS_MAX).clamp(1, RUN_ROWS_MAX);
    Ok((plan, run_rows))
}

/// The engine's own optimisation, with our convolutions in between: simplified, most are a pattern that is known, and axes that they
/// move are moved away afterwards.
fn optimise(model: TypedModel) -> TractResult<TypedModel> {
    if !ops::conv::has_any(&model) {
        return model.into_optimized();
    }
    let mut model = model.into_decluttered()?;
    ops::conv::replace(&mut model)?;
    model.into_optimized()
}

/// Sum of all intermediate tensors for one window, an upper bound of what a run holds; constants count too.
fn intermediate_bytes(model: &TypedModel, symbol: &Symbol, limits: &LoadLimits) -> Result<u64, LoadError> {
    let one = SymbolValues::default().with(symbol, 1);
    let mut total = 0_u64;
    for node in model.nodes() {
        for outlet in &node.outputs {
            // A shape that depends on the data is only known when it runs.
            let Ok(shape) = outlet.fact.shape.eval_to_usize(&one) else { continue };
            let bytes = shape
                .iter()
                .try_fold(outlet.fact.datum_type.size_of() as u64, |product, &dim| product.checked_mul(dim as u64))
                .and_then(|bytes| total.checked_add(bytes));
            total = match bytes {
                Some(total) if total <= limits.memory_bytes_max => total,
                _ => {
                    let what =
                        format!("running the model (at node `{}`)", node.name.chars().take(60).collect::<String>());
                    return Err(LoadError::TooMuchMemory { what, bytes_max: limits.memory_bytes_max });
                }
            };
        }
    }
    Ok(total)
}

/// Decodes with tract's own structures and leaves out what is not needed: nodes that no output of ours reads, and every declared
/// shape. Declared symbols would be parsed as expressions, without a bound on their depth.
fn decode(bytes: &[u8], interface: &Interface) -> Result<pb::ModelProto, LoadError> {
    let broken = |reason: &str| LoadError::NotOnnx { reason: reason.to_owned() };
    let mut proto: pb::ModelProto =
        tract_onnx::onnx().proto_model_for_read(&mut &bytes[..]).map_err(|e| broken(&words(&e)))?;
    let graph = proto.graph.as_mut().ok_or_else(|| broken("it holds no graph"))?;
    let mut needed = interface.needed.iter().copied();
    graph.node.retain(|_| needed.next().unwrap_or(false));
    // Errors name the node; one without a name is called by what it makes, as the engine does.
    for node in graph.node.iter_mut().filter(|node| node.name.is_empty()) {
        node.name = node.output.iter().find(|output| !output.is_empty()).cloned().unwrap_or_default();
    }
    let constants: std::collections::HashSet<String> = graph.initializer.iter().map(|t| t.name.clone()).collect();
    graph.input.retain(|input| input.name == interface.input || constants.contains(&input.name));
    let by_name = |name: &&str| graph.output.iter().find(|output| output.name == **name).cloned();
    graph.output = interface.outputs().iter().filter_map(by_name).collect();
    strip_shapes(graph);
    Ok(proto)
}

fn strip_shapes(graph: &mut pb::GraphProto) {
    graph.value_info.clear();
    for info in graph.input.iter_mut().chain(&mut graph.output) {
        if let Some(pb::type_proto::Value::TensorType(tensor)) = info.r#type.as_mut().and_then(|t| t.value.as_mut())
            && let Some(shape) = &mut tensor.shape
        {
            for dim in &mut shape.dim {
                if let Some(pb::tensor_shape_proto::dimension::Value::DimParam(_)) = dim.value {
                    dim.value = None;
                }
            }
        }
    }
    for attribute in graph.node.iter_mut().flat_map(|node| &mut node.attribute) {
        attribute.g.iter_mut().chain(&mut attribute.graphs).for_each(strip_shapes);
    }
}

/// Names the first operator that the engine lacks, before it is asked.
pub(super) fn check_operators(graph: &GraphProto, interface: &Interface) -> Result<(), LoadError> {
    let known = onnx().op_register;
    let mut open: Vec<_> =
        graph.node.iter().zip(&interface.needed).filter(|(_, needed)| **needed).map(|(n, _)| n).collect();
    open.reverse();
    while let Some(node) = open.pop() {
        if !known.0.contains_key(&node.op_type) {
            let operator = node.op_type.chars().take(60).collect::<String>();
            let remedy = remedy(&operator);
            return Err(LoadError::UnsupportedOperator { operator, node: node_label(node), remedy });
        }
        open.extend(node.attribute.iter().flat_map(|a| a.g.iter().chain(&a.graphs)).flat_map(|g| &g.node));
    }
    Ok(())
}

fn remedy(operator: &str) -> &'static str {
    match operator {
        "ZipMap" => "export with `zipmap=False` (skl2onnx), so that probabilities are a plain tensor",
        "TreeEnsemble" => "export the trees with ai.onnx.ml operator set 3, as TreeEnsembleRegressor or -Classifier",
        "LabelEncoder" => "export numbers instead of labels, or replace it by Gather",
        "SVMRegressor" | "SVMClassifier" => "rewrite the kernel as MatMul, Exp and ReduceSum",
        "Loop" => "export an unrolled layer, or train the GRU or LSTM in PyTorch",
        _ => "rewrite it with standard ONNX operators and export again",
    }
}

/// Runs `step`; a panic inside becomes an error with its message.
fn guard<T>(during: &'static str, step: impl FnOnce() -> T) -> Result<T, LoadError> {
    catch_unwind(AssertUnwindSafe(step))
        .map_err(|panic| LoadError::Panicked { during, reason: panic_words(panic.as_ref()) })
}

fn panic_words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    cut(text.unwrap_or("no reason given"))
}

/// The engine's error with its causes, on one line and of bounded length.
fn words(error: &TractError) -> String {
    cut(&format!("{error:#}"))
}

fn cut(text: &str) -> String {
    let line: String = text.chars().take(400).map(|c| if c.is_control() { ' ' } else { c }).collect();
    line.trim_end_matches(['.', ' ']).to_owned()
}
