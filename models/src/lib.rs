//! ONNX models: their contract, loading and running them, and learning one from a machine's own telemetry.
//!
//! Owns everything that is known about a model file: the metadata that makes it self-describing ([`contract`]), the
//! checks that decide whether it may run ([`runtime`]), the detector that is learned on site ([`commission()`]), the
//! episode logic that turns scores into alarms ([`episode`]), the manifest under which a model travels
//! ([`manifest`]) and who vouches for it ([`signature`]). Never touches the network, the disk, a clock or telemetry: bytes and numbers in, bytes and numbers out.
//!
//! Reading order: [`contract`] → [`runtime`] → [`commission()`] → [`episode`].

pub mod commission;
pub mod contract;
pub mod detector;
pub mod digest;
pub mod episode;
pub mod features;
mod graph;
mod inspect;
mod interface;
pub mod manifest;
mod occlusion;
pub mod onnx;
pub mod runtime;
pub mod signature;
mod wire;

pub use commission::{CommissionError, Commissioned, Report, Subject, commission};
pub use contract::{Channel, Contract, ContractError, InputKind, ModelName, OutputKind, Provenance};
pub use detector::Params;
pub use digest::Digest;
pub use episode::{Episode, State};
pub use features::Feature;
pub use manifest::{Assembler, Manifest, ManifestError};
pub use runtime::{Explanation, Finding, LoadError, LoadLimits, Model, RunError, Scores};
pub use signature::{PublicKey, SecretKey, SignatureError};
