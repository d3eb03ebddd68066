//! Loads a model file and runs it.
//!
//! Owns the order of the checks, and tract: nothing else names it. A file is bounded by arithmetic (`inspect`), read against its
//! contract (`contract`, `interface`), loaded, tried on made-up windows and on its golden vectors; only then is there a
//! [`Model`]. Never touches files or the network; never lets a panic of the engine out.
//!
//! tract is asked in the order that runs most models: shapes declared inside the file ignored, batch a symbol, optimised; then
//! not optimised; then both with a batch of one, run window by window (convolutions and LSTMs of Keras need that).
//!
//! Limits: [`LoadLimits`]. A run holds at most [`RUN_ROWS_MAX`] windows, fewer when the model's intermediate tensors are large. The
//! time a model takes is not bounded here: an operator runs to its end.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use tract_onnx::pb;
use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::{ensure, format_err};
use tract_onnx::tract_core::model::TypedRunnableModel;
use tract_onnx::tract_hir::infer::InferenceModel;

use crate::contract::{Contract, ContractError, InputKind};
use crate::digest::Digest;
use crate::features::Extractor;
use crate::inspect::{self, node_label};
use crate::interface::{self, Interface};
use crate::occlusion::Occlusion;
use crate::onnx::GraphProto;

/// Most windows in one run of the engine: beyond some dozens a larger batch gains nothing, and it bounds the memory.
pub const RUN_ROWS_MAX: usize = 256;

/// A model without contributions is explained from this score on; below, contributions are 0. Occlusion costs a run per
/// channel, and nobody asks why a healthy machine is healthy.
pub const OCCLUDE_FROM_SCORE: f32 = 0.5;

/// How closely a golden vector is reproduced: `abs(got − want) ≤ 1e-4 + 1e-3·abs(want)`. Engines differ by about 1e-6.
const GOLDEN_ABSOLUTE: f32 = 1e-4;
const GOLDEN_RELATIVE: f32 = 1e-3;

/// What a model file may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadLimits {
    /// Size of the file: 32 MiB by default; a model update of 512 chunks of 64 KiB.
    pub file_bytes_max: usize,
    /// Nodes, those of subgraphs included: 10,000 by default; a transformer of 12 layers has about 1,000.
    pub nodes_max: usize,
    /// Elements of one constant, or of a tensor that a constant asks for: 2²⁴ by default, 64 MiB of `f32`.
    pub tensor_elements_max: u64,
    /// Memory of decoding, and of the intermediate tensors of one run: 256 MiB by default, a quarter of a small gateway.
    pub memory_bytes_max: u64,
}

impl Default for LoadLimits {
    fn default() -> LoadLimits {
        LoadLimits {
            file_bytes_max: 32 << 20,
            nodes_max: 10_000,
            tensor_elements_max: 1 << 24,
            memory_bytes_max: 256 << 20,
        }
    }
}

/// Why a model was refused. The running model is not concerned; the one to act is whoever exported the file.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Larger than allowed.
    #[error(
        "the model file has {bytes} bytes, at most {bytes_max} are allowed: export a smaller model or raise the limit"
    )]
    FileTooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// Not ONNX, or broken.
    #[error("the file is no ONNX model that can be run: {reason}")]
    NotOnnx {
        /// What is wrong.
        reason: String,
    },
    /// Decoding or running would take too much memory.
    #[error("{what} would take more than the {bytes_max} bytes allowed: export a smaller model or raise the limit")]
    TooMuchMemory {
        /// What would.
        what: String,
        /// The limit.
        bytes_max: u64,
    },
    /// Too many operations.
    #[error(
        "the model has at least {nodes} nodes, at most {nodes_max} are allowed: export a smaller model or raise the limit"
    )]
    TooManyNodes {
        /// How many were found.
        nodes: usize,
        /// The limit.
        nodes_max: usize,
    },
    /// A tensor is too large.
    #[error(
        "`{tensor}` asks for a tensor of {shape}, at most {elements_max} elements are allowed: export a smaller model"
    )]
    TensorTooLarge {
        /// The constant or node.
        tensor: String,
        /// The shape or number of elements.
        shape: String,
        /// The limit.
        elements_max: u64,
    },
    /// Weights in another file.
    #[error("constant `{tensor}` is kept in another file: export the model as one file (no external data)")]
    ExternalData {
        /// The constant.
        tensor: String,
    },
    /// The metadata.
    #[error(transparent)]
    Contract(#[from] ContractError),
    /// The graph's input isn't what the contract says.
    #[error(
        "by its contract the model takes {expected}, but its graph takes {found}: export it with this name and shape, or correct the contract"
    )]
    Input {
        /// By the contract.
        expected: String,
        /// In the graph.
        found: String,
    },
    /// The graph's outputs aren't what the contract says.
    #[error(
        "by its contract the model gives {expected}, but its graph gives {found}: export it with this name and shape, or correct the contract"
    )]
    Output {
        /// By the contract.
        expected: String,
        /// In the graph.
        found: String,
    },
    /// An operator that the engine lacks.
    #[error("the gateway cannot run the operator `{operator}` (node `{node}`): {remedy}")]
    UnsupportedOperator {
        /// The operator.
        operator: String,
        /// The node.
        node: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The engine refused the graph.
    #[error(
        "the inference engine cannot load the model: {reason}. Export it with a fixed batch of 1, without dynamic shapes, or with another exporter"
    )]
    Engine {
        /// Its words for the most general attempt.
        reason: String,
    },
    /// The engine broke.
    #[error(
        "the inference engine broke while {during}: {reason}. The model file triggers a fault in it; export it differently"
    )]
    Panicked {
        /// Doing what.
        during: &'static str,
        /// Its last words.
        reason: String,
    },
    /// A trial window gave no finite score.
    #[error("the model gives {found} for an ordinary window: it does not tolerate its own normal values")]
    NotFinite {
        /// What it gave.
        found: f32,
    },
    /// A golden vector isn't reproduced.
    #[error(
        "golden vector {index}: {what} is {found}, and the contract says {expected}: the file is damaged or the graph does not run here as it did where it was trained"
    )]
    Golden {
        /// Which one, from 0.
        index: usize,
        /// Score or contribution of a channel.
        what: String,
        /// Given by the graph.
        found: f32,
        /// By the contract.
        expected: f32,
    },
}

/// Why scoring failed. `Length` and `Input` are the caller's doing, the rest the model's.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RunError {
    /// The windows have another size than the contract's.
    #[error("{found} numbers were given for {batch} windows of {samples} samples and {channels} channels")]
    Length {
        /// Numbers given.
        found: usize,
        /// Windows announced.
        batch: usize,
        /// Samples per window.
        samples: usize,
        /// Channels.
        channels: usize,
    },
    /// A window contains NaN or infinity.
    #[error("window {row} has a value that is not finite in channel `{channel}`")]
    Input {
        /// Which window of the batch, from 0.
        row: usize,
        /// The channel.
        channel: String,
    },
    /// The model gave NaN or infinity.
    #[error("the model gives {found} for window {row}")]
    NotFinite {
        /// Which window of the batch, from 0.
        row: usize,
        /// What it gave.
        found: f32,
    },
    /// The engine returned an error.
    #[error("the model does not run: {reason}")]
    Engine {
        /// Its words.
        reason: String,
    },
    /// The engine broke.
    #[error("the inference engine broke while running the model: {reason}")]
    Panicked {
        /// Its last words.
        reason: String,
    },
}

/// Scores of a batch.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scores {
    /// One per window; 1.0 is the alarm threshold.
    pub score: Vec<f32>,
    /// What each channel added, `[batch][channels]`, never negative.
    pub contribution: Vec<f32>,
}

/// Where contributions come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Explanation {
    /// The graph gives them.
    Graph,
    /// A channel is replaced by its learned normal and the window scored again.
    Occlusion,
    /// Nowhere: the graph gives none and the contract names no normals. Contributions are 0.
    None,
}

enum Plan {
    /// Takes any batch.
    AnyBatch(Arc<TypedRunnableModel>),
    /// Takes a batch of one.
    OneByOne(Arc<TypedRunnableModel>),
}

/// A model that has passed every check and its trial run. `Send + Sync`; scoring takes `&self`.
pub struct Model {
    spec: Spec,
    plan: Plan,
    /// Most windows in one run.
    run_rows: usize,
}

/// All of a model but the engine's part.
struct Spec {
    contract: Contract,
    digest: Digest,
    /// Input shape behind the batch.
    row_shape: Vec<usize>,
    extractor: Option<Extractor>,
    explanation: Explanation,
    occlusion: Option<Occlusion>,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Model");
        out.field("name", &self.spec.contract.name)
            .field("version", &self.spec.contract.version)
            .field("sha256", &self.spec.digest);
        out.field("any_batch", &self.any_batch()).field("explanation", &self.spec.explanation).finish_non_exhaustive()
    }
}

impl Model {
    /// Loads a model file: limits, contract, interface, engine, trial run, golden vectors.
    ///
    /// # Errors
    /// [`LoadError`] with the reason and the remedy. Takes milliseconds for small models, seconds for large ones: not for the
    /// scoring path.
    pub fn load(bytes: &[u8], limits: &LoadLimits) -> Result<Model, LoadError> {
        inspect::weigh(bytes, limits)?;
        let contract = Contract::read(bytes)?;
        let graph = inspect::examine(bytes, limits)?;
        let interface = interface::check(&graph, &contract)?;
        check_operators(&graph, &interface)?;
        drop(graph);
        let proto = guard("decoding the file", || decode(bytes, &interface))??;
        let model = Model::choose_plan(Spec::new(bytes, contract, &interface), &proto, &interface, limits)?;
        model.check_golden()?;
        Ok(model)
    }

    /// The contract of the file.
    pub fn contract(&self) -> &Contract {
        &self.spec.contract
    }

    /// SHA-256 of the file.
    pub fn sha256(&self) -> &Digest {
        &self.spec.digest
    }

    /// Where the contributions come from.
    pub fn explanation(&self) -> Explanation {
        self.spec.explanation
    }

    /// Whether the engine takes a whole batch at once; if not, windows run one by one.
    pub fn any_batch(&self) -> bool {
        matches!(self.plan, Plan::AnyBatch(_))
    }

    /// Scores `batch` windows, row-major `[batch][samples][channels]`, in engineering units. Any batch, 0 included; the result of
    /// a window does not depend on the others.
    ///
    /// # Errors
    /// [`RunError`]; for a window that is to blame it names the row, and the rest of the batch can be scored without it.
    pub fn score(&self, windows: &[f32], batch: usize) -> Result<Scores, RunError> {
        self.check_windows(windows, batch)?;
        let mut scores = self.run_windows(windows)?;
        if let Some(row) = scores.score.iter().position(|v| !v.is_finite()) {
            return Err(not_finite(row, scores.score.get(row)));
        }
        let channels = self.spec.contract.channels.len();
        if self.spec.explanation == Explanation::Graph {
            if let Some(at) = scores.contribution.iter().position(|v| !v.is_finite()) {
                return Err(not_finite(at / channels, scores.contribution.get(at)));
            }
            // By contract contributions are not negative; rounding may leave a trace below 0.
            scores.contribution.iter_mut().for_each(|v| *v = v.max(0.0));
        } else {
            scores.contribution = vec![0.0; batch * channels];
            self.occlude(windows, &mut scores)?;
        }
        Ok(scores)
    }

    fn check_windows(&self, windows: &[f32], batch: usize) -> Result<(), RunError> {
        let (samples, channels) = (self.spec.contract.samples, self.spec.contract.channels.len());
        if Some(windows.len()) != batch.checked_mul(self.spec.contract.window_len()) {
            return Err(RunError::Length { found: windows.len(), batch, samples, channels });
        }
        if let Some(at) = windows.iter().position(|v| !v.is_finite()) {
            let channel = self.spec.contract.channels.get(at % channels).map(|c| c.name.clone()).unwrap_or_default();
            return Err(RunError::Input { row: at / self.spec.contract.window_len(), channel });
        }
        Ok(())
    }

    /// Runs whole windows, in slices that fit the memory limit.
    fn run_windows(&self, windows: &[f32]) -> Result<Scores, RunError> {
        let mut scores = Scores::default();
        let mut features = Vec::new();
        for slice in windows.chunks(self.run_rows * self.spec.contract.window_len()) {
            let rows = slice.len() / self.spec.contract.window_len();
            let input = match &self.spec.extractor {
                None => slice,
                Some(extractor) => {
                    features.clear();
                    for window in slice.chunks_exact(self.spec.contract.window_len()) {
                        extractor.extract(window, self.spec.contract.channels.len(), &mut features);
                    }
                    features.as_slice()
                }
            };
            self.run_plan(input, rows, &mut scores)?;
        }
        Ok(scores)
    }

    fn run_plan(&self, input: &[f32], rows: usize, out: &mut Scores) -> Result<(), RunError> {
        match &self.plan {
            Plan::AnyBatch(plan) => self.run_engine(plan, input, rows, out),
            Plan::OneByOne(plan) => {
                let row_len = self.spec.row_shape.iter().product::<usize>().max(1);
                input.chunks_exact(row_len).try_for_each(|row| self.run_engine(plan, row, 1, out))
            }
        }
    }

    fn run_engine(
        &self,
        plan: &Arc<TypedRunnableModel>,
        input: &[f32],
        rows: usize,
        out: &mut Scores,
    ) -> Result<(), RunError> {
        let run = || -> TractResult<()> {
            let shape: Vec<usize> = std::iter::once(rows).chain(self.spec.row_shape.iter().copied()).collect();
            let outputs = plan.run(tvec!(Tensor::from_shape(&shape, input)?.into_tvalue()))?;
            append(outputs.first(), rows, "score", &mut out.score)?;
            if self.spec.explanation == Explanation::Graph {
                append(
                    outputs.get(1),
                    rows * self.spec.contract.channels.len(),
                    "contribution",
                    &mut out.contribution,
                )?;
            }
            Ok(())
        };
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(e)) => Err(RunError::Engine { reason: words(&e) }),
            Err(panic) => Err(RunError::Panicked { reason: panic_words(panic.as_ref()) }),
        }
    }

    /// Explains the rows that are worth it, all their variants in as few runs as the memory limit allows.
    fn occlude(&self, windows: &[f32], scores: &mut Scores) -> Result<(), RunError> {
        let Some(occlusion) = &self.spec.occlusion else { return Ok(()) };
        let (window_len, channels) = (self.spec.contract.window_len(), self.spec.contract.channels.len());
        let rows: Vec<usize> = (0..scores.score.len()).filter(|&row| scores.score[row] >= OCCLUDE_FROM_SCORE).collect();
        let rows_per_run = (self.run_rows / occlusion.variants()).max(1);
        let mut variants = Vec::new();
        for rows in rows.chunks(rows_per_run) {
            variants.clear();
            for &row in rows {
                let window = windows.get(row * window_len..(row + 1) * window_len).unwrap_or_default();
                occlusion.push_variants(window, &mut variants);
            }
            let without = self.run_windows(&variants)?;
            for (&row, without) in rows.iter().zip(without.score.chunks(occlusion.variants())) {
                if let Some(bad) = without.iter().find(|v| !v.is_finite()) {
                    return Err(RunError::NotFinite { row, found: *bad });
                }
                if let Some(places) = scores.contribution.get_mut(row * channels..(row + 1) * channels) {
                    occlusion.contributions(scores.score[row], without, places);
                }
            }
        }
        Ok(())
    }
}

impl Spec {
    fn new(bytes: &[u8], contract: Contract, interface: &Interface) -> Spec {
        let extractor = match &contract.input {
            InputKind::Window => None,
            InputKind::Features(features) => Some(Extractor::new(features, contract.samples, contract.interval_ms)),
        };
        let occlusion = Occlusion::new(contract.channels.iter().map(|channel| channel.normal));
        let explanation = match (interface.contributes, &occlusion) {
            (true, _) => Explanation::Graph,
            (false, Some(_)) => Explanation::Occlusion,
            (false, None) => Explanation::None,
        };
        let (digest, row_shape) = (Digest::of(bytes), interface.row_shape.clone());
        Spec { contract, digest, row_shape, extractor, explanation, occlusion }
    }
}

/// Loading.
impl Model {
    /// Tries the four ways of loading, most general and fastest first, and keeps the first that passes its trial run.
    fn choose_plan(
        mut spec: Spec,
        proto: &pb::ModelProto,
        interface: &Interface,
        limits: &LoadLimits,
    ) -> Result<Model, LoadError> {
        let mut first_error = None;
        for (any_batch, optimise) in [(true, true), (true, false), (false, true), (false, false)] {
            let built = guard("loading the model", || build(proto, interface, any_batch, optimise, limits));
            let error = match built.and_then(|built| built) {
                Ok((plan, run_rows)) => {
                    let plan = if any_batch { Plan::AnyBatch(plan) } else { Plan::OneByOne(plan) };
                    let model = Model { spec, plan, run_rows };
                    let Err(error) = model.trial() else { return Ok(model) };
                    spec = model.spec;
                    error
                }
                // A limit is a limit, however the model is loaded.
                Err(error @ LoadError::TooMuchMemory { .. }) => return Err(error),
                Err(error) => error,
            };
            first_error = first_error.or(Some(error));
        }
        Err(first_error.unwrap_or_else(|| LoadError::Engine { reason: "no way of loading it was tried".to_owned() }))
    }

    /// Scores made-up windows, alone and together: outputs must be finite, of the right shape and the same either way.
    fn trial(&self) -> Result<(), LoadError> {
        let (mild, rough) = (self.trial_window(0.01), self.trial_window(0.1));
        let alone = self.score(&mild, 1).map_err(trial_error)?;
        let together = [mild.as_slice(), &rough, &mild].concat();
        let together = self.score(&together, 3).map_err(trial_error)?;
        let same = |a: f32, b: f32| (a - b).abs() <= GOLDEN_ABSOLUTE + GOLDEN_RELATIVE * a.abs();
        let alone = alone.score.first().copied().unwrap_or(f32::NAN);
        if [0, 2].into_iter().all(|row| together.score.get(row).is_some_and(|&score| same(alone, score))) {
            Ok(())
        } else {
            let reason = "the score of a window changes with the windows beside it in the batch".to_owned();
            Err(LoadError::Engine { reason })
        }
    }

    /// A window around the normals (0 where none is known) with a wiggle of `amplitude` times the normal.
    fn trial_window(&self, amplitude: f32) -> Vec<f32> {
        let value = |sample: usize, channel: usize| {
            let normal = self.spec.contract.channels.get(channel).and_then(|c| c.normal).unwrap_or(0.0);
            normal + amplitude * normal.abs().max(0.01) * (0.7 * sample as f32 + channel as f32).sin()
        };
        let channels = self.spec.contract.channels.len();
        (0..self.spec.contract.window_len()).map(|at| value(at / channels, at % channels)).collect()
    }

    fn check_golden(&self) -> Result<(), LoadError> {
        for (index, golden) in self.spec.contract.golden.iter().enumerate() {
            let got = self.score(&golden.values(self.spec.contract.samples), 1).map_err(trial_error)?;
            compare(index, "the score", got.score.first(), golden.score)?;
            // Contributions by occlusion depend on a threshold of ours, so only the graph's own are compared.
            if let (Explanation::Graph, Some(want)) = (self.spec.explanation, &golden.contribution) {
                for ((channel, want), got) in self.spec.contract.channels.iter().zip(want).zip(&got.contribution) {
                    compare(index, &format!("the contribution of `{}`", channel.name), Some(got), *want)?;
                }
            }
        }
        Ok(())
    }
}

fn compare(index: usize, what: &str, found: Option<&f32>, expected: f32) -> Result<(), LoadError> {
    let found = found.copied().unwrap_or(f32::NAN);
    if (found - expected).abs() <= GOLDEN_ABSOLUTE + GOLDEN_RELATIVE * expected.abs() {
        Ok(())
    } else {
        Err(LoadError::Golden { index, what: what.to_owned(), found, expected })
    }
}

fn trial_error(error: RunError) -> LoadError {
    match error {
        RunError::NotFinite { found, .. } => LoadError::NotFinite { found },
        RunError::Panicked { reason } => LoadError::Panicked { during: "trying the model", reason },
        other => LoadError::Engine { reason: other.to_string() },
    }
}

fn not_finite(row: usize, found: Option<&f32>) -> RunError {
    RunError::NotFinite { row, found: found.copied().unwrap_or(f32::NAN) }
}

/// Appends an output of the engine, of whatever shape, as `len` numbers.
fn append(output: Option<&TValue>, len: usize, name: &str, out: &mut Vec<f32>) -> TractResult<()> {
    let output = output.ok_or_else(|| format_err!("the graph gives no `{name}`"))?;
    ensure!(output.len() == len, "`{name}` has shape {:?}, which is not {len} numbers", output.shape());
    let output = output.cast_to::<f32>()?;
    out.extend(output.to_plain_array_view::<f32>()?.iter());
    Ok(())
}

/// One way of loading; also says how many windows a run may hold.
fn build(
    proto: &pb::ModelProto,
    interface: &Interface,
    any_batch: bool,
    optimise: bool,
    limits: &LoadLimits,
) -> Result<(Arc<TypedRunnableModel>, usize), LoadError> {
    let engine = |e: TractError| LoadError::Engine { reason: words(&e) };
    let onnx =
        tract_onnx::onnx().with_ignore_value_info(true).with_ignore_output_shapes(true).with_ignore_output_types(true);
    let mut model: InferenceModel = onnx.model_for_proto_model(proto).map_err(engine)?;
    let symbol = model.symbols.sym("batch");
    let batch: TDim = if any_batch { symbol.clone().into() } else { 1.into() };
    let shape: TVec<TDim> = std::iter::once(batch).chain(interface.row_shape.iter().map(|&d| d.into())).collect();
    let fact = InferenceFact::dt_shape(f32::datum_type(), shape);
    let typed = model.set_input_fact(0, fact).and_then(|()| model.into_typed()).map_err(engine)?;
    let row_bytes = intermediate_bytes(&typed, &symbol, limits)?;
    let typed = if optimise { typed.into_optimized().map_err(engine)? } else { typed };
    let plan = typed.into_runnable().map_err(engine)?;
    let rows_in_memory = limits.memory_bytes_max / row_bytes.max(1);
    let run_rows = usize::try_from(rows_in_memory).unwrap_or(RUN_ROWS_MAX).clamp(1, RUN_ROWS_MAX);
    Ok((plan, run_rows))
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
        tract_onnx::tract_hir::internal::Framework::proto_model_for_read(&tract_onnx::onnx(), &mut &bytes[..])
            .map_err(|e| broken(&words(&e)))?;
    let graph = proto.graph.as_mut().ok_or_else(|| broken("it holds no graph"))?;
    let mut needed = interface.needed.iter().copied();
    graph.node.retain(|_| needed.next().unwrap_or(false));
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
fn check_operators(graph: &GraphProto, interface: &Interface) -> Result<(), LoadError> {
    let known = tract_onnx::onnx().op_register;
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
        "Scaler" => "replace the scaler by Sub and Mul; the result is the same",
        "TreeEnsembleRegressor" | "LabelEncoder" => {
            "rewrite the trees as Gather, LessOrEqual and MatMul (a GEMM graph)"
        }
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
