//! What a model may cost, why one is refused, and why scoring fails.
//!
//! Owns the limits and the words. Each error of loading carries the remedy; the one to act is whoever exported the file, and the
//! running model is not concerned.

use crate::contract::ContractError;

/// What a model file may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadLimits {
    /// Size of the file: 32 MiB by default; a model update of 512 chunks of 64 KiB.
    pub file_bytes_max: usize,
    /// Nodes, those of subgraphs included: 4,000 by default. An unrolled LSTM over 100 steps has about 1,500; the engine's optimiser
    /// takes time with the square of a long chain, half a minute at the limit.
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
            nodes_max: 4_000,
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
    /// A trial window gave no probability.
    #[error(
        "for an ordinary window the model gives {found} as the probability of class `{class}`: end the graph with a softmax or a sigmoid"
    )]
    Probability {
        /// The class.
        class: String,
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
    /// The model gave a probability outside 0…1.
    #[error("the model gives {found} for window {row} as the probability of class `{class}`")]
    Probability {
        /// Which window of the batch, from 0.
        row: usize,
        /// The class.
        class: String,
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

impl RunError {
    /// The same error about the window that `row_of` makes of its own.
    pub(super) fn map_row(mut self, row_of: impl FnOnce(usize) -> usize) -> RunError {
        if let RunError::Input { row, .. } | RunError::NotFinite { row, .. } | RunError::Probability { row, .. } =
            &mut self
        {
            *row = row_of(*row);
        }
        self
    }
}
