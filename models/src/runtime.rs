//! Loads a model file and runs it.
//!
//! Owns the order of the checks; the engine, tract, is named in `engine` and `ops` alone, and what a graph gives becomes a score in
//! `output`. A file is bounded by arithmetic (`inspect`), read against its
//! contract (`contract`, `interface`), loaded, tried on made-up windows and on its golden vectors; only then is there a
//! [`Model`]. Never touches files or the network; never lets a panic of the engine out.
//!
//! tract is asked in the order that runs most models: shapes declared inside the file ignored, batch a symbol, optimised; then
//! not optimised; then both with a batch of one, run window by window (convolutions and LSTMs of Keras need that).
//!
//! Limits: [`LoadLimits`]. A run holds at most [`RUN_ROWS_MAX`] windows, fewer when the model's intermediate tensors are large. The
//! time a model takes is not bounded here: an operator runs to its end.

mod engine;
mod error;
mod ops;
mod output;

use std::fmt;

use crate::contract::{Contract, InputKind};
use crate::digest::Digest;
use crate::features::Extractor;
use crate::inspect;
use crate::interface::{self, Interface};
use crate::occlusion::Occlusion;

use engine::{Engine, Source, WAYS};
pub use error::{LoadError, LoadLimits, RunError};
pub use output::Finding;
use output::Outputs;

/// Most windows in one run of the engine: beyond some dozens a larger batch gains nothing, and it bounds the memory.
pub const RUN_ROWS_MAX: usize = 256;

/// A model without contributions is explained from this score on; below, contributions are 0. Occlusion costs a run per
/// channel, and nobody asks why a healthy machine is healthy.
pub const OCCLUDE_FROM_SCORE: f32 = 0.5;

/// How closely a golden vector is reproduced: `abs(got − want) ≤ 1e-4 + 1e-3·abs(want)`. Engines differ by about 1e-6.
const GOLDEN_ABSOLUTE: f32 = 1e-4;
const GOLDEN_RELATIVE: f32 = 1e-3;

/// Scores of a batch.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Scores {
    /// One per window; 1.0 is the alarm threshold.
    pub score: Vec<f32>,
    /// What each channel added, `[batch][channels]`, never negative.
    pub contribution: Vec<f32>,
    /// What else the model says, one per window; empty for kinds that say no more than a score.
    pub finding: Vec<Finding>,
}

/// Where contributions come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Explanation {
    /// The graph gives them.
    Graph,
    /// They are how far each channel is from what the graph reconstructs or forecasts.
    Residual,
    /// A channel is replaced by its learned normal and the window scored again.
    Occlusion,
    /// Nowhere: the graph gives none and the contract names no normals. Contributions are 0.
    None,
}

/// A model that has passed every check and its trial run. `Send + Sync`; scoring takes `&self`.
pub struct Model {
    spec: Spec,
    engine: Engine,
}

/// All of a model but the engine's part.
struct Spec {
    contract: Contract,
    digest: Digest,
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
        engine::check_operators(&graph, &interface)?;
        drop(graph);
        let source = Source::decode(bytes, &interface)?;
        let model = Model::choose_engine(Spec::new(bytes, contract, &interface), &source, &interface, limits)?;
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
        self.engine.any_batch
    }

    /// Scores `batch` windows, row-major `[batch][samples][channels]`, in engineering units. Any batch, 0 included; the result of
    /// a window does not depend on the others.
    ///
    /// # Errors
    /// [`RunError`]; for a window that is to blame it names the row, and the rest of the batch can be scored without it.
    pub fn score(&self, windows: &[f32], batch: usize) -> Result<Scores, RunError> {
        self.check_windows(windows, batch)?;
        let mut scores = self.score_windows(windows)?;
        if matches!(self.spec.explanation, Explanation::Occlusion | Explanation::None) {
            scores.contribution = vec![0.0; batch * self.spec.contract.channels.len()];
            self.occlude(windows, &mut scores)?;
        }
        Ok(scores)
    }

    fn check_windows(&self, windows: &[f32], batch: usize) -> Result<(), RunError> {
        let (samples, channels) = (self.spec.contract.samples, self.spec.contract.channels.len());
        if Some(windows.len()) != batch.checked_mul(self.spec.contract.window_len()) {
            return Err(RunError::Length { found: windows.len(), batch, samples, channels });
        }
        // Looked for only when there is one: a search that stops at the first is not vectorised.
        let broken = windows.iter().fold(false, |broken, v| broken | !v.is_finite());
        if broken && let Some(at) = windows.iter().position(|v| !v.is_finite()) {
            let channel = self.spec.contract.channels.get(at % channels).map(|c| c.name.clone()).unwrap_or_default();
            return Err(RunError::Input { row: at / self.spec.contract.window_len(), channel });
        }
        Ok(())
    }

    /// Scores whole windows, without occlusion.
    fn score_windows(&self, windows: &[f32]) -> Result<Scores, RunError> {
        let mut scores = Scores::default();
        self.run_windows(windows, |slice, outputs| output::convert(&self.spec.contract, slice, outputs, &mut scores))?;
        Ok(scores)
    }

    /// Runs whole windows in slices that fit the memory limit, and gives each slice with its outputs to `take`.
    fn run_windows(
        &self,
        windows: &[f32],
        mut take: impl FnMut(&[f32], &Outputs) -> Result<(), RunError>,
    ) -> Result<(), RunError> {
        let (contract, window_len) = (&self.spec.contract, self.spec.contract.window_len());
        let (mut buffer, mut outputs) = (Vec::new(), Outputs::default());
        for slice in windows.chunks(self.engine.run_rows * window_len) {
            let input = match &self.spec.extractor {
                None => output::given_rows(contract, slice, &mut buffer),
                Some(extractor) => {
                    buffer.clear();
                    for window in slice.chunks_exact(window_len) {
                        extractor.extract(window, contract.channels.len(), &mut buffer);
                    }
                    buffer.as_slice()
                }
            };
            outputs.clear();
            self.engine.run(input, slice.len() / window_len, &mut outputs)?;
            take(slice, &outputs)?;
        }
        Ok(())
    }

    /// Explains the rows that are worth it, all their variants in as few runs as the memory limit allows.
    fn occlude(&self, windows: &[f32], scores: &mut Scores) -> Result<(), RunError> {
        let Some(occlusion) = &self.spec.occlusion else { return Ok(()) };
        let (window_len, channels) = (self.spec.contract.window_len(), self.spec.contract.channels.len());
        let rows: Vec<usize> = (0..scores.score.len()).filter(|&row| scores.score[row] >= OCCLUDE_FROM_SCORE).collect();
        let rows_per_run = (self.engine.run_rows / occlusion.variants()).max(1);
        let mut variants = Vec::new();
        for rows in rows.chunks(rows_per_run) {
            variants.clear();
            for &row in rows {
                let window = windows.get(row * window_len..(row + 1) * window_len).unwrap_or_default();
                occlusion.push_variants(window, &mut variants);
            }
            // An error about a variant is one about the window it was made from.
            let row_of = |variant: usize| rows.get(variant / occlusion.variants()).copied().unwrap_or_default();
            let without = self.score_windows(&variants).map_err(|error| error.map_row(row_of))?;
            for (&row, without) in rows.iter().zip(without.score.chunks(occlusion.variants())) {
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
        let explanation = match (contract.output.residual(), &interface.contribution, &occlusion) {
            (Some(_), ..) => Explanation::Residual,
            (None, Some(_), _) => Explanation::Graph,
            (None, None, Some(_)) => Explanation::Occlusion,
            (None, None, None) => Explanation::None,
        };
        Spec { contract, digest: Digest::of(bytes), extractor, explanation, occlusion }
    }
}

/// Loading.
impl Model {
    /// Tries the four ways of loading, most general and fastest first, and keeps the first that passes its trial run.
    fn choose_engine(
        mut spec: Spec,
        source: &Source,
        interface: &Interface,
        limits: &LoadLimits,
    ) -> Result<Model, LoadError> {
        let mut first_error = None;
        for way in WAYS {
            let error = match source.load(interface, way, limits) {
                Ok(engine) => {
                    let model = Model { spec, engine };
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
        self.score(&mild, 1).map_err(trial_error)?;
        let three = [mild.as_slice(), &rough, &mild].concat();
        self.score(&three, 3).map_err(trial_error)?;
        // What the graph gives is compared, not the score: that of a value better than healthy is 0 whatever the value.
        let alone = self.raw(&mild).map_err(trial_error)?;
        let together = self.raw(&three).map_err(trial_error)?;
        let same = |row: &[f32]| row.iter().zip(&alone).all(|(a, b)| close(*a, *b));
        let mut rows = together.chunks_exact(alone.len().max(1));
        if rows.next().is_some_and(same) && rows.nth(1).is_some_and(same) {
            Ok(())
        } else {
            let reason = "what it gives for a window changes with the windows beside it in the batch".to_owned();
            Err(LoadError::Engine { reason })
        }
    }

    /// What the graph's first output gives for `windows`.
    fn raw(&self, windows: &[f32]) -> Result<Vec<f32>, RunError> {
        let mut raw = Vec::new();
        self.run_windows(windows, |_, outputs| {
            raw.extend_from_slice(&outputs.primary);
            Ok(())
        })?;
        Ok(raw)
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
            // Contributions by occlusion depend on a threshold of ours, so they are not compared.
            if let (Explanation::Graph | Explanation::Residual, Some(want)) =
                (self.spec.explanation, &golden.contribution)
            {
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
    if close(found, expected) {
        Ok(())
    } else {
        Err(LoadError::Golden { index, what: what.to_owned(), found, expected })
    }
}

fn close(found: f32, expected: f32) -> bool {
    (found - expected).abs() <= GOLDEN_ABSOLUTE + GOLDEN_RELATIVE * expected.abs()
}

fn trial_error(error: RunError) -> LoadError {
    match error {
        RunError::NotFinite { found, .. } => LoadError::NotFinite { found },
        RunError::Probability { class, found, .. } => LoadError::Probability { class, found },
        RunError::Panicked { reason } => LoadError::Panicked { during: "trying the model", reason },
        other => LoadError::Engine { reason: other.to_string() },
    }
}
